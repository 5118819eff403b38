"""What notebooks show: tables with small charts, data frames, figures."""
