"""What the Tab key does: what is offered, and to which shells."""
