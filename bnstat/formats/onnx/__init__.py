"""ONNX: the ModelProto, its graphs and functions, and its tensors in the file and beside it."""
