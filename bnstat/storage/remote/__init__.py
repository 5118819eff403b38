"""Files that are far away, behind URLs, through fsspec's drivers."""
