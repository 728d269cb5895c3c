"""Sequential and permuted MNIST: images read pixel by pixel, or row by row."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectral_triton.experiments.errors import DataError, UsageError
from spectral_triton.experiments.tasks.classification import (
    LabelledSequences,
    SequenceClassification,
)
from spectral_triton.experiments.tasks.settings import Settings
from spectral_triton.experiments.tasks.storage import DataFolder, are_known, fetch, read_intact
from spectral_triton.experiments.tasks.task import generator_for

FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""Name of each file and the sha256 of its unpacked content."""

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist"
CLASSES = 10
"""Those of MNIST itself."""

VALIDATION_SHARE = 12
"""One in twelve training digits is held out: 5,000 of 60,000."""

# A former name of the task: another would draw another permutation than that of the reports.
STREAM = "pixel-mnist"

UNSIGNED_BYTE = 8


def read_idx(path: Path) -> Tensor:
    """An idx file of unsigned bytes, gzipped or not, as a uint8 tensor.

    Raises:
        DataError: if the magic number or the number of bytes is wrong.
    """
    return _parsed(path, read_intact(path))


def _parsed(path: Path, content: bytes) -> Tensor:
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE or content[3] < 1:
        raise DataError(f"{path} is not an idx file of unsigned bytes: begins {content[:4].hex()}")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise DataError(f"{path} ends inside its header")
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    size = math.prod(shape)
    if len(content) - header != size:
        raise DataError(f"{path} holds {len(content) - header} values, but says it has {size}")
    if size == 0:
        raise DataError(f"{path} is empty")
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).reshape(shape)


def names_of(name: str, data: DataFolder) -> list[str]:
    """Under which names a file of ``FILES`` is looked for: with a dot, or of a set like MNIST.

    EMNIST calls its files ``emnist-balanced-train-images-idx3-ubyte`` and ``...-test-...``.

    Raises:
        DataError: if the folder holds only sets with names of their own, and several.
    """
    split, rest = name.split("-", 1)
    splits = (split, "test") if split == "t10k" else (split,)
    plain = [f"{each}-{rest}" for each in splits]
    plain += [each.replace("-idx", ".idx") for each in plain]
    if data.find_first("mnist", plain) is not None:
        return plain
    with_prefix: list[str] = []
    for place in data.places("mnist"):
        for each in plain:
            found = place.glob(f"?*-{each}*") if place.is_dir() else ()
            with_prefix += [path.name.removesuffix(".gz") for path in sorted(found)]
    names = [n for n in dict.fromkeys(with_prefix) if n.endswith(tuple(plain))]
    if len(names) > 1:
        raise DataError(
            f"several data sets lie in one folder, {', '.join(names)}: give each a folder of its "
            "own, and that one as --data-dir"
        )
    return [*plain, *names]


def read_mnist(data: DataFolder) -> dict[str, LabelledSequences]:
    """Training and test images (N, rows, columns) of uint8 and labels (N,).

    Of MNIST, or of another set in the same form, such as Fashion-MNIST, KMNIST and EMNIST.

    Raises:
        DataError: if files are missing, damaged or do not belong together.

    Warns:
        UserWarning: if the files are whole, but not those of MNIST.
    """
    names = {name: names_of(name, data) for name in FILES}
    if data.download:
        for name, sha256 in FILES.items():
            if data.find_first("mnist", names[name]) is None:
                target = data.places("mnist")[0] / f"{name}.gz"
                fetch(f"{(data.mirror or MIRROR).rstrip('/')}/{name}.gz", target, sha256=sha256)
    paths = data.find_all("mnist", names, advice="Bring the files, or fetch them with --download.")
    contents = {path: read_intact(path) for path in paths.values()}
    tensors = {name: _parsed(path, contents[path]) for name, path in paths.items()}
    known = are_known(contents, {path: FILES[name] for name, path in paths.items()})
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        of_split = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        images, labels = (tensors[name] for name in of_split)
        if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
            raise DataError(
                f"{paths[of_split[0]]} {tuple(images.shape)} and {paths[of_split[1]]} "
                f"{tuple(labels.shape)} are not images and their labels"
            )
        splits[split] = LabelledSequences(images, labels.long())
    most = {split: int(labelled.labels.max()) for split, labelled in splits.items()}
    if most["test"] > most["train"]:
        raise DataError(
            f"{paths['t10k-labels-idx1-ubyte']} has a label {most['test']}, training ends at "
            f"{most['train']}"
        )
    if splits["train"].sequences.shape[1:] != splits["test"].sequences.shape[1:]:
        raise DataError(
            f"{paths['train-images-idx3-ubyte']} and {paths['t10k-images-idx3-ubyte']} have images "
            "of different sizes"
        )
    if not known:
        sizes = ", ".join(f"{len(labelled)} {split}" for split, labelled in splits.items())
        warnings.warn(
            f"the files in {paths['train-images-idx3-ubyte'].parent} are whole, but not those of "
            f"MNIST: read as another data set, {sizes}, {most['train'] + 1} classes",
            stacklevel=2,
        )
    return splits


class SequentialMNIST(SequenceClassification):
    """Sequential MNIST: images as 784 steps of one pixel, or 28 of a row, scaled to [0, 1].

    Args:
        digits: Training and test images (N, rows, columns) of uint8 with their labels.
        batch_size: Digits in a batch.
        rows: One row of the image at each step instead of one pixel.
        permuted: Permuted MNIST: the pixels of every image in the order of one fixed permutation,
            the same for all seeds.
        seed: Chooses the validation digits and the order of training.
        dtype: Of the inputs.

    References:
        Le, Jaitly, Hinton. A simple way to initialize recurrent networks of rectified linear
        units. 2015. https://arxiv.org/abs/1504.00941
    """

    name = "sequential-mnist"
    options: ClassVar[dict[str, Any]] = {"rows": False, "permuted": False}

    def __init__(
        self,
        digits: dict[str, LabelledSequences],
        batch_size: int,
        *,
        rows: bool,
        permuted: bool,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        self.check_options({"rows": rows, "permuted": permuted})
        count, height, width = digits["train"].sequences.shape
        splits = {
            split: LabelledSequences(
                labelled.sequences.reshape(len(labelled), *((height, width) if rows else (-1, 1))),
                labelled.labels,
            )
            for split, labelled in digits.items()
        }
        order = torch.randperm(count, generator=generator_for(seed, STREAM, "validation"))
        splits["train"], splits["validation"] = splits["train"].split(
            order, count // VALIDATION_SHARE
        )
        self.permutation = (
            torch.randperm(height * width, generator=generator_for(0, STREAM, "permutation"))
            if permuted
            else None
        )
        classes = int(splits["train"].labels.max()) + 1
        super().__init__(splits, classes, batch_size, seed=seed, dtype=dtype)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        if options["rows"] and options["permuted"]:
            raise UsageError("--rows and --permuted do not go together: rows would be torn apart")

    @classmethod
    def defaults(cls, model: str, options: Mapping[str, Any]) -> Settings:
        return Settings(
            epochs=3,
            hidden_size=128,
            batch_size=100,
            lr=2e-3,
            reflectors_lr=2e-3,
            singular_values_lr=1e-2,
            evaluations=12,
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
    ) -> SequentialMNIST:
        digits = read_mnist(data)
        return cls(digits, settings.batch_size, seed=seed, dtype=dtype, **options)

    def prepare(self, sequences: Tensor) -> Tensor:
        if self.permutation is not None:
            sequences = sequences[:, self.permutation]
        return sequences.to(self.dtype) / 255
