"""One run: a network, its optimizer, progress and pictures, in a folder that can be continued."""
