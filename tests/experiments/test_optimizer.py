import torch
from torch import nn

from spectral_triton.experiments.optimizer import build_optimizer, group_of, set_rates
from spectral_triton.experiments.settings import Settings


class Factored(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Parameter(torch.ones(2))
        self.right = nn.Parameter(torch.ones(2))
        self.raw_singular_values = nn.Parameter(torch.ones(2))
        self.bias = nn.Parameter(torch.ones(2))


def test_groups_by_name():
    names = {
        "encoder.weight_hh_l0.left": "reflectors",
        "encoder.weight_hh_l1_reverse.right": "reflectors",
        "encoder.weight_hh_l0_left": "reflectors",
        "encoder.weight_hh_l0.raw_singular_values": "sigma",
        "encoder.weight_ih_l0": "rest",
        "left.bias": "rest",
    }
    assert {name: group_of(name) for name in names} == names


def test_rates_and_decay():
    model = Factored()
    settings = Settings(
        steps=1, learning_rate=0.1, reflector_rate=0.2, sigma_rate=0.3, weight_decay=0.5
    )
    optimizer = build_optimizer(model, settings)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "reflectors": 0.2,
        "sigma": 0.3,
        "rest": 0.1,
    }
    set_rates(optimizer, 0.5)
    assert [groups[name]["lr"] for name in ("reflectors", "sigma", "rest")] == [0.1, 0.15, 0.05]
    set_rates(optimizer, 1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(model.raw_singular_values, torch.ones(2))
    assert torch.equal(model.left, torch.ones(2))
    torch.testing.assert_close(model.bias, torch.full((2,), 1 - 0.1 * 0.5))


def test_every_trained_parameter_once_and_no_empty_group():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[1].bias.requires_grad_(False)
    (group,) = build_optimizer(model, Settings(steps=1)).param_groups
    expected = [model[0].weight, model[0].bias, model[1].weight]
    assert [id(p) for p in group["params"]] == [id(p) for p in expected]
