"""Statistics from data: run a model, and measure the inputs of the batch-norm layers."""
