"""PyTorch's files: a pickle that describes tensors, and the bytes of their storages."""
