import re

import pytest
from typer.testing import CliRunner

from spectral_triton.experiments import commands
from spectral_triton.experiments.reproduce_command import results_of_page
from spectral_triton.experiments.studies import recipes
from spectral_triton.experiments.tasks.storage import ENVIRONMENT_VARIABLE


@pytest.fixture
def invoke(monkeypatch, tmp_path, tiny_study):
    """The command with two tiny studies registered, in an empty folder."""
    studies = {name: tiny_study(name=name) for name in ("tiny", "other")}
    monkeypatch.setattr(recipes, "REPRODUCTIONS", studies)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        result = CliRunner().invoke(commands.app, ["reproduce", *arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        result.text = re.sub(r"[\s│╭╮╰╯─]+", " ", result.stdout + result.stderr)
        return result

    return call


@pytest.mark.parametrize("arguments", [("all", "--dry-run"), ("tiny", "--dry-run")])
def test_budget_is_printed_without_running(invoke, tmp_path, arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.text
    assert "tiny spectral 2 12 0.0" in result.text
    assert ("other lstm 2 12" in result.text) == (arguments[:1] != ("tiny",))
    assert not list(tmp_path.iterdir())


def test_without_a_name_each_experiment_is_a_line_with_its_hours(invoke, tmp_path):
    result = invoke()
    assert result.exit_code == 0, result.text
    for name in ("tiny", "other"):
        assert f"{name} {recipes.REPRODUCTIONS[name].title} 4 0.0" in result.text
    assert not list(tmp_path.iterdir())


def test_the_list_fits_80_columns(invoke, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = invoke().stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_run_page_and_published_copy(invoke, tmp_path):
    result = invoke("tiny", "-o", "out", "--publish", "pub", "--seeds", "0,3", "-m", "lstm")
    assert result.exit_code == 0, result.text
    leaves = {p.parent.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("config.json")}
    assert leaves == {"out/tiny/lstm/seed-0", "out/tiny/lstm/seed-3"}
    names = {path.name for path in (tmp_path / "pub/tiny").iterdir()}
    assert names == {"README.md", "results.jsonl", "curves.png"}
    for name in names:
        assert (tmp_path / "pub/tiny" / name).read_bytes() == (
            tmp_path / "out/tiny" / name
        ).read_bytes()
    assert "step 6/6" in result.text
    assert "test mse" in result.text.split("step 6/6")[-1], "the result is printed at the end"
    again = invoke("tiny", "-o", "out", "--seeds", "0,3", "-m", "lstm")
    assert again.exit_code == 0
    assert "step 6/6" not in again.text


def test_page_only_runs_nothing(invoke, tmp_path):
    assert invoke("tiny", "-o", "out", "--seeds", "0", "--quiet").exit_code == 0
    (tmp_path / "out/tiny/README.md").unlink()
    result = invoke("all", "-o", "out", "--page-only")
    assert result.exit_code == 0
    assert (tmp_path / "out/tiny/README.md").is_file()
    assert not (tmp_path / "out/other").exists()


def test_search_fills_the_log(invoke, tmp_path):
    assert invoke("tiny", "--search", "-m", "lstm", "-o", "out", "-q").exit_code == 0
    assert "## Search" in (tmp_path / "out/tiny/README.md").read_text()


def test_failures_are_told_at_the_end(invoke, monkeypatch):
    from spectral_triton.experiments.errors import TrainingStopped
    from spectral_triton.experiments.training.training import Training

    def diverge(self):
        raise TrainingStopped("the loss is nan")

    monkeypatch.setattr(Training, "run", diverge)
    result = invoke("all", "-o", "out", "--seeds", "0", "-m", "lstm")
    assert result.exit_code == 1
    for name in ("tiny", "other"):
        assert f"Error: {name}/lstm/seed-0: the loss is nan" in result.text


def test_interruption_says_how_to_continue(invoke, monkeypatch):
    from spectral_triton.experiments.errors import Interrupted
    from spectral_triton.experiments.training.training import Training

    def stop(self):
        raise Interrupted("stopped at step 3 of 6 and saved")

    monkeypatch.setattr(Training, "run", stop)
    result = invoke("tiny", "-o", "out")
    assert result.exit_code == 130
    assert "stopped at step 3 of 6 and saved Repeat the command to continue." in result.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sorting"], "no reproduction 'sorting': choose from tiny, other, all"),
        (["tiny", "--models", "gru"], "tiny has no model 'gru': choose from spectral, lstm"),
        (["tiny", "--models", "lstm,lstm"], "'lstm' is given twice"),
        (["tiny", "--cases", "CBF"], "tiny has no case 'CBF'"),
        (["tiny", "--seeds", "-1"], "--seeds takes whole numbers from 0, not '-1'"),
        (["tiny", "--device", "toaster"], "no device 'toaster'"),
        (["tiny", "--threads", "0"], "--threads must be at least 1, not 0"),
        (["tiny", "--output", "file"], "--output file is not a folder"),
    ],
)
def test_bad_options_are_explained(invoke, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    result = invoke(*arguments)
    assert message in result.text
    assert result.exit_code == 2
    assert not (tmp_path / "runs").exists()


def test_page_only_of_nothing_fails(invoke):
    result = invoke("tiny", "-o", "nowhere", "--page-only")
    assert (result.exit_code, "no run in nowhere/tiny" in result.text) == (2, True)


def test_page_only_of_a_folder_without_runs_fails_and_writes_nothing(invoke, tmp_path):
    folder = tmp_path / "out" / "tiny" / "lstm"
    folder.mkdir(parents=True)
    (tmp_path / "out" / "tiny" / "notes.md").write_text("Nothing yet.")
    result = invoke("all", "-o", "out", "--page-only")
    assert (result.exit_code, "no run in out/tiny, out/other" in result.text) == (2, True)
    assert not (tmp_path / "out" / "tiny" / "README.md").exists()


def test_a_full_disk_is_one_line(invoke, monkeypatch):
    import errno

    from spectral_triton.experiments.training.run_folder import RunFolder

    def full(self, path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(RunFolder, "save_checkpoint", full)
    result = invoke("tiny", "-o", "out", "--seeds", "0", "-m", "lstm")
    assert result.exit_code == 1
    assert re.search(r"Error: \S*last\.pt: No space left on device", result.text)


def test_results_of_a_page_are_its_title_and_first_tables():
    page = "# T\n\nMade by x.\n\n![c](c.png)\n\n| a |\n| --- |\n| [b](c) |\n\n## More\n\n| d |\n"
    assert results_of_page(page) == "**T**\n\n| a |\n| --- |\n| b |\n"
    assert results_of_page("# T\n\nNo run yet.\n") == "**T**\n\nNo run is finished yet."
