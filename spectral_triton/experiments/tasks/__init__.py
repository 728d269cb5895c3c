"""What networks are trained on: adding, copying, MNIST, words and time series."""
