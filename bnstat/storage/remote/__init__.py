"""Files and folders behind URLs, through fsspec's drivers and HTTP."""
