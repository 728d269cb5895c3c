"""Sums over steps against one product over all rows."""

import pytest
import torch

from spectral_triton.recurrence import gradient_sums
from spectral_triton.recurrence.arguments import DIFFERENTIABLE, Arguments
from spectral_triton.recurrence.gradient_sums import GradientSums

ROWS, N, R, FEATURES = 11, 3, 2, 4


def tensors(batch=()):
    widths = {"dz": N, "x": FEATURES, "y": N, "h": N, "kept": R, "back": R}
    return {name: torch.randn(*batch, ROWS, width) for name, width in widths.items()}


def expected(rows, folded):
    dz, h = rows["dz"], rows["h"]
    grads = {
        "weight_ih": dz.mT @ rows["x"],
        "bias_ih": dz.sum(-2),
        "bias": (dz * rows["y"].sign()).sum(-2),
    }
    if not folded:
        return grads | {"p": dz.mT @ h}
    thin = {"p": -dz.mT @ rows["kept"], "q": -h.mT @ rows["back"], "scale": (h * dz).sum(-2)}
    return grads | thin


def like(folded):
    """Tensors of the shapes of all arguments."""
    shapes = [(ROWS, FEATURES), (N, FEATURES), (N,), (2, N), (N,), (N, R), (N, R), (N,)]
    if not folded:
        shapes[4:7] = [None, (N, N), None]
    given = (None if shape is None else torch.empty(shape) for shape in shapes)
    return Arguments(*given, None, "tanh", 0.0, False)


def add(sums, rows, first, last, folded=True):
    """Rows first to last, the states before them in two pieces."""
    part = {name: a[..., first:last, :] for name, a in rows.items()}
    middle = (last - first) // 2
    pieces = [slice(0, middle), slice(middle, last - first)]
    before = [(part["h"][..., at, :], at) for at in pieces]
    products = (part["kept"], part["back"]) if folded else (None, None)
    sums.add(part["dz"], part["x"], part["y"], before, *products)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
@pytest.mark.parametrize("batch", [(), (5,)])
@pytest.mark.parametrize("folded", [False, True])
def test_sums_of_chunks(folded, batch, chunk, monkeypatch):
    monkeypatch.setattr(gradient_sums, "CHUNK", chunk)
    rows = tensors(batch)
    copies = {name: a.clone() for name, a in rows.items()}
    for in_place in (True, False) if not batch else (False,):
        sums = GradientSums([True] * len(DIFFERENTIABLE), in_place)
        for first, last in ((0, 4), (4, 5), (5, ROWS)):
            add(sums, rows, first, last, folded)
        x, h0 = torch.randn(1), torch.randn(1)
        found = dict(zip(DIFFERENTIABLE, sums.gradients(x, h0, like(folded)), strict=True))
        assert found["x"] is x
        assert found["h0"] is h0
        wanted = expected(rows, folded)
        for name in set(DIFFERENTIABLE) - {"x", "h0"}:
            if name in wanted:
                torch.testing.assert_close(found[name], wanted[name], msg=lambda m, n=name: n + m)
            else:
                assert found[name] is None
    assert all(torch.equal(rows[name], copies[name]) for name in rows)


@pytest.mark.parametrize("wanted", DIFFERENTIABLE)
def test_only_what_is_needed_is_computed(wanted, monkeypatch):
    seen = []
    original = GradientSums._put
    monkeypatch.setattr(
        GradientSums,
        "_put",
        lambda self, name, value: seen.append(name) or original(self, name, value),
    )
    sums = GradientSums([name == wanted for name in DIFFERENTIABLE])
    add(sums, tensors(), 0, ROWS)
    grads = sums.gradients(torch.ones(1), torch.ones(1), like(True))
    assert [grad is not None for grad in grads] == [name == wanted for name in DIFFERENTIABLE]
    assert set(seen) == {wanted} - {"x", "h0"}


def test_no_rows_give_zeros():
    sums = GradientSums([True] * len(DIFFERENTIABLE))
    grads = sums.gradients(torch.ones(1), torch.ones(1), like(True))
    for name, grad in list(zip(DIFFERENTIABLE, grads, strict=True))[4:]:
        assert torch.equal(grad, torch.zeros(getattr(like(True), name).shape))
