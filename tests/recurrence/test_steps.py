"""Steps and chunks against rows named one by one."""

import pytest
import torch

from spectral_triton.recurrence.steps import Steps, carry, flat, last_rows

# Rows of each step.
SIZES = [[3, 3, 3, 3], [1], [0, 0], [3, 2, 2, 1], [2, 1], [4, 4, 1, 1, 1]]
cases = pytest.mark.parametrize(
    ("sizes", "reverse"), [(sizes, reverse) for sizes in SIZES for reverse in (False, True)]
)


def named(sizes):
    """One feature a row, 100 t + b for sequence b at step t, and -b for its initial state."""
    rows = [100.0 * t + b for t, size in enumerate(sizes) for b in range(size)]
    states = [-float(b) for b in range(sizes[0])]
    return torch.tensor(rows).unsqueeze(-1), torch.tensor(states).unsqueeze(-1)


@pytest.mark.parametrize("rows", [1, 3, 5, 1000])
@pytest.mark.parametrize("backward", [False, True])
@cases
def test_chunks_cover_all_steps_in_order(sizes, reverse, backward, rows):
    y, _ = named(sizes)
    chunks = list(Steps(sizes, reverse).chunks(rows, backward))
    seen = [part for chunk in chunks for part in chunk.split(chunk.of(y), backward)]
    expected = list(y.split(sizes))
    expected = expected[::-1] if reverse != backward else expected
    assert len(seen) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    if rows == 1000:
        assert chunks == [Steps(sizes, reverse).whole()]
    # A chunk ends as soon as it has so many rows.
    assert all(chunk.end - chunk.start < rows + max(sizes) for chunk in chunks)


@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("batch", [(), (2,)])
@cases
def test_states_before(sizes, reverse, batch, rows):
    y, h0 = (a.expand(*batch, *a.shape) for a in named(sizes))
    for chunk in Steps(sizes, reverse).chunks(rows):
        found = torch.full((*batch, chunk.end - chunk.start, 1), torch.nan)
        for h, at in chunk.before(y, h0):
            found[..., at, :] = h
        wanted = []
        for t in range(chunk.first, chunk.last):
            neighbor = t + 1 if reverse else t - 1
            for b in range(sizes[t]):
                has = 0 <= neighbor < len(sizes) and b < sizes[neighbor]
                wanted.append(100.0 * neighbor + b if has else -float(b))
        expected = torch.tensor(wanted).unsqueeze(-1)
        assert torch.equal(found, expected.expand_as(found))
        # What devices other than the CPU do.
        assert torch.equal(chunk._gathered(y, h0), found)


def test_no_steps():
    steps = Steps([], False)
    assert list(steps.chunks(10)) == []
    assert steps.is_even
    assert steps.whole().split(torch.ones(0, 3)) == []


def test_steps_of_padded_and_packed_rows():
    assert Steps.of(torch.ones(4, 3, 2), None, True) == Steps([3, 3, 3, 3], True)
    assert Steps.of(torch.ones(7, 4, 3, 2), None, True) == Steps([3, 3, 3, 3], True)
    assert Steps.of(torch.ones(5, 2), torch.tensor([3, 2]), False) == Steps([3, 2], False)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_carry(batch):
    h0 = torch.randn(*batch, 4, 3)
    h = torch.randn(*batch, 2, 3)
    assert carry(h, h0, 2) is h
    assert torch.equal(carry(h, h0, 1), h[..., :1, :])
    assert torch.equal(carry(h, h0, 4), torch.cat((h, h0[..., 2:, :]), -2))


@pytest.mark.parametrize(
    ("batch_sizes", "reverse", "rows"),
    [
        (None, False, [6, 7, 8]),
        (None, True, [0, 1, 2]),
        ([3, 3, 3], False, [6, 7, 8]),
        ([3, 2, 2, 1], False, [7, 6, 2]),
        ([3, 2, 2, 1], True, [0, 1, 2]),
    ],
)
def test_last_rows(batch_sizes, reverse, rows):
    y = torch.randn(3, 3, 2) if batch_sizes is None else torch.randn(sum(batch_sizes), 2)
    sizes = None if batch_sizes is None else torch.tensor(batch_sizes)
    assert last_rows(y, torch.randn(3, 2), sizes, reverse).tolist() == rows
    with torch.device("meta"):  # Whatever the default device is: these are where y is.
        assert last_rows(y, y.new_empty(3, 2), sizes, reverse).tolist() == rows


def test_flat():
    x = torch.randn(5, 4, 3, 2)
    assert torch.equal(flat(x, None), x.reshape(5, 12, 2))
    packed = x[0, 0]
    assert flat(packed, torch.tensor([2, 1])) is packed
