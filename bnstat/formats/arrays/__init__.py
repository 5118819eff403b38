"""Files of named arrays, of the libraries that networks are ported to and from."""
