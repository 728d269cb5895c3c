"""What networks are trained on: adding, copying, digits, words and time series."""
