import pytest

from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.studies.recipes import REPRODUCTIONS, STUDIES, find
from spectral_triton.experiments.studies.reproduction import Selection
from spectral_triton.experiments.tasks.catalog import TASKS
from spectral_triton.experiments.tasks.mnist import VALIDATION_SHARE
from spectral_triton.experiments.tasks.networks import MODELS
from spectral_triton.experiments.tasks.task import batches_per_epoch
from spectral_triton.experiments.training.model import build_model, count_parameters

EVERYTHING = Selection()


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_settings_are_valid_for_task_and_model(study):
    assert study.task in TASKS
    assert set(study.recipes) <= set(MODELS)
    jobs = study.jobs(EVERYTHING)
    assert len(jobs) == len(study.cases) * len(study.recipes) * len(study.seeds)
    assert len({job.folder for job in jobs}) == len(jobs)
    assert {job.config.settings.total_steps(None) for job in jobs} == {study.steps}
    for job in study.jobs(Selection(search=True)):
        assert job.config.settings.total_steps(None) == study.search.steps
        assert job.config.seed not in study.seeds


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_no_model_of_ours_has_more_candidates_than_another(study):
    counts = {model: len(recipe.candidates) for model, recipe in study.recipes.items()}
    ours = {count for model, count in counts.items() if model.startswith(("spec", "orth"))}
    assert ours == {min(counts.values())}


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_cost_follows_the_length_of_the_sequences(study):
    lines = study.budget(EVERYTHING)
    assert [line.what for line in lines] == list(study.recipes)
    for line in lines:
        steps = study.steps * len(study.seeds) * sum(c.length for c in study.cases.values())
        assert line.runs == len(study.seeds) * len(study.cases)
        assert line.steps == line.runs * study.steps
        cost = study.recipes[line.what].microseconds
        assert line.minutes == pytest.approx(steps * cost / 60e6)


def test_names_are_those_of_the_registry():
    for study in STUDIES:
        assert REPRODUCTIONS[study.name] is study
    assert [r.name for r in find("all")] == list(REPRODUCTIONS)
    assert find("ucr") == [REPRODUCTIONS["ucr"]]
    with pytest.raises(UsageError, match="no reproduction 'sorting': choose from adding-200, "):
        find("sorting")


@pytest.mark.parametrize("layers", [1, 2])
def test_treebank_models_have_equally_many_parameters(layers):
    import torch

    task = type("Words", (), {})()
    task.input_size = task.output_size = 10_000
    task.reads_tokens = task.answers_every_step = True
    counts = {
        job.config.model: count_parameters(
            build_model(
                job.config.model,
                job.config.settings,
                task,
                device=torch.device("meta"),
                dtype=torch.float32,
            )
        )
        for job in REPRODUCTIONS[f"ptb-{layers}"].jobs(Selection(seeds=[0]))
    }
    assert max(counts.values()) < 1.005 * min(counts.values())


@pytest.mark.parametrize(
    ("name", "epochs"), [("sequential-mnist-short", 4), ("sequential-mnist", 25)]
)
def test_digit_steps_are_whole_epochs(name, epochs):
    samples = 60_000 - 60_000 // VALIDATION_SHARE
    for job in REPRODUCTIONS[name].jobs(Selection(seeds=[0])):
        settings = job.config.settings
        assert settings.steps == epochs * batches_per_epoch(samples, settings.batch_size)
