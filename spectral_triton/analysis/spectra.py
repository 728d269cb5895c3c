"""Where the singular values of a network's matrices lie, and how that changes in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spectral_triton.layers.convolution_norms import ConvolutionNorms
from spectral_triton.models.replacement import copy_model
from spectral_triton.parametrizations import known_singular_values, svd_blocks, svd_names
from spectral_triton.runtime.computed_tensors import compute_tensors
from spectral_triton.runtime.sharding import gathered, original_type
from spectral_triton.runtime.validation import full_precision
from spectral_triton.svd.weight import SVDWeight

GATES: dict[type[nn.Module], int] = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}


@torch.no_grad()
def spectra(module: nn.Module) -> dict[str, Tensor]:
    r"""The singular values of every matrix of a network, falling, by name.

    Those in SVD form, in modules or by :func:`~spectral_triton.parametrizations.svd`, are read off
    their parameters, in O(p); the weights of ``nn.Linear`` and the transitions of ``nn.RNN``,
    ``nn.GRU`` and ``nn.LSTM`` are decomposed, in float32 at least. Gates and stacked blocks are
    apart.

    Args:
        module: Any module; submodules are searched.

    Returns:
        By the name of the module or parameter; ``weight_hh_l0[2]`` is the third gate.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.GRU(2, 4))
        >>> {name: len(values) for name, values in spectra(net).items()}
        {'0.weight': 2, '1.weight_hh_l0[0]': 4, '1.weight_hh_l0[1]': 4, '1.weight_hh_l0[2]': 4}
    """
    found: dict[str, Tensor] = {}
    # Their kernels are divided: the layer knows the singular values of what it uses.
    bounded: dict[nn.Module, Any] = {}
    for name, part in module.named_modules():
        compute_tensors(part)
        if isinstance(part, ConvolutionNorms) and part.operator_bound is not None:
            bounded[part.svd] = part
        if part in bounded:
            found |= _by_block(name, bounded[part].singular_values)
            continue
        if isinstance(part, SVDWeight):
            found |= _by_block(name or "weight", part.singular_values)
            continue
        kind = original_type(part)
        blocks = {"weight": 1} if isinstance(part, nn.Linear) else {}
        if kind in GATES:
            names = [n for layer in part._all_weights for n in layer]
            blocks = {n: GATES[kind] for n in names if n.startswith("weight_hh")}
        blocks |= {n: svd_blocks(part, n) for n in svd_names(part)}
        prefix = f"{name}." if name else ""
        for tensor, count in blocks.items():
            values = known_singular_values(part, tensor)
            if values is None:
                weight = gathered(getattr(part, tensor)).flatten(1)
                matrices = weight.to(full_precision(weight.dtype)).chunk(count)
                values = torch.linalg.svdvals(torch.stack(matrices))
                values = values.squeeze(0) if count == 1 else values
            found |= _by_block(f"{prefix}{tensor}", values)
    return found


def _by_block(name: str, values: Tensor) -> dict[str, Tensor]:
    """σ of one matrix (p,), or of several (blocks, p), as singular values by name."""
    values = values.abs().sort(dim=-1, descending=True).values
    if values.dim() == 1:
        return {name: values}
    return {f"{name}[{block}]": row for block, row in enumerate(values)}


def spectra_of_checkpoints(
    module: nn.Module, states: Sequence[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """:func:`spectra` of one network at several moments, shape ``(checkpoints, p)`` each.

    Args:
        module: A network of the same shape; it is not changed.
        states: Its state dicts, in order.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> spectra_of_checkpoints(net, [net.state_dict()] * 5)["weight"].shape
        torch.Size([5, 2])
    """
    if not states:
        raise ValueError("states must not be empty")
    twin, rows = copy_model(module), []
    for state in states:
        twin.load_state_dict(state)
        rows.append(spectra(twin))
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def quantiles(history: Tensor, levels: Sequence[float] = (0.0, 0.1, 0.5, 0.9, 1.0)) -> Tensor:
    """Quantiles of each checkpoint's values: ``(checkpoints, p)`` -> ``(checkpoints, levels)``.

    Example:
        >>> quantiles(torch.tensor([[1.0, 2.0, 3.0]]), [0.0, 0.5])
        tensor([[1., 2.]])
    """
    if history.dim() != 2 or history.shape[1] == 0:
        raise ValueError(f"history must have shape (checkpoints, p), got {tuple(history.shape)}")
    points = torch.tensor(list(levels), dtype=history.dtype, device=history.device)
    return torch.quantile(history, points, dim=1).mT
