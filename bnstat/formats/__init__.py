"""Model files: from bytes on disk to named variables and the stored structure."""
