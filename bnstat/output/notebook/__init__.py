"""Displays for notebooks: tables with small charts, data frames, figures."""
