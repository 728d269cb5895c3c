"""What two processes do for test_data_parallel.py: torchrun program.py FOLDER."""

import copy
import gc
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from spectral_triton import (
    SpectralRNN,
    SVDConv1d,
    SVDLinear,
    bake,
    convert,
    lipschitz_constant,
    parametrizations,
    rebase_,
)
from spectral_triton.analysis.spectra import spectra

STEPS, BATCH = 6, 8


class Model(nn.Module):
    """Odd sizes, so that shards are unequal; every kind of layer."""

    def __init__(self):
        super().__init__()
        self.encoder = SVDLinear(6, 10, num_reflectors=3)
        self.middle = SVDLinear(10, 10, num_reflectors=2, base="haar")
        self.rnn = SpectralRNN(10, 9, num_reflectors=3, nonlinearity="modrelu")
        self.head = parametrizations.svd(nn.Linear(9, 5), out_of_bounds="clip")

    def forward(self, x):
        return self.head(self.rnn(self.middle(self.encoder(x)))[0][-1])


def build():
    """The same parameters in every process."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    return Model()


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(model, optimizer, steps, share=slice(None)):
    """The steps of a global batch, or of a part of it."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(7, BATCH, 6, generator=generator)
        y = torch.randn(BATCH, 5, generator=generator)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[:, share]), y[share]).backward()
        optimizer.step()


def penalty(model):
    """A function of the factors, not of any batch."""
    inverse = model.rnn.factors[0].solve(torch.ones(9))
    return inverse.square().sum() + model.encoder.weight[0].sum() + model.head.weight.square().sum()


def local_loss(model, rank):
    """A function of the factors that differs between processes, outside of any forward."""
    return (1.0 + rank) * model.rnn.weight_hh_l0[1].sum()


def whole(tensors):
    """Plain copies of a dictionary of plain or sharded tensors."""
    full = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in tensors.items()}
    return {name: tensor.detach().clone() for name, tensor in full.items()}


def gradients(model):
    return whole({n: p.grad for n, p in model.named_parameters() if p.grad is not None})


def shard(model):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (model.encoder, model.middle, model.rnn, model.head, model):
        fully_shard(part, mesh=mesh)
    return model


def state_of(model, optimizer):
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def main(folder):
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    share = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    results = {}

    model = build()
    wrapped = DistributedDataParallel(model)
    train(wrapped, optimizer_of(model), range(STEPS), share)
    results["ddp"] = model.state_dict()

    model = shard(build())
    optimizer = optimizer_of(model)
    train(model, optimizer, range(STEPS // 2), share)
    dcp.save(state_of(model, optimizer), checkpoint_id=folder / "half")
    results["half"] = whole(model.state_dict())
    train(model, optimizer, range(STEPS // 2, STEPS), share)
    results["fsdp"] = whole(model.state_dict())
    results["rows"] = {n: (p.shape[0], p.to_local().shape[0]) for n, p in model.named_parameters()}

    # A run that was stopped: other parameters, then those of the checkpoint.
    torch.manual_seed(1)
    resumed = shard(Model())
    optimizer = optimizer_of(resumed)
    state = state_of(resumed, optimizer)
    dcp.load(state, checkpoint_id=folder / "half")
    set_state_dict(
        resumed,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    train(resumed, optimizer, range(STEPS // 2, STEPS), share)
    results["resumed"] = whole(resumed.state_dict())

    # What is read outside of forward.
    model.zero_grad()
    (penalty(model) + local_loss(model, rank)).backward()
    results["gradients"] = gradients(model)
    results["read"] = {
        "linear": model.encoder.weight.detach(),
        "with a base": model.middle.weight.detach(),
        "bias": model.encoder.to_linear().bias.detach(),
        "singular_values": model.rnn.singular_values.detach(),
        "sign": model.rnn.factors[0].slogdet().sign,
        "head": model.head.weight.detach(),
        "lipschitz": lipschitz_constant(nn.Sequential(model.encoder, nn.Tanh(), model.head)),
        "spectrum": spectra(model)["head.weight"],
    }
    results["refused"] = []
    for refused in (
        bake,
        convert,
        rebase_,
        lambda part: parametrizations.remove_svd(part.head),
    ):
        try:
            refused(model)
        except ValueError as error:
            results["refused"].append(str(error))
    conv, square = SVDConv1d(2, 3, 3), SVDLinear(4, 4)
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    expected = conv.bias.detach().clone(), square.inverse(z).detach()
    for part in (conv, square):
        fully_shard(part, mesh=init_device_mesh("cpu", (size,)))
    results["outside"] = conv.to_conv().bias.detach(), square.inverse(z).detach()
    results["outside, expected"] = expected
    model.zero_grad()
    x = torch.randn(7, BATCH, 6, generator=torch.Generator().manual_seed(9))
    (model(x[:, share]).square().mean() + penalty(model)).backward()
    results["gradients with a penalty"] = gradients(model)
    model.encoder.svd.set_dense_(torch.eye(10, 6))
    results["set"] = model.encoder.weight.detach()

    # Parameters that get memory only after they are sharded; every process with a seed of its own.
    with torch.device("meta"):
        late = nn.Sequential(SVDLinear(6, 10), SVDLinear(10, 3, num_reflectors=2))
    late.append(copy.deepcopy(late[0]))
    for layer in (*late, late):
        fully_shard(layer, mesh=init_device_mesh("cpu", (size,)))
    late.to_empty(device="cpu")
    torch.manual_seed(10 + rank)
    for layer in late:
        layer.reset_parameters()
    results["late"] = torch.linalg.svdvals(late[1].weight).detach()
    every = [torch.empty(3, 10) for _ in range(size)]
    dist.all_gather(every, late[1].weight.detach().contiguous())
    results["late, all processes"] = torch.stack(every)

    if rank == 0:
        torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    # What still holds the process group goes first: gloo aborts otherwise, now and then.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
