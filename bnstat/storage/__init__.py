"""Files and folders read by ranges: on disk, in archives, and behind URLs."""
