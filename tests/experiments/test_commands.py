import importlib.util
import json
import re

import pytest
from typer.testing import CliRunner

from spectral_triton.experiments import commands, former_names
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


def test_resume_takes_what_is_not_given_from_the_folder(invoke, tmp_path):
    models = ("--model", "rnn,lstm", "--seed", "3", "--clip", "2", "--dtype", "float64")
    assert invoke("train", "adding", *QUICK, *models, "-o", "out").exit_code == 0
    # As after an interruption.
    (tmp_path / "out" / "rnn-seed3" / "summary.json").unlink()
    again = invoke("train", "adding", "--resume", "-o", "out")
    assert again.exit_code == 0, again.text
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {
        "rnn-seed3",
        "lstm-seed3",
    }
    assert (tmp_path / "out" / "rnn-seed3" / "summary.json").is_file()
    other = invoke("train", "adding", "--resume", "-o", "out", "--length", "5")
    assert (other.exit_code, "length is 4 there and 5 here" in other.text) == (2, True)
    other = invoke("train", "copying", "--resume", "-o", "out")
    assert (other.exit_code, "task is 'adding' there and 'copying' here" in other.text) == (2, True)


def test_a_model_added_to_a_folder_stands_beside_those_before(invoke, tmp_path, monkeypatch):
    from spectral_triton.experiments.training import plots

    drawn = []
    monkeypatch.setattr(plots, "comparison", lambda *given: drawn.append(sorted(given[3])))
    for model in ("rnn", "lstm"):
        assert invoke("train", "adding", *QUICK, "--model", model, "-o", "out").exit_code == 0
    table = (tmp_path / "out" / "summary.md").read_text()
    assert "| lstm |" in table
    assert "| rnn |" in table
    assert drawn == [["rnn"], ["lstm", "rnn"]]
    # Another length is another comparison, though it lies in the same folder.
    longer = ("--length", "5", "--steps", "6", "--hidden-size", "4", "--model", "gru", "-o", "out")
    assert invoke("train", "adding", *longer).exit_code == 0
    assert drawn[-1] == ["gru"]


def test_version(invoke):
    import spectral_triton

    result = invoke("--version")
    assert (result.exit_code, spectral_triton.__version__ in result.text) == (0, True)


def test_a_full_disk_is_one_line(invoke, monkeypatch):
    import errno

    from spectral_triton.experiments.training.run_folder import RunFolder

    def full(self, path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(RunFolder, "save_checkpoint", full)
    result = invoke("train", "adding", *QUICK, "--model", "rnn", "-o", "out")
    assert result.exit_code == 1
    assert re.search(r"Error: \S*last\.pt: No space left on device", result.text)
    assert "Traceback" not in result.text


def test_a_data_set_in_small_letters_is_told_its_name(invoke, tmp_path):
    folder = tmp_path / "data" / "ucr" / "CBF"
    folder.mkdir(parents=True)
    for split in ("TRAIN", "TEST"):
        (folder / f"CBF_{split}.tsv").write_text("1\t0.5\t0.2\n2\t0.1\t0.7\n")
    result = invoke("train", "ucr", "cbf", "--data-dir", str(tmp_path / "data"))
    assert (result.exit_code, "did you mean CBF?" in result.text) == (1, True)


def test_a_task_without_validation_prints_lines_of_the_training_data(invoke, tmp_path):
    folder = tmp_path / "data" / "ucr" / "Two"
    folder.mkdir(parents=True)
    for split in ("TRAIN", "TEST"):
        (folder / f"Two_{split}.tsv").write_text("1\t0.5\t0.2\n2\t0.1\t0.7\n")
    quick = ("--steps", "4", "--hidden-size", "4", "--evaluations", "2", "--model", "lstm")
    result = invoke("train", "ucr", "Two", *quick, "--data-dir", str(tmp_path / "data"), "-o", "o")
    assert result.exit_code == 0, result.text
    for step in (2, 4):
        assert f"lstm-seed0 step {step}/4 training accuracy " in result.text


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("--hidden-size", "hidden_size", 3),
        ("--num-layers", "num_layers", 2),
        ("--num-reflectors", "num_reflectors", [2, 2]),
        ("--lr", "lr", 0.5),
        ("--reflectors-lr", "reflectors_lr", 0.25),
        ("--singular-values-lr", "singular_values_lr", 0.125),
        # Former spellings.
        ("--hidden", "hidden_size", 3),
        ("--layers", "num_layers", 2),
        ("--reflectors", "num_reflectors", [2, 2]),
        ("--learning-rate", "lr", 0.5),
        ("--lr-reflectors", "reflectors_lr", 0.25),
        ("--lr-sigma", "singular_values_lr", 0.125),
    ],
)
def test_options_are_called_as_in_python(invoke, tmp_path, option, field, value):
    given = str(value[0] if isinstance(value, list) else value)
    assert invoke("train", "adding", *QUICK, option, given, "-o", "out").exit_code == 0
    config = json.loads((tmp_path / "out" / "spectral-seed0" / "config.json").read_text())
    assert config[field] == value


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
        (["adding", "--rows"], "--rows is no option of adding"),
        (["adding", "CBF"], "the name of a data set is no option of adding"),
        (["adding", "--length", "1"], "--length must be at least 2, not 1"),
        (["adding", "--length", "x"], "Invalid value for '--length'"),
        (["adding", "--hidden", "0"], "--hidden-size must be at least 1, not 0"),
        (["adding", "--lr", "-1"], "--lr must be a positive number, not -1"),
        (["adding", "--reflectors", "a"], "--num-reflectors takes K, LEFT,RIGHT or full, not 'a'"),
        (["adding", "--reflectors", "1,2,3"], "--num-reflectors takes"),
        (["adding", "--reflectors", "99"], "from 0 to the hidden size 64, not 99"),
        (["adding", "--model", "lstm", "--margin", "0.1"], "--margin has no meaning for lstm"),
        (["adding", "--margin", "0"], "use --model orthogonal"),
        (["adding", "--nonlinearity", "sine"], "'sine'"),
        (["adding", "--epochs", "1"], "has no epochs: give --steps"),
        (["adding", "--epochs", "1", "--steps", "1"], "either --steps or --epochs"),
        (["adding", "--schedule", "step"], "--schedule must be one of constant"),
        (["adding", "--dtype", "int8"], "--dtype must be one of float32, float64, not 'int8'"),
        (["adding", "--device", "toaster"], "no device 'toaster'"),
        (["adding", "--threads", "0"], "--threads must be at least 1, not 0"),
        (["adding", "--resume"], "--resume needs the --output"),
        (["adding", "--mirror", "http://x"], "without --download"),
        (["adding", "--output", "file"], "--output file is not a folder"),
        (["ucr"], "ucr needs the name of a data set"),
        (["ucr", "../x"], "is not the name of a UCR data set"),
        (["sequential-mnist", "--rows", "--permuted"], "do not go together"),
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
        (["sequential-mnist"], "train-images-idx3-ubyte (or train-images-idx3-ubyte.gz)"),
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


def test_a_run_saved_under_former_names_is_continued(invoke, tmp_path):
    assert invoke("train", "adding", *QUICK, "-o", "run").exit_code == 0
    path = tmp_path / "run" / "spectral-seed0" / "config.json"
    kept = json.loads(path.read_text())
    former = {new: old for old, new in former_names.SETTINGS.items()}
    path.write_text(json.dumps({former.get(name, name): kept[name] for name in kept}))
    assert invoke("train", "adding", "--resume", "-o", "run").exit_code == 0
    refused = invoke("train", "adding", "--resume", "--lr", "0.5", "-o", "run")
    assert (refused.exit_code, "lr is 0.005 there and 0.5 here" in refused.text) == (2, True)


def test_a_task_is_known_by_its_former_name(invoke):
    result = invoke("train", "pixel-mnist", "--rows", "--permuted")
    assert "do not go together" in result.text
    unknown = invoke("train", "mnist")
    assert (unknown.exit_code, "'mnist' is not one of adding" in unknown.text) == (2, True)
