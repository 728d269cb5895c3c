r"""SVD form for a tensor of any module, through ``torch.nn.utils.parametrize``."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectral_triton.runtime.cached import formed_once
from spectral_triton.runtime.evaluation import drop_kept, keeps, kept
from spectral_triton.runtime.fingerprint import stamps
from spectral_triton.runtime.onnx_export import evaluated, exports_to_onnx
from spectral_triton.runtime.sharding import refuse_sharded
from spectral_triton.runtime.validation import (
    check_choice,
    check_floating,
    check_has_value,
    check_integer,
    full_precision,
    resolve_num_reflectors,
)
from spectral_triton.spectra.record import SpectrumRecord, marked
from spectral_triton.spectra.spectrum import Spectrum
from spectral_triton.spectra.stacked import StackedSpectrum, resolve_spectrum
from spectral_triton.svd.assignment import AssignableWeights
from spectral_triton.svd.operator import HouseholderSVD
from spectral_triton.svd.parameters import parameters_from_dense, spectrum_values

Module = TypeVar("Module", bound=nn.Module)


def svd(
    module: Module,
    name: str = "weight",
    *,
    num_reflectors: int | Sequence[int] | None = None,
    spectrum: Spectrum | None = None,
    num_blocks: int = 1,
    out_of_bounds: str = "raise",
    margin: float | None = None,
) -> Module:
    r"""Keeps the singular values of a module's weight within bounds while it trains.

    .. math:: W = U \,\mathrm{diag}(s \circ \sigma)\, V^\top

    The parameters become the reflectors of U (``original0``), those of V (``original1``) and the
    raw singular values (``original2``, absent for a fixed spectrum). A tensor with more than two
    dimensions is the matrix flattened from dimension 1 on: for a convolution this bounds the norm
    of the flattened kernel, not that of the convolution, which may be larger, with zero padding by
    the square root of the kernel's area. A weight that is tied to another is so no longer.

    The weight is kept, and one with singular values that the spectrum excludes is an error: those
    of a fresh ``nn.Linear`` are below the default band, so give ``SigmoidSpectrum.around(σ)``, or a
    wider one, or clip. U and V are kept then, and a warning says how much the weight changed.
    Where there are fewer reflectors than the weight needs, its singular vectors become a base that
    they start from, two parameters without gradient, see :class:`SVDWeight`. Assigning to
    ``module.<name>`` later obeys ``out_of_bounds``. On the meta device only shapes are made, for a
    state dict to fill.

    W is formed at each access, at 4 p (m k_u + n k_v) operations; use :func:`cached` or
    ``torch.nn.utils.parametrize.cached()`` where a weight is read several times, as
    ``torch.nn.RNN`` does in each call. :class:`SVDLinear` and ``SpectralRNN`` need not form it.

    Args:
        module: Any module.
        name: Its parameter or buffer, of two dimensions or more.
        num_reflectors: Reflectors per side and block: None for all, an int or a pair (left, right).
        spectrum: Map from raw parameter to σ; ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        num_blocks: Stacked matrices along dimension 0, each with factors of its own: 4 for the
            gates of ``weight_hh_l0`` of an LSTM, 3 for a GRU.
        out_of_bounds: "raise", or "clip" to move singular values into the bounds.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.

    Returns:
        The module.

    Raises:
        TypeError: if an argument has the wrong type, or the weight no real floating dtype.
        ValueError: if the module has no such tensor, it is parametrized or no matrix, its rows do
            not split into ``num_blocks``, ``num_reflectors`` is too large, or with "raise" a
            singular value is out of bounds.

    Example:
        >>> layer = svd(nn.Linear(8, 8), out_of_bounds="clip")
        >>> sigma = torch.linalg.svdvals(layer.weight)
        >>> bool(((sigma > 0.98) & (sigma < 1.02)).all())
        True
        >>> lstm = svd(nn.LSTM(4, 8), "weight_hh_l0", num_blocks=4, out_of_bounds="clip")
        >>> gates = lstm.weight_hh_l0.unflatten(0, (4, 8))
        >>> bool((torch.linalg.matrix_norm(gates, 2) < 1.02).all())
        True

    References:
        Zhang, Lei, Dhillon. Stabilizing gradients for deep neural networks via efficient SVD
        parameterization. ICML 2018. https://arxiv.org/abs/1803.09327
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if not isinstance(name, str):
        raise TypeError(f"name must be that of a tensor, such as 'weight', got {name!r}")
    weight = getattr(module, name, None)
    if isinstance(module, AssignableWeights) and module._assignable(name) is not None:
        raise ValueError(
            f"{name} of {type(module).__name__} is in SVD form already; set_spectrum_ of its "
            "SVDWeight sets other bounds"
        )
    if not isinstance(weight, Tensor):
        own = [key for key, _ in module.named_parameters(recurse=False)]
        has = f"it has {', '.join(own)}" if own else "it has none of its own, see its submodules"
        raise ValueError(
            f"name must be a parameter or buffer of {type(module).__name__}, got {name!r}; {has}"
        )
    check_has_value(type(module).__name__, weight)
    if parametrize.is_parametrized(module, name):
        chains: Any = module.parametrizations
        if isinstance(chains[name][0], _SVD):
            raise ValueError(
                f"{name} of {type(module).__name__} is in SVD form already; remove_svd undoes that"
            )
        raise ValueError(
            f"{name} of {type(module).__name__} is parametrized already; svd, which is made of "
            "several tensors, has to come first"
        )
    check_floating(name, weight)
    check_integer("num_blocks", num_blocks, 1)
    check_choice("out_of_bounds", out_of_bounds, ("raise", "clip"))
    if weight.dim() < 2 or weight.numel() == 0:
        raise ValueError(
            f"{name} must have at least two dimensions, none empty, got {tuple(weight.shape)}"
        )
    if weight.shape[0] % num_blocks:
        raise ValueError(
            f"num_blocks must divide dimension 0 of {name}, {weight.shape[0]}, got {num_blocks}"
        )
    parametrization = _SVD(
        weight,
        num_reflectors,
        resolve_spectrum(spectrum, None, margin),
        num_blocks,
        out_of_bounds,
        f"{name} of {type(module).__name__}",
    )
    parametrize.register_parametrization(module, name, parametrization)
    if isinstance(module, nn.RNNBase):
        module.register_forward_hook(release_flat_weights)
    return module


def svd_names(module: nn.Module) -> list[str]:
    """The tensors of a module, without its children, that :func:`svd` keeps in SVD form."""
    if not parametrize.is_parametrized(module):
        return []
    chains: Any = module.parametrizations
    # Only the first parametrization of a tensor can own several parameters.
    return [name for name, chain in chains.items() if isinstance(chain[0], _SVD)]


def svd_blocks(module: nn.Module, name: str) -> int:
    """Of how many matrices a tensor in SVD form is stacked."""
    chains: Any = module.parametrizations
    return chains[name][0].num_blocks


def svd_bases(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Reflectors and base of each side of the tensors of a module that have one."""
    chains: Any = getattr(module, "parametrizations", {})
    found = []
    for name in svd_names(module):
        own, originals = chains[name][0], chains[name]
        for base, reflectors in (
            (own.left_base, originals.original0),
            (own.right_base, originals.original1),
        ):
            if base is not None:
                found.append((reflectors, base))
    return found


def svd_singular_values(module: nn.Module, name: str = "weight") -> Tensor:
    """σ of a tensor in SVD form, unsorted, differentiable, without a decomposition.

    Args:
        module: What was given to :func:`svd`.
        name: That of the tensor.

    Returns:
        Shape ``(p,)``, or ``(num_blocks, p)`` of several matrices, float32 at least.

    Raises:
        ValueError: if the tensor is not in SVD form, or parametrized further, which changes σ.

    Example:
        >>> linear = svd(nn.Linear(4, 3), margin=0.1, out_of_bounds="clip")
        >>> svd_singular_values(linear).shape
        torch.Size([3])
    """
    values = known_singular_values(module, name)
    if values is None:
        more = "has further parametrizations" if name in svd_names(module) else "is not in SVD form"
        raise ValueError(f"{name} of {type(module).__name__} {more}, so its σ are not known")
    return values


def known_singular_values(module: nn.Module, name: str) -> Tensor | None:
    """Those of :func:`svd_singular_values`, None where it raises."""
    if name not in svd_names(module):
        return None
    chains: Any = module.parametrizations
    chain = chains[name]
    if len(chain) > 1:
        return None
    raw = getattr(chain, "original2", None)
    sigma = spectrum_values(chain[0].spectrum, raw, chain[0].signs)
    return sigma.squeeze(0) if chain[0].num_blocks == 1 else sigma


def remove_svd(module: Module, name: str = "weight") -> Module:
    r"""Leaves the dense weight of :func:`svd` behind as a plain tensor, trained if it was.

    ``torch.nn.utils.parametrize.remove_parametrizations`` does that, too, but breaks all deep
    copies of the module, which share its class; this leaves them alone.

    Args:
        module: Any module.
        name: A tensor that :func:`svd` keeps in SVD form, and nothing else changes.

    Returns:
        The module.

    Raises:
        ValueError: if the tensor is not in SVD form or has further parametrizations, or the module
            is sharded by ``fully_shard``.

    Example:
        >>> layer = svd(nn.Linear(3, 3), out_of_bounds="clip")
        >>> weight = layer.weight
        >>> remove_svd(layer)
        Linear(in_features=3, out_features=3, bias=True)
        >>> torch.equal(layer.weight, weight)
        True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if name not in svd_names(module):
        raise ValueError(
            f"name must be a tensor that svd keeps in SVD form in {type(module).__name__}, got "
            f"{name!r}"
        )
    refuse_sharded(module)
    chains: Any = module.parametrizations
    originals = chains[name]
    if len(originals) > 1:
        others = ", ".join(type(other).__name__.lstrip("_") for other in list(originals)[1:])
        raise ValueError(f"{name} has further parametrizations, {others}; remove them first")
    own = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(type(module).__name__, type(module).__bases__, own)
    parametrize.remove_parametrizations(module, name)
    if isinstance(originals.original0, nn.Parameter):
        requires_grad = any(original.requires_grad for original in originals.parameters())
        dense = nn.Parameter(getattr(module, name).detach(), requires_grad)
        delattr(module, name)
        module.register_parameter(name, dense)
    if not svd_names(module):
        hooks = module._forward_hooks
        for key in [k for k, hook in hooks.items() if hook is release_flat_weights]:
            del hooks[key]
    return module


def release_flat_weights(module: nn.RNNBase, *_: object) -> None:
    """Drops the graph of the weights that an RNN keeps from its last call, which deepcopy refuses.

    The RNN replaces them at its next call, as it compares them with its attributes: with references
    of its own, by which a cached weight would seem to be there still.
    """
    kept: list[Any] = module._flat_weights
    kept = [w.detach() if isinstance(w, Tensor) and not w.is_leaf else w for w in kept]
    module._flat_weights = kept
    module._flat_weight_refs = [None if w is None else weakref.ref(w) for w in kept]


class _SVD(SpectrumRecord):
    """Forward: parameters to weight; right inverse: weight to parameters, signs and bases."""

    left_base: nn.Parameter | None
    right_base: nn.Parameter | None

    def __init__(
        self,
        weight: Tensor,
        num_reflectors: int | Sequence[int] | None,
        spectrum: Spectrum | StackedSpectrum,
        num_blocks: int,
        out_of_bounds: str,
        name: str,
    ) -> None:
        super().__init__()
        self.weight_shape = weight.shape
        self.num_blocks = num_blocks
        m, n = self._blocks(weight).shape[1:]
        self.num_reflectors = resolve_num_reflectors(num_reflectors, m, n)
        self.spectrum = spectrum
        self.out_of_bounds, self.name = out_of_bounds, name
        ones = torch.ones(num_blocks, min(m, n), dtype=weight.dtype, device=weight.device)
        self.register_buffer("signs", marked(ones, self.spectrum))
        self._set_bases(None, None)

    def _set_bases(self, *bases: Tensor | None) -> None:
        for name, base in zip(("left_base", "right_base"), bases, strict=True):
            made = None if base is None else nn.Parameter(base, requires_grad=False)
            self.register_parameter(name, made)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        drop_kept(self)
        present = f"{prefix}left_base" in state_dict
        if f"{prefix}signs" in state_dict and present != (self.left_base is not None):
            # Whether there are bases belongs to the values: without them they mean another W.
            (_, m, n), p = self._blocks(self._example()).shape, self.signs.shape[-1]
            dtype = full_precision(self.signs.dtype)
            made = [self.signs.new_empty(self.num_blocks, s, p, dtype=dtype) for s in (m, n)]
            self._set_bases(*(made if present else (None, None)))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _example(self) -> Tensor:
        """Of the shape of the weight, without values."""
        return torch.empty(self.weight_shape, device="meta")

    def _blocks(self, weight: Tensor) -> Tensor:
        return weight.flatten(1).unflatten(0, (self.num_blocks, -1))

    def forward(self, left: Tensor, right: Tensor, raw: Tensor | None = None) -> Tensor:
        if exports_to_onnx():
            return evaluated(self, self._form, left, right, raw)

        def make() -> Tensor:
            return self._form(left, right, raw)

        made_of = (left, right, raw, self.signs, self.left_base, self.right_base)
        if not keeps(self, made_of):
            return formed_once(self, "weight", made_of, make, self.spectrum)
        # The values of σ, since a spectrum may change, too.
        stamp, sigma = stamps(made_of), spectrum_values(self.spectrum, raw, self.signs)
        weight = kept(self, "weight", stamp, (*made_of, sigma), make)
        assert weight is not None
        return weight

    def train(self, mode: bool = True) -> _SVD:
        drop_kept(self)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _SVD:
        drop_kept(self)
        super()._apply(fn, recurse)
        return self

    def _form(self, left: Tensor, right: Tensor, raw: Tensor | None) -> Tensor:
        sigma = spectrum_values(self.spectrum, raw, self.signs)
        signs = self.signs.to(left.dtype).sign()
        factors = HouseholderSVD(
            left,
            sigma,
            right,
            signs=signs,
            triangular=self.left_base is None,
            left_base=self.left_base,
            right_base=self.right_base,
        )
        dense = factors.to_dense().to(left.dtype)
        # Tall ones come transposed, which safetensors and parameters_to_vector refuse.
        return dense.reshape(self.weight_shape).contiguous()

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        check_floating("weight", weight)
        if weight.shape != self.weight_shape:
            raise ValueError(
                f"weight must have shape {tuple(self.weight_shape)}, got {tuple(weight.shape)}"
            )
        if weight.is_meta:
            # Values, and with them whether there are bases, come with a state dict.
            (_, m, n), (k_u, k_v) = self._blocks(weight).shape, self.num_reflectors
            shapes = [(k_u, m), (k_v, n)] + [(min(m, n),)] * self.spectrum.trainable
            return tuple(weight.new_empty(self.num_blocks, *shape) for shape in shapes)
        left, raw, right, signs, *bases = parameters_from_dense(
            self._blocks(weight),
            self.spectrum,
            self.num_reflectors,
            self.out_of_bounds,
            "if needed" if self.left_base is None else "always",
            self.name,
        )
        self.signs.copy_(marked(signs, self.spectrum))
        self._set_bases(*bases)
        parameters = (left, right) if raw is None else (left, right, raw)
        return tuple(parameter.to(weight.dtype) for parameter in parameters)

    def extra_repr(self) -> str:
        return (
            f"num_reflectors={self.num_reflectors}, spectrum={self.spectrum}, "
            f"num_blocks={self.num_blocks}"
        )
