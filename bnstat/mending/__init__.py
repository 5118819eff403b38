"""`apply`: a copy of a model in its own format, with new values."""
