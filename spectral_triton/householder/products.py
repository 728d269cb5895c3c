r"""Products of Householder reflectors: applied without being formed, formed, and recovered.

Everywhere Q = H(v₁) H(v₂) ⋯ H(v_k), H(v) = I - 2 v vᵀ / vᵀv, with one reflector per row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectral_triton.householder import lapack
from spectral_triton.householder.function import ApplyReflectors, HouseholderProduct, apply_plain
from spectral_triton.householder.prepared import prepare, prepare_product
from spectral_triton.runtime.forward_mode import functions_serve
from spectral_triton.runtime.validation import (
    broadcast_batch,
    check_device,
    check_flag,
    check_floating,
    full_precision,
    is_integer,
    without_autocast,
)

MANY_VECTORS = 1 << 30


def count_for_rule(count: float) -> float:
    """The number of vectors that cost rules see: many where a program is exported for any number.

    A rule that looked at a symbolic size would tie the exported program to one side of it.
    torch.compile sees plain numbers here and compiles at most one program for each side.
    """
    return MANY_VECTORS if isinstance(count, torch.SymInt | torch.SymFloat) else count


def forms_product(num_vectors: float, num_reflectors: int, n: int, triangular: bool) -> bool:
    """Whether Q is formed once and used in one GEMM rather than applied block by block.

    Forward and backward together, in multiply-adds: blocks cost 8 N n k (half when triangular);
    the formed product costs 3 N n² for its GEMMs and 5 n² k (a third) for Q and its gradient.
    """
    blocks = 8 * num_vectors * num_reflectors * n * (0.5 if triangular else 1)
    formed = 3 * num_vectors * n * n + 5 * n * n * num_reflectors * (1 / 3 if triangular else 1)
    return formed < blocks


def apply_reflectors(
    x: Tensor, reflectors: Tensor, *, transpose: bool = False, triangular: bool = False
) -> Tensor:
    r"""Multiplies by a product of Householder reflectors, formed only where that is cheaper.

    .. math:: y = H(v_1) \cdots H(v_k)\, x, \qquad H(v) = I - 2\,\frac{v v^\top}{v^\top v}

    This is LAPACK's ``ormqr`` with a backward of its own: forward 4 N n k and backward 12 N n k
    operations for N vectors, all in matrix products; kept are the output and O(k (N + n)) numbers.
    Half-precision input is computed in float32, also under autocast. On a CPU up to 64 vectors of
    which no derivative is taken go to LAPACK if ``triangular``, with other rounding errors.

    Args:
        x: Vectors along the last dimension, shape ``(..., n)``.
        reflectors: Vectors :math:`v_i` as rows, shape ``(..., k, n)`` with ``k <= n``; any length.
            A zero row is the identity and has zero gradient. Leading dimensions broadcast as in
            ``torch.matmul(x, Q.mT)``.
        transpose: Multiplies by :math:`Q^\top` instead.
        triangular: Row i takes part from column i on (LAPACK's trapezoid); the entries before are
            ignored and have zero gradient. Saves up to half of the work.

    Returns:
        :math:`Q x` for every vector, in the dtype of ``x``.

    Raises:
        TypeError: if ``x`` or ``reflectors`` is not a real floating-point tensor.
        ValueError: if the last dimensions differ, ``k > n``, or the leading ones do not broadcast.

    Example:
        >>> x, v = torch.randn(5, 8), torch.randn(3, 8)
        >>> y = apply_reflectors(x, v)
        >>> torch.testing.assert_close(y, x @ householder_product(v).mT)

    References:
        Schreiber, Van Loan. A storage-efficient WY representation for products of Householder
        transformations. 1989.
        Zhang, Lei, Dhillon. Stabilizing gradients for deep neural networks via efficient SVD
        parameterization. ICML 2018. https://arxiv.org/abs/1803.09327
    """
    check_floating("x", x)
    check_flag("transpose", transpose)
    check_flag("triangular", triangular)
    _check_reflectors(reflectors)
    check_device("reflectors", reflectors, x.device, "x")
    n = reflectors.shape[-1]
    if x.dim() == 0 or x.shape[-1] != n:
        raise ValueError(
            f"x must have vectors of length n = {n} along its last dimension, as reflectors of "
            f"shape {tuple(reflectors.shape)} have; got x of shape {tuple(x.shape)}"
        )
    return apply_checked(x, reflectors, transpose, triangular)


def apply_checked(
    x: Tensor,
    reflectors: Tensor,
    transpose: bool,
    triangular: bool,
    *,
    as_in_training: bool = False,
) -> Tensor:
    """apply_reflectors for arguments known to be right, to the bit as in training if asked to."""
    k, n = reflectors.shape[-2:]
    batch = reflectors.shape[:-2]
    rows = x if x.dim() > 1 else x.unsqueeze(0)
    if not batch:
        shape: tuple[int, ...] = x.shape
        rows = rows.flatten(0, -2)
    else:
        try:
            batch = broadcast_batch(rows.shape[:-2], batch)
        except RuntimeError:
            raise ValueError(
                f"leading dimensions of x {tuple(x.shape)} and reflectors "
                f"{tuple(reflectors.shape)} must broadcast as in torch.matmul"
            ) from None
        shape = (*batch, *rows.shape[-2:]) if x.dim() > 1 else (*batch, n)
        rows = rows.expand(*batch, *rows.shape[-2:]).reshape(math.prod(batch), *rows.shape[-2:])
        reflectors = reflectors.expand(*batch, k, n).reshape(math.prod(batch), k, n)
    if k == 0 or rows.numel() == 0:
        # The sum keeps both arguments in the graph, with the zero gradients they have.
        return (rows + 0 * reflectors.sum()).to(x.dtype).reshape(shape)
    with without_autocast(x.device.type):
        dtype = full_precision(x.dtype, reflectors.dtype)
        rows, reflectors = rows.to(dtype), reflectors.to(dtype)
        if not functions_serve():
            y = apply_plain(rows, reflectors, transpose, triangular)
            return y.to(x.dtype).reshape(shape)
        # Only export may ask for any number: torch.compile fixes it here, and the backward pass.
        compiling = torch.compiler.is_dynamo_compiling()
        count = rows.shape[:-1].numel() if compiling else math.prod(rows.shape[:-1])
        if not as_in_training and lapack.serves(count, triangular, rows, reflectors):
            y = lapack.apply_reflectors(rows, reflectors, transpose)
            return y.to(x.dtype).reshape(shape)
        vectors = rows.shape[-2] if compiling else count_for_rule(rows.shape[-2])
        if forms_product(vectors, k, n, triangular):
            prepared = prepare_product(reflectors, triangular)
            q = HouseholderProduct.apply(reflectors, *prepared, n, triangular)
            y = torch.matmul(rows, q if transpose else q.mT)
        else:
            prepared = prepare(reflectors, triangular, count, transpose)
            y = ApplyReflectors.apply(rows, reflectors, *prepared, transpose, triangular)[0]
        return y.to(x.dtype).reshape(shape)


def householder_product(
    reflectors: Tensor, num_columns: int | None = None, *, triangular: bool = False
) -> Tensor:
    r"""Forms a product of Householder reflectors, or its first columns.

    .. math:: Q = H(v_1) \cdots H(v_k), \qquad H(v) = I - 2\,\frac{v v^\top}{v^\top v}

    This is LAPACK's ``orgqr`` for any rows, with a backward that costs about as much as the
    forward: 4 n² k and 2 n³ + 6 n² k operations, a third of the k terms when triangular.

    Args:
        reflectors: Vectors :math:`v_i` as rows, shape ``(..., k, n)`` with ``k <= n``; any length.
            A zero row is the identity and has zero gradient.
        num_columns: How many columns to return; all n by default.
        triangular: Row i takes part from column i on; the entries before are ignored.

    Returns:
        Orthonormal columns, shape ``(..., n, num_columns)``, dtype of ``reflectors``.

    Raises:
        TypeError: if ``reflectors`` is not a real floating-point tensor or ``num_columns`` no int.
        ValueError: if ``k > n`` or ``num_columns`` is not between 0 and n.

    Example:
        >>> q = householder_product(torch.randn(4, 6))
        >>> torch.testing.assert_close(q @ q.mT, torch.eye(6))

    References:
        Zhang, Lei, Dhillon. ICML 2018. https://arxiv.org/abs/1803.09327
    """
    _check_reflectors(reflectors)
    k, n = reflectors.shape[-2:]
    if not (num_columns is None or is_integer(num_columns)):
        raise TypeError(f"num_columns must be an int or None, got {num_columns!r}")
    columns = n if num_columns is None else num_columns
    if not 0 <= columns <= n:
        raise ValueError(f"num_columns must be between 0 and n = {n}, got {num_columns}")
    batch = reflectors.shape[:-2]
    if k == 0 or columns == 0 or reflectors.numel() == 0:
        q = torch.eye(n, columns, dtype=reflectors.dtype, device=reflectors.device)
        return q.expand(*batch, n, columns) + 0 * reflectors.sum((-2, -1))[..., None, None]
    with without_autocast(reflectors.device.type):
        v = reflectors.to(full_precision(reflectors.dtype))
        v = v.reshape(-1, k, n) if len(batch) > 1 else v
        if not functions_serve():
            rows = torch.eye(columns, n, dtype=v.dtype, device=v.device)
            q = apply_plain(rows.expand(*v.shape[:-2], columns, n), v, False, triangular).mT
            return q.to(reflectors.dtype).reshape(*batch, n, columns)
        q = HouseholderProduct.apply(v, *prepare_product(v, triangular), columns, triangular)
        q = q.to(reflectors.dtype)
        return q.reshape(*batch, n, columns) if len(batch) > 1 else q


@torch.no_grad()
def reflectors_from_orthogonal(q: Tensor) -> tuple[Tensor, Tensor]:
    r"""Finds the reflectors and signs of a given matrix with orthonormal columns.

    .. math:: q = \bigl(H(v_1) \cdots H(v_p)\bigr)_{:,\,1:p}\, \mathrm{diag}(s), \qquad s_i = \pm 1

    A QR factorisation (``geqrf``), in float32 where ``q`` has half precision: 2 n p² operations.
    No gradient flows through it.

    Args:
        q: Orthonormal columns, shape ``(..., n, p)`` with ``p <= n``.

    Returns:
        Reflectors of shape ``(..., p, n)`` in triangular form and signs of shape ``(..., p)``. No
        row is zero: where the identity would do, the row flips its coordinate, and the sign too.

    Raises:
        TypeError: if ``q`` is not a real floating-point tensor.
        ValueError: if ``q`` is wider than tall or its columns are not orthonormal.

    Example:
        >>> q = torch.linalg.qr(torch.randn(6, 4)).Q
        >>> v, signs = reflectors_from_orthogonal(q)
        >>> torch.testing.assert_close(householder_product(v, 4) * signs, q)
    """
    check_floating("q", q)
    if q.dim() < 2 or q.shape[-1] > q.shape[-2]:
        raise ValueError(
            f"q must have shape (..., n, p) with p <= n, got {tuple(q.shape)}; "
            "transpose a wide matrix"
        )
    n, p = q.shape[-2:]
    work = q.to(full_precision(q.dtype))
    with without_autocast(q.device.type):
        gram = work.mT @ work
    defect = (gram - torch.eye(p, dtype=work.dtype, device=q.device)).abs()
    tolerance = 30 * max(n, 1) ** 0.5 * torch.finfo(q.dtype).eps
    if not (defect <= tolerance).all():
        raise ValueError(
            f"q must have orthonormal columns: qᵀq differs from the identity by up to "
            f"{defect.max().item():.3g}, more than {tolerance:.3g}"
        )
    if q.numel() == 0:
        return q.mT.clone(), q.new_ones((*q.shape[:-2], p))
    packed, tau = torch.geqrf(work)
    # LAPACK leaves out the reflector of a column that is in order (tau = 0). Here it is H(e), which
    # commutes with all that follow: a row of zeros would become a reflection at the first change.
    reflectors = packed.mT.triu(1) + torch.eye(p, n, dtype=work.dtype, device=q.device)
    negative = (packed.diagonal(dim1=-2, dim2=-1) < 0) ^ (tau == 0)
    signs = torch.where(negative, -1, 1)
    return reflectors.to(q.dtype), signs.to(q.dtype)


def _check_reflectors(reflectors: Tensor) -> None:
    check_floating("reflectors", reflectors)
    if reflectors.dim() < 2:
        raise ValueError(
            f"reflectors must have shape (..., k, n), one reflector per row; "
            f"got {tuple(reflectors.shape)}"
        )
    k, n = reflectors.shape[-2:]
    if k > n:
        raise ValueError(
            f"reflectors of shape {tuple(reflectors.shape)} hold k = {k} rows of length n = {n}; "
            "k must be at most n (one reflector per row, not per column)"
        )
