"""Protocol buffers: parsed by the protobuf package, or field by field from the wire format."""
