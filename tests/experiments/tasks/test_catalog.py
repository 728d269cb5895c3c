from spectral_triton.experiments.arguments import TASKS as NAMES
from spectral_triton.experiments.tasks.catalog import TASKS
from spectral_triton.experiments.tasks.networks import MODELS


def test_command_line_offers_every_task():
    assert list(TASKS) == list(NAMES)


def test_every_task_has_defaults_for_every_model():
    for task in TASKS.values():
        for model in MODELS:
            settings = task.defaults(model, task.options)
            assert settings.total_steps(10) >= 10
