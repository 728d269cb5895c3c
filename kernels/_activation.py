"""The nonlinearities inside the recurrence kernels, forward and backward."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tanh(z):
    """tanh from exp; below 1/4 by its series, where 1 - exp(-2|z|) loses digits."""
    e = tl.exp(-2.0 * tl.abs(z))
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(z < 0, -far, far)
    s = z * z
    if z.dtype == tl.float64:
        near = s * (18888466084.0 / 194896477400625.0) - 443861162.0 / 1856156927625.0
        near = near * s + 6404582.0 / 10854718875.0
        near = near * s - 929569.0 / 638512875.0
        near = near * s + 21844.0 / 6081075.0
        near = near * s - 1382.0 / 155925.0
    else:
        near = s * 0.0 - 1382.0 / 155925.0
    near = near * s + 62.0 / 2835.0
    near = near * s - 17.0 / 315.0
    near = near * s + 2.0 / 15.0
    near = near * s - 1.0 / 3.0
    near = near * s * z + z
    return tl.where(s < 0.0625, near, far)


@triton.jit
def activate(z, bias, NONLINEARITY: tl.constexpr, SLOPE: tl.constexpr):
    # Comparisons are such that a NaN passes through.
    if NONLINEARITY == "tanh":
        return _tanh(z)
    elif NONLINEARITY == "relu":
        return tl.where(z <= 0, 0.0, z)
    elif NONLINEARITY == "leaky_relu":
        return tl.where(z > 0, z, z * SLOPE)
    elif NONLINEARITY == "modrelu":
        length = tl.abs(z) + bias
        return tl.where((length <= 0) | (z == 0), 0.0, tl.where(z > 0, length, -length))
    else:
        return z


@triton.jit
def activate_bwd(dy, y, NONLINEARITY: tl.constexpr, SLOPE: tl.constexpr):
    """φ'(z) dy from y = φ(z) alone; each φ here allows it."""
    if NONLINEARITY == "tanh":
        return dy * (1.0 - y * y)
    elif NONLINEARITY == "relu":
        return tl.where(y <= 0, 0.0, dy)
    elif NONLINEARITY == "leaky_relu":
        return tl.where(y > 0, dy, dy * SLOPE)
    elif NONLINEARITY == "modrelu":
        return tl.where(y != 0, dy, 0.0)
    else:
        return dy
