"""What people and programs read: terminal text, JSON, CSV, NPZ. One module an output."""
