"""Batch normalization in computation graphs."""
