"""Warnings name the line of the user."""

import warnings

import pytest
import torch
from torch import nn

from spectral_triton import SpectralRNN, SVDLinear, convert, parametrizations
from spectral_triton.runtime.caller import stacklevel_of_caller
from spectral_triton.svd.bounds import WeightChangedWarning

CLIP = {"out_of_bounds": "clip"}


def test_outside_of_the_package_it_is_the_line_itself():
    assert stacklevel_of_caller() == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: SVDLinear.from_linear(nn.Linear(4, 4), **CLIP),
        lambda: SpectralRNN.from_rnn(nn.RNN(4, 4), **CLIP),
        lambda: SVDLinear(4, 4).svd.set_dense_(2 * torch.eye(4), **CLIP),
        lambda: parametrizations.svd(nn.Linear(4, 4), **CLIP),
        lambda: convert(nn.Linear(4, 4), **CLIP),
    ],
)
def test_a_warning_stands_at_the_call(call):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call()
    assert [(one.category, one.filename) for one in told] == [(WeightChangedWarning, __file__)]
