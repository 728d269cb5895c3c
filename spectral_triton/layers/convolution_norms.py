"""What a convolution in SVD form knows of its norm as a linear map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectral_triton.layers.patches import bound_patches, count_patches
from spectral_triton.layers.symbol import circular_singular_values, norm_bound
from spectral_triton.runtime.cached import formed_once
from spectral_triton.runtime.onnx_export import evaluated, exports_to_onnx
from spectral_triton.runtime.validation import check_choice, check_integer, full_precision
from spectral_triton.svd.assignment import AssignableWeights
from spectral_triton.svd.bounds import OutOfBoundsError
from spectral_triton.svd.weight import SVDWeight

SLACK = 0.005
"""How far two bounds of the same norm may be apart."""


def check_operator_bound(operator_bound: float | None) -> float | None:
    """None, or a positive finite number."""
    if operator_bound is None:
        return None
    if isinstance(operator_bound, bool) or not isinstance(operator_bound, int | float):
        raise TypeError(f"operator_bound must be a number or None, got {operator_bound!r}")
    if not 0 < operator_bound < math.inf:
        raise ValueError(f"operator_bound must be positive and finite, got {operator_bound}")
    return float(operator_bound)


class ConvolutionNorms(AssignableWeights):
    """The part of the convolutions that bounds them as operators."""

    dimensions: ClassVar[int]
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: str
    svd: SVDWeight
    _pads: tuple[tuple[int, int], ...]
    operator_bound: float | None = None

    def _kernel_of_factors(self) -> Tensor:
        """The kernel in torch's shape, before it is divided."""
        raise NotImplementedError

    def _kernel(self) -> Tensor:
        """The kernel in torch's shape that the layer multiplies with."""
        if self.operator_bound is None:
            return self._kernel_of_factors()

        def make() -> Tensor:
            kernel = self._kernel_of_factors()
            return kernel * self._scale(kernel)

        return self._formed_once(f"kernel of norm {self.operator_bound}", make)

    def _scale(self, kernel: Tensor | None = None) -> Tensor:
        """What the kernel of the factors is multiplied by."""
        if self.operator_bound is None:
            return self.svd.signs.new_ones(())
        if kernel is None and exports_to_onnx():
            return evaluated(self, lambda: self._scale(self._kernel_of_factors()), name="scale")
        norm = self._norm_bound(None, self._kernel_of_factors() if kernel is None else kernel)
        info = torch.finfo(norm.dtype)
        # Less what rounding of the singular values, of this quotient and of the product adds.
        bound = self.operator_bound * (1 - 16 * info.eps)
        return (bound / norm.clamp_min(info.tiny)).clamp(max=1.0)

    def _norm_bound(self, sizes: tuple[int, ...] | None, kernel: Tensor) -> Tensor:
        """Of the kernel of the factors."""
        grouped = kernel.unflatten(0, (self.groups, -1))
        settings = self.stride, self.dilation, self._pads, self.padding_mode
        by_patches = self._bound_by_patches(sizes)
        return torch.minimum(norm_bound(grouped, *settings, sizes), by_patches)

    @torch.no_grad()
    def _check_operator_norm(self, w: Tensor) -> None:
        """A dense kernel that the layer is to have is not to be divided."""
        if self.operator_bound is None or w.is_meta:
            return
        settings = self.stride, self.dilation, self._pads, self.padding_mode
        grouped = w.to(full_precision(w.dtype)).unflatten(0, (self.groups, -1))
        by_patches = torch.linalg.matrix_norm(grouped.flatten(2), 2).amax() * self._patches(None)
        norm = float(torch.minimum(norm_bound(grouped, *settings), by_patches))
        if norm > self.operator_bound * (1 + SLACK):
            raise OutOfBoundsError(
                f"the kernel's norm as an operator is up to {norm:.4g}, "
                f"above operator_bound={self.operator_bound}"
            )

    def _bound_by_patches(self, sizes: tuple[int, ...] | None) -> Tensor:
        return self.svd.singular_values.abs().amax() * self._patches(sizes)

    def _patches(self, sizes: tuple[int, ...] | None) -> float:
        """The root of how many patches an element takes part in."""
        shape = list(zip(self.kernel_size, self.stride, self.dilation, self._pads, strict=True))
        if sizes is None:
            counts = [bound_patches(*settings, self.padding_mode) for settings in shape]
        else:
            counts = [
                count_patches(size, *settings, self.padding_mode)
                for size, settings in zip(sizes, shape, strict=True)
            ]
        return math.sqrt(math.prod(counts))

    def _formed_once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if exports_to_onnx():
            return evaluated(self, make, name=name)
        weight = self.svd
        bases = weight.left_base, weight.right_base
        made_of = weight.left, weight.raw_singular_values, weight.right, weight.signs, *bases
        return formed_once(self, name, made_of, make, weight.spectrum)

    def operator_norm_bound(
        self, input_size: int | Sequence[int] | None = None, method: str = "fourier"
    ) -> Tensor:
        r"""An upper bound of the 2-norm of the convolution, without its bias, as a linear map.

        .. math:: \sup_\omega \|\hat K(\omega)\|_2, \qquad
            \hat K(\omega) = \sum_t K_t e^{-i \omega t}

        "fourier" bounds the supremum of the symbol from samples, rounding included: 1 to 5 % above
        the norm itself for kernels of 3 x 3 and 5 x 5 and larger inputs. Zero padding, any dilation
        and any input size only make the norm smaller; a stride takes several frequencies together;
        copies that other paddings make count by the root of their number. With circular padding
        that keeps the size, stride 1 and ``input_size`` it is exact. Costs one to two Cholesky
        factors of the smaller number of channels at (10 (k - 1))^d / 2 frequencies, on a GPU with
        a wait for the device; the gradient costs next to nothing.

        "patches" costs next to nothing and is 1.3 to 2.4 times the norm for such kernels:

        .. math:: \|K\|_2 \prod_d \sqrt{c_d}

        where :math:`\|K\|_2` is the largest singular value of the flattened kernel and c_d, for
        each dimension, the number of patches that an element of the input takes part in. Along a
        dimension of kernel k, stride s and dilation δ with zero padding
        :math:`c \le \lceil k g / s \rceil`, g = gcd(s, δ): a tap meets every s-th element, and taps
        s / g apart meet the same ones. With ``input_size`` the patches are counted.

        "fourier" returns the smaller of both. With ``operator_bound`` it is of the kernel that the
        layer uses, so at most that bound. Inside :func:`cached` it is computed once.

        Args:
            input_size: Length, (height, width) or (depth, height, width) of the input; None for
                any.
            method: "fourier" or "patches".

        Returns:
            Scalar tensor, differentiable, float32 at least.

        Raises:
            ValueError: if ``input_size`` is not positive, or gives no output, or ``method`` is
                unknown.

        Example:
            >>> conv = SVDConv2d(8, 8, 3, padding=1, padding_mode="circular")
            >>> exact = conv.operator_singular_values((6, 6)).amax()
            >>> bool(exact <= conv.operator_norm_bound((6, 6)) <= 1.00001 * exact)
            True
            >>> bool(conv.operator_norm_bound() <= conv.operator_norm_bound(method="patches"))
            True

        References:
            Sedghi, Gupta, Long. The singular values of convolutional layers. ICLR 2019.
            Pfister, Liang. Bounding multivariate trigonometric polynomials. 2018.
            Delattre, Barthélemy, Araujo, Allauzen. Efficient bound of Lipschitz constant for
            convolutional layers by Gram iteration. ICML 2023.
        """
        check_choice("method", method, ("fourier", "patches"))
        sizes = None if input_size is None else self._sizes(input_size)
        if method == "patches":
            return self._bound_by_patches(sizes) * self._scale()

        def make() -> Tensor:
            kernel = self._kernel_of_factors()
            bound = self._norm_bound(sizes, kernel)
            return bound if self.operator_bound is None else bound * self._scale(kernel)

        return self._formed_once(f"norm {sizes}, {self.operator_bound}", make)

    def operator_singular_values(self, input_size: int | Sequence[int]) -> Tensor:
        r"""All singular values of the convolution as a linear map of inputs of one size.

        Those of the symbol at the frequencies of the input, exactly, for circular padding that
        keeps the size and stride 1.

        Args:
            input_size: Length, (height, width) or (depth, height, width) of the input.

        Returns:
            Shape (groups * min(out, in) * elements,) with the channels of one group, unsorted,
            differentiable, float32 at least.

        Raises:
            ValueError: if the padding is not circular or changes the size, a stride is not 1, or
                ``input_size`` is not positive.

        Example:
            >>> conv = SVDConv1d(3, 3, 3, padding=1, padding_mode="circular")
            >>> conv.operator_singular_values(10).shape
            torch.Size([30])
        """
        sizes = self._sizes(input_size)
        settings = zip(self.kernel_size, self.dilation, self._pads, strict=True)
        keeps = all(sum(pads) == step * (k - 1) for k, step, pads in settings)
        if self.padding_mode != "circular" or not keeps or any(s != 1 for s in self.stride):
            raise ValueError(
                "the singular values are known for circular padding that keeps the size and stride "
                f"1, got {type(self).__name__}({self.extra_repr()}); "
                f"operator_norm_bound holds for every convolution"
            )
        for size in sizes:
            check_integer("input_size", size, 1)
        grouped = self._kernel().unflatten(0, (self.groups, -1))
        return circular_singular_values(grouped, sizes, self.dilation)

    def _sizes(self, input_size: int | Sequence[int]) -> tuple[int, ...]:
        one: Any = input_size
        sizes = tuple(one) if isinstance(one, Sequence) else (one,) * self.dimensions
        if len(sizes) != self.dimensions:
            raise ValueError(f"input_size must have {self.dimensions} entries, got {input_size!r}")
        return sizes
