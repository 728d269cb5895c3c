"""Tables of labelled time series, one a row, as people have those of the UCR archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spectral_triton.experiments.errors import DataError
from spectral_triton.experiments.tasks.storage import read_intact

ADJUSTED = "Missing_value_and_variable_length_datasets_adjusted"
"""The folder of the archive with complete copies of the data sets that are not."""

REMEDY = (
    f"take the data set from {ADJUSTED}, where the archive has filled it, or ask for a mask "
    "(train ucr NAME --mask)"
)


def read_table(path: Path, *, gaps: bool = False) -> tuple[list[str], np.ndarray]:
    """Labels as they are written, and values (N, T) right-aligned.

    A row is a label and its values, separated by tabs, or by commas or spaces as in older copies of
    the archive; in a ``.ts`` file the values come first and a colon stands before the label. Blank
    lines, separators at the end of a row and a byte-order mark mean nothing.

    NaN at the end of a row means a shorter series, which is moved to the right and preceded by NaN,
    so that every series ends at the last step. So does a shorter row of a ``.ts`` file. NaN before
    it is a gap, written also ``?`` or as an empty cell. With ``gaps`` these are allowed, and
    shorter rows in every kind of file. Labels are numbers, in a ``.ts`` file also words.

    Raises:
        DataError: if a row is ragged, a cell is no number, or a value inside a series is missing.
    """
    try:
        text = read_intact(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not plain text: {error}") from error
    ts = path.name.removesuffix(".gz").endswith(".ts")
    split = _cells_of_ts if ts else _cells
    lines = enumerate(text.splitlines(), start=1)
    rows = [(number, split(line)) for number, line in lines if not _is_blank(line, ts)]
    if not rows or len(rows[0][1]) < 2:
        raise DataError(
            f"{path} has no rows of a label and values separated by tabs, commas or spaces"
        )
    ragged = ts or gaps
    width = max(len(row) for _, row in rows) if ragged else len(rows[0][1])
    values = np.empty((len(rows), width - 1))
    for index, (number, row) in enumerate(rows):
        cells = row + ["nan"] * (width - len(row)) if ragged else row
        if len(cells) != width:
            raise DataError(
                f"{path} is damaged: row {number} has {len(cells)} columns, row {rows[0][0]} has "
                f"{width}; if its series do differ in length, {REMEDY}"
            )
        try:
            label, series = cells[0], [read_number(cell or "nan") for cell in cells[1:]]
            _check_label(label, words=ts)
        except ValueError as error:
            raise DataError(f"{path} is damaged: row {number}: {error}") from error
        values[index] = _right_aligned(np.array(series), f"{path}, row {number}", gaps)
    return [row[0].strip() for _, row in rows], values


def _is_blank(line: str, ts: bool) -> bool:
    return not line.strip() or (ts and line.lstrip().startswith(("#", "@")))


def _cells(line: str) -> list[str]:
    """Label and values of a row, without what follows the last of them."""
    separator = next((mark for mark in "\t," if mark in line), None)
    # Spaces come in runs, and before the first cell.
    cells = [cell.strip() for cell in line.split(separator)]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _cells_of_ts(line: str) -> list[str]:
    """As :func:`_cells`, of a line ``value,value,...:label``."""
    series, colon, label = line.rpartition(":")
    if not colon or ":" in series:
        raise DataError(
            f"a line of a .ts file must be values, a colon and a label, one series a line, got "
            f"{line[:40]!r}"
        )
    if not label.strip():
        raise DataError(f"a line of a .ts file has no label: {line[:40]!r}")
    return [label.strip(), *_cells(series)]


def _check_label(label: str, words: bool) -> None:
    try:
        number = read_number(label)
    except ValueError:
        if words:
            return
        raise
    if not np.isfinite(number):
        raise ValueError(f"the label is {label!r}")


def read_number(cell: str) -> float:
    """The number a cell holds, NaN where it is marked as missing; ValueError of any other text."""
    # float() would also read "1_0" as ten.
    if cell == "?":
        return float("nan")
    if "_" in cell:
        raise ValueError(f"could not convert string to float: {cell!r}")
    return float(cell)


def _right_aligned(series: np.ndarray, where: str, gaps: bool) -> np.ndarray:
    present = ~np.isnan(series)
    if not present.any():
        raise DataError(f"{where}: the series has no values")
    length = int(present.nonzero()[0][-1]) + 1
    if np.isinf(series).any():
        raise DataError(f"{where}: a value is infinite")
    if not gaps and not present[:length].all():
        raise DataError(f"{where}: a value inside the series is missing: {REMEDY}")
    return np.concatenate([np.full(len(series) - length, np.nan), series[:length]])
