"""What networks are ported to and from."""
