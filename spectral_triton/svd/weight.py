r"""The parameters of a matrix W = U diag(s ∘ σ) Vᵀ whose singular values stay within bounds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from spectral_triton.runtime.cached import formed_once, is_cached
from spectral_triton.runtime.computed_tensors import compute_tensors
from spectral_triton.runtime.evaluation import drop_kept, keeps
from spectral_triton.runtime.fingerprint import stamps
from spectral_triton.runtime.onnx_export import evaluated, exports_to_onnx
from spectral_triton.runtime.sharding import assign_, gathered
from spectral_triton.runtime.validation import (
    check_choice,
    check_dtype,
    check_floating,
    check_integer,
    full_precision,
    resolve_num_reflectors,
)
from spectral_triton.spectra.record import SpectrumRecord, marked
from spectral_triton.spectra.spectrum import Spectrum
from spectral_triton.spectra.stacked import StackedSpectrum, resolve_spectrum
from spectral_triton.svd.cached_svd import CachedSVD
from spectral_triton.svd.constant_svd import ConstantSVD
from spectral_triton.svd.evaluated_svd import EvaluatedSVD
from spectral_triton.svd.frozen_core import frozen_core
from spectral_triton.svd.handed_out import forget, state_without, warn_of_writing
from spectral_triton.svd.operator import HouseholderSVD
from spectral_triton.svd.parameters import (
    parameters_from_dense,
    parameters_from_sigma,
    spectrum_values,
)
from spectral_triton.svd.start import initial_raw, reset_reflectors_, reset_with_base_

BASES = ("haar",)
INITIALIZERS = ("haar", "identity", "henaff", "cayley")


class SVDWeight(SpectrumRecord):
    r"""A trainable matrix in SVD form: reflectors of U and V, and raw singular values.

    .. math:: W = U \,\mathrm{diag}(s \circ \sigma)\, V^\top, \qquad \sigma = f(\hat\sigma)

    The bounds of the spectrum f hold for every value of the parameters, so also after optimizer
    steps, weight decay, averaging, or rounding of the module to half precision. The module
    computes in float32 at least: parameters in half precision are converted before use, and the
    product with x is rounded once. W cannot cross from one sign of its determinant to the other
    while all σ are positive, see :class:`HouseholderSVD`.

    Args:
        out_features: Rows m of W.
        in_features: Columns n of W.
        num_reflectors: Reflectors per side: None for all p = min(m, n), an int or a pair
            (left, right). A product with a vector costs :math:`4(m k_u + n k_v)` operations.
        spectrum: Map from raw parameter to σ; ``SigmoidSpectrum(center=1, margin=0.01)`` if None.
        device: Where the parameters live.
        dtype: Their floating dtype.
        init: Start of the reflectors: "haar", "identity", "henaff" or "cayley", see
            ``spectral_triton.init``.
        base: None, or "haar" for fixed orthonormal U₀ and V₀ that the reflectors start from, drawn
            uniformly. Any matrix can be set then, however few the reflectors; it costs two
            products with the dense bases. :meth:`set_dense_` and loading take one by themselves
            for a matrix that needs it.
        num_blocks: None for one matrix, or a number of matrices of this size, each with factors of
            its own: everything below then has one more dimension in front, and ``spectrum`` may
            also be a sequence of one per matrix.
        margin: Half-width of the band around 1, short for ``spectrum=SigmoidSpectrum(margin=...)``.

    Attributes:
        left: Reflectors of U, shape ``(k_u, m)``, used from the diagonal on.
        right: Reflectors of V, shape ``(k_v, n)``, used from the diagonal on.
        raw_singular_values: σ̂ of shape ``(p,)``; None where the spectrum has no parameter. It moves
            σ by a small factor (``margin / 2`` by default): give it a learning rate of its own,
            and no weight decay unless σ is to be drawn to the center.
        signs: Buffer of shape ``(p,)`` whose signs alone enter W: ``factors.signs`` is ±1. The
            magnitudes, between 1 and 2, tell the spectrum wherever the tensors are loaded.
        left_base: U₀ of shape ``(m, p)``, a parameter without gradient, in float32 at least; None
            without a base.
        right_base: V₀ of shape ``(n, p)``, likewise.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a size is below 1 or ``num_reflectors`` above min(m, n).

    Example:
        >>> weight = SVDWeight(3, 5, num_reflectors=2)
        >>> sigma = torch.linalg.svdvals(weight.to_dense())
        >>> bool(((sigma > 0.98) & (sigma < 1.02)).all())
        True
        >>> SVDWeight(3, 5, num_blocks=4).to_dense().shape
        torch.Size([4, 3, 5])
    """

    left: nn.Parameter
    right: nn.Parameter
    raw_singular_values: nn.Parameter | None
    signs: Tensor
    left_base: nn.Parameter | None
    right_base: nn.Parameter | None

    def __init__(
        self,
        out_features: int,
        in_features: int,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | Sequence[Spectrum] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        init: str = "haar",
        num_blocks: int | None = None,
        base: str | None = None,
        margin: float | None = None,
    ) -> None:
        super().__init__()
        check_integer("out_features", out_features, 1)
        check_integer("in_features", in_features, 1)
        if num_blocks is not None:
            check_integer("num_blocks", num_blocks, 1)
        check_choice("init", init, INITIALIZERS)
        if base is not None:
            check_choice("base", base, BASES)
        check_dtype(dtype)
        self.out_features, self.in_features = out_features, in_features
        self.num_reflectors = resolve_num_reflectors(num_reflectors, out_features, in_features)
        self.spectrum = resolve_spectrum(spectrum, num_blocks, margin)
        self.init, self.num_blocks = init, num_blocks
        k_u, k_v = self.num_reflectors
        p = min(out_features, in_features)
        batch = () if num_blocks is None else (num_blocks,)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.left = nn.Parameter(torch.empty(*batch, k_u, out_features, **options))
        raw = nn.Parameter(torch.empty(*batch, p, **options)) if self.spectrum.trainable else None
        self.register_parameter("raw_singular_values", raw)
        self.right = nn.Parameter(torch.empty(*batch, k_v, in_features, **options))
        self.register_buffer("signs", torch.empty(*batch, p, **options))
        self._set_base(base is not None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draws reflectors and base by ``init`` and sets σ to the initial value of the spectrum."""
        if self.left_base is None or self.right_base is None:
            reset_reflectors_(self.left, self.right, self.signs, self.init, generator)
        else:
            given = self.left, self.right, self.left_base, self.right_base
            reset_with_base_(given, self.shape, self.init, generator)
            self.signs.fill_(1)
        raw = self.raw_singular_values
        if isinstance(self.spectrum, StackedSpectrum) and raw is not None:
            for spectrum, row in zip(self.spectrum, raw, strict=True):
                row.fill_(initial_raw(spectrum))
        elif isinstance(self.spectrum, Spectrum) and raw is not None:
            raw.fill_(initial_raw(self.spectrum))
        self.signs.copy_(marked(self.signs, self.spectrum))

    def __getstate__(self) -> dict[str, Any]:
        return state_without(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Pickles of before there were bases.
        for name in ("left_base", "right_base"):
            self._parameters.setdefault(name, None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                "SVDWeight has no weight: set_dense_(w) sets W, to_dense() reads it"
            )
        if name == "spectrum" and "spectrum" in vars(self):
            raise AttributeError(
                "another spectrum makes another W of the same parameters: set_spectrum_(spectrum) "
                "keeps U, V and σ"
            )
        super().__setattr__(name, value)

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        """Reflectors and σ̂, without the bases."""
        for name, parameter in self.named_parameters():
            if not name.endswith("_base"):
                yield parameter

    def extra_repr(self) -> str:
        blocks = "" if self.num_blocks is None else f", num_blocks={self.num_blocks}"
        base = "" if self.left_base is None else ", with a base"
        return (
            f"out_features={self.out_features}, in_features={self.in_features}, "
            f"num_reflectors={self.num_reflectors}, spectrum={self.spectrum}{base}{blocks}"
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """(m, n), or (num_blocks, m, n)."""
        blocks = () if self.num_blocks is None else (self.num_blocks,)
        return (*blocks, self.out_features, self.in_features)

    @property
    def singular_values(self) -> Tensor:
        """σ of shape ([num_blocks,] p), unsorted and differentiable, float32 at least."""
        compute_tensors(self)
        return spectrum_values(self.spectrum, self.raw_singular_values, self.signs)

    @property
    def factors(self) -> HouseholderSVD:
        """W as an operator; outside :func:`cached` every access converts the raw σ̂ anew."""
        if exports_to_onnx():
            return evaluated(self, self._constant)
        # Most layers read the factors without a call.
        compute_tensors(self)
        warn_of_writing(self)
        bases = self.left_base, self.right_base
        given = (self.left, self.raw_singular_values, self.right, self.signs, *bases)
        if is_cached(*given):

            def make() -> HouseholderSVD:
                return self._factors(functools.partial(CachedSVD, sources=given))

            return formed_once(self, "factors", given, make, self.spectrum)
        # What a hook computes, or a call is given, is another at each call.
        lasting = isinstance(self.left, nn.Parameter) and isinstance(self.right, nn.Parameter)
        if not lasting or not keeps(self, given):
            return self._factors()
        make_kept = functools.partial(EvaluatedSVD, owner=self, stamp=stamps(given))
        return self._factors(make_kept, with_core=False)

    def _constant(self) -> HouseholderSVD:
        compute_tensors(self)
        return self._factors(ConstantSVD)

    def _factors(
        self, make: Callable[..., HouseholderSVD] = HouseholderSVD, with_core: bool = True
    ) -> HouseholderSVD:
        # FSDP's mixed precision casts parameters, not buffers.
        signs = self.signs.to(self.left.dtype).sign()
        sigma = spectrum_values(self.spectrum, self.raw_singular_values, self.signs)
        if self.left_base is None:
            return make(self.left, sigma, self.right, signs=signs, triangular=True)
        made_of = (self.raw_singular_values, self.signs, self.left_base, self.right_base)
        return make(
            self.left,
            sigma,
            self.right,
            signs=signs,
            left_base=self.left_base,
            right_base=self.right_base,
            core=frozen_core(self, self.spectrum, made_of, sigma) if with_core else None,
        )

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """W x + b for every vector along the last dimension, (..., n) -> (..., m), dtype of x.

        With blocks as ``torch.matmul(x, W.mT)``: (B, n) or (num_blocks, B, n) gives
        (num_blocks, B, m).
        """
        return self.factors.apply(x, bias)

    def inverse(self, y: Tensor, bias: Tensor | None = None) -> Tensor:
        """The x with W x + b = y for every vector along the last dimension, for a square W.

        Raises:
            torch.linalg.LinAlgError: if a singular value is zero.
        """
        # Looking at the values would wait for the device.
        may_vanish = not isinstance(self.spectrum, Spectrum) or self.spectrum.bounds[0] <= 0
        factors = self.factors.inverse(check_errors=may_vanish)
        factors._vectors(y, "y")
        if bias is None:
            return factors.apply(y).clone()
        wide = y.to(factors.dtype) if y.dtype.itemsize == 2 else y
        return factors.apply(wide - gathered(bias)).to(y.dtype)

    def to_dense(self) -> Tensor:
        """W of shape ([num_blocks,] m, n), contiguous, differentiable, float32 at least."""
        return self.factors.to_dense().contiguous()

    @torch.no_grad()
    def set_dense_(self, w: Tensor, out_of_bounds: str = "raise") -> SVDWeight:
        """Sets the parameters so that W is a given matrix.

        Args:
            w: The matrix, shape ``(m, n)``, or ``(num_blocks, m, n)``.
            out_of_bounds: "raise", or "clip" to move singular values into the bounds of the
                spectrum, a thousandth of its width inside, where the spectrum still has a slope.

        Returns:
            The module itself.

        Raises:
            TypeError: if ``w`` is not a real floating point tensor.
            ValueError: if the shape differs or a singular value is out of bounds. Nothing is
                changed then.
        """
        return self.set_named_(w, out_of_bounds)

    @torch.no_grad()
    def set_named_(self, w: Tensor, out_of_bounds: str, name: str = "the matrix") -> SVDWeight:
        """:meth:`set_dense_` for a layer that calls the matrix by the name it has there."""
        state = self.dense_state(w, out_of_bounds, name)
        forget(self)
        self._set_base("left_base" in state)
        for name, tensor in state.items():
            assign_(getattr(self, name), tensor)
        return self

    def _set_base(self, present: bool) -> None:
        """Makes or drops the parameters of the bases; values are for the caller to set."""
        batch, p = self.signs.shape[:-1], self.signs.shape[-1]
        sizes = {"left_base": self.out_features, "right_base": self.in_features}
        for name, size in sizes.items():
            if (getattr(self, name, None) is not None) == present and name in self._parameters:
                continue
            base = None
            if present:
                dtype = full_precision(self.left.dtype)
                values = torch.empty(*batch, size, p, dtype=dtype, device=self.left.device)
                base = nn.Parameter(values, requires_grad=False)
            self.register_parameter(name, base)

    def train(self, mode: bool = True) -> SVDWeight:
        """As of every module; what was kept of evaluation is freed."""
        drop_kept(self)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SVDWeight:
        drop_kept(self)
        bases = self.left_base, self.right_base
        before = [None if base is None else base.detach() for base in bases]
        super()._apply(fn, recurse)
        for base, wide in zip((self.left_base, self.right_base), before, strict=True):
            # Rounded to bfloat16 the columns would be off by 4e-3, and σ with them.
            if base is not None and wide is not None and base.dtype.itemsize == 2:
                base.data = wide.to(base.device, full_precision(base.dtype))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        drop_kept(self)
        if f"{prefix}left" in state_dict:
            # Whether there is a base belongs to the values: without it they mean another W.
            self._set_base(f"{prefix}left_base" in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def set_spectrum_(
        self, spectrum: Spectrum | Sequence[Spectrum], out_of_bounds: str = "raise"
    ) -> SVDWeight:
        """Sets other bounds: U, V and each σ within them stay.

        A negative σ becomes a sign where -σ is nearer to the bounds. Where only one spectrum has a
        parameter, ``raw_singular_values`` comes or goes, and an optimizer has to be made anew.

        Args:
            spectrum: Map from raw parameter to σ, or a sequence of one per matrix.
            out_of_bounds: "raise", or "clip" to move singular values into the new bounds, a
                thousandth of their width inside.

        Returns:
            The module itself.

        Raises:
            TypeError: if ``spectrum`` is not a Spectrum.
            ValueError: if a singular value is out of bounds. Nothing is changed then.

        Example:
            >>> weight = SVDWeight(3, 3, spectrum=SigmoidSpectrum(center=1.0, margin=0.5))
            >>> weight.set_spectrum_(SigmoidSpectrum(center=1.0, margin=0.1)).spectrum
            SigmoidSpectrum(center=1.0, margin=0.1, scale=1.0)
        """
        check_choice("out_of_bounds", out_of_bounds, ("raise", "clip"))
        new = resolve_spectrum(spectrum, self.num_blocks)
        sigma, signs = self.singular_values, self.signs.to(full_precision(self.signs.dtype)).sign()
        raw, signs = parameters_from_sigma(sigma, signs, new, out_of_bounds)
        if raw is None or self.raw_singular_values is None:
            options = {"requires_grad": self.left.requires_grad}
            made = None if raw is None else nn.Parameter(raw.to(self.left.dtype), **options)
            self.register_parameter("raw_singular_values", made)
        else:
            assign_(self.raw_singular_values, raw)
        self.signs.copy_(marked(signs, new))
        vars(self)["spectrum"] = new
        return self

    def dense_state(
        self, w: Tensor, out_of_bounds: str = "raise", name: str = "the matrix"
    ) -> dict[str, Tensor]:
        """What :meth:`set_dense_` sets, by the names of the state dict."""
        check_floating("w", w)
        if tuple(w.shape) != self.shape:
            raise ValueError(f"w must have shape {self.shape}, got {tuple(w.shape)}")
        found = parameters_from_dense(
            # On the meta device, for load_state_dict(assign=True), it stays where it is.
            w if self.left.is_meta or w.is_meta else w.to(self.left.device),
            self.spectrum,
            self.num_reflectors,
            out_of_bounds,
            "if needed" if self.left_base is None else "always",
            name,
        )
        found = found._replace(signs=marked(found.signs, self.spectrum))
        dtype = self.left.dtype
        return {
            name: value.to(full_precision(dtype) if name.endswith("base") else dtype)
            for name, value in found._asdict().items()
            if value is not None
        }
