"""The file formats of values that `export` writes and `apply` reads."""
