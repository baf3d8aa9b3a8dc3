"""The packed LSTM, the library's, our operator and its compiled recurrence, against the literal reference."""

import sys

import pytest
import torch

from cmsbert_fast import reference
from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.ops.lstm import cpu
from cmsbert_fast.ops.lstm.api import PackedLSTM
from cmsbert_fast.ops.lstm.torch import cudnn_lstm, padded_cudnn_lstm
from cmsbert_fast.packing import Packing, cumulative, pad, valid_positions

LENGTHS = [[3, 1, 5, 5], [1], [5], [0], [0, 4, 0, 2], [0, 0]]
PRODUCTS = [torch.float32, torch.bfloat16]  # of the compiled recurrence
MISSING = library.why_not()
needs_compiler = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def module(dtype=torch.float64, size=4):
    lstm = PackedLSTM(3, size)
    generator = torch.Generator().manual_seed(0)
    for parameter in lstm.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return lstm


def run_operator(lstm, frames, packing):
    return torch.ops.cmsbert_fast.lstm(frames, packing.cu_seqlens, *lstm.parameters())[0]


def run_library(lstm, frames, packing):
    return cudnn_lstm(frames, packing.cu_seqlens, *lstm.parameters())


def run_padded(lstm, frames, packing):
    return padded_cudnn_lstm(frames, packing, *lstm.parameters())


RUNS = {"module": PackedLSTM.__call__, "operator": run_operator, "library": run_library, "padded": run_padded}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_the_reference(run, lengths, device):
    """On a GPU the library is cuDNN, and the module takes it; on the CPU it is ATen, and the module takes the other."""
    lstm, packing = module().to(device), Packing(cumulative(torch.tensor(lengths, device=device)), max(lengths))
    frames = torch.randn(sum(lengths) + 2, 3, dtype=torch.float64, device=device, requires_grad=True)
    weight = torch.randn(sum(lengths) + 2, 4, dtype=torch.float64, device=device)
    inputs = [frames, *lstm.parameters()]

    hidden = run(lstm, frames, packing)
    mask = valid_positions(packing)
    expected = reference.lstm(pad(frames, packing), mask, dict(lstm.named_parameters()))[mask]
    tolerance = 1e-13 if device == "cpu" else 1e-12
    torch.testing.assert_close(hidden[: sum(lengths)], expected, rtol=0, atol=tolerance)
    assert (hidden[sum(lengths) :] == 0).all()

    grads = torch.autograd.grad((hidden * weight).sum(), inputs)
    expected_grads = torch.autograd.grad(
        (expected * weight[: sum(lengths)]).sum() + 0 * sum(t.sum() for t in inputs), inputs
    )
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=10 * tolerance)


def test_parameters_become_one_piece_where_cudnn_takes_them(monkeypatch):
    """What PyTorch is asked for: in the order and with the numbers of torch.nn.LSTM."""
    asked = []
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda tensor: tensor.dtype == torch.float32)
    monkeypatch.setattr(torch, "_use_cudnn_rnn_flatten_weight", lambda: True)
    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", lambda *arguments: asked.append(arguments))
    for name in (
        "cmsbert_fast.ops.lstm.api",
        "torch.backends.cudnn.rnn",
    ):  # the library knows, which a CPU's build lacks
        monkeypatch.setattr(sys.modules[name], "get_cudnn_mode", {"LSTM": 2}.get)
    ours, theirs = PackedLSTM(3, 4), torch.nn.LSTM(3, 4, batch_first=True)
    ours.to(torch.float64)
    assert asked == []
    ours.to(torch.float32)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    theirs.flatten_parameters()
    assert len(asked) == 2
    assert asked[0][1:] == asked[1][1:]
    assert all(weight is own for weight, own in zip(asked[0][0], ours.parameters(), strict=True))


@pytest.mark.cuda
def test_cudnn_does_not_copy_the_weights(recwarn):
    lstm = PackedLSTM(3, 8).to("cuda")
    assert len({parameter.untyped_storage().data_ptr() for parameter in lstm.parameters()}) == 1
    lstm(torch.randn(5, 3, device="cuda"), Packing(cumulative(torch.tensor([3, 2])).cuda(), 3)).sum().backward()
    assert not [warning for warning in recwarn if "single contiguous chunk" in str(warning.message)]


def test_padding_of_the_librarys_batch_may_hold_nan():
    lstm, packing = module(), Packing(cumulative(torch.tensor([1, 4, 2])), 4)
    frames = torch.randn(9, 3, dtype=torch.float64)
    poisoned = frames.clone()
    poisoned[7:] = torch.nan
    found = []
    for given in (frames, poisoned):
        hidden = run_padded(lstm, given, packing)
        found.append((hidden.detach(), *torch.autograd.grad(hidden.square().sum(), list(lstm.parameters()))))
    for expected, actual in zip(*found, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("rows", [0, 2])
def test_no_sequences(run, rows):
    """As frames by word have where no utterance has a word; all weights stay in the graph."""
    lstm, packing = module(), Packing(torch.zeros(1, dtype=torch.int32), 0)
    hidden = run(lstm, torch.ones(rows, 3, dtype=torch.float64), packing)
    assert torch.equal(hidden, torch.zeros(rows, 4, dtype=torch.float64))
    assert all((grad == 0).all() for grad in torch.autograd.grad(hidden.sum(), list(lstm.parameters())))


@pytest.mark.parametrize("products", [None, *(pytest.param(t, marks=needs_compiler) for t in PRODUCTS)])
def test_operator_passes_opcheck(products):
    dtype = torch.float64 if products is None else torch.float32
    lstm, packing = module(dtype, 5), Packing(cumulative(torch.tensor([3, 0, 2])), 3)
    frames = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    arguments = (frames, packing.cu_seqlens, *lstm.parameters(), products)
    torch.library.opcheck(torch.ops.cmsbert_fast.lstm.default, arguments)


def test_differentiates_once_and_says_so():
    lstm, packing = module(), Packing(cumulative(torch.tensor([3, 2])), 3)
    frames = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(lstm(frames, packing).square().sum(), list(lstm.parameters()), create_graph=True)
    for gradient in gradients:
        with pytest.raises(RuntimeError, match=r"^PackedLSTM can be differentiated only once; .*reference\.lstm"):
            gradient.sum().backward(retain_graph=True)


def run_literal(lstm, frames, packing, backend):
    mask = valid_positions(packing)
    hidden = reference.lstm(pad(frames, packing), mask, dict(lstm.named_parameters()))[mask]
    anchor = sum(parameter.sum() for parameter in lstm.parameters())  # keeps all in the graph
    return torch.cat([hidden, frames[len(hidden) :, :1].expand(-1, hidden.shape[1]) * 0]) + 0 * anchor


def hidden_and_gradients(lstm, frames, packing, backend, run=PackedLSTM.__call__):
    hidden = run(lstm, frames, packing, backend=backend)
    weight = torch.randn(hidden.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(hidden.dtype)
    return [hidden.detach(), *torch.autograd.grad((hidden * weight).sum(), [frames, *lstm.parameters()])]


@pytest.fixture(autouse=True)
def bfloat16_everywhere(monkeypatch):
    """The compiled recurrence rounds on every CPU; only its speed depends on the CPU."""
    monkeypatch.setattr(cpu, "why_slow_bfloat16", lambda device: None)


# Sizes: parts of a vector, several panels; the depth of a sum's first part (256). Sequences: several groups of rows.
@needs_compiler
@pytest.mark.parametrize("size", [1, 4, 16, 67, 300])
@pytest.mark.parametrize("lengths", [*LENGTHS, [0, 40], [5, 3, 0, 7, 1] * 8, [40, 2, 2], [3] * 25], ids=str)
@pytest.mark.parametrize("products", PRODUCTS)
def test_error_of_the_compiled_recurrence_is_that_of_torch(monkeypatch, lengths, size, products):
    """The largest error is at most 2 times (gradients: 3 times) that of PyTorch's operators: of our loop of them; in
    bfloat16, of the literal reference under autocast."""
    poison, poison_like = torch.Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poison(*a, **k).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison_like(*a, **k).fill_(torch.nan))
    packing = Packing(cumulative(torch.tensor(lengths)), max(lengths))
    exact_lstm = module(torch.float64, size)
    for parameter in exact_lstm.parameters():
        parameter.data *= size**-0.5
    lstm = module(torch.float32, size)
    lstm.load_state_dict(exact_lstm.state_dict())
    exact_lstm.load_state_dict(lstm.state_dict())
    generator = torch.Generator().manual_seed(2)
    frames = torch.randn(sum(lengths) + 2, 3, generator=generator).requires_grad_()
    wide = frames.detach().double().requires_grad_()
    exact = hidden_and_gradients(exact_lstm, wide, packing, "auto")
    with torch.autocast("cpu", torch.bfloat16, enabled=products == torch.bfloat16):
        assert cpu.product_dtype() == products
        run = run_literal if products == torch.bfloat16 else PackedLSTM.__call__
        eager = hidden_and_gradients(lstm, frames, packing, "torch", run)
        actual = hidden_and_gradients(lstm, frames, packing, "auto")
    eps = torch.finfo(torch.float32).eps
    for i, (e, t, a) in enumerate(zip(exact, eager, actual, strict=True)):
        limit = (3 if i else 2) * (t - e).abs().max() + 8 * eps * e.abs().max()
        assert (a - e).abs().max() <= limit, f"output {i}"


@needs_compiler
@pytest.mark.parametrize(("lengths", "size"), [([9, 0, 50, 3, 3, 21] * 4, 200), ([40], 450)], ids=["many", "one"])
@pytest.mark.parametrize("products", PRODUCTS)
def test_the_compiled_recurrence_does_not_depend_on_threads(lengths, size, products):
    sizes = (torch.arange(max(lengths))[:, None] < torch.tensor(lengths)).sum(dim=1)
    weight = torch.randn(4 * size, size, generator=torch.Generator().manual_seed(0)) * size**-0.5
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            gates, hidden, cells = (torch.full((sum(lengths), n * size), 0.1) for n in (4, 1, 1))
            rounded = torch.zeros_like(hidden, dtype=products)
            cpu.forward(sizes, weight, gates, hidden, cells, None if products == torch.float32 else rounded)
            d_gates = cpu.backward(sizes, weight, gates, cells, torch.ones_like(hidden), products)
            results.append([gates, hidden, cells, rounded, *d_gates])
    finally:
        torch.set_num_threads(before)
    assert results[0][1].isfinite().all()
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert torch.equal(x, y)


@needs_compiler
def test_the_backend_decides_what_runs(monkeypatch):
    calls = []
    monkeypatch.setattr(cpu, "forward", lambda *a, f=cpu.forward: (calls.append(1), f(*a)))
    lstm, packing = module(torch.float32), Packing(cumulative(torch.tensor([2, 1])), 2)
    frames = torch.randn(3, 3)
    for backend, runs in (("auto", 1), ("cpu", 2), ("torch", 2), ("reference", 2)):
        lstm(frames, packing, backend=backend)
        assert len(calls) == runs
    monkeypatch.setenv("CMSBERT_BACKEND", "torch")
    lstm(frames, packing)
    module()(frames.double(), packing, backend="auto")  # float64: not compiled
    assert len(calls) == 2


@pytest.mark.parametrize("forward", [False, True])
def test_rows_of_no_sequence_may_hold_nan_and_backward_may_run_under_autocast(forward):
    """Whatever the backward pass runs under, it does what the forward pass asks for."""
    lstm, packing = module(torch.float32), Packing(cumulative(torch.tensor([3, 2])), 3)
    frames = torch.randn(7, 3)

    def gradients(frames, backward):
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            loss = lstm(frames, packing).square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            return torch.autograd.grad(loss, list(lstm.parameters()))

    expected = gradients(frames, False)
    poisoned = frames.clone()
    poisoned[5:] = torch.nan
    for got in (gradients(poisoned, False), gradients(frames, True)):
        for gradient, wanted in zip(got, expected, strict=True):
            assert torch.equal(gradient, wanted)


@needs_compiler
@pytest.mark.parametrize("size", [1, 5, 64, 301])
@pytest.mark.parametrize("lengths", [[9], [4, 0, 7, 1, 7]], ids=str)
def test_what_is_rounded_to_bfloat16(lengths, size):
    """W_hh, h and the gates' gradients in the products of time steps and in W_hh's gradient; in float64 otherwise."""

    def rounded(x):
        return x.bfloat16().to(x.dtype)

    sizes = (torch.arange(max(lengths))[:, None] < torch.tensor(lengths)).sum(dim=1)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4 * size, size, generator=generator) * size**-0.5
    gates, d_hidden = (torch.randn(sum(lengths), n * size, generator=generator) for n in (4, 1))
    wide, h, c, begin = gates.double(), None, None, 0
    steps = []
    for alive in sizes.tolist():
        z = wide[begin : begin + alive]
        if h is not None:
            z = z + rounded(h[:alive]) @ rounded(weight).double().T
        i, f, g, o = (
            act(x)
            for act, x in zip((torch.sigmoid, torch.sigmoid, torch.tanh, torch.sigmoid), z.chunk(4, 1), strict=True)
        )
        c = i * g if c is None else i * g + f * c[:alive]
        h = o * c.tanh()
        steps.append((begin, alive, torch.cat([i, f, g, o], 1), c, h))
        begin += alive

    hidden, cells = (torch.full((sum(lengths), size), torch.nan) for _ in range(2))
    operand = torch.zeros(sum(lengths), size + size % 2, dtype=torch.bfloat16)
    cpu.forward(sizes, weight, gates, hidden, cells, operand)
    d_gates, d_operand = cpu.backward(sizes, weight, gates, cells, d_hidden, torch.bfloat16)
    assert torch.equal(operand[:, :size], hidden.bfloat16())
    assert torch.equal(d_operand, d_gates.bfloat16())
    d_h = d_c = None
    for begin, alive, activated, c, h in reversed(steps):
        step = slice(begin, begin + alive)
        # A number that the two round to different sides moves all that follow, by a part of bfloat16's precision.
        for actual, wanted in ((gates[step], activated), (cells[step], c), (hidden[step], h)):
            torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=1e-3)
        i, f, g, o = gates[step].double().chunk(4, 1)
        tanh_c = cells[step].double().tanh()
        total = d_hidden[step].double()
        if d_h is not None:
            total[: len(d_h)] += d_h
        d_cell = total * o * (1 - tanh_c**2)
        if d_c is not None:
            d_cell[: len(d_c)] += d_c
        d_f = torch.zeros_like(f)
        if begin:
            before = begin - steps[[s[0] for s in steps].index(begin) - 1][1]
            d_f = d_cell * cells[before : before + alive].double() * (f - f * f)
        wanted = torch.cat([d_cell * g * (i - i * i), d_f, d_cell * i * (1 - g * g), total * tanh_c * (o - o * o)], 1)
        torch.testing.assert_close(d_gates[step].double(), wanted, rtol=1e-5, atol=1e-5)
        d_h = d_operand[step].double() @ rounded(weight).double()
        d_c = d_cell * f


@needs_compiler
def test_autocast_to_bfloat16_rounds_the_products_alone(monkeypatch):
    lstm, packing = module(torch.float32), Packing(cumulative(torch.tensor([9])), 9)
    frames = torch.randn(9, 3)
    exact, of_torch = lstm(frames, packing), lstm(frames, packing, backend="torch")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = lstm(frames, packing)
        assert torch.equal(lstm(frames, packing, backend="torch"), of_torch)
        monkeypatch.setattr(cpu, "why_slow_bfloat16", lambda device: "it is slow")
        assert torch.equal(lstm(frames, packing), exact)  # the CPU is slow at it
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(lstm(frames, packing), exact)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded[0], exact[0])  # multiplies no hidden state
    assert (rounded - exact).abs().max() > 1e-4
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.05)


@needs_compiler
def test_buffers_are_float32_whatever_the_default():
    lstm, packing = module(torch.float32), Packing(cumulative(torch.tensor([3, 2])), 3)
    frames = torch.randn(5, 3, requires_grad=True)
    expected = hidden_and_gradients(lstm, frames, packing, "cpu")
    try:
        torch.set_default_dtype(torch.float64)
        actual = hidden_and_gradients(lstm, frames, packing, "cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)
