"""``python -m spectral_triton``."""

from spectral_triton.cli import main

main()
