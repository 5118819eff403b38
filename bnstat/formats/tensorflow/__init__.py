"""TensorFlow's files: checkpoints of both versions, SavedModels and graphs."""
