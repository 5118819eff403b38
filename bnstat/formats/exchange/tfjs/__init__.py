"""TensorFlow.js: `model.json` with a topology and a manifest, and shards of weights."""
