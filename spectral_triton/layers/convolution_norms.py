"""What a convolution in SVD form knows of its norm as a linear map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectral_triton.layers.patches import bound_patches, count_patches
from spectral_triton.layers.symbol import circular_singular_values, norm_bound
from spectral_triton.runtime.cached import formed_once
from spectral_triton.runtime.validation import check_choice, check_integer
from spectral_triton.svd.assignment import AssignableWeights
from spectral_triton.svd.weight import SVDWeight


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

    @property
    def singular_values(self) -> Tensor:
        """Those of the flattened kernel, ([groups,] p), unsorted, float32 at least."""
        return self.svd.singular_values

    def _kernel(self) -> Tensor:
        raise NotImplementedError

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

        "fourier" returns the smaller of both. Inside :func:`cached` it is computed once.

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
        shape = list(zip(self.kernel_size, self.stride, self.dilation, self._pads, strict=True))
        sizes = None if input_size is None else self._sizes(input_size)
        if sizes is None:
            counts = [bound_patches(*settings, self.padding_mode) for settings in shape]
        else:
            counts = [
                count_patches(size, *settings, self.padding_mode)
                for size, settings in zip(sizes, shape, strict=True)
            ]
        by_patches = self.singular_values.abs().amax() * math.sqrt(math.prod(counts))
        if method == "patches":
            return by_patches
        weight = self.svd
        made_of = weight.left, weight.raw_singular_values, weight.right, weight.signs

        def make() -> Tensor:
            settings = self.stride, self.dilation, self._pads, self.padding_mode
            bound = norm_bound(self._kernel_of_groups(), *settings, sizes)
            return torch.minimum(bound, by_patches)

        return formed_once(self, f"norm {sizes}", made_of, make, weight.spectrum)

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
        return circular_singular_values(self._kernel_of_groups(), sizes, self.dilation)

    def _sizes(self, input_size: int | Sequence[int]) -> tuple[int, ...]:
        one: Any = input_size
        sizes = tuple(one) if isinstance(one, Sequence) else (one,) * self.dimensions
        if len(sizes) != self.dimensions:
            raise ValueError(f"input_size must have {self.dimensions} entries, got {input_size!r}")
        return sizes

    def _kernel_of_groups(self) -> Tensor:
        """The kernel as (groups, out, in, *taps), of one group."""
        return self._kernel().unflatten(0, (self.groups, -1))
