"""Files of named arrays, as written by NumPy, JAX, PyTorch and Hugging Face libraries."""
