import os
import subprocess
import sys

import pytest

from spectral_triton import cli


def python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_without_typer_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.setattr(sys, "argv", ["spectral-triton", "train", "adding"])
    with pytest.raises(SystemExit, match=r"typer not installed.*spectral-triton\[experiments\]"):
        cli.main()


def test_info_works_without_typer(monkeypatch, capsys):
    import spectral_triton

    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.setattr(sys, "argv", ["spectral-triton", "info"])
    monkeypatch.setattr(spectral_triton, "backend_info", lambda: "a report", raising=False)
    cli.main()
    assert capsys.readouterr().out == "a report\n"


def test_main_runs_the_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["anything", "train", "--help"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "Usage: spectral-triton train" in shown
    assert "--hidden-size" in shown


def test_letters_that_the_output_lacks_are_replaced():
    code = (
        "from spectral_triton import cli; cli._without_typer = lambda a: print('a → b'); cli.main()"
    )
    hidden = "import sys; sys.modules['typer'] = None; "
    done = subprocess.run(
        [sys.executable, "-c", hidden + code],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        check=False,
    )
    assert done.stdout.strip() == b"a ? b", done.stderr


def test_python_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "spectral_triton", "train", "sorting"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "'sorting' is not one of" in done.stderr


def test_heavy_packages_are_imported_when_a_command_runs():
    code = (
        "import sys; import spectral_triton; before = set(sys.modules);"
        "import spectral_triton.experiments.commands;"
        "print([n for n in ('torch', 'matplotlib', 'tensorboard', 'pooch')"
        " if n in set(sys.modules) - before])"
    )
    done = python(code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_plain_import_leaves_experiments_alone():
    code = (
        "import sys, spectral_triton;"
        "print([n for n in sys.modules if n.startswith('spectral_triton.experiments')"
        " or n in ('typer', 'rich', 'matplotlib', 'pooch', 'tensorboard')])"
    )
    assert python(code).stdout == "[]\n"
