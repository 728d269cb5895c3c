"""Random calls of every public function and layer: what the oracle says, or the stated error.

Whether a call is valid is told here from shapes and dtypes alone; then it has to be finite and
right to the precision of its dtype, or else to raise TypeError or ValueError.
"""

import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from spectral_triton import (
    FixedSpectrum,
    HouseholderSVD,
    SigmoidSpectrum,
    SignedSpectrum,
    SoftplusSpectrum,
    SpectralRNN,
    SpectralRNNCell,
    SVDLinear,
    apply_reflectors,
    householder_product,
    parametrizations,
    reference,
    reflectors_from_orthogonal,
    spectral_recurrence,
)

FLOATING = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
WRONG = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.complex128]
LAYOUTS = ["contiguous", "transposed", "sliced", "strided", "expanded"]
NONLINEARITIES = ["tanh", "relu", "leaky_relu", "identity", "modrelu"]
SPECTRA = [
    None,
    SigmoidSpectrum(center=1.0, margin=0.3),
    FixedSpectrum(1.5),
    SoftplusSpectrum(),
    SignedSpectrum(),
]


def fuzz(cases):
    """A test of so many cases, the same ones in every run."""
    return settings(
        max_examples=cases,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


sizes = st.sampled_from([1, 2, 3, 4, 5] * 3 + [0])
positive = st.integers(1, 5)
batches = st.lists(st.sampled_from([0, 1, 1, 2]), max_size=2).map(tuple)
seeds = st.integers(0, 2**20)
any_dtype = st.sampled_from(FLOATING * 9 + WRONG)
floating = st.sampled_from(FLOATING)


def laid_out(tensor, layout):
    """Equal values in memory of another kind."""
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        return (
            torch.cat((tensor.new_ones(tensor[:1].shape), tensor))[1:] if tensor.dim() else tensor
        )
    if layout == "strided" and tensor.dim():
        return torch.stack((tensor, tensor), -1)[..., 0]
    return tensor


@st.composite
def tensors(draw, shape, dtype=any_dtype):
    """Normal values, sometimes with rows of zeros, in some layout."""
    dtype = draw(dtype) if isinstance(dtype, st.SearchStrategy) else dtype
    layout = draw(st.sampled_from(LAYOUTS))
    generator = torch.Generator().manual_seed(draw(seeds))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if layout == "expanded" and values.dim() and shape[0]:
        values = values[:1].expand(shape)
        return values.to(dtype)[:1].expand(shape)
    if values.dim() > 1 and draw(st.booleans()):
        values = values * (torch.rand(shape[:-1], generator=generator) > 0.3).unsqueeze(-1)
    return laid_out(values.to(dtype), layout)


@st.composite
def reflector_rows(draw, shape):
    """Reflectors of any length, which must not matter."""
    rows = draw(tensors(shape))
    scale = draw(st.sampled_from([1.0, 1.0, 1e-25, 1e25]))
    if scale == 1.0 or rows.dtype not in (torch.float64, torch.float32, torch.bfloat16):
        return rows
    return rows * scale


def double(tensor):
    return tensor.detach().double()


def check(actual, expected, dtype, scale=30.0):
    """Right to the precision of ``dtype``, after arithmetic in float32 at least."""
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    arithmetic = max(torch.finfo(dtype).eps, 0 if dtype == torch.float64 else 1.2e-7)
    size = 1 + (expected.abs().max().item() if expected.numel() else 0)
    torch.testing.assert_close(double(actual), expected, rtol=0, atol=scale * arithmetic * size)


@contextmanager
def refused(invalid):
    """The call inside raises one of the stated errors exactly if it is invalid."""
    if invalid:
        with pytest.raises((TypeError, ValueError)) as caught:
            yield
        assert str(caught.value)
    else:
        yield


def broadcast(*shapes):
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return None


def full(dtype):
    return torch.promote_types(dtype, torch.float32)


def serves(wide, dtype):
    """Whether factors in full precision take vectors of a dtype: their own, or half precision."""
    return dtype == wide or (dtype.is_floating_point and dtype.itemsize == 2)


@fuzz(150)
@given(st.data(), batches, batches, sizes, sizes, st.booleans(), st.booleans())
def test_apply_reflectors(data, batch, other, k, n, transpose, triangular):
    reflectors = data.draw(reflector_rows((*batch, k, n)))
    width = data.draw(st.sampled_from([n, n, n, n, n + 1]))
    x = data.draw(st.sampled_from([(), (width,), (*other, 3, width), (0, width)]))
    x = data.draw(tensors(x))
    leading = broadcast(x.shape[:-2], batch)
    invalid = (
        not (x.is_floating_point() and reflectors.is_floating_point())
        or k > n
        or x.dim() == 0
        or width != n
        or leading is None
    )
    with refused(invalid):
        y = apply_reflectors(x, reflectors, transpose=transpose, triangular=triangular)
        rows = double(reflectors).triu() if triangular else double(reflectors)
        check(y, reference.apply_reflectors(double(x), rows, transpose=transpose), x.dtype)


@fuzz(100)
@given(st.data(), batches, sizes, sizes, st.booleans())
def test_householder_product(data, batch, k, n, triangular):
    shape = data.draw(st.sampled_from([(*batch, k, n)] * 6 + [(), (n,)]))
    reflectors = data.draw(reflector_rows(shape))
    columns = data.draw(st.sampled_from([None, None, 0, 1, n, n, n + 1, -1, 1.0, True]))
    invalid = (
        not reflectors.is_floating_point()
        or len(shape) < 2
        or k > n
        or not (columns is None or (type(columns) is int and 0 <= columns <= n))
    )
    with refused(invalid):
        q = householder_product(reflectors, columns, triangular=triangular)
        rows = double(reflectors).triu() if triangular else double(reflectors)
        check(q, reference.householder_product(rows, columns), reflectors.dtype)


@fuzz(100)
@given(st.data(), batches, sizes, sizes, any_dtype, st.booleans())
def test_reflectors_from_orthogonal(data, batch, n, p, dtype, orthogonal):
    q = data.draw(tensors((*batch, n, p), torch.float64))
    if orthogonal and p <= n:
        q = torch.linalg.qr(q + 2 * torch.eye(n, p)).Q
    if dtype in (torch.float16, torch.bfloat16):
        # Rounding is no orthogonal matrix to the tolerance of the wider arithmetic; signs are.
        q = torch.eye(n, p).expand(*batch, n, p) if orthogonal else q
    q = laid_out(q.to(dtype), data.draw(st.sampled_from(LAYOUTS)))
    if not (dtype.is_floating_point and p <= n):
        with refused(True):
            reflectors_from_orthogonal(q)
        return
    defect = (double(q).mT @ double(q) - torch.eye(p)).abs()
    with refused(bool((defect > 1e-2).any()) if not orthogonal else False):
        reflectors, signs = reflectors_from_orthogonal(q)
        assert ((signs == 1) | (signs == -1)).all()
        rebuilt = reference.householder_product(double(reflectors), p) * double(signs).unsqueeze(-2)
        assert reflectors.dtype == signs.dtype == dtype
        check(rebuilt.to(dtype), double(q), dtype)


def factors_of(data, batch, m, n, dtype):
    k_u, k_v = (data.draw(st.integers(0, size)) for size in (m, n))
    sigma = data.draw(tensors((*batch, min(m, n)), torch.float64)).abs() + 0.5
    signs = data.draw(st.sampled_from([None, torch.ones(min(m, n)), -torch.ones(min(m, n))]))
    return {
        "left": data.draw(tensors((*batch, k_u, m), dtype)),
        "singular_values": sigma.to(dtype),
        "right": data.draw(tensors((k_v, n), dtype)),
        "signs": None if signs is None else signs.to(dtype),
        "triangular": data.draw(st.booleans()),
    }


def dense(factors):
    rows = [double(factors[side]) for side in ("left", "right")]
    left, right = (r.triu() for r in rows) if factors["triangular"] else rows
    signs = None if factors["signs"] is None else double(factors["signs"])
    return reference.svd_to_dense(left, double(factors["singular_values"]), right, signs)


@fuzz(120)
@given(st.data(), batches, positive, positive, floating)
def test_factored_matrix(data, batch, m, n, dtype):
    parts = factors_of(data, batch, m, n, dtype)
    factors, w = HouseholderSVD(**parts), dense(parts)
    wide = full(dtype)
    check(factors.to_dense(), w, wide)
    check(factors.mT.to_dense(), w.mT, wide)
    check(factors.pinv().to_dense(), torch.linalg.pinv(w), wide, 300)
    rank = data.draw(st.integers(0, min(m, n)))
    if w.numel():
        sigma = torch.linalg.svdvals(w)
        check(factors.spectral_norm(), sigma[..., 0], wide)
        check(factors.cond(), sigma[..., 0] / sigma[..., -1], wide, 100)
        kept = torch.linalg.svdvals(double(factors.truncate(rank).to_dense()))
        check(kept.to(wide), torch.where(torch.arange(min(m, n)) < rank, sigma, 0.0), wide, 100)
    with refused(m != n):
        determinant = factors.slogdet()
        expected = torch.linalg.slogdet(w)
        check(determinant.sign, expected.sign, wide)
        check(determinant.logabsdet, expected.logabsdet, wide, 100)
    with refused(m != n):
        check(factors.inverse().to_dense(), torch.linalg.inv(w), wide, 300)
    x = data.draw(tensors((*batch, n, 3), wide))
    check(factors @ x, w @ double(x), wide)
    b = data.draw(tensors((*batch, m, 2), wide))
    check(factors.solve(b.mT).mT, torch.linalg.pinv(w) @ double(b), wide, 300)
    vectors = data.draw(tensors((2, n)))
    with refused(not serves(wide, vectors.dtype)):
        check(factors.apply(vectors), double(vectors) @ w.mT, vectors.dtype)


@fuzz(60)
@given(st.data(), batches, sizes, sizes)
def test_factored_matrix_from_dense(data, batch, m, n):
    w = data.draw(tensors((*batch, m, n)))
    with refused(not w.is_floating_point() or m == 0 or n == 0):
        factors = HouseholderSVD.from_dense(w)
        check(factors.to_dense(), double(w), full(w.dtype))


@fuzz(60)
@given(st.data(), positive, positive, any_dtype, any_dtype, any_dtype)
def test_factored_matrix_refuses_what_does_not_fit(data, m, n, first, second, third):
    p = min(m, n)
    left = data.draw(tensors(data.draw(st.sampled_from([(1, m), (1, m), (m + 1, m), (m,)])), first))
    right = data.draw(tensors((data.draw(st.sampled_from([2, 0])), n), second))
    sigma = data.draw(tensors(data.draw(st.sampled_from([(p,), (p,), (p + 1,), ()])), third))
    fits = (
        all(dtype.is_floating_point for dtype in (first, second, third))
        and len({full(dtype) for dtype in (first, second, third)}) == 1
        and left.shape == (1, m)
        and right.shape[0] <= n
        and sigma.shape == (p,)
    )
    with refused(not fits):
        factors = HouseholderSVD(left, sigma, right)
        w = reference.svd_to_dense(double(left), double(sigma), double(right))
        check(factors.to_dense(), w, full(first))


@fuzz(100)
@given(st.data(), sizes, sizes, sizes, floating, any_dtype, st.booleans())
def test_spectral_recurrence(data, steps, batch, n, dtype, x_dtype, reverse):
    n = n + 1
    parts = factors_of(data, (), n, n, dtype)
    shape = data.draw(
        st.sampled_from([(steps, batch, n)] * 6 + [(steps, n), (steps, batch, n + 1)])
    )
    x = data.draw(tensors(shape, x_dtype))
    h0 = data.draw(st.sampled_from([None, (batch, n), (batch + 1, n)]))
    h0 = (
        None if h0 is None else data.draw(tensors(h0, data.draw(st.sampled_from([x_dtype, dtype]))))
    )
    nonlinearity = data.draw(st.sampled_from([*NONLINEARITIES * 3, "sigmoid"]))
    slope = data.draw(st.sampled_from([0.01, 0.5, 0.0] * 4 + [-1.0, math.nan, "steep"]))
    bias = data.draw(tensors((n,), dtype)) if nonlinearity == "modrelu" else None
    invalid = (
        not x.is_floating_point()
        or shape != (steps, batch, n)
        or (h0 is not None and (not h0.is_floating_point() or h0.shape[0] != batch))
        or nonlinearity == "sigmoid"
        or slope in (-1.0, "steep")
        or slope != slope
    )
    with refused(invalid):
        y = spectral_recurrence(
            x,
            h0,
            HouseholderSVD(**parts),
            nonlinearity=nonlinearity,
            negative_slope=slope,
            bias=bias,
            reverse=reverse,
        )
        start = torch.zeros(batch, n) if h0 is None else double(h0)
        options = {"nonlinearity": nonlinearity, "slope": slope, "reverse": reverse}
        options["bias"] = None if bias is None else double(bias)
        expected = reference.recurrence(double(x), start, dense(parts), **options)
        check(y, expected, x.dtype, 300)


def weight_of(svd):
    """W of a module's parameters by the oracle."""
    sigma, signs = double(svd.singular_values), double(svd.signs.sign())
    return reference.svd_to_dense(double(svd.left).triu(), sigma, double(svd.right).triu(), signs)


reflector_counts = st.sampled_from(
    [None] * 9 + [0, 1, (1, 0), (0, 1)] * 4 + [2, (1, 2), 7, -1, (1,), 1.5, True, "1"]
)


def fits(num_reflectors, limit):
    if num_reflectors is None:
        return True
    pair = num_reflectors if isinstance(num_reflectors, tuple) else (num_reflectors,) * 2
    return len(pair) == 2 and all(type(k) is int and 0 <= k <= limit for k in pair)


@fuzz(120)
@given(
    st.data(),
    batches,
    sizes,
    sizes,
    st.booleans(),
    reflector_counts,
    st.sampled_from(SPECTRA),
    any_dtype,
)
def test_linear(data, batch, n, m, bias, num_reflectors, spectrum, dtype):
    with refused(not (n and m and fits(num_reflectors, min(m, n)) and dtype.is_floating_point)):
        layer = SVDLinear(n, m, bias, dtype=dtype, num_reflectors=num_reflectors, spectrum=spectrum)
        width = data.draw(st.sampled_from([n, n, n, n + 1]))
        x = data.draw(tensors(data.draw(st.sampled_from([(*batch, 2, width), (width,), ()]))))
        with refused(not (serves(full(dtype), x.dtype) and x.dim() and width == n)):
            y = layer(x)
            expected = double(x) @ weight_of(layer.svd).mT
            check(y, expected + (double(layer.bias) if bias else 0), x.dtype)
            if y.numel():
                y.float().square().sum().backward()
                assert all(p.grad.isfinite().all() for p in layer.parameters())


def recurrent(layer, x, h0, suffix):
    """One layer of a SpectralRNN or a cell, by the oracle."""
    w_ih = double(getattr(layer, f"weight_ih{suffix}"))
    own = double(x) @ w_ih.mT
    if layer.bias:
        for name in ("bias_ih", "bias_hh"):
            own = own + double(getattr(layer, name + suffix))
    modrelu = layer.nonlinearity == "modrelu"
    return reference.recurrence(
        own,
        h0,
        weight_of(layer.get_submodule(f"svd_hh{suffix}")),
        nonlinearity=layer.nonlinearity,
        slope=layer.negative_slope,
        bias=double(getattr(layer, f"bias_modrelu{suffix}")) if modrelu else None,
        reverse=suffix.endswith("reverse"),
    )


@fuzz(120)
@given(
    st.data(),
    st.tuples(sizes, sizes, sizes, sizes),
    st.sampled_from([1, 1, 1, 2, 2, 0]),
    st.sampled_from([*NONLINEARITIES * 3, "gelu"]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    reflector_counts,
    st.sampled_from(["identity", "haar", "henaff", "cayley"] * 3 + ["zeros"]),
    any_dtype,
)
def test_rnn(data, shape, layers, nonlinearity, flags, num_reflectors, init, dtype):
    (steps, batch, features, n), (bias, batch_first, bidirectional) = shape, flags
    built = (
        features
        and n
        and layers
        and fits(num_reflectors, n)
        and dtype.is_floating_point
        and init != "zeros"
        and nonlinearity != "gelu"
    )
    with refused(not built):
        rnn = SpectralRNN(
            features,
            n,
            layers,
            nonlinearity,
            bias,
            batch_first,
            0.0,
            bidirectional,
            dtype=dtype,
            num_reflectors=num_reflectors,
            init=init,
        )
        batched = data.draw(st.sampled_from([True, True, False]))
        whole = (batch, steps) if batch_first else (steps, batch)
        x = data.draw(
            tensors(
                (*(whole if batched else (steps,)), features),
                st.one_of(st.just(dtype), st.just(dtype), any_dtype),
            )
        )
        states = layers * rnn.num_directions
        h_shape = (states, batch, n) if batched else (states, n)
        hx = data.draw(st.sampled_from([None, h_shape, (states + 1, *h_shape[1:])]))
        hx = None if hx is None else data.draw(tensors(hx, dtype))
        with refused(x.dtype != dtype or (hx is not None and hx.shape != h_shape)):
            y, h_n = rnn(x, hx)
            own = (x if batched else x.unsqueeze(0 if batch_first else 1)).detach()
            own = double(own.transpose(0, 1) if batch_first else own)
            own = own if batched else double(x).unsqueeze(1)
            starts = torch.zeros(states, own.shape[1], n)
            if hx is not None:
                starts = double(hx if batched else hx.unsqueeze(1))
            last = []
            for layer in range(layers):
                first = layer * rnn.num_directions
                suffixes = [f"_l{layer}", f"_l{layer}_reverse"][: rnn.num_directions]
                ways = [
                    recurrent(rnn, own, starts[first + way], suffix)
                    for way, suffix in enumerate(suffixes)
                ]
                for way, states_of in enumerate(ways):
                    start = starts[first + way]
                    last.append(states_of[0 if way else -1] if steps else start)
                own = torch.cat(ways, -1)
            expected = own if batched else own.squeeze(1)
            expected = expected.transpose(0, 1) if batched and batch_first else expected
            check(y, expected, dtype, 300)
            end = torch.stack(last)
            check(h_n, end if batched else end.squeeze(1), dtype, 300)
            if y.numel():
                y.float().square().sum().backward()
                gradients = [p.grad for p in rnn.parameters() if p.grad is not None]
                assert all(gradient.isfinite().all() for gradient in gradients)


@fuzz(80)
@given(st.data(), sizes, sizes, sizes, st.sampled_from(NONLINEARITIES), st.booleans(), any_dtype)
def test_cell(data, batch, features, n, nonlinearity, bias, dtype):
    with refused(not (features and n and dtype.is_floating_point)):
        cell = SpectralRNNCell(features, n, bias, nonlinearity, dtype=dtype, init="haar")
        batched = data.draw(st.booleans())
        shape = (batch,) if batched else ()
        x = data.draw(tensors((*shape, features), st.one_of(st.just(dtype), any_dtype)))
        hx = data.draw(st.sampled_from([None, (*shape, n), (*shape, n + 1), (2, *shape, n)]))
        hx = None if hx is None else data.draw(tensors(hx, dtype))
        with refused(x.dtype != dtype or (hx is not None and hx.shape != (*shape, n))):
            h = cell(x, hx)
            start = torch.zeros(*shape, n) if hx is None else double(hx)
            own = double(x) if batched else double(x).unsqueeze(0)
            start = start if batched else start.unsqueeze(0)
            expected = recurrent(cell, own.unsqueeze(0), start, "").squeeze(0)
            check(h, expected if batched else expected.squeeze(0), dtype, 100)


@fuzz(80)
@given(
    st.data(),
    st.lists(sizes, min_size=1, max_size=4).map(tuple),
    reflector_counts,
    st.sampled_from(SPECTRA),
    st.sampled_from([1] * 8 + [2, 2, 3, 0, 1.0]),
    any_dtype,
)
def test_parametrization(data, shape, num_reflectors, spectrum, num_blocks, dtype):
    weight = data.draw(tensors(shape, dtype))
    module = nn.Module()
    module.register_buffer("weight", weight.clone())
    valid = dtype.is_floating_point and len(shape) >= 2 and math.prod(shape)
    valid = valid and type(num_blocks) is int and num_blocks and shape[0] % num_blocks == 0
    rows, columns = (shape[0] // num_blocks, math.prod(shape[1:])) if valid else (0, 0)
    with refused(not (valid and fits(num_reflectors, min(rows, columns)))):
        parametrizations.svd(
            module,
            num_reflectors=num_reflectors,
            spectrum=spectrum,
            num_blocks=num_blocks,
            out_of_bounds="clip",
        )
        own = module.weight
        assert own.shape == shape
        assert own.dtype == dtype
        sigma = torch.linalg.svdvals(double(own).reshape(num_blocks, rows, columns))
        lower, upper = module.parametrizations.weight[0].spectrum.bounds
        slack = 30 * torch.finfo(dtype).eps * (1 + sigma.max().item())
        # Of a signed spectrum the bounds are those of the signed values.
        assert sigma.max() <= max(abs(lower), abs(upper)) + slack
        assert sigma.min() >= max(0.0, lower) - slack
        if num_reflectors is None and isinstance(spectrum, SignedSpectrum | SoftplusSpectrum):
            given_sigma = torch.linalg.svdvals(double(weight).reshape(num_blocks, rows, columns))
            inside = (given_sigma > max(0.0, lower) + 1e-2).all() and (
                given_sigma < upper - 0.1
            ).all()
            if inside:
                check(own, double(weight), dtype, 100)
