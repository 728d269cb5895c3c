"""Where data sets lie on disk, and reading a file either whole and intact or not at all."""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from spectral_triton.experiments.errors import DataError

ENVIRONMENT_VARIABLE = "SPECTRAL_TRITON_DATA"


class DataFolder:
    """The folder that holds ``mnist``, ``ptb`` and ``ucr``.

    Args:
        root: The folder; without it ``$SPECTRAL_TRITON_DATA``, and without that the user's cache.
        download: Whether a data set that may be fetched is fetched when it is missing.
        mirror: Address to fetch from instead of the data set's own.
    """

    def __init__(
        self, root: str | Path | None = None, *, download: bool = False, mirror: str | None = None
    ) -> None:
        self.download = download
        self.mirror = mirror
        if root is not None:
            self.root, self.origin = Path(root), "--data-dir"
        elif os.environ.get(ENVIRONMENT_VARIABLE):
            self.root, self.origin = Path(os.environ[ENVIRONMENT_VARIABLE]), ENVIRONMENT_VARIABLE
        else:
            import pooch

            self.root, self.origin = Path(pooch.os_cache("spectral_triton")), "the user's cache"
        if root is not None and not self.root.is_dir() and not download:
            raise DataError(f"--data-dir {self.root} is not a folder")

    def places(self, collection: str) -> list[Path]:
        """Folders in which files of ``collection`` are looked for, in this order."""
        return [self.root / collection, self.root]

    def find(self, collection: str, name: str, *, within: Iterable[str] = ()) -> Path | None:
        """``name`` or ``name.gz`` in the folders of ``collection`` or in ``within`` below them."""
        for place in self.places(collection):
            for folder in (place, *(place / part for part in within)):
                for candidate in (folder / name, folder / f"{name}.gz"):
                    if candidate.is_file():
                        return candidate
        return None

    def find_first(
        self, collection: str, names: Iterable[str], *, within: Iterable[str] = ()
    ) -> Path | None:
        """The first of several names for the same file that is there."""
        within = tuple(within)
        found = (self.find(collection, name, within=within) for name in names)
        return next((path for path in found if path is not None), None)

    def find_all(
        self, collection: str, names: Mapping[str, Iterable[str]], *, advice: str
    ) -> dict[str, Path]:
        """Every file, each under the first of its names that is there, by the keys of ``names``.

        Raises:
            DataError: if one is missing; names all that are, and where they were looked for.
        """
        found = {key: self.find_first(collection, several) for key, several in names.items()}
        missing = [key for key, path in found.items() if path is None]
        if missing:
            raise DataError(self.missing_message(collection, missing, advice))
        return {key: path for key, path in found.items() if path is not None}

    def missing_message(self, collection: str, missing: Iterable[str], advice: str) -> str:
        """Names the files to bring and the folders they were looked for in."""
        files = ", ".join(f"{name} (or {name}.gz)" for name in missing)
        places = " or ".join(str(place) for place in self.places(collection))
        return (
            f"missing {collection} data: {files}. Looked in {places} (from {self.origin}). {advice}"
        )


def read_intact(path: Path, *, sha256: str | None = None) -> bytes:
    """The whole content of a file, unpacked when its name ends in ``.gz``.

    ``sha256`` is that of the unpacked content, so that it does not depend on who compressed it.

    Raises:
        DataError: if the file cannot be unpacked to its end or its content is another one.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if sha256 is not None:
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise DataError(
                f"{path} is damaged or another file: sha256 of its content is {found}, not {sha256}"
            )
    return content


def are_known(contents: Mapping[Path, bytes], sha256: Mapping[Path, str | None]) -> bool:
    """Whether files that belong together are the published ones, by their contents.

    False where none of them is, which makes them another data set.

    Raises:
        DataError: if some are and others differ, which are damaged then.
    """
    found = {path: hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    other = [path for path in contents if sha256[path] not in (None, found[path])]
    if other and len(other) < len(contents):
        path = other[0]
        raise DataError(
            f"{path} is damaged, or of another data set than the files beside it: sha256 of its "
            f"content is {found[path]}, not {sha256[path]}"
        )
    return not other


def fetch(url: str, target: Path, *, sha256: str) -> Path:
    """Downloads ``url`` to ``target``, which appears only once its content is the expected one.

    Raises:
        DataError: if the server fails or sends something else.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-")
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"cannot write to {target.parent}: {reason}; choose another --data-dir"
        ) from error
    with temporary as folder:
        try:
            # The checksum is of the unpacked content, which pooch cannot check by itself.
            fetched = pooch.retrieve(url, known_hash=None, fname=target.name, path=folder)
        except (requests.RequestException, OSError, ValueError) as error:
            raise DataError(f"could not fetch {url}: {error}") from error
        try:
            read_intact(Path(fetched), sha256=sha256)
        except DataError as error:
            raise DataError(f"what {url} sent was thrown away: {error}") from error
        Path(fetched).replace(target)
    return target
