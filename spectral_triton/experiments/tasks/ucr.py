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
from spectral_triton.experiments.tasks.series_table import REMEDY, read_number, read_table
from spectral_triton.experiments.tasks.settings import Settings
from spectral_triton.experiments.tasks.storage import DataFolder, read_intact
from spectral_triton.experiments.tasks.task import generator_for

VALIDATION_FROM = 200
"""Training series below which none can be spared for validation."""

VALIDATION_SHARE = 5

FOLDS = 3
"""Parts of the training series, one of which validates where a fold is asked for."""

ADVICE = (
    "The archive is kept by others (www.cs.ucr.edu/~eamonn/time_series_data_2018) and never "
    "fetched: bring NAME_TRAIN.tsv and NAME_TEST.tsv, or those two as .txt, .csv or .ts."
)


ENDINGS = ".tsv", ".txt", ".csv", ".ts", ""


def filled(series: Tensor, normalize: bool) -> Tensor:
    """(N, T, 1) with each series' mean where it has no value; scaled first if wanted."""
    mean = series.nanmean(1, keepdim=True)
    if not normalize:
        return torch.where(series.isnan(), mean, series)
    # Of the values alone: with what is filled in, short series would be scaled up.
    deviation = (series - mean).square().nanmean(1, keepdim=True).sqrt()
    return ((series - mean) / deviation.clamp(min=1e-8)).nan_to_num(nan=0.0)


def read_series(
    data: DataFolder, dataset: str, *, mask: bool = False
) -> tuple[dict[str, LabelledSequences], int]:
    """Training and test series (N, T, 1) in float64, labels renumbered from 0, and their number.

    Series that are shorter than the longest have NaN before them. With ``mask`` there may be gaps,
    which are NaN as well, and the longest of one file may be longer than that of the other, as in
    ``.ts`` files it always may.

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
    tables = {split: read_table(path, gaps=mask) for split, path in paths.items()}
    labels = _comparable({split: table[0] for split, table in tables.items()})
    classes = sorted(set(labels["train"]))
    strange = sorted(set(labels["test"]) - set(classes))
    if strange:
        name = strange[0] if isinstance(strange[0], str) else f"{strange[0]:g}"
        raise DataError(f"{paths['test']} has the label {name}, which training never saw")
    lengths = [tables[split][1].shape[1] for split in ("train", "test")]
    ragged = mask or all(path.name.removesuffix(".gz").endswith(".ts") for path in paths.values())
    if lengths[0] != lengths[1] and not ragged:
        raise DataError(
            f"{paths['train']} and {paths['test']} have series of different lengths, {lengths[0]} "
            f"and {lengths[1]}: {REMEDY}"
        )
    _check_manifest(dataset, paths["train"].parent / "MANIFEST.tsv", tables, len(classes))
    number = {label: index for index, label in enumerate(classes)}
    splits = {
        split: LabelledSequences(
            torch.from_numpy(_lengthened(table[1], max(lengths))).unsqueeze(-1),
            torch.tensor([number[label] for label in labels[split]]),
        )
        for split, table in tables.items()
    }
    return splits, len(classes)


def _comparable(labels: Mapping[str, list[str]]) -> dict[str, list[Any]]:
    """Labels as numbers, or as they are written where one of them is a word.

    As numbers since some files write 1, others 1.0 or 1.0000000e+00.
    """
    try:
        return {split: [read_number(label) for label in own] for split, own in labels.items()}
    except ValueError:
        return dict(labels)


def _lengthened(values: np.ndarray, length: int) -> np.ndarray:
    """(N, length) with NaN in front."""
    return np.pad(values, ((0, 0), (length - values.shape[1], 0)), constant_values=np.nan)


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """The fold of each sample, shape (N,): every label's samples are dealt out in turn.

    Of N samples each fold has N / folds, rounded up or down; which ones, ``seed`` decides.
    """
    order = torch.randperm(len(labels), generator=generator_for(seed, "folds"))
    order = order[labels[order].argsort(stable=True)]
    fold = torch.empty(len(labels), dtype=torch.long)
    fold[order] = torch.arange(len(labels)) % folds
    return fold


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
    """One data set of the archive, one value a step, with ``mask`` also whether it was measured.

    Args:
        series: Training and test series (N, T, 1) with labels 0 .. classes - 1.
        classes: Number of labels.
        batch_size: Series in a batch.
        normalize: Scales each series to mean 0 and variance 1.
        seed: Chooses the validation series, where there are enough, and the order of training.
        dtype: Of the inputs.
        mask: Adds a second feature, 1 where a series has a value and 0 where it is filled in.
        fold: Which third of the training series is for validation, in parts that are the same for
            every seed and have each label's share; None for the usual fifth, where there are
            enough.

    References:
        Dau et al. The UCR time series archive. 2018. https://arxiv.org/abs/1810.07758
    """

    name = "ucr"
    options: ClassVar[dict[str, Any]] = {
        "dataset": None,
        "normalize": True,
        "mask": False,
        "fold": None,
    }

    def __init__(
        self,
        series: dict[str, LabelledSequences],
        classes: int,
        batch_size: int,
        *,
        normalize: bool,
        seed: int,
        dtype: torch.dtype,
        mask: bool = False,
        fold: int | None = None,
    ) -> None:
        splits = {}
        for split, labelled in series.items():
            sequences = filled(labelled.sequences, normalize)
            if mask:
                present = labelled.sequences.isfinite().to(sequences.dtype)
                sequences = torch.cat((sequences, present), -1)
            splits[split] = LabelledSequences(sequences, labelled.labels)
        count = len(splits["train"])
        if fold is not None:
            whole, folds = splits["train"], stratified_folds(splits["train"].labels, FOLDS, 0)
            splits["train"] = whole.take((folds != fold).nonzero()[:, 0])
            splits["validation"] = whole.take((folds == fold).nonzero()[:, 0])
            if not len(splits["train"]) or not len(splits["validation"]):
                raise DataError(f"{count} training series are too few for {FOLDS} folds")
        elif count >= VALIDATION_FROM:
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
        fold = options["fold"]
        if fold is not None and not 0 <= fold < FOLDS:
            raise UsageError(f"--fold must be from 0 to {FOLDS - 1}, not {fold}")

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
        series, classes = read_series(data, options["dataset"], mask=options["mask"])
        return cls(
            series,
            classes,
            settings.batch_size,
            normalize=options["normalize"],
            seed=seed,
            dtype=dtype,
            mask=options["mask"],
            fold=options["fold"],
        )
