"""New statistics from data: running a model, measuring what enters its normalizations."""
