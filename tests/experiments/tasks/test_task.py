import pytest
import torch

from spectral_triton.experiments.tasks.task import (
    Batch,
    Metric,
    Tally,
    batches_per_epoch,
    generator_for,
    shuffled_indices,
)


def test_generator_depends_on_seed_and_every_name():
    def draw(*key):
        return torch.rand(4, generator=generator_for(*key)).tolist()

    draws = [draw(0, "a", 1), draw(1, "a", 1), draw(0, "b", 1), draw(0, "a", 2), draw(0, "a")]
    assert len({tuple(values) for values in draws}) == len(draws)
    assert draw(0, "a", 1) == draws[0]


def test_generator_leaves_torchs_own_alone():
    before = torch.get_rng_state()
    torch.rand(3, generator=generator_for(0, "a"))
    assert torch.equal(before, torch.get_rng_state())


def test_each_epoch_is_a_pass_in_another_order():
    size, batch = 10, 4
    assert batches_per_epoch(size, batch) == 3
    epochs = [
        torch.cat([shuffled_indices(size, batch, 3 * epoch + i, seed=0) for i in range(3)])
        for epoch in range(2)
    ]
    for order in epochs:
        assert order.sort().values.tolist() == list(range(size))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert len(shuffled_indices(size, batch, 2, seed=0)) == 2


@pytest.mark.parametrize("higher", [True, False])
def test_better(higher):
    metric = Metric("m", "m", 0.0, "b", higher_is_better=higher)
    assert metric.better(1.0, None)
    assert metric.better(2.0, 1.0) is higher
    assert metric.better(1.0, 2.0) is not higher
    assert not metric.better(1.0, 1.0)


def test_tally_adds_up():
    tally = Tally(1.0, 2.0, 3)
    tally.add(Tally(10.0, 20.0, 30))
    assert (tally.loss, tally.correct, tally.count) == (11.0, 22.0, 33)


def test_batch_moves_whole():
    batch = Batch(torch.zeros(1), torch.zeros(2), fresh=False).to(torch.device("meta"))
    assert batch.inputs.is_meta
    assert batch.targets.is_meta
    assert not batch.fresh
