"""Files that are either the old ones or the new ones, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from spectral_triton.experiments.errors import DataError

FORMAT = 2


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, which then takes its place."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # A full disk is told without the name of the file.
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as a whole, in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes tensors, numbers, strings and containers of them; a failure leaves the old file."""

    def save(file: IO[bytes]) -> None:
        try:
            torch.save({"format": FORMAT, **content}, file)
        except RuntimeError as error:
            # After a failed write the archive cannot be ended, and torch says only that.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write_atomically(path, save)


def load_checkpoint(path: Path, *, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads what ``save_checkpoint`` wrote; nothing in the file is executed.

    Raises:
        DataError: if the file is damaged or no checkpoint of this format.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # What an unpickler makes of damaged bytes is of any type.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} is no intact checkpoint: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} is no checkpoint of format {FORMAT}")
    return content


def _sync_folder(folder: Path) -> None:
    # Without it a crash of the machine could lose the renaming; Windows cannot open folders.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
