"""Evaluation without gradients: the layers as they are, beside the plain ones that bake makes.

python perf/evaluation.py --threads 2 --rounds 15 > perf/reports/evaluation.md
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from spectral_triton import SVDLinear, bake, keep_weights_in_eval

WIDTH, HEADS = 768, 12


class Block(nn.Module):
    """One of BERT's, with all reflectors in its six weights."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (SVDLinear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = SVDLinear(WIDTH, 4 * WIDTH), SVDLinear(4 * WIDTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        parts = (
            part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(-2)
        x = self.norms[0](x + self.out(attended))
        return self.norms[1](x + self.down(nn.functional.gelu(self.up(x))))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--blocks", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(options.blocks))).eval()
    plain = bake(model)
    print("# Evaluation without baking, beside the baked model\n")
    print(
        f"`python perf/evaluation.py --threads {options.threads} --rounds {options.rounds} "
        f"--blocks {options.blocks}`: a stack like BERT's,"
        f" width {WIDTH}, all reflectors, float32, no gradients. PyTorch {torch.__version__}, "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the "
        "start. The ratio is the median over rounds of a call to the one of the baked model in the "
        "same round, with the 10 % and 90 % quantiles; the order turns every round. A ratio of "
        '"baked again" other than 1 is the noise of the machine.\n'
    )
    print("| input | contender | ms, median | ratio | 10 % | 90 % |\n|---|---|---|---|---|---|")
    for shape in ((4, 128), (1, 32)):
        race(model, plain, torch.randn(*shape, WIDTH), options.rounds)
    print(f"\nLoad average at the end: {os.getloadavg()[0]:.1f}.")


@torch.no_grad()
def race(model: nn.Module, plain: nn.Module, x: Tensor, rounds: int) -> None:
    contenders = {
        "baked": lambda: plain(x),
        "kept (as it is)": lambda: model(x),
        "baked again": lambda: plain(x),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(3):
        for call in contenders.values():
            call()
    torch.testing.assert_close(model(x), plain(x), rtol=1e-3, atol=1e-3)
    for turn in range(rounds):
        order = list(contenders) if turn % 2 else list(reversed(contenders))
        for name in order:
            times[name].append(seconds(contenders[name]))
    keep_weights_in_eval(False)
    times["switched off"] = []
    for _ in range(3):
        times["switched off"].append(seconds(lambda: model(x)))
    keep_weights_in_eval(True)
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, times["baked"], strict=False)]
        low, *_, high = statistics.quantiles(ratios, n=10)
        median = statistics.median(taken) * 1e3
        print(
            f"| {tuple(x.shape)} | {name} | {median:.1f} | {statistics.median(ratios):.2f} "
            f"| {low:.2f} | {high:.2f} |"
        )


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
