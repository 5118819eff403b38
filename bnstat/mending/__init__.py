"""New values for a model: estimated from data, and written into a copy."""
