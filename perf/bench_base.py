"""Layers of a given weight: few reflectors beside a base, against the plain layer and against PEFT.

A pretrained weight is any matrix. With a base its layer has k reflectors a side, and no gradient of
an m x n matrix. BERT and PEFT's reflection adapter (HRA) are compared where they are installed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import pytest
import torch
from race import Race, peak_bytes
from torch import Tensor, nn

from spectral_triton import SoftplusSpectrum, SpectralRNN, SVDLinear, convert

WIDE = SoftplusSpectrum()
FORMS = ("σ trained", "σ frozen", "all reflectors")


def training_pass(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    """Forward and backward, by input and parameters, with no gradients of a pass before."""

    def work() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        y = layer(x)
        y = y[0] if isinstance(y, tuple) else y
        y.backward(grad)

    return work


def based(linear: nn.Linear, form: str, k: int = 16) -> SVDLinear:
    reflectors = None if form == "all reflectors" else k
    layer = SVDLinear.from_linear(linear, num_reflectors=reflectors, spectrum=WIDE)
    if form == "σ frozen":
        layer.svd.raw_singular_values.requires_grad_(False)
    return layer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [128, 512, 2048])
@pytest.mark.parametrize(("n", "m"), [(768, 3072), (768, 768), (3072, 768)])
def bench_linear(n: int, m: int, rows: int, form: str, race: Race) -> None:
    """A layer that holds a random nn.Linear, beside that one."""
    torch.manual_seed(0)
    linear = nn.Linear(n, m)
    layer = based(linear, form)
    x, grad = torch.randn(rows, n, requires_grad=True), torch.randn(rows, m)
    torch.testing.assert_close(layer(x), linear(x), rtol=1e-3, atol=1e-4)
    work, reference = training_pass(layer, x, grad), training_pass(linear, x, grad)
    sizes = {"n": n, "m": m, "batch": rows}
    race(work, reference, against="nn.Linear", op="base", way=form, contender=form, sizes=sizes)
    race.note(
        peak_bytes=peak_bytes(work),
        trained=sum(p.numel() for p in layer.parameters() if p.requires_grad),
    )


@pytest.mark.parametrize(("n", "steps"), [(128, 200), (128, 784), (512, 200)])
def bench_rnn(n: int, steps: int, race: Race) -> None:
    """A SpectralRNN with a base, beside nn.RNN, k = 16, batch 64."""
    torch.manual_seed(0)
    rnn = SpectralRNN(32, n, num_reflectors=16, base="haar", init="haar")
    plain = rnn.to_rnn()
    x = torch.randn(steps, 64, 32, requires_grad=True)
    grad = torch.randn(steps, 64, n)
    work, reference = training_pass(rnn, x, grad), training_pass(plain, x, grad)
    sizes = {"n": n, "steps": steps, "batch": 64}
    race(work, reference, against="nn.RNN", op="base rnn", way="", contender="base", sizes=sizes)


def bench_reflection_adapter(race: Race) -> None:
    """Right reflectors alone with σ frozen, d = 1024, r = 8, 512 rows, beside PEFT's HRA layer."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 1024))
    layer = SVDLinear.from_linear(model[0], num_reflectors=(0, 8), spectrum=WIDE)
    layer.svd.raw_singular_values.requires_grad_(False)
    layer.bias.requires_grad_(False)
    adapted = peft.get_peft_model(
        copy.deepcopy(model), peft.HRAConfig(r=8, target_modules=["0"], init_weights=True)
    )
    (u,) = (p for name, p in adapted.named_parameters() if "hra_u" in name)
    with torch.no_grad():
        u.add_(0.1 * torch.randn_like(u))
        layer.svd.right.copy_(u.mT.flip(0))
    x, grad = torch.randn(512, 1024, requires_grad=True), torch.randn(512, 1024)
    torch.testing.assert_close(layer(x), adapted(x), rtol=1e-3, atol=1e-4)
    work, reference = training_pass(layer, x, grad), training_pass(adapted, x, grad)
    sizes = {"n": 1024, "k": 8, "batch": 512}
    race(work, reference, against="PEFT HRA", op="hra", way="", contender="base", sizes=sizes)


def bench_bert(race: Race) -> None:
    """A training step of four layers of BERT, 768 wide, 4 x 128 tokens, AdamW; k = 16."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    plain = transformers.BertModel(transformers.BertConfig(num_hidden_layers=4))
    start = time.perf_counter()
    model, report = convert(plain, nn.Linear, num_reflectors=16, spectrum=WIDE)
    converting = time.perf_counter() - start
    start = time.perf_counter()
    for layer in report.converted:
        torch.linalg.svd(plain.get_submodule(layer.name).weight.detach(), full_matrices=False)
    deciding = time.perf_counter() - start
    tokens = torch.randint(30000, (4, 128))

    def step(model: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

        def work() -> None:
            optimizer.zero_grad()
            model(tokens).last_hidden_state.square().mean().backward()
            optimizer.step()

        return work

    work, reference = step(model), step(plain)
    race(work, reference, against="plain", op="bert", way="step", contender="base", sizes={"k": 16})

    def numbers(model: nn.Module) -> int:
        """Weights, gradients and two moments of AdamW."""
        return sum(p.numel() * (4 if p.requires_grad else 1) for p in model.parameters())

    race.note(
        convert_over_svd=converting / deciding,
        memory_over_plain=numbers(model) / numbers(plain),
    )
