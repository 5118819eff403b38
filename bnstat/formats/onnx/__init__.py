"""ONNX: a ModelProto, its graphs and functions, its tensors in the file and beside it."""
