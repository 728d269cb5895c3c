"""cached: what is formed once, when it is formed anew, and where nothing may be kept."""

import asyncio
import copy
import gc
import sys
import threading
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune, vector_to_parameters
from torch.utils.checkpoint import checkpoint

from spectral_triton import parametrizations
from spectral_triton.layers.conv import SVDConv1d
from spectral_triton.layers.linear import SVDLinear
from spectral_triton.recurrence import folded_weight
from spectral_triton.recurrent.gru import SpectralGRU
from spectral_triton.recurrent.gru_cell import SpectralGRUCell
from spectral_triton.recurrent.lstm import SpectralLSTM
from spectral_triton.recurrent.lstm_cell import SpectralLSTMCell
from spectral_triton.recurrent.rnn import SpectralRNN
from spectral_triton.recurrent.rnn_cell import SpectralRNNCell
from spectral_triton.runtime.cached import cached, formed_once, is_cached
from spectral_triton.spectra.spectrum import FixedSpectrum, SigmoidSpectrum
from spectral_triton.svd import orthogonal_factor
from spectral_triton.svd.weight import SVDWeight

cached_module = sys.modules["spectral_triton.runtime.cached"]

MAKERS = {
    "linear": (lambda: SVDLinear(4, 6), (5, 4)),
    "linear, one vector, no bias": (lambda: SVDLinear(6, 4, False, num_reflectors=2), (6,)),
    "conv": (lambda: SVDConv1d(4, 3, 3), (2, 4, 9)),
    "rnn": (lambda: SpectralRNN(4, 6, 2, bidirectional=True), (7, 2, 4)),
    "rnn, folded": (lambda: SpectralRNN(4, 80, num_reflectors=2), (7, 2, 4)),
    "rnn, one step": (lambda: SpectralRNN(4, 6, nonlinearity="leaky_relu"), (1, 2, 4)),
    "rnn, one step, modrelu": (lambda: SpectralRNN(4, 6, nonlinearity="modrelu"), (1, 2, 4)),
    "rnn, unbatched step": (lambda: SpectralRNN(4, 6, bias=False), (1, 4)),
    "rnn cell": (lambda: SpectralRNNCell(4, 6, nonlinearity="relu"), (3, 4)),
    "rnn cell, one vector": (lambda: SpectralRNNCell(4, 6, num_reflectors=2), (4,)),
    "lstm": (lambda: SpectralLSTM(4, 6, proj_size=3), (7, 2, 4)),
    "lstm cell": (lambda: SpectralLSTMCell(4, 6), (3, 4)),
    "lstm cell, no bias": (lambda: SpectralLSTMCell(4, 6, bias=False), (4,)),
    "gru": (lambda: SpectralGRU(4, 6), (7, 2, 4)),
    "gru cell": (lambda: SpectralGRUCell(4, 6, num_reflectors=3), (3, 4)),
    "gru cell, no bias": (lambda: SpectralGRUCell(4, 6, bias=False), (3, 4)),
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
    layer = build().to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return layer, torch.randn(shape, dtype=dtype)


def total(output):
    """A scalar that all outputs have a part in."""
    parts = output if isinstance(output, tuple) else (output,)
    return sum(total(p) if isinstance(p, tuple) else (p * p).sum() + p.sum() for p in parts)


def gradients(layer, x):
    x = x.clone().requires_grad_()
    wanted = [x, *layer.parameters()]
    return torch.autograd.grad(total(layer(x)), wanted, allow_unused=True)


@pytest.mark.parametrize("name", MAKERS)
def test_outputs_and_gradients_are_those_outside(name):
    layer, x = make(name)
    expected = total(layer(x)), *gradients(layer, x)
    with cached():
        for _ in range(2):
            torch.testing.assert_close((total(layer(x)), *gradients(layer, x)), expected)
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(total(layer(x)), expected[0].detach())


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_what_it_gives_outside(name, dtype):
    layer, x = make(name, dtype)
    if "parametrized lstm" in name:
        pytest.skip("torch's own LSTM computes in half precision")
    with torch.no_grad():
        expected = layer(x)
        with cached():
            torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", [n for n in MAKERS if "parametrized" not in n])
def test_autocast_gives_what_it_gives_outside(name):
    layer, x = make(name, torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        with cached():
            torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", MAKERS)
def test_a_matrix_is_formed_once(name, monkeypatch):
    layer, x = make(name)
    count = count_forming(monkeypatch)
    with torch.no_grad():
        layer(x)
        once = len(count)
        with cached():
            for _ in range(5):
                layer(x)
        # The RNN of torch reads its parametrized weights several times in a call.
        assert 0 < len(count) - once <= once
        count.clear()
        layer(x)
        assert len(count) == once


def count_forming(monkeypatch):
    """One entry for each time that raw singular values become σ."""
    count = []
    call = SigmoidSpectrum.__call__

    def counted(self, raw):
        count.append(1)
        return call(self, raw)

    monkeypatch.setattr(SigmoidSpectrum, "__call__", counted)
    return count


def test_a_sequence_of_steps_trains_as_one_call():
    """Through the shared W, with an optimizer that changes it, as long as the scope lasts."""
    rnn = SpectralRNN(3, 6, nonlinearity="relu", num_reflectors=4)
    cell = SpectralRNNCell(3, 6, nonlinearity="relu", num_reflectors=4)
    cell.load_state_dict({k.replace("_l0", ""): v for k, v in rnn.state_dict().items()})
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (rnn, cell)]
    with cached():
        for _ in range(4):
            x = torch.randn(9, 2, 3)
            h = None
            for x_t in x:
                h = cell(x_t, h)
            for optimizer, last in zip(optimizers, (rnn(x)[1][0], h), strict=True):
                optimizer.zero_grad()
                last.square().sum().backward()
                optimizer.step()
            torch.testing.assert_close(h, rnn_before(rnn, x, h))
    for mine, other in zip(rnn.parameters(), cell.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def rnn_before(rnn, x, h):
    """h itself, checked to differ from what the changed weights give: the step was a step."""
    with torch.no_grad():
        assert not torch.allclose(rnn(x)[1][0], h)
    return h


def test_gradients_may_be_accumulated():
    layer, x = make("linear")
    expected = [2 * g for g in gradients(layer, x)[1:]]
    with cached():
        for _ in range(2):
            total(layer(x)).backward()
    torch.testing.assert_close([p.grad for p in layer.parameters()], expected)


def test_a_matrix_shared_by_two_losses_needs_one_backward_or_retain_graph():
    layer, x = make("linear")
    expected = [2 * g for g in gradients(layer, x)[1:]]
    with cached():
        losses = [total(layer(x)) for _ in range(2)]
        losses[0].backward(retain_graph=True)
        losses[1].backward()
        torch.testing.assert_close([p.grad for p in layer.parameters()], expected)
        losses = [total(layer(x)) for _ in range(2)]
        losses[0].backward()
        with pytest.raises(RuntimeError, match="second time"):
            losses[1].backward()


def change_in_place(layer):
    with torch.no_grad():
        layer.svd.left.add_(1)


def change_data(layer):
    layer.svd.left.data = layer.svd.left.data + torch.randn(4, 6)


def change_by_vector(layer):
    size = sum(p.numel() for p in layer.parameters())
    vector_to_parameters(torch.randn(size), layer.parameters())


def load(layer):
    layer.load_state_dict(make("linear")[0].state_dict())


def assign(layer):
    layer.load_state_dict(make("linear")[0].state_dict(), assign=True)


def change_signs(layer):
    layer.svd.signs.neg_()


def step_fused(layer):
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def assign_twice(layer):
    """The second vector lies where the first parameters lay, if they are not held."""
    for _ in range(2):
        change_by_vector(layer)


def transpose_data(layer):
    layer.svd.right.data = layer.svd.right.data.mT


CHANGES = [
    change_in_place,
    change_data,
    change_by_vector,
    assign_twice,
    transpose_data,
    step_fused,
    load,
    assign,
    change_signs,
    lambda layer: layer.svd.set_dense_(torch.eye(6, 4)),
    lambda layer: layer.svd.set_spectrum_(FixedSpectrum(2.0), "clip"),
    lambda layer: layer.reset_parameters(),
    lambda layer: layer.float(),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("grad", [False, True])
def test_a_change_is_noticed(change, grad):
    layer, x = make("linear")
    with cached(), torch.set_grad_enabled(grad):
        before = layer(x)
        change(layer)
        x = x.to(layer.svd.left.dtype)
        after = layer(x)
        weight = layer.weight
    torch.testing.assert_close(after, layer(x), check_dtype=True)
    torch.testing.assert_close(weight, layer.weight)
    assert before.dtype != after.dtype or not torch.allclose(before, after)


def test_a_step_of_an_optimizer_is_noticed_also_after_an_evaluation():
    layer, x = make("linear")
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    with cached():
        for _ in range(3):
            optimizer.zero_grad()
            total(layer(x)).backward()
            with torch.no_grad():
                layer(x)
            loss = total(layer(x))
            optimizer.step()
            with torch.no_grad():
                inside = layer(x)
            assert loss != total(inside)
    torch.testing.assert_close(inside, layer(x))


def test_memory_that_is_used_again_is_not_taken_for_the_old():
    layer, size = SVDLinear(16, 16), 16 * 34
    x = torch.randn(1, 16)
    with torch.no_grad(), cached():
        for _ in range(60):
            for _ in range(2):
                vector_to_parameters(torch.randn(size), layer.parameters())
            torch.testing.assert_close(layer(x), copy.deepcopy(layer)(x))


def test_parameters_that_are_parts_of_a_larger_tensor_are_read_anew():
    layer, size = SVDLinear(4, 4), 4 * 10
    x, vector = torch.randn(1, 4), torch.randn(size)
    with torch.no_grad(), cached():
        for _ in range(5):
            vector.add_(torch.randn(size))
            vector_to_parameters(vector, layer.parameters())
            torch.testing.assert_close(layer(x), copy.deepcopy(layer)(x))


def test_an_async_generator_that_is_left_closes_the_scope():
    scopes = []

    async def numbers():
        with cached():
            scopes.extend(cached_module._open_scopes)
            yield 1
            yield 2

    async def main():
        async for _ in numbers():
            break

    asyncio.run(main())
    assert len(scopes) == 1
    assert not scopes[0].is_open
    assert not cached_module._open_scopes


def test_a_returned_weight_that_is_changed_is_not_the_one_kept():
    layer, x = make("linear")
    with torch.no_grad():
        expected = layer(x)
        with cached():
            layer.weight.zero_()
            torch.testing.assert_close(layer(x), expected)


def test_freezing_and_thawing_are_noticed():
    layer, x = make("linear")
    layer.requires_grad_(False)
    with cached():
        assert not layer(x).requires_grad
        layer.requires_grad_(True)
        assert layer(x).requires_grad
        with torch.no_grad():
            assert not layer.weight.requires_grad
        assert layer.weight.requires_grad


def test_inference_mode_and_training_do_not_mix():
    layer, x = make("linear")
    with cached():
        with torch.inference_mode():
            layer(x)
        total(layer(x)).backward()
        with torch.inference_mode():
            layer(x)
        with torch.no_grad():
            weight = layer.weight
        (weight * x.new_ones(6, 4, requires_grad=True)).sum().backward()
        with torch.inference_mode():
            made_there = SVDLinear(4, 6)
            assert made_there.weight is not made_there.weight, "its changes cannot be told"


def test_inference_mode_keeps_as_no_grad_does(monkeypatch):
    for name in MAKERS:
        layer, x = make(name)
        with torch.inference_mode():
            expected = layer(x)
            counts = []
            with cached():
                torch.testing.assert_close(layer(x), expected)
                count = count_products(monkeypatch)
                torch.testing.assert_close(layer(x), expected)
                counts.append(len(count))
        assert counts == [0], name


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


def test_it_ends_with_the_scope_also_by_an_exception():
    layer, _ = make("linear")
    with pytest.raises(KeyError), cached():
        {}[layer.weight is layer.weight]
    assert layer.weight is not layer.weight
    assert not is_cached()


def test_scopes_nest_and_decorate():
    layer, _ = make("linear")

    @cached()
    def twice():
        return layer.weight is layer.weight

    with cached():
        weight = layer.weight
        with cached():
            assert layer.weight is weight
        assert twice()
        assert layer.weight is weight
    assert twice()
    assert layer.weight is not layer.weight


def test_threads_and_tasks_have_scopes_of_their_own():
    layer, _ = make("linear")
    seen = []

    async def task(own):
        if own:
            with cached():
                await asyncio.sleep(0.01)
                return is_cached()
        await asyncio.sleep(0.005)
        return is_cached()

    async def tasks():
        return await asyncio.gather(task(True), task(False))

    async def outlived():
        with cached():
            begun = asyncio.create_task(task(False))
            await asyncio.sleep(0)
            assert is_cached()
        return await begun

    with cached():
        thread = threading.Thread(target=lambda: seen.append(layer.weight is layer.weight))
        thread.start()
        thread.join()
    assert seen == [False]
    assert asyncio.run(tasks()) == [True, False]
    assert asyncio.run(outlived()) is False, "what was begun inside keeps nothing after it"


def test_nothing_outlives_its_owner_or_the_scope():
    with cached(), torch.no_grad():
        layer, _ = make("linear")
        weights = [weakref.ref(layer.weight)]
        assert weights[0]() is not None
        del layer
        gc.collect()
        assert weights[0]() is None
        layer, _ = make("linear")
        with torch.enable_grad():
            weights = [weakref.ref(layer.weight)]
        gc.collect()
        assert weights[0]() is not None
    assert weights[0]() is None


def test_a_copy_made_inside_is_a_layer_of_its_own():
    layer, x = make("linear")
    with cached(), torch.no_grad():
        layer(x)
        other = copy.deepcopy(layer)
        change_in_place(other)
        assert not torch.allclose(other(x), layer(x))
    torch.testing.assert_close(other(x), SVDLinear.from_linear(other.to_linear())(x))


def test_functional_call_takes_the_given_parameters():
    layer, x = make("linear")
    given = {k: v + 0.1 for k, v in layer.state_dict().items()}
    expected = functional_call(layer, given, (x,))
    with cached():
        before = layer(x)
        torch.testing.assert_close(functional_call(layer, given, (x,)), expected)
        torch.testing.assert_close(layer(x), before)


def test_transforms_keep_nothing():
    layer, x = make("linear")
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return total(functional_call(layer, parameters, (x,)))

    def over_input(x):
        return total(layer(x)) + (layer.weight**2).sum()

    expected = torch.func.grad(loss)(parameters, x), torch.func.hessian(over_input)(x)
    tangent = torch.randn_like(x)
    moved = torch.func.jvp(over_input, (x,), (tangent,))
    mapped = torch.vmap(layer)(x)
    with cached():
        layer(x)
        torch.testing.assert_close(torch.func.grad(loss)(parameters, x), expected[0])
        torch.testing.assert_close(torch.func.hessian(over_input)(x), expected[1])
        torch.testing.assert_close(torch.func.jvp(over_input, (x,), (tangent,)), moved)
        torch.testing.assert_close(torch.vmap(layer)(x), mapped)
        torch.testing.assert_close(layer(x), mapped)


@pytest.mark.parametrize("name", ["linear", "rnn", "rnn cell", "lstm cell"])
def test_programs_compute_what_they_compute_outside(name):
    layer, x = make(name)
    expected = total(layer(x)), *gradients(layer, x)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with cached():
        layer(x)
        torch.testing.assert_close((total(compiled(x)), *gradients(compiled, x)), expected)
        change = next(layer.parameters())
        with torch.no_grad():
            traced = torch.jit.trace(layer, x)
            change.add_(0.5)
            torch.testing.assert_close(total(traced(x)), total(layer(x)))
            torch.testing.assert_close(total(compiled(x)), total(layer(x)))


def test_tracers_do_not_take_what_is_kept_for_a_constant():
    layer, x = make("linear")
    buffers = dict(layer.named_buffers())

    def call(parameters, x):
        return functional_call(layer, parameters, (x,))

    for mode in ("real", "fake", "symbolic"):
        parameters = dict(layer.named_parameters()) | ({} if mode == "real" else buffers)
        others = {name: value + 1 for name, value in parameters.items()}
        with torch.no_grad(), cached():
            layer(x)
            traced = make_fx(call, tracing_mode=mode)(parameters, x)
        torch.testing.assert_close(traced(others, x), call(others, x))


def test_a_compiled_function_may_enter_it():
    layer, x = make("linear")

    def call(x):
        with cached():
            return layer(layer(x)[..., :4])

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), call(x))


def test_hooks_of_a_cells_weight_run():
    for name in ("rnn cell", "lstm cell", "gru cell"):
        layer, x = make(name)
        prune.random_unstructured(layer.svd_hh, "left", 0.3)
        layer.svd_hh.register_forward_hook(lambda module, given, output: output * 0)
        with torch.no_grad(), cached():
            layer(x)
            layer.svd_hh.left_orig.add_(1)
            inside = layer(x)
        torch.testing.assert_close(inside, layer(x))


def test_cells_call_a_weight_of_another_class_and_global_hooks():
    class Negative(SVDWeight):
        def forward(self, x, bias=None):
            return -super().forward(x, bias)

    for name in ("lstm cell", "gru cell"):
        layer, x = make(name)
        seen = []
        hook = register_module_forward_hook(lambda module, *_, seen=seen: seen.append(module))
        with torch.no_grad(), cached():
            layer(x)
        hook.remove()
        assert layer.svd_hh in seen
        layer.svd_hh.__class__ = Negative
        state = torch.randn(1, 6).expand(*x.shape[:-1], 6)
        state = (state, state) if name == "lstm cell" else state
        with torch.no_grad():
            expected = layer(x, state)
            with cached():
                torch.testing.assert_close(layer(x, state), expected)


def test_a_backward_pass_inside_another_has_a_matrix_of_its_own():
    layer, x = make("linear")

    def loss():
        y = layer(x)
        y.register_hook(inner)
        return total(y)

    def inner(grad):
        with torch.enable_grad():
            total(layer(2 * x)).backward()

    loss().backward()
    expected = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    with cached():
        loss().backward()
    torch.testing.assert_close([p.grad for p in layer.parameters()], expected)


def test_nothing_is_kept_in_a_program_with_a_process_group(tmp_path):
    layer, _ = make("linear")
    with cached():
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            assert layer.weight is not layer.weight
        finally:
            torch.distributed.destroy_process_group()
        assert layer.weight is layer.weight


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_recompute_what_they_computed(use_reentrant):
    layer, x = make("linear")
    x.requires_grad_()

    def loss(run):
        return sum(total(run(x * i)) for i in (1, 2, 3))

    def checkpointed(x):
        return checkpoint(layer, layer(x)[..., :4], use_reentrant=use_reentrant)

    def plain(x):
        return layer(layer(x)[..., :4])

    wanted = [x, *layer.parameters()]
    loss(plain).backward()
    expected = [a.grad for a in wanted]
    for warm in (False, True):
        for a in wanted:
            a.grad = None
        with cached():
            if warm:
                layer(x)
            loss(checkpointed).backward()
        torch.testing.assert_close([a.grad for a in wanted], expected)


def test_second_derivatives_go_through_what_is_kept():
    layer, x = make("linear")
    x.requires_grad_()

    def second():
        first = torch.autograd.grad(total(layer(x).tanh()), layer.svd.left, create_graph=True)[0]
        return torch.autograd.grad(total(first), [x, layer.svd.right])

    expected = second()
    with cached():
        for _ in range(2):
            torch.testing.assert_close(second(), expected)


def test_fake_tensors_are_not_kept():
    layer, x = make("linear")
    with cached():
        with FakeTensorMode(allow_non_fake_inputs=True):
            layer(torch.randn(x.shape))
        torch.testing.assert_close(
            layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias)
        )
        assert type(layer.weight) is torch.Tensor


def test_meta_layers_run():
    layer, x = make("lstm")
    layer.to("meta")
    with cached():
        assert layer(x.to("meta"))[0].shape == layer(x.to("meta"))[0].shape == (7, 2, 3)


def test_torch_cached_works_beside_it():
    layer, x = make("parametrized")
    expected = layer(x)
    with cached(), parametrize.cached():
        torch.testing.assert_close(layer(x), expected)
    with parametrize.cached(), cached():
        torch.testing.assert_close(layer(x), expected)


def test_errors_are_those_outside():
    layer, _ = make("linear")
    for x in (torch.randn(2, 3), torch.randn(2, 4, dtype=torch.float32), torch.ones(4).long()):
        with pytest.raises((TypeError, ValueError)) as outside:
            layer(x)
        with cached(), pytest.raises(type(outside.value)) as inside:
            layer(x)
        assert str(inside.value) == str(outside.value)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)])
def test_empty_batches(shape):
    with cached():
        assert make("linear")[0](torch.zeros(shape)).shape == (*shape[:-1], 6)


def test_values_of_every_kind_and_their_owners():
    class Owner:
        pass

    x, made = torch.randn(3, requires_grad=True), []

    def build():
        made.append(1)
        return 2 * x, 3 * x

    owners = Owner(), Owner()
    formed_once(owners[0], "pair", (x, None), build)
    assert len(made) == 1
    with cached():
        first = formed_once(owners[0], "pair", (x, None), build)
        assert formed_once(owners[0], "pair", (x, None), build) is first
        assert formed_once(owners[1], "pair", (x, None), build) is not first
        assert formed_once(owners[0], "other", (x, None), build) is not first
        assert formed_once(owners[0], "pair", (x, x), build) is not first
        assert len(made) == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_graph_forms_its_own_matrix():
    layer = SVDLinear(4, 6, device="cuda")
    x = torch.randn(5, 4, device="cuda")
    with torch.no_grad(), cached():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            layer(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        layer.svd.left.add_(1)
        graph.replay()
        torch.testing.assert_close(y, layer(x))
