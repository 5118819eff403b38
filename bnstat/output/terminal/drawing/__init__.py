"""Layers drawn large, of characters."""
