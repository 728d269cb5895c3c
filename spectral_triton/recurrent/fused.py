"""Whole sequences through torch's own LSTM and GRU, with weights that are formed for one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectral_triton.recurrent.layer import RecurrentLayer
from spectral_triton.recurrent.onnx_stack import run_nodes
from spectral_triton.recurrent.parameters import (
    BIASES,
    check_input,
    plain_tensor,
    result_dtype,
)
from spectral_triton.recurrent.state import Sequences
from spectral_triton.runtime.computed_tensors import compute_tensors
from spectral_triton.runtime.onnx_export import evaluated, exports_to_onnx
from spectral_triton.runtime.validation import full_precision, without_autocast


def run_fused(
    layer: RecurrentLayer, kind: str, sequences: Sequences, states: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Outputs of all steps and the last states of all layers, by torch's "lstm" or "gru".

    Dense weights are formed once, in float32 at least, the dtype of all the arithmetic. Results
    have the dtype of the input, or that of autocast where it applies.
    """
    x = sequences.x
    check_input(x, layer.weight_ih_l0)
    onnx = exports_to_onnx()
    if sequences.packed is None and not onnx and x.shape[0] == 0:
        raise ValueError(f"input must have at least one step, got shape {tuple(x.shape)}")
    given = result_dtype(x)
    with without_autocast(x.device.type):
        factors = layer.svd_weight().left.dtype
        dtype = full_precision(x.dtype, layer.weight_ih_l0.dtype, factors)
        hx = [state.to(dtype) for state in states]
        if onnx:
            weights = evaluated(layer, partial(_weight_values, layer, dtype))
            made = run_nodes(layer, kind, x.to(dtype), hx, weights, sequences.lengths)
            return tuple(result.to(given) for result in made)
        weights = _dense_weights(layer, dtype)
        if x.device.type == "cuda":
            weights = in_one_chunk(weights)
        options = (layer.bias, layer.num_layers, layer.dropout, layer.training)
        arguments = (
            kind,
            x.to(dtype),
            sequences.batch_sizes,
            hx if kind == "lstm" else hx[0],
            weights,
            (*options, layer.bidirectional),
        )
        call = _call
        if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
            # As for nn.LSTM: traced, it would be unrolled over all steps.
            call = torch.compiler.disable(_call)
        return tuple(result.to(given) for result in call(*arguments))


def _call(
    kind: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | list[Tensor],
    weights: list[Tensor],
    options: tuple,
) -> tuple[Tensor, ...]:
    function = getattr(torch._VF, kind)
    with _exact_float32(x.device.type):
        if batch_sizes is None:
            return function(x, hx, weights, *options, False)
        return function(x, batch_sizes, hx, weights, *options)


@contextmanager
def _exact_float32(device_type: str) -> Iterator[None]:
    """Keeps cuDNN from its default, TF32, in which products lose 13 of 23 bits."""
    if device_type != "cuda":
        yield
        return
    settings: Any = torch.backends.cudnn.rnn
    before, settings.fp32_precision = settings.fp32_precision, "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _dense_weights(layer: RecurrentLayer, dtype: torch.dtype) -> list[Tensor]:
    """All weights in torch's order: weight_ih, weight_hh, biases and projection of each suffix."""
    weights = []
    for suffix in layer._suffixes():
        plain = {
            name: plain_tensor(layer, f"{name}{suffix}")
            for name in ("weight_ih", *BIASES, "weight_hr")
        }
        ordered = (plain.pop("weight_ih"), layer._dense(suffix), *plain.values())
        weights += [weight.to(dtype) for weight in ordered if weight is not None]
    return weights


def _weight_values(layer: RecurrentLayer, dtype: torch.dtype) -> list[Tensor]:
    compute_tensors(layer)
    return _dense_weights(layer, dtype)


def in_one_chunk(weights: Sequence[Tensor]) -> list[Tensor]:
    """The weights as views of one buffer, matrices before biases.

    That is the layout of cuDNN, which otherwise warns and copies them to such a buffer itself.
    """
    order = sorted(range(len(weights)), key=lambda index: weights[index].dim() == 1)
    buffer = torch.cat([weights[index].flatten() for index in order])
    parts = buffer.split([weights[index].numel() for index in order])
    views = dict(zip(order, parts, strict=True))
    return [views[index].view_as(weight) for index, weight in enumerate(weights)]
