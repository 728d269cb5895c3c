import subprocess
import sys

import pytest

from spectral_triton.experiments.errors import FolderInUse, UsageError
from spectral_triton.experiments.training.lock import is_empty, locked

HOLD = """
import sys
from pathlib import Path
from spectral_triton.experiments.training.lock import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_keeps_us_out_until_it_ends_even_if_it_is_killed(tmp_path):
    folder = tmp_path / "new" / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    refused = pytest.raises(FolderInUse, match="new/run is in use by another process")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with refused, locked(folder):
            pytest.fail("entered")
        other.kill()
        other.wait()
        with locked(folder):
            pass


def test_a_failure_lets_go(tmp_path):
    with pytest.raises(ValueError, match="inside"), locked(tmp_path):
        raise ValueError("inside")
    with locked(tmp_path), pytest.raises(FolderInUse), locked(tmp_path):
        pytest.fail("entered")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match=r"cannot write to .*file/run: Not a directory"),
        locked(tmp_path / "file" / "run"),
    ):
        pytest.fail("entered")


def test_a_lock_alone_is_nothing(tmp_path):
    assert is_empty(tmp_path)
    with locked(tmp_path):
        assert is_empty(tmp_path)
    (tmp_path / "thesis.tex").write_text("")
    assert not is_empty(tmp_path)
