"""The lock of a folder that one process at a time may write to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spectral_triton.experiments.errors import FolderInUse, UsageError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes ``folder`` and keeps other processes from it while the block runs.

    The system lets go of the lock when its process ends, however it ends. The file stays, since
    removing it would let two processes lock two files of one name.

    Raises:
        FolderInUse: if another process has it; does not wait.
        UsageError: if the folder cannot be made or written to.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise FolderInUse(f"{folder} is in use by another process") from None
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def is_empty(folder: Path) -> bool:
    """Whether nothing but a lock is in ``folder``."""
    return all(entry.name == LOCK for entry in folder.iterdir())
