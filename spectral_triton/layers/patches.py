"""How many patches of a convolution an element of its input takes part in."""

from __future__ import annotations

import math

import torch

from spectral_triton.runtime.validation import check_integer


def bound_patches(
    kernel: int, stride: int, dilation: int, pads: tuple[int, int], padding_mode: str
) -> int:
    """An upper bound along one dimension, for inputs of any size.

    Args:
        kernel: Taps of the kernel.
        stride: Elements between patches.
        dilation: Elements between taps.
        pads: Elements appended before and after.
        padding_mode: "zeros", "circular", "reflect" or "replicate".

    Example:
        >>> bound_patches(3, 1, 1, (1, 1), "zeros"), bound_patches(3, 2, 1, (0, 0), "zeros")
        (3, 2)
    """
    # Element x meets tap j in patch o where o stride = x - j dilation.
    of_one = math.ceil(kernel * math.gcd(stride, dilation) / stride)
    if padding_mode == "zeros" or sum(pads) == 0:
        return of_one
    if padding_mode == "replicate":
        return of_one * (1 + sum(pads))
    copies = of_one * (1 + (pads[0] > 0) + (pads[1] > 0))
    if padding_mode == "circular" and sum(pads) <= dilation * (kernel - 1):
        # No tap runs over more than one period, so it meets each element once.
        return min(kernel, copies)
    return copies


def count_patches(
    size: int,
    kernel: int,
    stride: int,
    dilation: int,
    pads: tuple[int, int],
    padding_mode: str,
) -> int:
    """The largest number along one dimension, counted for inputs of one size.

    Args:
        size: Elements of the input.
        kernel: As in :func:`bound_patches`, like all that follow.

    Raises:
        ValueError: if the size is not positive, too small for the padding, or for one patch.

    Example:
        >>> count_patches(2, 3, 1, 1, (1, 1), "zeros"), count_patches(9, 3, 1, 1, (1, 1), "reflect")
        (2, 4)
    """
    check_integer("input_size", size, 1)
    limit = {"circular": size, "reflect": size - 1}.get(padding_mode, math.inf)
    extent = dilation * (kernel - 1) + 1
    if max(pads) > limit or size + sum(pads) < extent:
        raise ValueError(f"input_size is too small for the kernel or its padding, got {size}")
    elements = torch.arange(1, size + 1, dtype=torch.float64, device="cpu")[None, None]
    mode = "constant" if padding_mode == "zeros" else padding_mode
    padded = torch.nn.functional.pad(elements, pads, mode=mode)[0, 0].long()
    taps = padded.unfold(0, extent, stride)[:, ::dilation]
    # Element 0 stands for appended zeros.
    return int(torch.bincount(taps.flatten(), minlength=size + 1)[1:].max())
