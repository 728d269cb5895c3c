"""A barrier of the programs that share a counter, for grids that are resident as a whole.

Note [Memory order of the barrier]
    The barrier of a program orders the stores of all its threads before the one thread that
    arrives, and a release at the scope of the GPU makes them visible with its arrival. A wait is an
    acquire at the same scope by one thread, and the program's barrier passes it on. States are
    read from L2 (``.cg``) all the same: no other program's store reaches this SM's L1. The counter
    only grows, so nothing is reset between steps; it starts at zero with each launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

# int32 in a cache line: counters of different barriers do not share one
COUNTER_STRIDE = tl.constexpr(32)


@triton.jit
def arrive(counter_ptr):
    tl.debug_barrier()
    tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")


@triton.jit
def wait_for(counter_ptr, arrivals):
    """Until the counter has reached ``arrivals``, by their difference, so that it may wrap."""
    # Triton's own polling would take a broadcast through shared memory for each try.
    tl.inline_asm_elementwise(
        """
        {
            .reg .pred again;
            .reg .u32 thread;
            .reg .s32 seen;
            mov.u32 thread, %tid.x;
            setp.ne.u32 again, thread, 0;
            @again bra passed;
        poll:
            ld.acquire.gpu.global.s32 seen, [$1];
            sub.s32 seen, seen, $2;
            setp.lt.s32 again, seen, 0;
            @again bra poll;
        passed:
            mov.u32 $0, thread;
        }
        """,
        "=r,l,r",
        [counter_ptr.to(tl.int64), arrivals],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
    tl.debug_barrier()
