import pytest
import torch

from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.tasks.adding import EVALUATION_BATCH, HELD_OUT, Adding


def make(length=9, batch_size=6, seed=0, dtype=torch.float64):
    return Adding(length, batch_size, seed=seed, dtype=dtype)


@pytest.mark.parametrize("length", [2, 3, 9, 50])
def test_target_is_the_sum_of_one_marked_number_of_each_half(length):
    batch = make(length).train_batch(0)
    numbers, marks = batch.inputs.unbind(-1)
    assert batch.inputs.shape == (length, 6, 2)
    assert marks[: length // 2].sum(0).tolist() == [1] * 6
    assert marks[length // 2 :].sum(0).tolist() == [1] * 6
    assert ((marks == 0) | (marks == 1)).all()
    assert ((numbers >= 0) & (numbers < 1)).all()
    torch.testing.assert_close(batch.targets[:, 0], (numbers * marks).sum(0))


def test_batches_depend_on_seed_and_step_only():
    task = make()
    later = task.train_batch(3).inputs
    task.train_batch(0)
    assert torch.equal(make().train_batch(3).inputs, later)
    assert not torch.equal(task.train_batch(4).inputs, later)
    assert not torch.equal(make(seed=1).train_batch(3).inputs, later)


def test_same_numbers_in_every_dtype():
    single, double = make(dtype=torch.float32).train_batch(1), make().train_batch(1)
    assert single.inputs.dtype == single.targets.dtype == torch.float32
    assert torch.equal(single.inputs, double.inputs.float())


def test_held_out_sets_do_not_depend_on_the_batch_size():
    for split, size in HELD_OUT.items():
        small, large = (
            torch.cat([b.targets for b in make(batch_size=n).batches(split)]) for n in (1, 9)
        )
        assert len(small) == size
        assert size % EVALUATION_BATCH == 0
        assert torch.equal(small, large)


def test_baseline_is_the_error_of_answering_one():
    task = make()
    errors = torch.cat([(b.targets - 1).square() for b in task.batches("test")])
    # 5,000 samples of a variable of variance 7/180 - 1/36 stay within five standard errors.
    assert abs(float(errors.mean()) - task.metric.baseline) < 5 * (errors.std() / 5000**0.5)


def test_results_are_means_over_sequences():
    task = make()
    outputs, targets = torch.zeros(6, 1), task.train_batch(0).targets
    tally = task.tally(task.loss(outputs, targets), outputs, targets)
    tally.add(task.tally(task.loss(outputs[:2], targets[:2]), outputs[:2], targets[:2]))
    squares = torch.cat([targets, targets[:2]]).square()
    assert task.results(tally)["mse"] == pytest.approx(float(squares.mean()))


def test_length_is_checked():
    with pytest.raises(UsageError, match="--length must be at least 2, not 1"):
        make(length=1)
