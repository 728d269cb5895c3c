from spectral_triton.experiments.commands import TaskName
from spectral_triton.experiments.tasks.catalog import TASKS
from spectral_triton.experiments.tasks.networks import MODELS


def test_command_line_offers_every_task():
    assert [task.value for task in TaskName] == list(TASKS)


def test_every_task_has_defaults_for_every_model():
    for task in TASKS.values():
        for model in MODELS:
            settings = task.defaults(model, task.options)
            assert settings.total_steps(10) >= 10
