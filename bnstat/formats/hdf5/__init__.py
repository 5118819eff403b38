"""A bounded reader of HDF5 files."""
