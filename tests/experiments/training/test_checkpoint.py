import pickle
import sys

import pytest
import torch

from spectral_triton.experiments.errors import DataError
from spectral_triton.experiments.training.checkpoint import (
    load_checkpoint,
    save_checkpoint,
    write_atomically,
)


def test_round_trip(tmp_path):
    content = {"step": 3, "model": {"a": torch.randn(2, 3)}, "best": None, "list": [1.5, "x"]}
    save_checkpoint(tmp_path / "a.pt", content)
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(loaded["model"].pop("a"), content["model"].pop("a"))
    assert loaded == {"format": 2, **content}
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failing_write_leaves_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"step": 1})

    def write_half(_content, file):
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(type(error)):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path)["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]


def test_new_content_is_never_seen_half_written(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    write_atomically(path, write)
    assert path.read_bytes() == b"new"


def test_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    save_checkpoint(tmp_path / "a.pt", {"step": 1})
    assert (tmp_path / "a.pt").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("kept", [0, 10, 300, -1])
def test_truncated_checkpoint_is_refused(tmp_path, kept):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"model": torch.zeros(50)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="no intact checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"junk", b"\x80\x02junk", b"PK\x03\x04" + bytes(40), bytes(8)])
def test_damaged_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(DataError, match="is no intact checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


def test_foreign_files_are_refused_and_never_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    path = tmp_path / "a.pt"
    torch.save({"format": 2, "trap": Trap()}, path)
    with pytest.raises(DataError, match="no intact checkpoint"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(DataError, match="no intact checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "sprung").exists()
    torch.save([1, 2], path)
    with pytest.raises(DataError, match="format 2"):
        load_checkpoint(path)
    torch.save({"format": 1}, path)
    with pytest.raises(DataError, match="format 2"):
        load_checkpoint(path)


def test_absent_checkpoint_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of the size of files")
def test_a_full_disk_is_told_as_the_system_tells_it(tmp_path):
    import resource

    path = tmp_path / "a.pt"
    save_checkpoint(path, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        # torch itself raises a RuntimeError about the end of its archive.
        with pytest.raises(OSError, match="too large") as failed:
            save_checkpoint(path, {"model": {"a": torch.randn(100, 100)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.filename == str(path)
    assert load_checkpoint(path)["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]
