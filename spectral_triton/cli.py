"""``spectral-triton``: says what is missing where the extra that brings the commands is absent."""

from __future__ import annotations

import io
import sys

EXTRA = "pip install 'spectral-triton[experiments]'"


def main() -> None:
    """Runs the command line; without typer only ``info`` works."""
    for stream in (sys.stdout, sys.stderr):
        # A file or pipe on Windows takes no letter beyond its code page.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        import typer  # noqa: F401
    except ImportError:
        _without_typer(sys.argv[1:])
        return
    from spectral_triton.experiments.commands import app

    app(prog_name="spectral-triton")


def _without_typer(arguments: list[str]) -> None:
    if arguments != ["info"]:
        sys.exit(f"Error: typer not installed. Run: {EXTRA}")
    import spectral_triton

    print(spectral_triton.backend_info())
