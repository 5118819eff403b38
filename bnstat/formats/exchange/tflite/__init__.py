"""TensorFlow Lite: a flatbuffer of operations and their constants."""
