"""The formats of values: `export` writes them, and `apply` reads them."""
