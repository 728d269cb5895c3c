import torch
from torch import nn

from spectral_triton import SVDLinear
from spectral_triton.experiments.tasks.settings import Settings
from spectral_triton.experiments.training.optimizer import build_optimizer, descend, set_rates


def test_rates_and_decay():
    model = SVDLinear(2, 2)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    settings = Settings(
        steps=1, lr=0.1, reflectors_lr=0.2, singular_values_lr=0.3, weight_decay=0.5
    )
    optimizer = build_optimizer(model, settings)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "reflectors": 0.2,
        "singular_values": 0.3,
        "rest": 0.1,
    }
    set_rates(optimizer, 0.5)
    rates = [groups[name]["lr"] for name in ("reflectors", "singular_values", "rest")]
    assert rates == [0.1, 0.15, 0.05]
    set_rates(optimizer, 1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name in ("left", "right", "raw_singular_values"):
        assert torch.equal(getattr(model.svd, name), before[f"svd.{name}"])
    torch.testing.assert_close(model.bias, before["bias"] * (1 - 0.1 * 0.5))


def test_every_trained_parameter_once_and_no_empty_group():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[1].bias.requires_grad_(False)
    (group,) = build_optimizer(model, Settings(steps=1)).param_groups
    expected = [model[0].weight, model[0].bias, model[1].weight]
    assert [id(p) for p in group["params"]] == [id(p) for p in expected]


def test_a_step_is_clipped_and_left_out_where_the_gradient_is_not_finite():
    model = nn.Linear(2, 1, bias=False)
    start = model.weight.detach().clone()
    optimizer = build_optimizer(model, Settings(steps=1, lr=0.1))
    model.weight.grad = torch.full_like(model.weight, 1e9)  # Of a step before, to be forgotten.
    norm = descend(model, optimizer, model(torch.tensor([[3.0, 4.0]])).sum(), clip=1.0)
    assert norm == 5.0
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(model.weight.detach(), start - 0.1)
    descend(model, optimizer, model(torch.tensor([[3.0, 4.0]])).sum(), clip=0)
    assert model.weight.grad.tolist() == [[3.0, 4.0]]
    moved = model.weight.detach().clone()
    assert descend(model, optimizer, float("inf") * model.weight.sum(), clip=1.0) == float("inf")
    assert torch.equal(model.weight, moved)
