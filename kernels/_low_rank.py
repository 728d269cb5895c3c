"""Products with the factors of low-rank matrices, as the kernels do them in registers.

Note [Layouts]
    Triton chooses which thread holds what, and on this the cost of a sum depends. In a one-
    dimensional tensor loaded element by element, it is the same in every version: cell e belongs to
    lane e % 32 of warp (e // 32) % WARPS, and what is left of e counts registers. So factors and
    vectors are loaded flat, in an order of cells that puts each entry where its sums are cheap, and
    only reshaped afterwards. A vector lies in runs of 32 neighboring features to a warp. A factor
    (n, r) is split over LANES_N lanes along features and 32 / LANES_N along ranks, which balances
    the shuffles of the sums over either; a warp owns the same features in vectors and factors, so
    that only the sum over all features crosses warps: one exchange through shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_factor(
    f_ptr,
    N,
    R,
    stride_fn,
    stride_fr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    WARPS: tl.constexpr,
    LANES_N: tl.constexpr,
    EVEN_N: tl.constexpr = False,
):
    """A factor in the order of Note [Layouts]: (ranks, features, warp, lane, lane)."""
    LANES_R: tl.constexpr = 32 // LANES_N
    OWN: tl.constexpr = 32 // LANES_N
    FEATURES: tl.constexpr = BLOCK_N // (WARPS * LANES_N)
    cell = tl.arange(0, BLOCK_N * BLOCK_R)
    own = cell // (32 * WARPS) % FEATURES
    feature = own // OWN * (32 * WARPS) + (cell // 32) % WARPS * 32
    feature += own % OWN * LANES_N + (cell // LANES_R) % LANES_N
    rank = cell // (32 * WARPS * FEATURES) * LANES_R + cell % LANES_R
    mask = rank < R
    if not EVEN_N:
        mask = mask & (feature < N)
    factor = tl.load(f_ptr + feature * stride_fn + rank * stride_fr, mask, other=0.0)
    return tl.reshape(factor, (BLOCK_R // LANES_R, FEATURES, WARPS, LANES_N, LANES_R))


@triton.jit
def sum_over_features(h, factor, WARPS: tl.constexpr, LANES_N: tl.constexpr):
    """Fᵀ h for flat vectors h (BLOCK_B n), known to every warp: (BLOCK_B r/32, warp, copies, 32).

    With fewer ranks than lanes, the lanes hold copies.
    """
    RANKS: tl.constexpr = factor.shape[0]
    FEATURES: tl.constexpr = factor.shape[1]
    LANES_R: tl.constexpr = 32 // LANES_N
    BLOCK_B: tl.constexpr = h.shape[0] // (FEATURES * WARPS * LANES_N)
    OWN: tl.constexpr = 32 // LANES_N  # of each run of 32 features, those of one thread
    RUNS: tl.constexpr = FEATURES // OWN
    RANK_LANES: tl.constexpr = min(32, RANKS * LANES_R)
    REST: tl.constexpr = RANKS * LANES_R // RANK_LANES
    COPIES: tl.constexpr = 32 // RANK_LANES

    own = tl.permute(tl.reshape(h, (BLOCK_B, RUNS, WARPS, OWN, LANES_N)), (0, 1, 3, 2, 4))
    own = tl.reshape(own, (BLOCK_B, FEATURES, WARPS, LANES_N))
    shares = tl.sum(own[:, None, :, :, :, None] * factor[None], axis=2)
    shares = tl.permute(tl.sum(shares, axis=3), (2, 0, 1, 3))
    # Every warp adds up all warps' shares itself; the broadcast only says where they are wanted.
    shares = tl.reshape(shares, (WARPS, BLOCK_B * REST, 1, 1, RANK_LANES))
    shares = tl.broadcast_to(shares, (WARPS, BLOCK_B * REST, WARPS, COPIES, RANK_LANES))
    return tl.sum(shares, axis=0)


@triton.jit
def sum_over_ranks(inner, factor, WARPS: tl.constexpr, LANES_N: tl.constexpr):
    """F u as flat vectors (BLOCK_B n), for u as ``sum_over_features`` gives it."""
    RANKS: tl.constexpr = factor.shape[0]
    FEATURES: tl.constexpr = factor.shape[1]
    LANES_R: tl.constexpr = 32 // LANES_N
    OWN: tl.constexpr = 32 // LANES_N
    RUNS: tl.constexpr = FEATURES // OWN
    RANK_LANES: tl.constexpr = inner.shape[3]
    REST: tl.constexpr = RANKS * LANES_R // RANK_LANES
    COPIES: tl.constexpr = 32 // RANK_LANES
    BLOCK_B: tl.constexpr = inner.shape[0] // REST

    inner = tl.reshape(inner, (BLOCK_B, REST, WARPS, COPIES, RANK_LANES // LANES_R, LANES_R))
    inner = tl.permute(inner, (0, 1, 4, 2, 3, 5))
    inner = tl.reshape(inner, (BLOCK_B, RANKS, 1, WARPS, COPIES, 1, LANES_R))
    factor = tl.reshape(factor, (1, RANKS, FEATURES, WARPS, COPIES, LANES_N // COPIES, LANES_R))
    z = tl.sum(tl.sum(inner * factor, axis=1), axis=5)
    z = tl.permute(tl.reshape(z, (BLOCK_B, RUNS, OWN, WARPS, LANES_N)), (0, 1, 3, 2, 4))
    return tl.reshape(z, (BLOCK_B * FEATURES * WARPS * LANES_N,))
