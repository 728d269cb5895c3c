import gzip
import hashlib

import pytest

from spectral_triton.experiments.errors import DataError
from spectral_triton.experiments.tasks.storage import (
    ENVIRONMENT_VARIABLE,
    DataFolder,
    fetch,
    read_intact,
)


def test_option_comes_before_environment_before_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "environment"))
    (tmp_path / "option").mkdir()
    assert DataFolder(tmp_path / "option").root == tmp_path / "option"
    assert DataFolder().root == tmp_path / "environment"
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cached = DataFolder()
    assert cached.root.name == "spectral_triton"
    assert cached.origin == "the user's cache"


def test_option_must_be_a_folder(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        DataFolder(tmp_path / "absent")


def test_find_prefers_the_collection_and_knows_gz(tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "a.gz").write_bytes(b"")
    data = DataFolder(tmp_path)
    assert data.find("mnist", "a") == tmp_path / "a.gz"
    (tmp_path / "mnist" / "a").write_bytes(b"")
    assert data.find("mnist", "a") == tmp_path / "mnist" / "a"
    assert data.find("mnist", "b") is None


def test_missing_files_are_all_named_with_their_places(tmp_path):
    (tmp_path / "b").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        DataFolder(tmp_path).find_all("ptb", {n: [n] for n in "abc"}, advice="Bring them.")
    message = str(caught.value)
    assert "a (or a.gz), c (or c.gz)" in message
    assert f"{tmp_path / 'ptb'} or {tmp_path} (from --data-dir)" in message
    assert message.endswith("Bring them.")


@pytest.mark.parametrize("kept", [0, 5, 11, 30])
def test_truncated_gzip_is_refused(tmp_path, kept):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"0123456789" * 10)[:kept])
    if kept == 0:
        # An empty file is a gzip file of no members: only the checksum or the format refuses it.
        assert read_intact(path) == b""
    else:
        with pytest.raises(DataError, match="damaged"):
            read_intact(path)


def test_flipped_bit_in_gzip_is_refused(tmp_path):
    content = bytearray(gzip.compress(b"0123456789" * 10))
    content[14] ^= 1
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read_intact(tmp_path / "a.gz")


def test_checksum_is_that_of_the_content(tmp_path):
    checksum = hashlib.sha256(b"text").hexdigest()
    (tmp_path / "a").write_bytes(b"text")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"text", 1))
    assert read_intact(tmp_path / "a", sha256=checksum) == b"text"
    assert read_intact(tmp_path / "a.gz", sha256=checksum) == b"text"
    (tmp_path / "a").write_bytes(b"tex")
    with pytest.raises(DataError, match="sha256"):
        read_intact(tmp_path / "a", sha256=checksum)


def test_unreadable_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_intact(tmp_path / "absent")


def test_fetch_keeps_the_right_content_only(tmp_path, server):
    folder, address = server
    (folder / "a.gz").write_bytes(gzip.compress(b"text"))
    target = tmp_path / "data" / "a.gz"
    checksum = hashlib.sha256(b"text").hexdigest()
    with pytest.raises(DataError, match="thrown away"):
        fetch(f"{address}/a.gz", target, sha256="0" * 64)
    assert not list(target.parent.iterdir())
    assert fetch(f"{address}/a.gz", target, sha256=checksum) == target
    assert read_intact(target) == b"text"
    assert list(target.parent.iterdir()) == [target]


def test_fetch_says_what_the_server_said(tmp_path, server):
    with pytest.raises(DataError, match="404"):
        fetch(f"{server[1]}/absent", tmp_path / "a", sha256="")
    with pytest.raises(DataError, match="could not fetch"):
        fetch("http://127.0.0.1:9/a", tmp_path / "a", sha256="")
