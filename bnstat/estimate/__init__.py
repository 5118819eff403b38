"""New statistics from data: run a model, and measure the inputs of the normalizations."""
