"""Layers in evaluation: what is kept, what drops it, and where nothing may be kept."""

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, prune, vector_to_parameters

from spectral_triton import parametrizations
from spectral_triton.layers.conv import SVDConv1d, SVDConv2d
from spectral_triton.layers.linear import SVDLinear
from spectral_triton.layers.mlp import SVDMLP
from spectral_triton.recurrence import folded_weight
from spectral_triton.recurrent.gru import SpectralGRU
from spectral_triton.recurrent.gru_cell import SpectralGRUCell
from spectral_triton.recurrent.lstm import SpectralLSTM
from spectral_triton.recurrent.lstm_cell import SpectralLSTMCell
from spectral_triton.recurrent.rnn import SpectralRNN
from spectral_triton.recurrent.rnn_cell import SpectralRNNCell
from spectral_triton.runtime import evaluation
from spectral_triton.runtime.cached import cached
from spectral_triton.runtime.evaluation import keep_weights_in_eval
from spectral_triton.spectra.spectrum import FixedSpectrum
from spectral_triton.svd import orthogonal_factor

pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore:.*They were moved inside",
    "ignore:.torch.jit.*deprecated",
    "ignore:LSTM with projections",
)

MAKERS = {
    "linear": (lambda: SVDLinear(4, 6), (5, 4)),
    "linear, tall, no bias": (lambda: SVDLinear(6, 4, False, num_reflectors=2), (6,)),
    "linear, base": (lambda: SVDLinear(6, 4, num_reflectors=2, base="haar"), (3, 6)),
    "linear, above small": (lambda: SVDLinear(40, 35), (3, 40)),
    "linear, odd rows": (lambda: SVDLinear(39, 35), (3, 39)),
    "conv": (lambda: SVDConv1d(4, 3, 3), (2, 4, 9)),
    "conv, groups": (lambda: SVDConv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "mlp": (lambda: SVDMLP([4, 6, 6, 3]), (5, 4)),
    "rnn": (lambda: SpectralRNN(4, 6, 2, bidirectional=True), (7, 2, 4)),
    "rnn, folded": (lambda: SpectralRNN(4, 80, num_reflectors=2), (7, 2, 4)),
    "rnn, folded, one step": (lambda: SpectralRNN(4, 80, num_reflectors=2), (1, 2, 4)),
    "rnn, one step": (lambda: SpectralRNN(4, 6, nonlinearity="leaky_relu"), (1, 2, 4)),
    "rnn cell": (lambda: SpectralRNNCell(4, 6, nonlinearity="relu"), (3, 4)),
    "lstm": (lambda: SpectralLSTM(4, 6, proj_size=3), (7, 2, 4)),
    "lstm cell": (lambda: SpectralLSTMCell(4, 6), (3, 4)),
    "gru": (lambda: SpectralGRU(4, 6), (7, 2, 4)),
    "gru cell": (lambda: SpectralGRUCell(4, 6, num_reflectors=3), (3, 4)),
    "parametrized": (lambda: parametrizations.svd(nn.Linear(4, 6), out_of_bounds="clip"), (5, 4)),
    "parametrized lstm": (
        lambda: parametrizations.svd(
            nn.LSTM(4, 6), "weight_hh_l0", num_blocks=4, out_of_bounds="clip"
        ),
        (7, 2, 4),
    ),
}


def make(name, dtype=torch.float64):
    build, shape = MAKERS[name]
    layer = build().to(dtype).eval()
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            if not key.endswith("_base"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    if isinstance(layer, nn.LSTM):
        parametrizations.release_flat_weights(layer)
    return layer, torch.randn(shape, dtype=dtype)


def anew(layer, x):
    """What the layer computes where nothing is kept."""
    keep_weights_in_eval(False)
    try:
        with torch.no_grad():
            return copy.deepcopy(layer)(x)
    finally:
        keep_weights_in_eval(True)


def flat(output):
    parts = output if isinstance(output, tuple) else (output,)
    return torch.cat([flat(p) if isinstance(p, tuple) else p.flatten() for p in parts])


def held(layer):
    """Of how many modules of the layer something is kept."""
    return sum(bool(evaluation._kept.get(module)) for module in layer.modules())


def count_products(monkeypatch):
    """One entry for each dense or folded weight that is made."""
    count = []
    for module, name in ((orthogonal_factor, "householder_product"), (folded_weight, "_fold")):
        function = getattr(module, name)

        def counted(*args, function=function, **options):
            count.append(1)
            return function(*args, **options)

        monkeypatch.setattr(module, name, counted)
    return count


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_second_call_is_the_last_that_forms(name, mode, monkeypatch):
    layer, x = make(name)
    expected = anew(layer, x)
    with mode():
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x), expected)
        count = count_products(monkeypatch)
        for _ in range(3):
            torch.testing.assert_close(layer(x), expected)
    assert not count
    assert held(layer)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_autocast(name, dtype):
    layer, x = make(name, dtype)
    if name == "parametrized lstm" and dtype is torch.float16:
        pytest.skip("torch's own LSTM has none")
    expected = anew(layer, x)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(layer(x), expected)
        if dtype is torch.float32 and "parametrized" not in name:
            with torch.autocast("cpu", torch.bfloat16):
                under = anew(layer, x)
                torch.testing.assert_close(layer(x), under)


def in_place(p):
    p.add_(torch.randn_like(p))


def data_copy(p):
    p.data.copy_(torch.randn_like(p))


def data_one_entry(p):
    p.data.view(-1)[1] += 1e-3


def data_assigned(p):
    p.data = torch.randn_like(p)


def by_numpy(p):
    array = p.detach().numpy()
    array += 0.3


def foreach_data(p):
    torch._foreach_lerp_([p.data], [torch.randn_like(p)], 0.5)


def reordered_columns(p):
    p.data.copy_(p.data.flip(-1))


def reordered_rows(p):
    p.data.copy_(p.data.flip(0))


def some_signs(p):
    p.data[..., 1::2].neg_()


def swapped(p):
    torch.utils.swap_tensors(p, nn.Parameter(torch.randn_like(p)))


def in_inference_mode(p):
    with torch.inference_mode():
        p.add_(torch.randn_like(p))


def strided(p):
    p.data = torch.randn_like(p.mT.contiguous()).mT


WRITES = [
    in_place,
    data_copy,
    data_one_entry,
    data_assigned,
    by_numpy,
    foreach_data,
    reordered_columns,
    reordered_rows,
    some_signs,
    swapped,
    in_inference_mode,
    strided,
]


@pytest.mark.parametrize("size", [(6, 4), (40, 36), (39, 35)])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("which", ["left", "right"])
def test_a_write_to_reflectors_is_noticed(write, which, size):
    layer, x = SVDLinear(*size).double().eval(), torch.randn(3, size[0]).double()
    with torch.no_grad():
        for _ in range(2):
            before = layer(x)
        write(getattr(layer.svd, which))
        after = layer(x)
        expected = anew(layer, x)
        torch.testing.assert_close(after, expected)
        torch.testing.assert_close(layer.weight, copy.deepcopy(layer).weight)
    assert not torch.allclose(before, after, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", MAKERS)
def test_a_moving_average_that_writes_data_is_noticed(name):
    layer, x = make(name)
    average = [torch.randn_like(p) for p in layer.parameters()]
    with torch.no_grad():
        for _ in range(2):
            before = layer(x)
        bases = {k for k, _ in layer.named_parameters() if k.endswith("_base")}
        for (key, p), other in zip(layer.named_parameters(), average, strict=True):
            if key not in bases:
                p.data.copy_(other)
        torch.testing.assert_close(layer(x), anew(layer, x))
    assert not torch.allclose(flat(before), flat(layer(x)))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_a_step_of_an_optimizer_is_noticed(name, options):
    layer, x = make(name)
    trained = [p for p in layer.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.1, **options)
    with torch.no_grad():
        for _ in range(2):
            before = layer(x)
    flat(layer(x)).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = layer(x)
    torch.testing.assert_close(after, anew(layer, x))
    assert not torch.allclose(flat(before), flat(after))


def load(layer):
    layer.load_state_dict(make("linear")[0].state_dict())


def assign(layer):
    layer.load_state_dict(make("linear")[0].state_dict(), assign=True)


def set_spectrum_in_place(layer):
    object.__setattr__(layer.svd.spectrum, "center", 2.0)


def by_vector(layer):
    vector = torch.randn_like(parameters_to_vector(layer.parameters()))
    vector_to_parameters(vector, layer.parameters())
    with torch.no_grad():
        layer(torch.randn(2, 4).double())
    vector.add_(torch.randn_like(vector))


CHANGES = [
    load,
    assign,
    by_vector,
    set_spectrum_in_place,
    lambda layer: layer.svd.signs.neg_(),
    lambda layer: layer.svd.signs.data[::2].neg_(),
    lambda layer: layer.svd.raw_singular_values.data.add_(3),
    lambda layer: layer.svd.set_dense_(torch.eye(6, 4)),
    lambda layer: setattr(layer, "weight", torch.eye(6, 4)),
    lambda layer: layer.svd.set_spectrum_(FixedSpectrum(2.0), "clip"),
    lambda layer: layer.reset_parameters(),
    lambda layer: layer.float(),
    lambda layer: setattr(layer.svd, "left", nn.Parameter(torch.randn(4, 6).double())),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_layer_is_noticed(change):
    layer, x = make("linear")
    with torch.no_grad():
        for _ in range(2):
            before = layer(x)
        change(layer)
        x = x.to(layer.svd.left.dtype)
        after = layer(x)
        torch.testing.assert_close(layer(x), after)
    torch.testing.assert_close(after, anew(layer, x))
    assert before.dtype != after.dtype or not torch.allclose(before, after)


def test_what_is_handed_out_and_written_to_is_not_what_is_used():
    writes = (
        lambda w: w.zero_(),
        lambda w: w.data.mul_(2),
        lambda w: w.numpy().fill(1.0),
        lambda w: w.data[0].neg_(),
    )
    for name in ("linear", "linear, above small", "parametrized"):
        layer, x = make(name)
        expected = anew(layer, x)
        for mode in (torch.no_grad, torch.inference_mode):
            for write in writes:
                with mode():
                    layer(x)
                    write(layer.weight)
                    torch.testing.assert_close(layer(x), expected)


def test_memory_is_freed():
    for free in (
        lambda layer: layer.train(),
        lambda layer: layer.eval(),
        lambda layer: layer.to(torch.float32),
        lambda layer: layer.load_state_dict(layer.state_dict()),
        lambda layer: keep_weights_in_eval(False),
    ):
        for name in MAKERS:
            layer, x = make(name)
            with torch.no_grad():
                layer(x), layer(x)
            assert held(layer)
            free(layer)
            assert not held(layer), name
            keep_weights_in_eval(True)
    layer, x = make("parametrized")
    with torch.no_grad():
        weight = weakref.ref(layer.weight)
        gc.collect()
        assert weight() is not None
    del layer
    gc.collect()
    assert weight() is None


def test_a_copy_has_nothing_and_is_a_layer_of_its_own():
    for name in MAKERS:
        layer, x = make(name)
        with torch.no_grad():
            before = layer(x)
            before = layer(x)
            size = len(pickle.dumps(layer.state_dict()))
            for duplicate in (
                copy.deepcopy(layer),
                *([pickle.loads(pickle.dumps(layer))] if "parametrized" not in name else []),
            ):
                assert not held(duplicate)
                torch.testing.assert_close(duplicate(x), before)
                for key, p in duplicate.named_parameters():
                    if not key.endswith("_base"):
                        p.add_(torch.randn_like(p))
                assert not torch.allclose(flat(duplicate(x)), flat(before))
                torch.testing.assert_close(layer(x), before)
            assert len(pickle.dumps(layer.state_dict())) == size
            buffer = io.BytesIO()
            torch.save(layer.state_dict(), buffer)


def test_factors_that_are_held_are_copied_without_their_layer():
    layer, x = make("linear")
    with torch.no_grad():
        layer(x), layer(x)
        factors = layer.factors
        for duplicate in (copy.deepcopy(factors), pickle.loads(pickle.dumps(factors))):
            torch.testing.assert_close(duplicate.to_dense(), factors.to_dense())
            torch.testing.assert_close(duplicate.apply(x), factors.apply(x))
        assert len(pickle.dumps(factors)) < len(pickle.dumps(layer)) + 2000


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_factors_that_are_held_over_a_change_do_not_spoil_the_layer(dtype):
    layer, x = make("linear", dtype)
    with torch.no_grad():
        layer(x)
        factors = layer.factors
        layer.svd.left.add_(torch.randn_like(layer.svd.left))
        layer.svd.raw_singular_values.add_(5)
        factors.to_dense()
        torch.testing.assert_close(layer(x), anew(layer, x))
        factors.to_dense()
        torch.testing.assert_close(layer(x), anew(layer, x))


def test_gradients_are_those_of_a_layer_that_kept_nothing():
    for name in MAKERS:
        layer, x = make(name)
        other = copy.deepcopy(layer)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                layer(x), layer(x)
            for model in (layer, other):
                model.zero_grad()
                flat(model(x)).square().sum().backward()
            for mine, theirs in zip(layer.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(mine.grad, theirs.grad)


def test_a_weight_read_in_inference_mode_may_be_trained_through():
    layer, x = make("linear")
    with torch.inference_mode():
        layer(x), layer(x)
    with torch.no_grad():
        weight = layer.weight
    scale = torch.ones(6, 4, dtype=x.dtype, requires_grad=True)
    (weight * scale).sum().backward()
    torch.testing.assert_close(scale.grad, weight)


def test_training_mode_and_gradients_keep_nothing():
    for name in MAKERS:
        layer, x = make(name)
        layer(x), layer(x)
        assert not held(layer)
        layer.train()
        with torch.no_grad():
            layer(x), layer(x)
        assert not held(layer)


def test_transforms_tracers_and_fake_tensors_keep_nothing():
    layer, x = make("linear")
    with torch.no_grad():
        expected = layer(x)
        layer(x)
        others = {k: v + 0.1 for k, v in layer.state_dict().items()}
        changed = functional_call(copy.deepcopy(layer), others, (x,))
        for _ in range(3):
            torch.testing.assert_close(functional_call(layer, others, (x,)), changed)
            torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(torch.vmap(layer)(x), expected)
        jacobian = torch.func.jacfwd(layer)(x[0])
        torch.testing.assert_close(jacobian, layer.weight)
        torch.testing.assert_close(torch.func.jacrev(layer)(x[0]), layer.weight)
        stacked = {k: torch.stack((v, v + 0.1)) for k, v in layer.state_dict().items()}
        both = torch.vmap(lambda p: functional_call(layer, p, (x,)))(stacked)
        torch.testing.assert_close(both, torch.stack((expected, changed)))
        with FakeTensorMode(allow_non_fake_inputs=True):
            layer(torch.randn(x.shape, dtype=x.dtype))
        torch.testing.assert_close(layer(x), expected)
        traced = torch.jit.trace(layer, x)
        exported = torch.export.export(layer, (x,)).module()
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        layer.svd.left.add_(0.5)
        for program in (traced, compiled, exported, layer):
            torch.testing.assert_close(program(x), anew(layer, x))


def test_parameters_made_in_inference_mode_and_on_the_meta_device_are_not_kept():
    with torch.inference_mode():
        layer, x = SVDLinear(4, 6).eval(), torch.randn(3, 4)
        layer(x), layer(x)
        assert not held(layer)
        before = layer(x)
        layer.svd.left.add_(1)
        assert not torch.allclose(layer(x), before)
    layer, x = make("lstm")
    layer.to("meta")
    with torch.no_grad():
        layer(x.to("meta")), layer(x.to("meta"))
    assert not held(layer)


def test_pruned_factors_are_read_as_the_next_call_has_them():
    layer, x = make("linear")
    with torch.no_grad():
        layer(x), layer(x)
        prune.random_unstructured(layer.svd, "left", 0.5)
        for _ in range(3):
            torch.testing.assert_close(layer(x), anew(layer, x))
        layer.svd.left_orig.add_(1)
        torch.testing.assert_close(layer(x), anew(layer, x))


def test_inside_cached_the_scope_keeps():
    layer, x = make("linear")
    with torch.no_grad():
        with cached():
            layer(x), layer(x)
            assert not held(layer)
        layer(x), layer(x)
        assert held(layer)


def test_nothing_is_kept_in_a_program_with_a_process_group(tmp_path):
    layer, x = make("linear")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with torch.no_grad():
            layer(x), layer(x)
        assert not held(layer)
    finally:
        torch.distributed.destroy_process_group()


def test_threads_evaluate_one_layer_while_it_changes():
    """Each output is that of the parameters before a change or after it, at last the latter."""
    layer, x = make("linear, above small")
    states = [make("linear, above small")[0].state_dict() for _ in range(2)]
    wrong, stop = [], threading.Event()
    lock = threading.Lock()

    def evaluate():
        with torch.no_grad():
            while not stop.is_set():
                with lock:
                    got, expected = layer(x), functional_call(layer, layer.state_dict(), (x,))
                if not torch.allclose(got, expected):
                    wrong.append((got, expected))
                layer(x)

    threads = [threading.Thread(target=evaluate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for step in range(30):
        with lock:
            for (name, p), other in zip(
                layer.named_parameters(), states[step % 2].values(), strict=False
            ):
                del other
                target = states[step % 2][name]
                p.data.copy_(target) if step % 3 else p.detach().copy_(target)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    with torch.no_grad():
        torch.testing.assert_close(layer(x), anew(layer, x))


def test_the_switch_says_what_it_wants():
    with pytest.raises(TypeError, match="enabled must be"):
        keep_weights_in_eval("no")
