import math

import pytest
import torch

from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.tasks.copying import BLANK, DELIMITER, SYMBOLS, Copying


def make(length=7, seed=0):
    return Copying(length, 5, seed=seed, dtype=torch.float64)


@pytest.mark.parametrize("length", [1, 7, 30])
def test_layout(length):
    batch = make(length).train_batch(0)
    assert batch.inputs.shape == (length + 20, 5, SYMBOLS + 2)
    tokens = batch.inputs.argmax(-1)
    assert torch.equal(batch.inputs.sum(-1), torch.ones(length + 20, 5))
    assert (tokens[:10] < SYMBOLS).all()
    assert (tokens == DELIMITER).nonzero()[:, 0].tolist() == [length + 9] * 5
    rest = torch.cat([tokens[10 : length + 9], tokens[length + 10 :]])
    assert (rest == BLANK).all()
    assert (batch.targets[:-10] == BLANK).all()
    assert torch.equal(batch.targets[-10:], tokens[:10])


def test_batches_depend_on_seed_and_step_only():
    assert torch.equal(make().train_batch(2).targets, make().train_batch(2).targets)
    assert not torch.equal(make().train_batch(2).targets, make().train_batch(3).targets)
    assert not torch.equal(make().train_batch(2).targets, make(seed=1).train_batch(2).targets)


def test_baseline_is_the_loss_of_guessing_the_symbols():
    task = make()
    outputs = torch.full((27, 5, SYMBOLS + 1), -1e9)
    outputs[:17, :, BLANK] = 0
    outputs[17:, :, :SYMBOLS] = 0
    loss = task.loss(outputs, task.train_batch(0).targets)
    assert float(loss) == pytest.approx(task.metric.baseline)
    assert task.metric.baseline == pytest.approx(10 * math.log(8) / 27)


def test_recall_counts_the_symbols_alone():
    task = make()
    targets = task.train_batch(0).targets
    outputs = torch.nn.functional.one_hot(targets, SYMBOLS + 1).double()
    outputs[-10:-5] = 0
    outputs[-10:-5, :, BLANK] = 1
    tally = task.tally(task.loss(outputs, targets), outputs, targets)
    assert task.results(tally)["recall"] == pytest.approx(0.5)


def test_length_is_checked():
    with pytest.raises(UsageError, match="--length"):
        make(length=0)
