import subprocess

import pytest

from spectral_triton.experiments.training.provenance import commit, hardware, processor, provenance


def git(folder, *arguments):
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path):
    """A committed package and the beginning of its commit's name."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return folder, git(tmp_path, "rev-parse", "HEAD")[:10]


def test_commit_says_whether_the_code_was_changed_since(package):
    folder, name = package
    assert commit(folder) == name
    (folder / "notes.txt").write_text("not tracked")
    assert commit(folder) == name
    (folder / "__init__.py").write_text("x = 1\n")
    assert commit(folder) == f"{name}+"


def test_an_installed_package_inside_of_another_checkout_has_no_commit(package, tmp_path):
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "__init__.py").write_text("")
    assert commit(installed) is None
    assert commit(tmp_path / "nowhere") is None


def test_without_git_there_is_no_commit(package, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit(package[0]) is None


def test_processor_is_named_as_linux_names_it(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Abacus 9: fast\nmodel name\t: other\n")
    assert processor(cpuinfo) == "Abacus 9: fast"
    assert processor(tmp_path / "missing")


def test_provenance_of_this_process():
    import torch

    found = provenance("cpu")
    assert found["hardware"] == hardware("cpu")
    assert found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__
