"""Orbax checkpoints, of JAX libraries and of Keras: folders of Zarr arrays."""
