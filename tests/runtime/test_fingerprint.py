"""fingerprint, sample and stamps: which writes they tell, and that the same is the same."""

import pytest
import torch
from torch import nn

from spectral_triton.runtime.fingerprint import SMALL, fingerprint, sample, stamps

SHAPES = [(0,), (), (3,), (5, 4), (2, SMALL), (40, 37), (3, 20, 30)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_values_are_the_same_and_any_entry_counts(shape, dtype):
    tensor = torch.randn(shape).to(dtype)
    before = fingerprint((tensor, None))
    assert fingerprint((tensor.clone(), None)) == before
    for index in range(0, tensor.numel(), 97):
        changed = tensor.clone()
        bits = changed.view(-1).view(torch.uint8)
        bits[index * dtype.itemsize] ^= 1  # The last bit.
        assert fingerprint((changed, None)) != before


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("shape", [(40, 37), (40, 36)])
def test_order_and_signs_count(dtype, shape):
    tensor = torch.randn(shape).to(dtype)
    before = fingerprint((tensor,))
    negated = tensor.clone()
    negated[:, 1::2].neg_()
    for changed in (tensor.flip(0), tensor.flip(1), negated):
        assert fingerprint((changed,)) != before


def test_strides_offsets_and_values_that_are_no_numbers():
    whole = torch.randn(50, 41)
    for view in (whole.mT, whole[1:, 1:], whole[:, ::2], whole.expand(2, 50, 41)):
        assert fingerprint((view,)) == fingerprint((view.clone(),))
    for value in (float("nan"), float("inf")):
        tensor = torch.full((40, 40), value)
        assert fingerprint((tensor,)) == fingerprint((tensor.clone(),))
    assert fingerprint((torch.ones(3, dtype=torch.int64),)) is not None
    assert fingerprint((torch.empty(3, device="meta"),)) == (None,)


def test_autocast_makes_no_difference():
    tensor = torch.randn(40, 40)
    with torch.autocast("cpu", torch.bfloat16):
        under = fingerprint((tensor,))
    assert fingerprint((tensor,)) == under


def test_a_sample_tells_that_all_was_written():
    for shape in SHAPES[1:]:
        tensor = torch.randn(shape)
        before = sample((tensor, None))
        assert sample((tensor.clone(), None)) == before
        assert sample((tensor * 1.01, None)) != before
    assert sample((torch.empty(0), torch.empty(3, device="meta"))) == ()


def test_stamps_tell_writes_and_other_memory():
    p = nn.Parameter(torch.ones(3, 4))
    seen = [stamps((p, None))]

    def changed():
        seen.append(stamps((p, None)))
        return seen[-1] != seen[-2]

    assert not changed()
    with torch.no_grad():
        p.add_(1)
    assert changed()
    with torch.inference_mode():
        p.add_(1)
    assert changed()
    p.data = torch.ones(3, 4)
    assert changed()
    p.requires_grad_(False)
    assert changed()
