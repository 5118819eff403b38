"""Protocol buffers: by compiled descriptors, and by the bare wire format."""
