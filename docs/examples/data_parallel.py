"""torchrun --nproc_per_node=2 data_parallel.py"""

import gc
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spectral_triton import SpectralRNN


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = SpectralRNN(2, 32, nonlinearity="relu", num_reflectors=8)
        self.head = nn.Linear(32, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])


def train():
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)

    torch.manual_seed(0)
    model = DistributedDataParallel(Model().to(device))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    torch.manual_seed(1 + dist.get_rank())  # other data on each process
    for _ in range(30):
        x = torch.rand(20, 16, 2, device=device)
        target = x[..., 0].mean(0).unsqueeze(1)
        loss = nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    sigma = model.module.rnn.singular_values
    assert bool(((sigma - 1).abs() <= 0.01).all())
    if dist.get_rank() == 0:
        print(f"loss {loss.item():.4f}, singular values {sigma.min():.3f} to {sigma.max():.3f}")


dist.init_process_group()
train()
gc.collect()  # what still holds the process group goes first: gloo aborts otherwise, now and then
dist.barrier()
dist.destroy_process_group()
