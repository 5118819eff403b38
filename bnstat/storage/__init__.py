"""Where bytes are: local files and archives, read by ranges."""
