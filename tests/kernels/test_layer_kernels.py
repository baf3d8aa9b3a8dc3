"""The kernels between a layer's products and their operators against float64, in the interpreter or on a GPU.

Error rule: at most twice (results) or three times (gradients) the error of PyTorch's operators in the same dtypes, plus
a few units in the last place.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsbert_fast.ops.bias_gelu.api import bias_gelu
from cmsbert_fast.ops.residual_norm.api import residual_norm
from cmsbert_fast.ops.residual_norm.types import Parameters
from tests.interpreter import INTERPRETED, run_in_the_interpreter
from tests.kernels.cms_attention.cases import DEVICE, bfloat16, runs_kernels
from tests.kernels.test_order import reverse

EPS = 1e-12
PAIRS = [  # x and residual
    (torch.float32, torch.float32),
    (torch.float16, torch.float32),
    (torch.float16, torch.float16),
    pytest.param(torch.bfloat16, torch.float32, marks=bfloat16.marks),
]
ROWS_AND_WIDTHS = [(9, 24), (1, 3), (0, 16), (34, 300)]


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the kernels run in this process already")
def test_in_the_interpreter() -> None:
    model = "tests/models/cmsbert/test_fused_layer.py::test_the_kernels_in_float16"
    run_in_the_interpreter("tests/kernels/test_layer_kernels.py", model, at_least=34)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody wrote is NaN."""
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(False)


def test_no_atomics() -> None:
    """Nothing is added in an order that the machine chooses."""
    pytest.importorskip("triton")
    from cmsbert_fast.kernels import bias_gelu as gelu
    from cmsbert_fast.kernels import residual_norm as norm

    for module in (gelu, norm):
        assert "atomic_" not in inspect.getsource(module)


def draw(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).to(DEVICE, dtype).requires_grad_()


def strided(*shape: int, dtype: torch.dtype) -> Tensor:
    """Columns of a wider tensor."""
    rows, width = shape
    return draw(rows, width + 3, dtype=dtype).detach()[:, 2 : 2 + width].requires_grad_()


def norm_leaves(rows: int, width: int, dtype: torch.dtype, wide: torch.dtype) -> list[Tensor]:
    return [
        strided(rows, width, dtype=dtype),
        strided(rows, width, dtype=wide),
        *(draw(width, dtype=wide, scale=2) for _ in range(3)),
    ]


def run_norm(leaves: list[Tensor], backend: str, rounded: torch.dtype | None, **options: Any) -> tuple[Tensor, Tensor]:
    return residual_norm(*leaves[:2], Parameters(*leaves[2:]), eps=EPS, rounded=rounded, backend=backend, **options)


def in_float64(leaves: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in leaves]


def compare(ours: list[Tensor], plain: list[Tensor], exact: list[Tensor], results: int) -> None:
    """The error rule; the first ``results`` are no gradients."""
    for i, (a, p, e) in enumerate(zip(ours, plain, exact, strict=True)):
        assert a.dtype == p.dtype, f"output {i}"
        assert a.shape == p.shape == e.shape
        if not e.numel():
            continue
        error, allowed = ((x.double() - e).abs().max().item() for x in (a, p))
        allowed = (2 if i < results else 3) * allowed + 8 * torch.finfo(a.dtype).eps * e.abs().max().item()
        assert error <= allowed, f"output {i}: {error:.2g}, {allowed:.2g} allowed"


@runs_kernels
@pytest.mark.parametrize(("rows", "width"), ROWS_AND_WIDTHS)
@pytest.mark.parametrize(("dtype", "wide"), PAIRS)
def test_residual_norm(rows: int, width: int, dtype: torch.dtype, wide: torch.dtype) -> None:
    torch.manual_seed(0)
    leaves = norm_leaves(rows, width, dtype, wide)
    d_wide, d_rounded = draw(rows, width, dtype=wide).detach(), draw(rows, width, dtype=dtype).detach()
    found = []
    for backend, given in (("triton", leaves), ("torch", leaves), ("reference", in_float64(leaves))):
        y = run_norm(given, backend, None if backend == "reference" else dtype)
        upstream = [d.to(part.dtype) for d, part in zip((d_wide, d_rounded), y, strict=True)]
        found.append([*(part.detach() for part in y), *torch.autograd.grad(y, given, upstream)])
        assert (y[1] is y[0]) == (dtype == wide or backend == "reference")
    compare(*found, results=2)


@runs_kernels
@pytest.mark.parametrize(("rows", "width"), ROWS_AND_WIDTHS)
@pytest.mark.parametrize(("dtype", "wide"), PAIRS)
def test_bias_gelu(rows: int, width: int, dtype: torch.dtype, wide: torch.dtype) -> None:
    torch.manual_seed(0)
    leaves = [strided(rows, width, dtype=dtype), draw(width, dtype=wide, scale=2)]
    upstream = strided(rows, width, dtype=dtype).detach()
    found = []
    for backend, given in (("triton", leaves), ("torch", leaves), ("reference", in_float64(leaves))):
        y = bias_gelu(*given, backend=backend)
        found.append([y.detach(), *torch.autograd.grad(y, given, upstream.to(y.dtype))])
    compare(*found, results=1)


@runs_kernels
def test_many_rows_share_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than programs have at least: some have more, and the last one fewer."""
    from cmsbert_fast.kernels import bias_gelu as gelu
    from cmsbert_fast.kernels import residual_norm as norm

    assert norm.programs(1) == (1, 4)
    assert norm.programs(1024) == (256, 4)
    assert norm.programs(10_001) == (251, 40)
    for module in (gelu, norm):
        monkeypatch.setattr(module, "MOST_PROGRAMS", 2)
    for dtype, wide in ((torch.float32, torch.float32), (torch.float16, torch.float32)):
        test_residual_norm(37, 20, dtype, wide)
        test_bias_gelu(37, 20, dtype, wide)


@runs_kernels
@pytest.mark.parametrize("asked", [0, 1])
def test_one_of_the_two_results_alone(asked: int) -> None:
    torch.manual_seed(0)
    leaves = norm_leaves(5, 20, torch.float16, torch.float32)
    exact = in_float64(leaves)
    gradients = torch.autograd.grad(run_norm(leaves, "triton", torch.float16)[asked].sum(), leaves)
    expected = torch.autograd.grad(run_norm(exact, "reference", None)[0].sum(), exact)
    for a, e in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=2e-2, atol=2e-2)


@runs_kernels
@pytest.mark.parametrize("p", [0.1])
def test_dropout(p: float) -> None:
    """What forward drops, backward drops; the rest is scaled. The mask goes by the seed's first number alone."""
    torch.manual_seed(0)
    leaves = norm_leaves(60, 64, torch.float32, torch.float32)
    d_out = draw(60, 64).detach()

    def run(seed: list[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = run_norm(leaves, "triton", None, dropout_p=p, seed=torch.tensor(seed, device=DEVICE))[0]
        return y.detach(), torch.autograd.grad(y, leaves, d_out)

    y, gradients = run([8, 1])
    kept = gradients[0] != 0
    assert abs(kept.double().mean().item() - (1 - p)) < 0.02
    exact = in_float64(leaves)
    x, residual, bias, weight, shift = exact
    s = residual + kept * (x + bias) / (1 - p)
    expected = torch.nn.functional.layer_norm(s, (64,), weight, shift, EPS)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    for a, e in zip(gradients, torch.autograd.grad(expected, exact, d_out.double()), strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-4)
    assert torch.equal(run([8, 2])[0], y)
    assert not torch.equal(run([9, 1])[1][0] != 0, kept)


@runs_kernels
def test_a_seed_is_drawn_from_pytorchs_generator() -> None:
    leaves = norm_leaves(8, 16, torch.float32, torch.float32)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(run_norm(leaves, "triton", None, dropout_p=0.5)[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.skipif(not INTERPRETED, reason="an order of programs is the interpreter's to choose")
def test_bits_do_not_depend_on_the_order_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def compute() -> list[Tensor]:
        torch.manual_seed(0)
        leaves = norm_leaves(14, 48, torch.float16, torch.float32)
        y = run_norm(leaves, "triton", torch.float16, dropout_p=0.25)
        x, bias = draw(40, 300), draw(300)
        z = bias_gelu(x, bias, "triton")
        of_norm = torch.autograd.grad(y, leaves, [torch.ones_like(part) for part in y])
        return [y[0], y[1], z, *of_norm, *torch.autograd.grad(z.square().sum(), (x, bias))]

    expected = compute()
    reverse(monkeypatch)
    for i, (a, e) in enumerate(zip(compute(), expected, strict=True)):
        assert torch.equal(a, e), f"output {i}"


@runs_kernels
def test_operators_pass_opcheck() -> None:
    operators = torch.ops.cmsbert_fast
    x, residual = draw(5, 24, dtype=torch.float16).detach(), draw(5, 24).detach()
    parameters = [draw(24).detach() for _ in range(3)]
    seed = torch.tensor([3], device=DEVICE)
    arguments = (x, residual, *parameters, seed, EPS, 0.5, torch.float16)
    torch.library.opcheck(operators.residual_norm_forward.default, arguments)
    _, narrow, mean, inverse = operators.residual_norm_forward(*arguments)
    backward = (None, narrow, mean, inverse, x, residual, *parameters, seed, 0.5)
    torch.library.opcheck(operators.residual_norm_backward.default, backward)
    torch.library.opcheck(operators.bias_gelu_forward.default, (x, parameters[0]))
    torch.library.opcheck(operators.bias_gelu_backward.default, (x, x, parameters[0]))


@runs_kernels
def test_a_second_derivative_is_refused() -> None:
    leaves = norm_leaves(3, 16, torch.float32, torch.float32)
    for y, name in (
        (run_norm(leaves, "triton", None)[0], "residual_norm"),
        (bias_gelu(leaves[0], leaves[2], "triton"), "bias_gelu"),
    ):
        (gradient,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
        with pytest.raises(RuntimeError, match=f"{name} can be differentiated only once"):
            gradient.sum().backward()


def test_plain_pytorch_is_the_reference() -> None:
    torch.manual_seed(0)
    leaves = [x.detach().cpu().double().requires_grad_() for x in norm_leaves(6, 10, torch.float32, torch.float32)]
    for first, second in zip(run_norm(leaves, "torch", None), run_norm(leaves, "reference", None), strict=True):
        torch.testing.assert_close(first, second)
    torch.testing.assert_close(bias_gelu(leaves[0], leaves[2], "torch"), bias_gelu(leaves[0], leaves[2], "reference"))
    assert run_norm(leaves, "torch", torch.float16)[1].dtype == torch.float16


def test_what_does_not_fit_is_refused() -> None:
    x, row = torch.zeros(2, 3), torch.zeros(3)
    with pytest.raises(ValueError, match=r"residual \(2, 4\).*; give \(T, D\) twice"):
        residual_norm(x, torch.zeros(2, 4), Parameters(row, row, row), eps=EPS)
    with pytest.raises(ValueError, match="different devices"):
        residual_norm(x, x.to("meta"), Parameters(row, row, row), eps=EPS)
    with pytest.raises(ValueError, match="at least 0 and less than 1"):
        residual_norm(x, x, Parameters(row, row, row), eps=EPS, dropout_p=1.0)
    with pytest.raises(ValueError, match=r"bias \(2,\).*; give \(T, F\) and \(F,\)"):
        bias_gelu(x, torch.zeros(2))
