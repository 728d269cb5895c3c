r"""Recurrences as nodes of an ONNX graph, for sequences of any length.

``RNN``, ``LSTM`` and ``GRU`` nodes where ONNX Runtime computes them, which is in float32 and
without a projection of the state; a ``Scan`` node over the same steps elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from spectral_triton.recurrence.nonlinearity import activation
from spectral_triton.runtime.onnx_export import outside_trace

_ACTIVATIONS = {
    "tanh": ("Tanh", None, None),
    "relu": ("Relu", None, None),
    "leaky_relu": ("LeakyRelu", "slope", None),
    "identity": ("Affine", 1.0, 0.0),
}
"""How ONNX calls φ, and its α and β."""
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
"""Those of ONNX by their places in torch."""

Step = Callable[..., tuple[Tensor, ...]]


def rnn(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor | None,
    bias_ih: Tensor | None,
    weight_hh: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    slope: float,
    reverse: bool,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """All states (T, B, n) and the last ones; ``bias`` is that of modrelu."""
    if nonlinearity in _ACTIVATIONS and weight_ih is not None and x.dtype == torch.float32:
        name, alpha, beta = _ACTIVATIONS[nonlinearity]
        options: dict[str, Any] = {"activations": [name]}
        if alpha is not None:
            options["activation_alpha"] = [slope if alpha == "slope" else alpha]
        if beta is not None:
            options["activation_beta"] = [beta]
        biases = None if bias_ih is None else torch.cat((bias_ih, torch.zeros_like(bias_ih)))
        weights = weight_ih, weight_hh, biases
        y, last = _node("RNN", x, weights, (h0,), reverse, lengths, options)
        return y, last

    def step(z: Tensor, h: Tensor, w: Tensor, bias: Tensor | None) -> tuple[Tensor]:
        z = z + h @ w
        if nonlinearity == "leaky_relu":  # Which ONNX Runtime has in float32 alone.
            return (z.relu() - slope * (-z).relu(),)
        return (activation(z, nonlinearity, slope, bias),)

    z = x if weight_ih is None else linear(x, weight_ih, bias_ih)
    y, last = _scan(step, z, (h0,), (weight_hh.mT, bias), reverse, lengths)
    return y, last


def lstm(
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Any],
    reverse: bool,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All states h, and the last h and c; weights in the order of ``torch.nn.LSTM``."""
    weight_ih, weight_hh, b_ih, b_hh, *projection = weights
    if x.dtype == torch.float32 and not projection:
        y, h, c = _node("LSTM", x, _gated("LSTM", *weights[:4]), states, reverse, lengths, {})
        return y, h, c

    def step(z: Tensor, h: Tensor, c: Tensor, w: Tensor, p: Tensor | None) -> tuple[Tensor, Tensor]:
        i, f, g, o = (z + h @ w).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h if p is None else h @ p), c

    both = None if b_ih is None or b_hh is None else b_ih + b_hh
    inner = weight_hh.mT, projection[0].mT if projection else None
    y, h, c = _scan(step, linear(x, weight_ih, both), states, inner, reverse, lengths)
    return y, h, c


def gru(
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Any],
    reverse: bool,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """All states and the last ones; weights in the order of ``torch.nn.GRU``."""
    weight_ih, weight_hh, b_ih, b_hh = weights
    if x.dtype == torch.float32:
        options = {"linear_before_reset": 1}
        y, last = _node("GRU", x, _gated("GRU", *weights), (h0,), reverse, lengths, options)
        return y, last

    def step(of_input: Tensor, h: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor]:
        of_state = h @ w if b is None else h @ w + b
        (r_x, z_x, n_x), (r_h, z_h, n_h) = of_input.chunk(3, -1), of_state.chunk(3, -1)
        reset, update = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
        new = (n_x + reset * n_h).tanh()
        return (new + update * (h - new),)

    # Values are no part of the trace, in which a scan has to find what it takes.
    inner = weight_hh.mT, None if b_hh is None else b_hh.unsqueeze(0)
    y, last = _scan(step, linear(x, weight_ih, b_ih), (h0,), inner, reverse, lengths)
    return y, last


def _gated(
    kind: str, weight_ih: Tensor, weight_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weights, which are values, with the gates in the order of ONNX."""
    order = _GATES[kind]

    def ordered(rows: Tensor) -> Tensor:
        gates = rows.chunk(len(order))
        return torch.cat([gates[index] for index in order])

    with outside_trace():
        biases = None
        if b_ih is not None and b_hh is not None:
            biases = torch.cat((ordered(b_ih), ordered(b_hh)))
        return ordered(weight_ih), ordered(weight_hh), biases


def _node(
    kind: str,
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None],
    states: Sequence[Tensor],
    reverse: bool,
    lengths: Tensor | None,
    options: dict[str, Any],
) -> list[Tensor]:
    """Outputs (T, B, n) and last states (B, n) of a node for one direction."""
    time, batch, size = *x.shape[:2], states[0].shape[-1]
    w, r, b = (None if a is None else a.unsqueeze(0) for a in weights)
    lengths = None if lengths is None else lengths.to(torch.int32)
    direction = "reverse" if reverse else "forward"
    y, *last = torch.onnx.ops.symbolic_multi_out(
        kind,
        (x, w, r, b, lengths, *(state.unsqueeze(0) for state in states)),
        {"direction": direction, "hidden_size": size, **options},
        dtypes=[x.dtype] * (1 + len(states)),
        shapes=[(time, 1, batch, size), *[(1, batch, size)] * len(states)],
    )
    return [y.squeeze(1), *(state.squeeze(0) for state in last)]


def _scan(
    step: Step,
    z: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    reverse: bool,
    lengths: Tensor | None,
) -> list[Tensor]:
    """The first state of every step, (T, B, n), and the last states, (B, n).

    ``step`` takes an input, the states and the weights, and returns the next states.
    """
    count = len(states)
    inputs = [z.flip(0) if reverse else z]
    if lengths is not None:
        index = torch.arange(z.shape[0], device=z.device)
        inputs.append(index.flip(0) if reverse else index)

    def body(*given: Tensor) -> list[Tensor]:
        before, now, rest = given[:count], given[count : count + len(inputs)], given[count:]
        others = list(rest[len(inputs) :])
        after = step(now[0], *before, *(None if w is None else others.pop(0) for w in weights))
        if lengths is None:
            return [*after, after[0].clone()]
        # Beyond its length a sequence keeps its state, and has zeros for outputs.
        lasts = (now[1] < others.pop(0)).unsqueeze(-1)
        after = tuple(torch.where(lasts, a, b) for a, b in zip(after, before, strict=True))
        return [*after, torch.where(lasts, after[0], 0.0)]

    outside = tuple(w for w in (*weights, lengths) if w is not None)
    *last, y = torch.ops.higher_order.scan(body, list(states), inputs, outside)
    return [y.flip(0) if reverse else y, *last]
