"""Layers of an existing model exchanged for layers with bounded singular values."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from spectral_triton.layers.conv import SVDConv1d, SVDConv2d, SVDConv3d
from spectral_triton.layers.conv_transpose import (
    SVDConvTranspose1d,
    SVDConvTranspose2d,
    SVDConvTranspose3d,
)
from spectral_triton.layers.linear import SVDLinear
from spectral_triton.layers.transposed_linear import SVDTransposedLinear, conv1d_type
from spectral_triton.models.conversion_report import ConversionReport, ConvertedLayer, SkippedLayer
from spectral_triton.models.replacement import (
    altered,
    carry_over,
    compiled,
    copy_model,
    replace_modules,
)
from spectral_triton.parametrizations import svd_names
from spectral_triton.recurrent.gru import SpectralGRU
from spectral_triton.recurrent.gru_cell import SpectralGRUCell
from spectral_triton.recurrent.lstm import SpectralLSTM
from spectral_triton.recurrent.lstm_cell import SpectralLSTMCell
from spectral_triton.recurrent.rnn import SpectralRNN
from spectral_triton.recurrent.rnn_cell import SpectralRNNCell
from spectral_triton.runtime.validation import (
    check_choice,
    check_flag,
    check_integer,
    check_takes,
    full_precision,
)
from spectral_triton.spectra.spectrum import Spectrum
from spectral_triton.spectra.stacked import resolve_spectrum
from spectral_triton.svd.bounds import OutOfBoundsError, WeightChangedWarning
from spectral_triton.svd.weight import SVDWeight

Types = tuple[type[nn.Module], ...] | list[type[nn.Module]]
Selection = type[nn.Module] | Types | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Counterpart:
    """What replaces a plain layer, and which of its tensors get bounds.

    The names of these tensors match ``pattern``; with "svd" for "weight" they are those of the
    :class:`SVDWeight` modules of the new layer. Each stacks ``blocks(layer)`` matrices.
    """

    build: Callable[..., nn.Module]
    pattern: str = "weight"
    blocks: Callable[[Any], int] = lambda layer: 1


CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
LAYER = r"weight_hh_l\d+(_reverse)?"
COUNTERPARTS: dict[type[nn.Module], Counterpart] = {
    nn.Linear: Counterpart(SVDLinear.from_linear),
    # The output projection of nn.MultiheadAttention, a plain Linear by another name.
    NonDynamicallyQuantizableLinear: Counterpart(SVDLinear.from_linear),
    nn.Conv1d: Counterpart(SVDConv1d.from_conv, blocks=lambda conv: conv.groups),
    nn.Conv2d: Counterpart(SVDConv2d.from_conv, blocks=lambda conv: conv.groups),
    nn.Conv3d: Counterpart(SVDConv3d.from_conv, blocks=lambda conv: conv.groups),
    nn.ConvTranspose1d: Counterpart(SVDConvTranspose1d.from_conv, blocks=lambda conv: conv.groups),
    nn.ConvTranspose2d: Counterpart(SVDConvTranspose2d.from_conv, blocks=lambda conv: conv.groups),
    nn.ConvTranspose3d: Counterpart(SVDConvTranspose3d.from_conv, blocks=lambda conv: conv.groups),
    nn.RNN: Counterpart(SpectralRNN.from_rnn, LAYER),
    nn.GRU: Counterpart(SpectralGRU.from_gru, LAYER, lambda gru: 3),
    nn.LSTM: Counterpart(SpectralLSTM.from_lstm, LAYER, lambda lstm: 4),
    nn.RNNCell: Counterpart(SpectralRNNCell.from_rnn_cell, "weight_hh"),
    nn.GRUCell: Counterpart(SpectralGRUCell.from_gru_cell, "weight_hh", lambda cell: 3),
    nn.LSTMCell: Counterpart(SpectralLSTMCell.from_lstm_cell, "weight_hh", lambda cell: 4),
}


def counterparts() -> dict[type[nn.Module], Counterpart]:
    """Those of torch's layers, and of GPT-2's where transformers is loaded."""
    conv1d = conv1d_type()
    if conv1d is None:
        return COUNTERPARTS
    return COUNTERPARTS | {conv1d: Counterpart(SVDTransposedLinear.from_conv1d)}


def convert(
    model: nn.Module,
    select: Selection | None = None,
    *,
    num_reflectors: int | None = None,
    spectrum: Spectrum | Callable[[str, Tensor], Spectrum] | None = None,
    out_of_bounds: str = "raise",
    operator_bound: float | None = None,
    inplace: bool = False,
    margin: float | None = None,
) -> tuple[nn.Module, ConversionReport]:
    r"""Replaces layers of a trained or fresh model by those with bounded singular values.

    ``nn.Linear`` becomes :class:`SVDLinear`, ``nn.Conv1d`` to ``nn.Conv3d`` become
    :class:`SVDConv1d` to :class:`SVDConv3d`, transposed ones :class:`SVDConvTranspose1d` and so on
    (bounds hold for the flattened kernel of each group, and ``operator_bound`` for the whole map),
    ``nn.RNN``, ``nn.GRU``, ``nn.LSTM`` and their cells become :class:`SpectralRNN`,
    :class:`SpectralGRU`, :class:`SpectralLSTM` and cells, ``transformers.pytorch_utils.Conv1D``
    (GPT-2) becomes :class:`SVDTransposedLinear`. Weights are kept, and what else a layer
    has (biases, input weights, mode, dtype, device, ``requires_grad``, forward and backward hooks)
    is taken over. An optimizer has to be made afterwards, see :func:`parameter_groups`.

    A weight whose singular values the spectrum excludes is an error that names all such layers. The
    default spectrum puts every σ within 1 % of 1, where neither trained weights nor those of a
    fresh ``nn.Linear`` are: give one around each weight (see ``spectrum``), or a wider one, or
    clip. U and V are kept then, and the report and a warning say how far each weight had to move.

    With fewer than min(m, n) reflectors U and V of a weight become its base, which is not trained,
    and the reflectors start from there, see :class:`SVDWeight`. Left alone, with the reason in the
    report, are layers whose weight is shared with another module (a tied embedding), is
    parametrized, computed by a hook or complex, or has no value yet, weights in SVD form already,
    and subclasses or layers that were given a forward or members of their own, which may compute
    something else. Only registered submodules are found,
    not those in a Python list. Convert first, then compile and wrap: what ``torch.compile`` was
    given itself goes on with the layer it has seen.

    In ``nn.MultiheadAttention`` the output projection is converted, and both it and
    ``nn.TransformerEncoderLayer`` go on working, in their fast path for inference as well; they
    read the dense weight, which is formed at each call and multiplied in the precision of the
    input. The stacked query, key and value projections are a bare parameter, out of reach here
    and named by the report: ``parametrizations.svd(attention, "in_proj_weight", num_blocks=3)``
    bounds them.

    Costs one decomposition of every converted weight. Nothing is changed if an error occurs.

    Args:
        model: Any module.
        select: Which layers: one or several types of torch's layers, or a function of a layer's
            name and itself; all that can be converted if None.
        num_reflectors: At most this many per side, all min(m, n) if None.
        spectrum: Map from raw parameter to σ, that within 1 % of 1 if None; or
            a function of a layer's name and the singular values it has, which returns one:
            ``lambda name, sigma: SigmoidSpectrum.around(sigma, 1.2)`` keeps every weight and lets
            no norm grow beyond 1.2 times what it was.
        out_of_bounds: "raise", or "clip" to move singular values into the bounds.
        operator_bound: Of convolutions: what the norm of each as a linear map may at most be, see
            :class:`SVDConv2d`; None for no such bound.
        inplace: Exchanges the layers inside ``model`` rather than in a deep copy. A model that is
            itself one such layer cannot change its type: use what is returned.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.

    Returns:
        The model, and a :class:`ConversionReport`, which prints as a table.

    Raises:
        TypeError: if an argument has the wrong type, or ``select`` a type that has no counterpart.
        ValueError: if an option is unknown, a weight is not finite or out of bounds, the model is
            wrapped in ``DistributedDataParallel``, which holds its parameters, or is to be copied
            and sharded by ``fully_shard``.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> model, report = convert(model, lambda name, layer: name != "2",
        ...                         spectrum=lambda name, sigma: SigmoidSpectrum.around(sigma))
        >>> type(model[0]).__name__, type(model[2]).__name__
        ('SVDLinear', 'Linear')
        >>> print(report)
        name  layer                parameters  sigma before   sigma after  change
        0     Linear -> SVDLinear   72 -> 144  ... .. ...  ... .. ...    ...%
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if num_reflectors is not None:
        check_integer("num_reflectors", num_reflectors, 0)
    check_choice("out_of_bounds", out_of_bounds, ("raise", "clip"))
    check_flag("inplace", inplace)
    plain = isinstance(spectrum, Spectrum | type) or not callable(spectrum)
    if not plain:
        check_takes("spectrum", spectrum, ("name", "sigma"))
    if margin is not None or plain:
        given: Any = spectrum
        spectrum = cast("Spectrum", resolve_spectrum(given, None, margin))
    if any(isinstance(part, nn.parallel.DistributedDataParallel) for part in model.modules()):
        raise ValueError("model is in DistributedDataParallel: convert its module, then wrap that")
    selected = _selector(select)
    if not inplace:
        model = copy_model(model)
    owners = Counter(
        id(p) for module in model.modules() for p in module._parameters.values() if p is not None
    )
    unreachable = compiled(model)
    replacements: dict[nn.Module, nn.Module] = {}
    converted, skipped, excluded = [], [], []
    kinds = tuple(counterparts())
    for name, layer in model.named_modules():
        if select is None and isinstance(layer, SVDWeight):
            bounded = f"in SVD form, with {layer.spectrum}; its set_spectrum_ changes that"
            skipped.append(SkippedLayer(name, type(layer).__name__, bounded))
        if not isinstance(layer, kinds) or not selected(name, layer):
            continue
        reason = _obstacle(layer, owners)
        if layer in unreachable:
            reason = "compiled by itself: convert first, then compile"
        if reason is None:
            try:
                own: Any = spectrum
                if not isinstance(spectrum, Spectrum) and callable(spectrum):
                    own = _asked(spectrum, name, _singular_values(layer))
                with warnings.catch_warnings():
                    # One for all of them follows.
                    warnings.simplefilter("ignore", WeightChangedWarning)
                    new = _build(layer, num_reflectors, own, out_of_bounds, operator_bound)
            except OutOfBoundsError as error:
                excluded.append(f"{name or 'model'}: {error.problem}")
                continue
            except ValueError as error:
                raise ValueError(f"{name or 'model'}: {error}") from error
        if reason is not None:
            skipped.append(SkippedLayer(name, type(layer).__name__, reason))
            continue
        replacements[layer] = new
        converted.append(_compare(name, layer, new))
    if excluded:
        raise OutOfBoundsError(_told(excluded))
    for layer, new in replacements.items():
        carry_over(layer, new)
    model = replace_modules(model, replacements)
    _warn_of_changes(converted)
    unbounded = _unbounded(model, skipped) if select is None else ()
    return model, ConversionReport(tuple(converted), tuple(skipped), unbounded)


def _asked(spectrum: Callable[[str, Tensor], Spectrum], name: str, sigma: Tensor) -> Spectrum:
    """What a function of name and σ says for one layer."""
    found = spectrum(name, sigma)
    if not isinstance(found, Spectrum):
        raise TypeError(
            f"spectrum(name, sigma) must return a Spectrum, got {found!r} for {name or 'model'!r}"
        )
    return found


NOTICEABLE = 0.01
"""Relative change of a weight that is more than rounding, also to half precision."""


def _warn_of_changes(converted: list[ConvertedLayer]) -> None:
    changed = [layer for layer in converted if layer.relative_change > NOTICEABLE]
    if changed:
        first = [f"{c.name or 'the model'} by {c.relative_change:.1%}" for c in changed[:3]]
        more = [f"{len(changed) - 3} more, see the report"] if len(changed) > 3 else []
        warnings.warn(
            "convert moved singular values into the bounds, which changed trained weights: "
            f"{', '.join(first + more)}. {KEEPING}",
            WeightChangedWarning,
            stacklevel=3,
        )


KEEPING = "spectrum=lambda name, sigma: SigmoidSpectrum.around(sigma) keeps every weight"


def _told(excluded: list[str]) -> str:
    more = [f"and {len(excluded) - 3} more"] if len(excluded) > 3 else []
    count = f"{len(excluded)} weights do" if len(excluded) > 1 else "1 weight does"
    return (
        f"{count} not fit the spectrum, and nothing was changed. {KEEPING}, "
        f"out_of_bounds='clip' changes them.\n" + "\n".join(excluded[:3] + more)
    )


def _unbounded(
    model: nn.Module, skipped: list[SkippedLayer]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Weights that no layer of a report stands for, with their shapes."""
    told = {layer.name for layer in skipped}
    weights, seen = [], set()
    for prefix, module in model.named_modules():
        told.update(f"{prefix}.parametrizations.{name}".lstrip(".") for name in svd_names(module))
        layer = prefix.split("parametrizations.")[0].rstrip(".")
        if isinstance(module, SVDWeight) or prefix in told or layer in told:
            continue
        for name, weight in module.named_parameters(prefix, recurse=False):
            # One that is lazy has no shape yet.
            if not is_lazy(weight) and weight.dim() > 1 and id(weight) not in seen:
                weights.append((name, tuple(weight.shape)))
            seen.add(id(weight))
    return tuple(weights)


def _selector(select: Selection | None) -> Callable[[str, nn.Module], bool]:
    if select is None:
        return lambda name, layer: True
    several = isinstance(select, tuple | list)
    entries: tuple[Any, ...] = tuple(select) if several else (select,)  # type: ignore[arg-type]
    if all(isinstance(entry, type) for entry in entries):
        convertible = counterparts()
        for entry in entries:
            if entry not in convertible:
                known = ", ".join(kind.__name__ for kind in convertible)
                raise TypeError(f"select must hold types among {known}, got {entry.__name__}")
        return lambda name, layer: isinstance(layer, entries)
    if several or not callable(select):
        raise TypeError(
            f"select must be types of layers or a function of name and layer, got {select!r}"
        )
    if isinstance(select, Spectrum):
        raise TypeError(f"select must choose layers, got {select!r}; write spectrum={select!r}")
    check_takes("select", select, ("name", "layer"))
    chosen: Any = select
    return chosen


def _dense_names(layer: Any) -> list[str]:
    pattern = counterparts()[type(layer)].pattern
    return [name for name in layer._parameters if re.fullmatch(pattern, name)]


def _obstacle(layer: Any, owners: Counter[int]) -> str | None:
    """Why a layer cannot be exchanged, None if it can."""
    if parametrize.is_parametrized(layer):
        return f"already parametrized: {', '.join(layer.parametrizations)}"
    if type(layer) not in counterparts():
        return f"{type(layer).__name__} is a subclass that may compute something else"
    # Where hooks compute a weight they leave it as a plain attribute.
    computed = [name for name, value in vars(layer).items() if isinstance(value, Tensor)]
    if computed:
        return f"pruned, or normalised by a hook: {', '.join(computed)}"
    if reason := altered(layer):
        return reason
    for name in _dense_names(layer):
        weight = layer._parameters[name]
        if not weight.is_floating_point():
            return f"{name} is of {weight.dtype}"
        if owners[id(weight)] > 1:
            return f"{name} is shared with another module"
        if weight.is_meta:
            return f"{name} has no value yet, it is on the meta device"
        if weight.numel() == 0:
            return f"{name} is empty"
    return None


def _build(
    layer: Any,
    num_reflectors: int | None,
    spectrum: Any,
    out_of_bounds: str,
    operator_bound: float | None,
) -> nn.Module:
    counterpart, names = counterparts()[type(layer)], _dense_names(layer)
    limit = min(_matrices(layer, layer._parameters[names[0]]).shape[-2:])
    reflectors = limit if num_reflectors is None else min(num_reflectors, limit)
    options: dict[str, Any] = {"num_reflectors": reflectors, "spectrum": spectrum}
    if isinstance(layer, CONVOLUTIONS):
        options["operator_bound"] = operator_bound
    new = counterpart.build(layer, out_of_bounds=out_of_bounds, **options)
    for name in names:
        for parameter in _svd_weight(new, name).trained_parameters():
            parameter.requires_grad_(layer._parameters[name].requires_grad)
    return new


def _svd_weight(new: nn.Module, name: str) -> SVDWeight:
    return getattr(new, name.replace("weight", "svd", 1))


def _matrices(layer: Any, weight: Tensor) -> Tensor:
    """The matrices whose singular values get bounds, stacked, in full precision."""
    blocks = counterparts()[type(layer)].blocks(layer)
    stacked = weight.detach().to(full_precision(weight.dtype)).flatten(1)
    return stacked.unflatten(0, (blocks, -1))


@torch.no_grad()
def _singular_values(layer: Any) -> Tensor:
    """All singular values of the weights that get bounds."""
    weights = (_matrices(layer, layer._parameters[name]) for name in _dense_names(layer))
    return torch.cat([torch.linalg.svdvals(w).flatten() for w in weights])


@torch.no_grad()
def _compare(name: str, layer: Any, new: Any) -> ConvertedLayer:
    before, after, moved, norm = [], [], 0.0, 0.0
    for tensor in _dense_names(layer):
        old = _matrices(layer, layer._parameters[tensor])
        difference = _matrices(layer, getattr(new, tensor)) - old
        sigma = _svd_weight(new, tensor).singular_values.abs().flatten()
        change, size = difference.square().sum().item(), old.square().sum().item()
        # A decomposition costs as much as all the rest. A weight that was kept has these still.
        kept = change <= 1e-10 * size
        before.append(sigma if kept else torch.linalg.svdvals(old).flatten())
        after.append(sigma)
        moved, norm = moved + change, norm + size
    return ConvertedLayer(
        name=name,
        old_type=type(layer).__name__,
        new_type=type(new).__name__,
        parameters_before=sum(p.numel() for p in layer.parameters()),
        # A base is not trained.
        parameters_after=sum(
            p.numel() for key, p in new.named_parameters() if not key.endswith("_base")
        ),
        sigma_before=_range(torch.cat(before)),
        sigma_after=_range(torch.cat(after)),
        relative_change=(moved / norm) ** 0.5 if norm else math.inf if moved else 0.0,
    )


def _range(sigma: Tensor) -> tuple[float, float]:
    return sigma.min().item(), sigma.max().item()
