"""The names of a recurrence's arguments, as the registered ops and the Function have them."""

import torch

from spectral_triton.recurrence.arguments import DIFFERENTIABLE, Arguments
from spectral_triton.recurrence.op import recurrence_bwd, recurrence_fwd


def names(op):
    return tuple(argument.name for argument in op._schema.arguments)


def test_ops_take_them_in_this_order():
    assert names(recurrence_fwd) == Arguments._fields
    own = names(recurrence_bwd)
    assert own[-len(Arguments._fields) :] == Arguments._fields
    assert own[: -len(Arguments._fields)] == ("needs", "grad_y", "grad_last", "y", "kept")


def test_tensors_that_can_be_differentiated_by_come_first():
    schema = recurrence_fwd._schema.arguments
    tensors = [a.name for a in schema if str(a.type) in ("Tensor", "Optional[Tensor]")]
    assert tuple(tensors) == (*DIFFERENTIABLE, "batch_sizes")


def test_rank_of_a_weight():
    x, h0, w = torch.ones(1, 1, 3), torch.ones(1, 3), torch.ones(3, 3)
    options = (None, None, "tanh", 0.01, False)
    assert Arguments(x, None, None, h0, None, w, None, *options).rank == 0
    assert Arguments(x, None, None, h0, w[0], w[:, :2], w[:, :2], *options).rank == 2
