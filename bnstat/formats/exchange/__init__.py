"""What networks are ported to and from: ONNX, PyTorch, safetensors, TensorFlow.js and others."""
