"""The linear layer: against float64 and PyTorch's own, in both dtypes, and what carries it through PyTorch."""

import copy
import ctypes
import functools
import platform
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from cmsbert_fast import CMSBertConfig
from cmsbert_fast.kernels.cpu import build, library, product
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.linear import api, cpu
from cmsbert_fast.ops.linear.api import Linear, linear, linear_gelu, use_fast_linear

MISSING = library.why_not()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def compiled_for_every_size(monkeypatch):
    monkeypatch.delenv("CMSBERT_BACKEND", raising=False)
    monkeypatch.setattr(capability, "why_not_own_products", lambda *_: None)
    monkeypatch.setattr(api, "LEAST_WORK", 0)


@pytest.fixture
def runs(monkeypatch):
    """The products that the compiled code computes, as their outputs' shapes."""
    shapes = []
    real = cpu.matrix_product
    monkeypatch.setattr(cpu, "matrix_product", lambda *a: (shapes.append(tuple(a[3].shape)), real(*a))[1])
    return shapes


@pytest.fixture(scope="module")
def other_library(tmp_path_factory):
    """The library for a CPU with other vectors, built once for each."""
    folder = tmp_path_factory.mktemp("other")

    @functools.cache
    def built(architecture):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "FLAGS", [*build.FLAGS, "-O1"])
            return ctypes.CDLL(str(build._build(folder, architecture.strip("-"), [architecture])))

    def library_of(flags):
        (architecture,) = flags
        known = Path("/proc/cpuinfo")
        if platform.machine() != "x86_64" or ("haswell" in architecture and "avx2" not in known.read_text()):
            pytest.skip("this CPU has other instructions")
        return built(architecture)

    return library_of


def operands(rows, size, out, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, size), (out, size), (out,))
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return [
        x.requires_grad_(),
        (weight.detach() * max(size, 1) ** -0.5).to(dtype).requires_grad_(),
        bias.requires_grad_(),
    ]


def outputs(function, tensors):
    y = function(*tensors)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, tensors, weight.to(y.dtype))]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "size", "out"), [(1, 768, 70), (15, 3072, 33), (64, 47, 64), (65, 600, 100), (130, 769, 257)]
)
def test_error_is_that_of_pytorch(runs, rows, size, out, dtype, autocast):
    """At most 2 times (gradients: 3 times) the error of PyTorch's layer of the same dtype, against float64."""
    tensors = operands(rows, size, out, dtype)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    exact = outputs(F.linear, wide)
    assert not runs
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        eager, actual = outputs(F.linear, tensors), outputs(linear, tensors)
    assert runs == [(rows, out), (rows, size), (out, size)]
    low = torch.bfloat16 if autocast else dtype
    for i, (e, t, a) in enumerate(zip(exact, eager, actual, strict=True)):
        assert a.dtype == t.dtype
        limit = (3 if i else 2) * (t - e).abs().max() + torch.finfo(low).eps * e.abs().max()
        assert (a - e).abs().max() <= limit, i


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("rows", [1, 20, 130])
def test_gelu_in_the_product_s_tail(runs, rows, autocast):
    """At most 2 times the error of PyTorch's composition, against float64; relative, too, where GELU is small."""
    x, weight, bias = (t.detach() for t in operands(rows, 70, 33))
    bias += torch.linspace(-9, 9, 33)
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        eager, actual = F.gelu(F.linear(x, weight, bias)), linear_gelu(x, weight, bias)
    assert runs == [(rows, 33)]
    assert actual.dtype == eager.dtype
    for size in (1, exact.abs() + 1e-3):
        limit = 2 * ((eager - exact).abs() / size).max() + torch.finfo(actual.dtype).eps
        assert ((actual - exact).abs() / size).max() <= limit


def test_gelu_everywhere():
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([0.0, 1e30, -1e30, 1e-30, torch.inf, torch.nan])])
    exact = F.gelu(x.double())
    with torch.no_grad():
        actual = linear_gelu(x[:, None], torch.ones(1, 1))[:, 0]
    assert torch.equal(actual.isnan(), x.isnan())
    whole = exact.isfinite() & (exact.abs() < 1e3)
    error, torch_s = ((y - exact)[whole].abs().max() for y in (actual, F.gelu(x)))
    assert error <= 1.5 * torch_s
    assert actual[x == 1e30] == 1e30
    assert actual[x == -1e30] == 0


def test_gelu_with_gradients_is_pytorch_s(runs):
    actual, expected = (outputs(f, operands(20, 30, 40)) for f in (linear_gelu, lambda *t: F.gelu(linear(*t))))
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("flags", [["-march=x86-64"], ["-march=haswell"]], ids=str)
def test_other_vector_lengths(runs, monkeypatch, other_library, flags, autocast):
    monkeypatch.setattr(build, "load", lambda: other_library(flags))
    for rows, size, out in ((1, 70, 33), (17, 600, 40), (33, 75, 50), (64, 300, 30), (130, 75, 50)):
        test_error_is_that_of_pytorch(runs, rows, size, out, torch.float32, autocast)
        runs.clear()
    test_numbers_that_are_not_finite_stay_where_they_are(torch.bfloat16)
    test_gelu_everywhere()


@pytest.mark.parametrize("rounded", [False, True])
def test_sums_do_not_depend_on_the_number_of_rows_or_threads(rounded):
    x, weight, bias = (t.detach() for t in operands(300, 777, 150))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
                whole = linear(x, weight, bias)
                results += [whole, torch.cat([linear(part, weight, bias) for part in x.split([1, 15, 64, 100, 120])])]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("rows", [20, 90])  # A is packed, or B
@pytest.mark.parametrize("size", [75, 76])  # words of bfloat16 are copied, or read in place
@pytest.mark.parametrize(
    ("rounded", "weights"), [(False, torch.float32), (True, torch.float32), (True, torch.bfloat16)]
)
def test_operands_of_any_strides(rows, size, rounded, weights):
    x, weight, bias = (t.detach() for t in operands(rows, size, 83))
    weight = weight.to(weights)
    wide = torch.zeros(rows, 200)
    wide[:, : 2 * size : 2] = x
    inputs = {
        "transposed": x.T.contiguous().T,
        "rows of a wider tensor": torch.cat([x, x], 1)[:, :size],
        "every other column": wide[:, : 2 * size : 2],
        "the same row": x[:1].expand(rows, -1),
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
        for name, given in inputs.items():
            for own_weight in (weight, weight.T.contiguous().T, torch.cat([weight, weight], 1)[:, :size]):
                expected = linear(given.contiguous(), weight, bias.contiguous())
                assert torch.equal(linear(given, own_weight, bias.repeat(2)[:83]), expected), name
        assert torch.equal(linear(x.view(2, -1, size), weight, bias).flatten(0, 1), linear(x, weight, bias))


def test_few_rows_are_as_many_in_python_and_in_cpp():
    source = next(path for path in build.SOURCES if path.name == "linear.cpp").read_text()
    assert re.findall(r" FEW = (\d+);", source) == [str(product.FEW_ROWS)]


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (5, 3, 0)])
def test_nothing_to_add_up(shape):
    tensors = operands(*shape)
    for actual, expected in zip(outputs(linear, tensors), outputs(F.linear, tensors), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_not_finite_stay_where_they_are(dtype):
    """Rows of NaN or infinity do not reach other rows, in any block of a product."""
    for rows in (20, 100):
        x, weight, bias = (t.detach() for t in operands(rows, 75, 40, dtype))
        expected = linear(x, weight, bias)
        x[3], x[rows - 1] = torch.nan, torch.inf
        actual = linear(x, weight, bias)
        assert actual[3].isnan().all()
        assert not actual[-1].isfinite().any()
        whole = [i for i in range(rows) if i not in (3, rows - 1)]
        assert torch.equal(actual[whole], expected[whole])


class Operators(TorchDispatchMode):
    """The names of PyTorch's operators that run, and of ours."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def test_autocast_copies_no_operand():
    tensors = operands(20, 30, 40)
    with torch.autocast("cpu", torch.bfloat16), Operators() as ran:
        y = linear(*tensors)
    y.backward(torch.ones_like(y))
    assert "cmsbert_fast::linear" in ran.names
    assert not {"aten::_to_copy", "aten::copy_", "aten::clone"} & set(ran.names)


def test_what_is_left_to_pytorch(runs, monkeypatch):
    x, weight, bias = (t.detach() for t in operands(4, 6, 5))
    linear(x.double(), weight.double(), bias.double())
    linear(x.half(), weight.half(), bias.half())
    linear(x[0], weight, bias)
    linear(x, weight, bias, backend="torch")
    with torch.autocast("cpu", torch.float16):
        linear(x, weight, bias)
    for wrong in ((x, weight[:, :5], bias), (x, weight.double(), bias), (x, weight, bias.double())):
        with pytest.raises(RuntimeError):
            linear(*wrong)
    monkeypatch.setattr(api, "LEAST_WORK", 121)
    linear(x, weight, bias)
    assert not runs
    monkeypatch.setattr(api, "LEAST_WORK", 120)
    assert torch.equal(linear(x, weight), linear(x, weight, torch.zeros(5)))
    assert len(runs) == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_that_are_needed(runs, dtype, needs):
    tensors = operands(5, 6, 4, dtype)
    for tensor, need in zip(tensors, needs, strict=True):
        tensor.requires_grad_(need)
    linear(*tensors).sum().backward()
    assert len(runs) == 1 + (not needs[2])
    assert [t.grad is not None for t in tensors] == list(needs)


def test_second_derivatives():
    tensors = [t.detach().double().float().requires_grad_() for t in operands(3, 4, 2)]

    def penalty(function, tensors):
        gradients = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), tensors)

    for actual, expected in zip(penalty(linear, tensors), penalty(F.linear, tensors), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_pass_opcheck(dtype):
    x, weight, bias = (t.detach() for t in operands(5, 6, 4))
    operators = torch.ops.cmsbert_fast
    for given in (bias, None):
        torch.library.opcheck(operators.linear.default, (x, weight, given, dtype))
    grad = torch.ones(5, 4, dtype=dtype)
    for needs in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(operators.linear_backward.default, (grad, x, weight, dtype, *needs))


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_without_a_graph_break_for_any_number_of_rows(autocast):
    torch.compiler.reset()
    compiled = torch.compile(lambda *x: linear(*x).sin(), fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (7, 90):
        tensors = operands(rows, 40, 70)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            pairs = zip(outputs(compiled, tensors), outputs(lambda *x: linear(*x).sin(), tensors), strict=True)
            assert all(torch.equal(a, e) for a, e in pairs)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    own, expected = operands(70, 20, 30), outputs(linear, operands(70, 20, 30))
    y = checkpoint(linear, *own, use_reentrant=reentrant)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
    for a, e in zip((y.detach(), *(t.grad for t in own)), expected, strict=True):
        assert torch.equal(a, e)


def test_the_module_has_the_layer_s_parameters(runs):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 4, bias=False)), Linear(4, 3))
    options = CMSBertConfig(backend="auto")
    ours = copy.deepcopy(plain).eval()
    use_fast_linear(ours, options)
    assert [type(m) for m in ours.modules() if isinstance(m, nn.Linear)] == [Linear] * 3
    assert not any(m.training for m in ours.modules())
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    assert all(p.device.type == "cpu" and p.requires_grad for p in ours.parameters())
    x = torch.randn(7, 6)
    torch.testing.assert_close(ours(x), plain(x))
    assert len(runs) == 4  # the last of plain's is Linear, too
    options.backend = "torch"
    ours(x)
    assert len(runs) == 4
