"""What TensorFlow saves: checkpoints of both kinds and SavedModels."""
