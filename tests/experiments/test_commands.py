import importlib.util
import json
import re

import pytest
from typer.testing import CliRunner

from spectral_triton.experiments import commands
from spectral_triton.experiments.tasks import adding
from spectral_triton.experiments.tasks.storage import ENVIRONMENT_VARIABLE

QUICK = ("--length", "4", "--steps", "6", "--hidden", "4", "--evaluations", "2")


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    """Runs the command line in an empty folder; gives its result with all text in ``text``."""
    monkeypatch.setattr(adding, "HELD_OUT", {"validation": 8, "test": 8})
    monkeypatch.setattr(adding, "EVALUATION_BATCH", 4)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "nowhere"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        result = CliRunner().invoke(commands.app, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit)
        # The box that errors are drawn in breaks lines and adds bars.
        result.text = re.sub(r"[\s│╭╮╰╯─]+", " ", result.stdout + result.stderr)
        return result

    return call


def test_train_compares_models_and_seeds(invoke, tmp_path):
    models = ("--model", "spectral,lstm", "--model", "gru", "--seed", "1,2", "--reflectors", "1,2")
    result = invoke("train", "adding", *QUICK, *models, "-o", "out")
    assert result.exit_code == 0, result.text
    names = [f"{model}-seed{s}" for s in (1, 2) for model in ("spectral", "lstm", "gru")]
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == set(names)
    config = json.loads((tmp_path / "out" / "spectral-seed2" / "config.json").read_text())
    assert config["num_reflectors"] == [1, 2]
    assert (config["length"], config["steps"], config["seed"]) == (4, 6, 2)
    for part in ("test mse", "spectral", "always answering 1: mse 0.1667", "step 6/6"):
        assert part in result.text


def test_quiet_prints_the_table_alone(invoke):
    result = invoke("train", "adding", *QUICK, "--model", "rnn", "-o", "out", "--quiet")
    assert result.exit_code == 0
    assert "step 6/6" not in result.text
    assert "test mse" in result.text


def test_default_output_is_a_new_folder_below_runs(invoke, tmp_path):
    assert invoke("train", "adding", *QUICK, "--model", "rnn").exit_code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"adding-\d{8}-\d{6}", folder.name)


def test_resume_of_nothing_says_that_it_starts_anew(invoke):
    command = ("train", "adding", *QUICK, "--model", "rnn", "--resume", "-o", "typo")
    for expected in (True, False):
        result = invoke(*command)
        assert result.exit_code == 0
        assert ("nothing to continue in typo: starting anew" in result.text) == expected


def test_resume_needs_the_same_configuration(invoke):
    command = ("train", "adding", *QUICK, "--model", "rnn", "-o", "out")
    assert invoke(*command).exit_code == 0
    again = invoke(*command)
    assert (again.exit_code, "--resume" in again.text) == (2, True)
    assert invoke(*command, "--resume").exit_code == 0
    other = invoke(*command, "--resume", "--clip", "3")
    assert other.exit_code == 2
    assert "clip is 1.0 there and 3.0 here" in other.text


def test_interruption_says_how_to_continue(invoke, monkeypatch):
    import os
    import signal

    from spectral_triton.experiments.training.progress import ProgressReport

    advance = ProgressReport.advance

    def interrupted(self, step, loss):
        advance(self, step, loss)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ProgressReport, "advance", interrupted)
    command = ["train", "adding", *QUICK, "--model", "rnn"]
    monkeypatch.setattr("sys.argv", ["spectral-triton", *command])
    result = invoke(*command)
    assert result.exit_code == 130
    assert "stopped at step 3 of 6 and saved" in result.text
    hint = re.search(r"Continue with: spectral-triton (.*--output \S+ --resume)", result.text)
    monkeypatch.setattr(ProgressReport, "advance", advance)
    assert invoke(*hint.group(1).split()).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sorting"], "'sorting' is not one of"),
        (["adding", "--model", "urnn"], "no model 'urnn': choose from spectral"),
        (["adding", "--model", "rnn,rnn"], "'rnn' is given twice"),
        (["adding", "--seed", "-1"], "--seed takes whole numbers from 0, not '-1'"),
        (["adding", "--seed", "x"], "not 'x'"),
        (["adding", "--rows"], "rows is no option of adding"),
        (["adding", "CBF"], "dataset is no option of adding"),
        (["adding", "--length", "1"], "--length must be at least 2, not 1"),
        (["adding", "--length", "x"], "Invalid value for '--length'"),
        (["adding", "--hidden", "0"], "hidden_size must be at least 1, not 0"),
        (["adding", "--lr", "-1"], "learning_rate must be a positive number, not -1"),
        (["adding", "--reflectors", "a"], "--reflectors takes K, LEFT,RIGHT or full, not 'a'"),
        (["adding", "--reflectors", "1,2,3"], "--reflectors takes"),
        (["adding", "--reflectors", "99"], "from 0 to the hidden size 64, not 99"),
        (["adding", "--model", "lstm", "--margin", "0.1"], "margin has no meaning for lstm"),
        (["adding", "--margin", "0"], "use --model orthogonal"),
        (["adding", "--nonlinearity", "sine"], "'sine'"),
        (["adding", "--epochs", "1"], "has no epochs: give steps"),
        (["adding", "--epochs", "1", "--steps", "1"], "either steps or epochs"),
        (["adding", "--schedule", "step"], "schedule must be one of constant"),
        (["adding", "--dtype", "int8"], "dtype must be one of float32, float64, not 'int8'"),
        (["adding", "--device", "toaster"], "no device 'toaster'"),
        (["adding", "--threads", "0"], "threads must be at least 1, not 0"),
        (["adding", "--resume"], "--resume needs the --output"),
        (["adding", "--mirror", "http://x"], "without --download"),
        (["adding", "--output", "file"], "--output file is not a folder"),
        (["ucr"], "ucr needs the name of a data set"),
        (["ucr", "../x"], "is not the name of a UCR data set"),
        (["pixel-mnist", "--rows", "--permuted"], "do not go together"),
    ],
)
def test_bad_options_are_explained(invoke, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    result = invoke("train", *arguments)
    assert message in result.text
    assert result.exit_code == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (["pixel-mnist"], "train-images-idx3-ubyte (or train-images-idx3-ubyte.gz)"),
        (["ptb"], "ptb.train.txt"),
        (["ucr", "CBF"], "CBF_TRAIN.tsv"),
    ],
)
def test_missing_data_is_named(invoke, tmp_path, arguments, files):
    result = invoke("train", *arguments)
    assert result.exit_code == 1
    assert files in result.text
    assert f"{tmp_path / 'nowhere'} (from {ENVIRONMENT_VARIABLE})" in result.text


def test_missing_packages_are_named_with_the_extra(invoke, monkeypatch):
    find = importlib.util.find_spec
    absent = ("rich", "matplotlib")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else find(name)
    )
    result = invoke("train", "adding", *QUICK)
    assert result.exit_code == 1
    assert "matplotlib, rich not installed" in result.text
    assert "pip install 'spectral-triton[experiments]'" in result.text


def test_info_prints_the_backend_report(invoke, monkeypatch):
    import spectral_triton

    monkeypatch.setattr(spectral_triton, "backend_info", lambda: "a report", raising=False)
    result = invoke("info")
    assert (result.exit_code, result.stdout) == (0, "a report\n")
