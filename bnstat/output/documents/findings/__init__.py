"""Findings, for other programs' reports."""
