"""Tasks, baselines and training: what `spectral-triton train` runs."""
