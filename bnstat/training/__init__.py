"""Looking at models while they are trained."""
