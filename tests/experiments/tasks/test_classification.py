import math

import pytest
import torch

from spectral_triton.experiments.tasks.classification import (
    IGNORED,
    LabelledSequences,
    SequenceClassification,
    accuracy_metric,
    cross_entropy,
)


class Plain(SequenceClassification):
    name = "plain"
    check_options = defaults = build = None


def make(count=7, batch_size=3, seed=0):
    sequences = torch.arange(count * 4.0).reshape(count, 4, 1)
    data = LabelledSequences(sequences, torch.arange(count) % 2)
    return Plain({"train": data, "test": data}, 2, batch_size, seed=seed, dtype=torch.float32)


def test_cross_entropy_leaves_out_what_does_not_count():
    outputs, targets = torch.randn(3, 2, 5), torch.tensor([[1, IGNORED], [0, 4], [IGNORED, 2]])
    logs = outputs.log_softmax(-1)
    counted = [logs[0, 0, 1], logs[1, 0, 0], logs[1, 1, 4], logs[2, 1, 2]]
    torch.testing.assert_close(cross_entropy(outputs, targets), -torch.stack(counted).mean())


def test_an_epoch_is_one_pass_with_matching_labels():
    task = make()
    assert task.steps_per_epoch == 3
    batches = [task.train_batch(step) for step in range(3)]
    seen = torch.cat([batch.inputs[0, :, 0] for batch in batches])
    assert sorted(seen.tolist()) == [4.0 * i for i in range(7)]
    for batch in batches:
        assert batch.inputs.dtype == torch.float32
        assert torch.equal(batch.targets, (batch.inputs[0, :, 0] / 4).long() % 2)
        assert torch.equal(batch.inputs[1], batch.inputs[0] + 1)


def test_order_depends_on_the_seed():
    orders = {
        tuple(make(40, 40, seed).train_batch(0).inputs[0, :, 0].tolist()) for seed in range(3)
    }
    assert len(orders) == 3


def test_evaluation_sees_all_in_order():
    (batch,) = make().batches("test")
    assert batch.inputs[0, :, 0].tolist() == [4.0 * i for i in range(7)]


def test_results():
    task = make()
    outputs = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    targets = torch.tensor([0, 1, 1])
    results = task.results(task.tally(task.loss(outputs, targets), outputs, targets))
    assert results["accuracy"] == pytest.approx(2 / 3)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert results["loss"] == pytest.approx((2 * right + wrong) / 3)


def test_split_and_baseline():
    data = LabelledSequences(torch.arange(5.0), torch.arange(5))
    kept, held_out = data.split(torch.tensor([4, 0, 2, 1, 3]), 2)
    assert (kept.labels.tolist(), held_out.labels.tolist()) == ([4, 0, 2], [1, 3])
    assert accuracy_metric(4).baseline == 0.25
    assert not make().has_validation
