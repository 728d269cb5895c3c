"""torchrun --nproc_per_node=2 fully_sharded.py FOLDER

The checkpoint is written to FOLDER.
"""

import gc
import os
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from spectral_triton import SVDLinear


def train(folder):
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    mesh = init_device_mesh(kind, (dist.get_world_size(),))

    # Nothing has memory before it is sharded.
    with torch.device("meta"):
        model = nn.Sequential(SVDLinear(20, 64, num_reflectors=8), nn.ReLU(), SVDLinear(64, 1))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    model.to_empty(device=kind)
    for layer in (model[0], model[2]):
        layer.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)

    torch.manual_seed(1 + dist.get_rank())  # other data on each process
    for step in range(200):
        x = torch.randn(16, 20, device=kind)
        loss = nn.functional.mse_loss(model(x), x[:, :4].mean(1, keepdim=True))
        penalty = 1e-3 * model[0].singular_values.square().mean()  # gathered: every process asks
        optimizer.zero_grad()
        (loss + penalty).backward()
        optimizer.step()
        if step % 50 == 0 and dist.get_rank() == 0:
            print(f"step {step:3}  loss {loss.item():.4f}", flush=True)

    # Each process writes its shards.
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)

    # To go on, also with another number of processes: the same lines up to the optimizer, then
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )

    sigma = model[0].singular_values  # gathered: every process asks
    if dist.get_rank() == 0:
        print(f"loss {loss.item():.4f}, singular values {sigma.min():.3f} to {sigma.max():.3f}")
        print(f"checkpoint in {folder}")


if len(sys.argv) != 2:
    sys.exit("usage: torchrun --nproc_per_node=2 fully_sharded.py FOLDER")
dist.init_process_group()
train(sys.argv[1])
gc.collect()  # what still holds the process group goes first: gloo aborts otherwise, now and then
dist.barrier()
dist.destroy_process_group()
