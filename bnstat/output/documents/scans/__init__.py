"""Scans as documents, written line by line as the records come."""
