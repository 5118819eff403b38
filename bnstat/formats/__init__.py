"""Model files: from bytes on disk to named variables and what the file says of structure."""
