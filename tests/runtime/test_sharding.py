"""Sharded tensors in one process; tests/distributed has two."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from spectral_triton import SpectralRNN, SVDLinear
from spectral_triton.runtime.sharding import assign_, gathered, is_sharded

PLACEMENTS = [[Shard(0)], [Shard(1)], [Replicate()]]


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("tensor", [torch.ones(2), nn.Parameter(torch.ones(2))])
def test_plain_tensors_are_left_alone(tensor):
    assert not is_sharded(tensor)
    assert gathered(tensor) is tensor


@pytest.mark.parametrize("placements", PLACEMENTS, ids=str)
def test_gathered_is_the_whole_with_its_gradient(mesh, placements):
    value = torch.randn(3, 2)
    shards = distribute_tensor(value, mesh, placements).requires_grad_()
    assert is_sharded(shards)
    whole = gathered(shards)
    assert not is_sharded(whole)
    assert torch.equal(whole, value)
    (whole * value).sum().backward()
    assert torch.equal(shards.grad.full_tensor(), value)


def test_assign_converts_and_needs_no_gradient(mesh):
    value = torch.randn(3, 2)
    shards = nn.Parameter(distribute_tensor(torch.zeros(3, 2, dtype=torch.float32), mesh))
    assign_(shards, value)
    assert torch.equal(shards.full_tensor(), value.float())
    plain = nn.Parameter(torch.zeros(3, 2))
    assign_(plain, value)
    assert torch.equal(plain, value)


def shard(module, mesh):
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh)))
    return module


def test_layers_convert_to_plain_ones(mesh):
    layer, rnn = SVDLinear(4, 3), SpectralRNN(2, 3, init="haar")
    x, sequence = torch.randn(5, 4), torch.randn(6, 5, 2)
    expected = layer(x), rnn(sequence)[0]
    torch.testing.assert_close(shard(layer, mesh).to_linear()(x), expected[0])
    torch.testing.assert_close(shard(rnn, mesh).to_rnn()(sequence)[0], expected[1])


@pytest.mark.parametrize("init", ["haar", "identity", "henaff", "cayley"])
def test_reset_draws_what_it_draws_unsharded(mesh, init):
    plain, sharded = (SpectralRNN(2, 4, init=init).svd_hh_l0 for _ in range(2))
    shard(sharded, mesh)
    plain.reset_parameters(torch.Generator().manual_seed(4))
    sharded.reset_parameters(torch.Generator().manual_seed(4))
    assert torch.equal(sharded.left.full_tensor(), plain.left)
    assert torch.equal(sharded.right.full_tensor(), plain.right)
