"""Time series of the UCR archive, classified after their last value."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spectral_triton.experiments.errors import DataError, UsageError
from spectral_triton.experiments.tasks.classification import (
    LabelledSequences,
    SequenceClassification,
)
from spectral_triton.experiments.tasks.settings import Settings
from spectral_triton.experiments.tasks.storage import DataFolder, read_intact
from spectral_triton.experiments.tasks.task import generator_for

VALIDATION_FROM = 200
"""Training series below which none can be spared for validation."""

VALIDATION_SHARE = 5
ADVICE = (
    "The archive is kept by others (www.cs.ucr.edu/~eamonn/time_series_data_2018) and never "
    "fetched: bring NAME_TRAIN.tsv and NAME_TEST.tsv, or those two as .txt, .csv or .ts."
)


ADJUSTED = "Missing_value_and_variable_length_datasets_adjusted"
"""The folder of the archive with complete copies of the data sets that are not."""

ENDINGS = ".tsv", ".txt", ".csv", ".ts", ""


def read_table(path: Path) -> tuple[list[str], np.ndarray]:
    """Labels as they are written, and values (N, T) right-aligned.

    A row is a label and its values, separated by tabs, or by commas or spaces as in older copies of
    the archive; in a ``.ts`` file the values come first and a colon stands before the label. Blank
    lines, separators at the end of a row and a byte-order mark mean nothing.

    NaN at the end of a row means a shorter series, which is moved to the right and preceded by its
    mean, so that every series ends at the last step. So does a shorter row of a ``.ts`` file.

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
    width = max(len(row) for _, row in rows) if ts else len(rows[0][1])
    values = np.empty((len(rows), width - 1))
    for index, (number, row) in enumerate(rows):
        cells = row + ["nan"] * (width - len(row)) if ts else row
        if len(cells) != width:
            raise DataError(
                f"{path} is damaged: row {number} has {len(cells)} columns, row {rows[0][0]} has "
                f"{width}"
            )
        try:
            label, *series = (_number(cell) for cell in cells)
            if not np.isfinite(label):
                raise ValueError(f"the label is {cells[0]!r}")
        except ValueError as error:
            raise DataError(f"{path} is damaged: row {number}: {error}") from error
        values[index] = _right_aligned(np.array(series), f"{path}, row {number}")
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
    return [label.strip(), *("nan" if cell.strip() == "?" else cell for cell in _cells(series))]


def _number(cell: str) -> float:
    # float() would also read "1_0" as ten.
    if "_" in cell:
        raise ValueError(f"could not convert string to float: {cell!r}")
    return float(cell)


def _right_aligned(series: np.ndarray, where: str) -> np.ndarray:
    present = ~np.isnan(series)
    if not present.any():
        raise DataError(f"{where}: the series has no values")
    length = int(present.nonzero()[0][-1]) + 1
    if not np.isfinite(series[:length]).all():
        raise DataError(
            f"{where}: a value inside the series is missing or infinite; fill it first, or take "
            f"the data set from {ADJUSTED}, where the archive has filled it"
        )
    return np.concatenate([np.full(len(series) - length, np.nan), series[:length]])


def filled(series: Tensor, normalize: bool) -> Tensor:
    """(N, T, 1) with each series' mean before it where it is shorter; scaled first if wanted."""
    mean = series.nanmean(1, keepdim=True)
    if not normalize:
        return torch.where(series.isnan(), mean, series)
    # Of the values alone: with what is filled in, short series would be scaled up.
    deviation = (series - mean).square().nanmean(1, keepdim=True).sqrt()
    return ((series - mean) / deviation.clamp(min=1e-8)).nan_to_num(nan=0.0)


def read_series(data: DataFolder, dataset: str) -> tuple[dict[str, LabelledSequences], int]:
    """Training and test series (N, T, 1) in float64, labels renumbered from 0, and their number.

    Series that are shorter than the longest have NaN before them.

    Where a ``MANIFEST.tsv`` (columns dataset, train, test, classes, length) lies beside the files,
    their sizes must be the ones it names.

    Raises:
        DataError: if files are missing, damaged or do not belong together.
    """
    paths, missing = {}, []
    for split in ("train", "test"):
        name = f"{dataset}_{split.upper()}"
        path = data.find_first("ucr", (name + end for end in ENDINGS), within=(dataset,))
        if path is None:
            missing.append(f"{name}.tsv")
        else:
            paths[split] = path
    if missing:
        names = _names_but_for_case(data, dataset)
        if names:
            raise DataError(f"there is no data set {dataset!r}: did you mean {' or '.join(names)}?")
        raise DataError(data.missing_message("ucr", missing, ADVICE))
    tables = {split: read_table(path) for split, path in paths.items()}
    # Labels are compared as numbers: some files write 1, others 1.0 or 1.0000000e+00.
    labels = {split: [float(label) for label in table[0]] for split, table in tables.items()}
    classes = sorted(set(labels["train"]))
    strange = sorted(set(labels["test"]) - set(classes))
    if strange:
        raise DataError(f"{paths['test']} has the label {strange[0]:g}, which training never saw")
    lengths = [tables[split][1].shape[1] for split in ("train", "test")]
    if lengths[0] != lengths[1]:
        raise DataError(
            f"{paths['train']} and {paths['test']} have series of different lengths, {lengths[0]} "
            f"and {lengths[1]}: fill the shorter ones up with NaN at their ends, or take the data "
            f"set from {ADJUSTED}, where the archive has made them equal"
        )
    _check_manifest(dataset, paths["train"].parent / "MANIFEST.tsv", tables, len(classes))
    number = {label: index for index, label in enumerate(classes)}
    splits = {
        split: LabelledSequences(
            torch.from_numpy(table[1]).unsqueeze(-1),
            torch.tensor([number[label] for label in labels[split]]),
        )
        for split, table in tables.items()
    }
    return splits, len(classes)


def _names_but_for_case(data: DataFolder, dataset: str) -> list[str]:
    """Data sets that are there and are spelt as ``dataset`` but for capital letters."""
    found = {
        match.group(1)
        for folder in data.places("ucr")
        if folder.is_dir()
        for path in (*folder.glob("*_T*"), *folder.glob("*/*_T*"))
        if (match := re.match(r"(.+)_(?:TRAIN|TEST)", path.name))
    }
    return sorted(name for name in found if name.lower() == dataset.lower())


def _check_manifest(
    dataset: str, manifest: Path, tables: Mapping[str, tuple[list[str], np.ndarray]], classes: int
) -> None:
    if not manifest.is_file():
        return
    try:
        text = read_intact(manifest).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{manifest} is damaged: {error}") from error
    for row in csv.DictReader(io.StringIO(text), delimiter="\t"):
        if row.get("dataset") != dataset:
            continue
        found = {
            "train": len(tables["train"][0]),
            "test": len(tables["test"][0]),
            "classes": classes,
            "length": tables["train"][1].shape[1],
        }
        for column, value in found.items():
            if row.get(column) != str(value):
                raise DataError(
                    f"{dataset} is damaged: {column} is {value}, {manifest} says {row.get(column)}"
                )


class UCRSeries(SequenceClassification):
    """One data set of the archive, one value a step.

    Args:
        series: Training and test series (N, T, 1) with labels 0 .. classes - 1.
        classes: Number of labels.
        batch_size: Series in a batch.
        normalize: Scales each series to mean 0 and variance 1.
        seed: Chooses the validation series, where there are enough, and the order of training.
        dtype: Of the inputs.

    References:
        Dau et al. The UCR time series archive. 2018. https://arxiv.org/abs/1810.07758
    """

    name = "ucr"
    options: ClassVar[dict[str, Any]] = {"dataset": None, "normalize": True}

    def __init__(
        self,
        series: dict[str, LabelledSequences],
        classes: int,
        batch_size: int,
        *,
        normalize: bool,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        splits = {
            split: LabelledSequences(filled(labelled.sequences, normalize), labelled.labels)
            for split, labelled in series.items()
        }
        count = len(splits["train"])
        if count >= VALIDATION_FROM:
            order = torch.randperm(count, generator=generator_for(seed, self.name, "validation"))
            splits["train"], splits["validation"] = splits["train"].split(
                order, count // VALIDATION_SHARE
            )
        super().__init__(splits, classes, batch_size, seed=seed, dtype=dtype)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        dataset = options["dataset"]
        if dataset is None:
            raise UsageError("ucr needs the name of a data set, such as: ucr CBF")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", dataset):
            raise UsageError(f"{dataset!r} is not the name of a UCR data set")

    @classmethod
    def defaults(cls, model: str, options: Mapping[str, Any]) -> Settings:
        return Settings(
            steps=1500,
            batch_size=32,
            lr=3e-3,
            reflectors_lr=3e-3,
            singular_values_lr=1.5e-2,
        )

    @classmethod
    def build(
        cls,
        options: Mapping[str, Any],
        settings: Settings,
        *,
        seed: int,
        dtype: torch.dtype,
        data: DataFolder,
    ) -> UCRSeries:
        series, classes = read_series(data, options["dataset"])
        return cls(
            series,
            classes,
            settings.batch_size,
            normalize=options["normalize"],
            seed=seed,
            dtype=dtype,
        )
