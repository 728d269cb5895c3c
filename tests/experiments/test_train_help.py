import pytest
from typer.testing import CliRunner

from spectral_triton.experiments import commands
from spectral_triton.experiments.arguments import TASKS
from spectral_triton.experiments.tasks.networks import MODELS
from spectral_triton.experiments.train_help import task_defaults
from spectral_triton.experiments.training.config import make_config


def shown(*arguments, width=200):
    command = ["train", *arguments, "--help"]
    widths = {"terminal_width": width, "max_content_width": width}
    result = CliRunner().invoke(commands.app, command, **widths)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("task", TASKS)
def test_defaults_are_those_that_are_taken(task):
    options = {"dataset": "CBF"} if task == "ucr" else {}
    for model in MODELS:
        settings = make_config(task, model, options=options).settings
        text = task_defaults(task)["lr"]
        parts = dict(reversed(part.rsplit(" ", 1)) for part in text.split("; ")[1:])
        mine = [value for value, models in parts.items() if model in models.split(", ")]
        assert float(mine[0] if mine else text.split("; ")[0]) == pytest.approx(settings.lr, 1e-4)


def test_help_of_a_task_has_its_own_options_with_their_defaults():
    text = shown("adding")
    assert "steps to remember over. [default: 200]" in text
    assert "tanh, relu; for spectral models" in text
    assert "--window" not in text
    assert "--rows" not in text
    text = shown("ptb")
    assert "[default: 35]" in text
    assert "--length" not in text
    # The task that is asked for does not stay in mind.
    text = shown()
    assert "--window" in text
    assert "[default: 35]" not in text


@pytest.mark.parametrize("width", [60, 80])
def test_help_fits_the_terminal(width):
    for task in TASKS:
        assert max(map(len, shown(task, width=width).splitlines())) <= width
