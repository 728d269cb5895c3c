r"""What convolutions with a kernel in SVD form have in common, and how large their norm can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from spectral_triton.layers.convolution_norms import check_operator_bound
from spectral_triton.layers.pointwise import SIZES, PointwiseInverse
from spectral_triton.runtime.sharding import gathered
from spectral_triton.runtime.validation import (
    check_choice,
    check_device,
    check_flag,
    check_has_value,
    check_integer,
    check_precision,
    full_precision,
    without_autocast,
)
from spectral_triton.spectra.spectrum import Spectrum
from spectral_triton.svd.dense_entries import factor_dense_entries
from spectral_triton.svd.operator import HouseholderSVD
from spectral_triton.svd.weight import SVDWeight

_CONVOLVE: tuple[Any, ...] = (
    nn.functional.conv1d,
    nn.functional.conv2d,
    nn.functional.conv3d,
)
Convolution = TypeVar("Convolution", bound="SVDConvolution")


class SVDConvolution(PointwiseInverse):
    """The base of :class:`SVDConv1d` and its like, which say how many dimensions."""

    plain_type: ClassVar[Any]
    """The layer of torch that computes the same."""
    _settings: ClassVar[tuple[str, ...]] = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    )
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | None = None,
        init: str = "haar",
        base: str | None = None,
        margin: float | None = None,
        operator_bound: float | None = None,
    ) -> None:
        super().__init__()
        self._take(
            {
                "in_channels": in_channels,
                "out_channels": out_channels,
                "kernel_size": kernel_size,
                "stride": stride,
                "padding": padding,
                "dilation": dilation,
                "groups": groups,
                "padding_mode": padding_mode,
            }
        )
        padded = self.padding
        if isinstance(padded, str):
            sizes = zip(self.kernel_size, self.dilation, strict=True)
            total = [d * (k - 1) if padded == "same" else 0 for k, d in sizes]
            self._pads = tuple((t // 2, t - t // 2) for t in total)
        else:
            self._pads = tuple((pad, pad) for pad in padded)
        svd = {"num_reflectors": num_reflectors, "spectrum": spectrum, "margin": margin}
        self._add(bias, operator_bound, {**svd, "init": init, "base": base}, device, dtype)

    def _take(self, given: dict[str, Any]) -> None:
        """Checks what a convolution of torch is built with, and takes it over."""
        for name in ("in_channels", "out_channels", "groups"):
            check_integer(name, given[name], 1)
        for name, value in given.items():
            if name in ("in_channels", "out_channels", "groups", "padding_mode"):
                continue
            if name == "padding" and isinstance(value, str):  # torch checks which.
                continue
            several = isinstance(value, Sequence) and not isinstance(value, str)
            each: Any = value if several else (value,) * self.dimensions
            if len(each) != self.dimensions:
                raise ValueError(f"{name} must be an int or {self.dimensions} of them, got {value}")
            for number in each:
                check_integer(name, number, 0 if "padding" in name else 1)
        # torch checks the other arguments, and says what they come to.
        plain = self.plain_type(**given, bias=False, device="meta")
        for name in self._settings:
            setattr(self, name, getattr(plain, name))

    def _add(
        self,
        bias: bool,
        operator_bound: float | None,
        svd: dict[str, Any],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Registers and draws all parameters."""
        check_flag("bias", bias)
        self.operator_bound = check_operator_bound(operator_bound)
        rows, columns, *taps = self._kernel_shape
        self.svd = SVDWeight(
            rows // self.groups,
            columns * math.prod(taps),
            device=device,
            dtype=dtype,
            num_blocks=None if self.groups == 1 else self.groups,
            **svd,
        )
        empty = torch.empty(self.out_channels, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if empty is None else nn.Parameter(empty))
        self._reset_bias()

    @property
    def _kernel_shape(self) -> tuple[int, ...]:
        """That of torch's weight."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def reset_parameters(self) -> None:
        """Draws a random kernel with singular values at the center, the bias as torch does."""
        self.svd.reset_parameters()
        self._reset_bias()

    def _reset_bias(self) -> None:
        if self.bias is not None:
            bound = 1 / math.sqrt(self.svd.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        defaults = {
            "stride": (1,) * self.dimensions,
            "padding": (0,) * self.dimensions,
            "dilation": (1,) * self.dimensions,
            "output_padding": (0,) * self.dimensions,
            "groups": 1,
            "padding_mode": "zeros",
        }
        parts += [
            f"{name}={getattr(self, name)!r}"
            for name, default in defaults.items()
            if getattr(self, name, default) != default
        ]
        if self.operator_bound is not None:
            parts.append(f"operator_bound={self.operator_bound}")
        return ", ".join(parts + ([] if self.bias is not None else ["bias=False"]))

    def _assignable(self, name: str) -> SVDWeight | None:
        return self.svd if name == "weight" else None

    def _as_matrix(self, w: Tensor, weight: SVDWeight) -> Tensor:
        if tuple(w.shape) != self._kernel_shape:
            shapes = f"{self._kernel_shape}, got {tuple(w.shape)}"
            raise ValueError(f"the kernel must have shape {shapes}")
        self._check_operator_norm(w)
        return w.reshape(weight.shape)

    @property
    def weight(self) -> Tensor:
        """The kernel, of torch's shape, differentiable, in the dtype of the module.

        Formed at each access: what is written into it is lost. Assign a kernel, which is factored.
        """
        dense = self._kernel().to(self.svd.left.dtype)
        return self._handed_out(dense, self.svd, "weight")

    def _kernel_of_factors(self) -> Tensor:
        return self.svd.to_dense().reshape(self._kernel_shape)

    @property
    def singular_values(self) -> Tensor:
        """Those of the flattened kernel, ([groups,] p), unsorted, differentiable, float32 at least.

        :meth:`operator_singular_values` has those of the convolution as a whole. With
        ``operator_bound`` they are those of the kernel that is used, after its division.
        """
        sigma = self.svd.singular_values
        return sigma if self.operator_bound is None else sigma * self._scale()

    @property
    def factors(self) -> HouseholderSVD:
        """The flattened kernel as an operator on patches; batched where there are groups.

        With ``operator_bound`` it is that before the division.
        """
        return self.svd.factors

    def forward(self, input: Tensor) -> Tensor:
        """([B,] in_channels, ...) -> ([B,] out_channels, ...), in the dtype of the input."""
        check_precision("input", input, full_precision(self.svd.left.dtype))
        check_device("input", input, self.svd.left.device, "the layer")
        self._check_channels(input)
        d = self.dimensions
        with without_autocast(input.device.type):
            kernel = self._kernel()
            wide = input.to(kernel.dtype) if input.dtype.itemsize == 2 else input
            padding: tuple[int, ...] | str | int = self.padding
            if self.padding_mode != "zeros":
                both = [size for pads in reversed(self._pads) for size in pads]
                # Only batched input can be padded so.
                batched = wide if wide.dim() == d + 2 else wide.unsqueeze(0)
                batched = nn.functional.pad(batched, both, mode=self.padding_mode)
                wide, padding = batched.reshape(*wide.shape[:-d], *batched.shape[-d:]), 0
            bias = None if self.bias is None else self.bias.to(kernel.dtype)
            y = _CONVOLVE[d - 1](
                wide, kernel, bias, self.stride, padding, self.dilation, self.groups
            )
        return y.to(input.dtype)

    def _check_channels(self, input: Tensor) -> None:
        d = self.dimensions
        if input.dim() not in (d + 1, d + 2) or input.shape[-d - 1] != self.in_channels:
            raise ValueError(
                f"input must have shape ([B,] in_channels, {SIZES[d - 1]}) with in_channels = "
                f"{self.in_channels}, got {tuple(input.shape)}"
            )

    @classmethod
    def from_conv(
        cls: type[Convolution],
        conv: Any,
        *,
        num_reflectors: int | Sequence[int] | None = None,
        spectrum: Spectrum | None = None,
        out_of_bounds: str = "raise",
        margin: float | None = None,
        operator_bound: float | None = None,
    ) -> Convolution:
        """The layer that computes what a given convolution of torch does.

        Args:
            conv: Its kernel, bias, device, dtype and mode are taken over, not shared.
            num_reflectors: As above. Fewer than all keep the kernel as well, with a base.
            spectrum: As above.
            out_of_bounds: "raise", or "clip" to move singular values into the bounds, with a
                warning that says by how much the weight changed.
            margin: As above.
            operator_bound: As above; a kernel beyond it raises, or is divided with "clip".

        Raises:
            TypeError: if ``conv`` is not of the kind of torch's layers that this one stands for.
            ValueError: if a singular value is out of bounds, or there are too few reflectors.
        """
        kind = cls.plain_type
        if not isinstance(conv, kind):
            raise TypeError(f"conv must be a torch.nn.{kind.__name__}, got {type(conv).__name__}")
        check_has_value("conv", conv.weight)
        layer = cls(
            **{name: getattr(conv, name) for name in cls._settings},
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            num_reflectors=num_reflectors,
            spectrum=spectrum,
            margin=margin,
        )
        check_choice("out_of_bounds", out_of_bounds, ("raise", "clip"))
        layer.operator_bound = check_operator_bound(operator_bound)
        if out_of_bounds == "raise":
            layer._check_operator_norm(conv.weight.detach())
        layer.svd.set_named_(conv.weight.detach().reshape(layer.svd.shape), out_of_bounds, "weight")
        if layer.bias is not None and conv.bias is not None:
            layer.bias.data.copy_(conv.bias.detach())
        return layer.train(conv.training)

    def to_conv(self) -> Any:
        """The convolution of torch with the dense kernel and the bias, copied."""
        weight = self.weight.detach()
        conv = nn.utils.skip_init(
            self.plain_type,
            **{name: getattr(self, name) for name in self._settings},
            bias=self.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        conv.weight.data.copy_(weight)
        if self.bias is not None:
            conv.bias.data.copy_(gathered(self.bias.detach()))
        return conv.train(self.training)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        factor_dense_entries(
            self, state_dict, prefix, args[-1], [("weight", "svd")], self._as_matrix
        )
        super()._load_from_state_dict(state_dict, prefix, *args)
