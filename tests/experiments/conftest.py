"""Small data files of every format, the real ones where they are, and runs that take no time."""

import functools
import gzip
import hashlib
import http.server
import os
import struct
import threading
from pathlib import Path

import pytest
import torch

from spectral_triton.experiments.studies.plan import Case, Goal, Recipe, Search
from spectral_triton.experiments.studies.study import Study
from spectral_triton.experiments.tasks import adding, mnist, ptb
from spectral_triton.experiments.tasks.storage import ENVIRONMENT_VARIABLE, DataFolder


def idx_bytes(values: torch.Tensor) -> bytes:
    header = bytes([0, 0, 8, values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape)
    return header + values.numpy().tobytes()


@pytest.fixture
def no_environment(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A folder with 36 + 10 digits of 4 x 3 pixels, and their checksums in place of MNIST's."""
    generator = torch.Generator().manual_seed(1)
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    checksums = {}
    for prefix, count in (("train", 36), ("t10k", 10)):
        images = torch.randint(0, 256, (count, 4, 3), generator=generator, dtype=torch.uint8)
        labels = torch.arange(count, dtype=torch.uint8) % 10
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(values)
            checksums[f"{prefix}-{name}-ubyte"] = hashlib.sha256(content).hexdigest()
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(mnist, "FILES", checksums)
    return folder


@pytest.fixture
def tiny_text(tmp_path, monkeypatch):
    """A folder with a corpus of five words and the end of line."""
    folder = tmp_path / "data" / "ptb"
    folder.mkdir(parents=True)
    texts = {
        "train": " the cat sat \n the dog <unk> the \n" * 12,
        "validation": " the dog sat \n",
        "test": " the cat <unk> \n the dog sat \n",
    }
    files = {}
    for split, text in texts.items():
        file = ptb.FILES[split]
        (folder / file.name).write_text(text)
        tokens = len(text.split()) + text.count("\n")
        checksum = hashlib.sha256(text.encode()).hexdigest()
        files[split] = ptb.TextFile(file.name, checksum, tokens)
    monkeypatch.setattr(ptb, "FILES", files)
    return folder


@pytest.fixture
def tiny_series(tmp_path):
    """A folder with a data set "Tiny": labels -1 and 2, five values each."""
    folder = tmp_path / "data" / "ucr"
    folder.mkdir(parents=True)
    (folder / "Tiny_TRAIN.tsv").write_text(
        "-1\t1\t2\t3\t4\t5\n2\t5\t4\t3\t2\t1\n-1\t0\t1\t2\t3\t5\n"
    )
    (folder / "Tiny_TEST.tsv").write_text("2\t9\t7\t5\t3\t1\n-1\t1\t2\t4\t8\t16\n")
    return folder


@pytest.fixture
def real_data():
    """The real data sets, where the environment says they are."""
    root = os.environ.get(ENVIRONMENT_VARIABLE)
    if not root or not Path(root).is_dir():
        pytest.skip(f"{ENVIRONMENT_VARIABLE} names no folder of real data")
    return DataFolder()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder and the address under which localhost serves it."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


class Listener:
    """A report that remembers, and that can break a run off at a step."""

    def __init__(self, *, fail_at=None):
        self.fail_at, self.losses, self.evaluations, self.begun = fail_at, [], [], None

    def begin(self, label, total, done):
        self.begun = (label, total, done)

    def advance(self, step, loss):
        self.losses.append((step, loss))
        if step == self.fail_at:
            raise RuntimeError("killed")

    def evaluated(self, step, metric, value, *, split):
        self.evaluations.append((step, value))

    def note(self, message):
        pass


@pytest.fixture
def listener():
    return Listener


@pytest.fixture
def tiny_study(monkeypatch):
    """A study of two models on the adding problem whose runs take no time; fields by keyword."""
    monkeypatch.setattr(adding, "HELD_OUT", {"validation": 8, "test": 8})
    monkeypatch.setattr(adding, "EVALUATION_BATCH", 4)

    def make(**changes):
        candidates = ({"lr": 1e-3}, {"lr": 1e-2})
        fields = {
            "name": "tiny",
            "title": "Tiny sums",
            "task": "adding",
            "cases": {"": Case({"length": 4}, 4)},
            "recipes": {
                "spectral": Recipe({"margin": 0.5}, 100, candidates),
                "lstm": Recipe({}, 200, candidates),
            },
            "common": {"hidden_size": 4, "evaluations": 3},
            "steps": 6,
            "seeds": (0, 1),
            "goal": Goal("mse", 10.0),
            "search": Search(steps=4, evaluations=2),
        }
        return Study(**{**fields, **changes})

    return make
