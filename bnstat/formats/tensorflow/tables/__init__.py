"""The key-value tables that checkpoints are kept in."""
