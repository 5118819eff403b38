"""PyTorch's files: a pickle that describes, and the bytes of storages that it speaks of."""
