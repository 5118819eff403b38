"""ONNX: the ModelProto, its graphs and functions, and its tensors in or beside the file."""
