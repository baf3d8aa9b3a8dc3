"""Which backend every operator runs: on this machine, by the environment, without a compiler, under autocast."""

from types import SimpleNamespace

import pytest
import torch

from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.ops import capability, dispatch
from cmsbert_fast.ops.dispatch import HALF_ROWS, OPERATORS, choose_backend, report, why_not

MISSING = "there is no compiler"
EXAMPLE = torch.zeros(2, 2, 8)
# Compiled C++ where the library is there, PyTorch's form elsewhere.
COMPILED = {"attention": "cpu", "contrastive": "cpu", "lstm": "cpu", "linear": "cpu", "dropout": "cpu"}
COMPILED |= {"bert_layers": "cpu", "bias_gelu": "torch", "residual_norm": "torch"}
NAMED = {
    "attention": {"reference": "reference", "torch": "torch", "cpu": "cpu"},
    "contrastive": {"reference": "reference", "torch": "torch", "cpu": "cpu"},
    "lstm": {"reference": "torch", "torch": "torch", "cpu": "cpu", "triton": "torch"},
    "linear": {"reference": "torch", "torch": "torch", "cpu": "cpu", "triton": "torch"},
    "bert_layers": {"reference": "torch", "torch": "torch", "cpu": "cpu", "triton": "torch"},
    "dropout": {"reference": "torch", "torch": "torch", "cpu": "cpu", "triton": "torch"},
    "bias_gelu": {"reference": "reference", "torch": "torch", "cpu": "torch", "triton": "torch"},
    "residual_norm": {"reference": "reference", "torch": "torch", "cpu": "torch", "triton": "torch"},
}


@pytest.fixture(autouse=True)
def a_cpu_with_a_compiler(monkeypatch):
    monkeypatch.delenv("CMSBERT_BACKEND", raising=False)
    monkeypatch.setattr(library, "why_not", lambda: None)
    monkeypatch.setattr(capability, "INTERPRETED", False)
    monkeypatch.setattr(capability, "_vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(capability, "has_bfloat16_vectors", lambda: True)


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(library, "why_not", lambda: MISSING)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that nobody has, and Triton."""
    monkeypatch.setattr(capability, "HAS_TRITON", True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(dispatch, "_largest_head", lambda: 128)

    def example(dtype=torch.float32, head_size=64):
        kind = torch.device("cuda", 0)
        return SimpleNamespace(device=kind, dtype=dtype, shape=(2, 2, head_size), is_floating_point=lambda: True)

    return example


def test_every_operator_is_tested():
    assert set(OPERATORS) == set(COMPILED) == set(NAMED)


@pytest.mark.parametrize("operator", OPERATORS)
def test_on_a_cpu(operator, monkeypatch):
    assert choose_backend(operator, EXAMPLE) == report(operator, EXAMPLE) == COMPILED[operator]
    for backend, expected in NAMED[operator].items():
        assert choose_backend(operator, EXAMPLE, backend) == expected
        monkeypatch.setenv("CMSBERT_BACKEND", backend)
        assert choose_backend(operator, EXAMPLE) == expected
        for other, same in NAMED[operator].items():  # an argument comes before the environment
            assert choose_backend(operator, EXAMPLE, other) == same


@pytest.mark.parametrize("operator", OPERATORS)
def test_unknown_names(operator, monkeypatch):
    with pytest.raises(ValueError, match=r"^backend='fast' is not a backend; choose one of reference, torch, triton"):
        choose_backend(operator, EXAMPLE, "fast")
    monkeypatch.setenv("CMSBERT_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"^CMSBERT_BACKEND='fast' is not a backend"):
        choose_backend(operator, EXAMPLE)


@pytest.mark.parametrize("operator", OPERATORS)
def test_without_a_compiler(operator, no_compiler, monkeypatch):
    expected = "cpu" if operator == "dropout" else "torch"  # its masks are PyTorch's operators
    assert choose_backend(operator, EXAMPLE) == expected
    if operator != "attention":
        assert choose_backend(operator, EXAMPLE, "cpu") == expected
        assert report(operator, EXAMPLE) in (expected, f"torch (not cpu: {MISSING})")
        return
    assert why_not(operator, "cpu", EXAMPLE) == MISSING
    assert report(operator, EXAMPLE) == f"torch (not cpu: {MISSING})"
    assert report(operator, EXAMPLE, "torch") == "torch"
    with pytest.raises(ValueError, match=rf'^backend="cpu" cannot run here: {MISSING}; use backend="auto" or "torch"'):
        choose_backend(operator, EXAMPLE, "cpu")
    monkeypatch.setenv("CMSBERT_BACKEND", "cpu")
    with pytest.raises(ValueError, match=r"^CMSBERT_BACKEND=cpu in the environment cannot run here: .*; unset"):
        choose_backend(operator, EXAMPLE)


@pytest.mark.parametrize(
    ("operator", "compiled"),
    [
        ("attention", {torch.float32, torch.bfloat16}),
        ("lstm", {torch.float32}),
        ("contrastive", {torch.float32, torch.bfloat16, torch.float16}),
        ("linear", {torch.float32, torch.bfloat16}),
        ("dropout", {torch.float64, torch.float32, torch.bfloat16, torch.float16}),
    ],
)
def test_dtypes_of_compiled_code(operator, compiled):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert (choose_backend(operator, EXAMPLE.to(dtype)) == "cpu") == (dtype in compiled)
    assert choose_backend(operator, EXAMPLE.to("meta")) == "torch"


@pytest.mark.parametrize("operator", OPERATORS)
def test_autocast_counts_for_what_it_casts(operator):
    """Autocast casts operands of attention and linear layers. Others keep their dtype; the LSTM and layers of BERT
    in one call round within."""
    with torch.autocast("cpu", torch.float16):
        expected = "torch" if operator in ("attention", "linear", "bert_layers") else COMPILED[operator]
        assert choose_backend(operator, EXAMPLE) == expected
        assert choose_backend(operator, EXAMPLE.to("meta")) == "torch"
    with torch.autocast("cpu", torch.bfloat16):
        assert choose_backend(operator, EXAMPLE) == COMPILED[operator]
        wide = choose_backend(operator, EXAMPLE.double())  # never cast
        assert wide == ("cpu" if operator == "dropout" else "torch")


@pytest.mark.parametrize("operator", ["attention", "contrastive"])
def test_triton_on_a_gpu(operator, gpu, monkeypatch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert choose_backend(operator, gpu(dtype)) == report(operator, gpu(dtype)) == "triton"
    assert choose_backend(operator, gpu(torch.float64)) == "torch"
    assert choose_backend(operator, gpu(head_size=256)) == ("torch" if operator == "attention" else "triton")
    assert choose_backend(operator, gpu(), "torch") == "torch"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    reason = "its kernels need an NVIDIA GPU of compute capability 8.0 or later"
    assert report(operator, gpu()) == f"torch (not triton: {reason})"
    monkeypatch.setattr(capability, "HAS_TRITON", False)
    assert report(operator, gpu()) == "torch (not triton: Triton is not installed)"
    with pytest.raises(ValueError, match=r'^backend="triton" cannot run here: Triton is not installed; use backend='):
        choose_backend(operator, gpu(), "triton")


@pytest.mark.parametrize("operator", ["bias_gelu", "residual_norm"])
def test_auto_takes_nothing_that_no_device_has_timed(operator, gpu, monkeypatch):
    monkeypatch.setattr(dispatch, "_widest_row", lambda: 128)
    assert choose_backend(operator, gpu(), "triton") == "triton"
    assert choose_backend(operator, gpu()) == "torch"
    assert report(operator, gpu()) == "torch (not triton: no device has timed it yet)"
    monkeypatch.setattr(dispatch, "OPERATORS", {operator: OPERATORS[operator]._replace(unmeasured=())})
    assert choose_backend(operator, gpu()) == report(operator, gpu()) == "triton"
    assert choose_backend(operator, gpu(torch.float64)) == "torch"
    assert choose_backend(operator, gpu(head_size=256)) == ("torch" if operator == "residual_norm" else "triton")


@pytest.mark.parametrize(
    ("vendor", "level", "fast_bfloat16", "expected"),
    [
        ("GenuineIntel", "AVX512", True, {}),
        ("AuthenticAMD", "AVX2", True, {}),
        ("", "AVX512", True, {}),
        ("AuthenticAMD", "AVX512", False, {torch.float32}),
        ("AuthenticAMD", "AVX512", True, {torch.float32, torch.bfloat16}),
    ],
)
def test_products_go_by_what_the_cpu_is(monkeypatch, vendor, level, fast_bfloat16, expected):
    monkeypatch.setattr(capability, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(capability, "has_bfloat16_vectors", lambda: fast_bfloat16)
    for dtype in (torch.float32, torch.bfloat16):
        assert (choose_backend("linear", EXAMPLE.to(dtype)) == "cpu") == (dtype in expected)
    assert choose_backend("contrastive", EXAMPLE) == "cpu"  # with PyTorch's products, where ours are no faster
    if not expected:
        for dtype in (torch.float32, torch.bfloat16):
            assert "PyTorch's own products are as fast on this CPU" in report("linear", EXAMPLE.to(dtype))


@pytest.mark.parametrize(
    ("vendor", "level", "expected"),
    [
        ("AuthenticAMD", "AVX2", [2, 3, 4, HALF_ROWS, HALF_ROWS + 1, 64]),
        ("GenuineIntel", "AVX512", [4, HALF_ROWS, HALF_ROWS + 1, 64]),
        ("GenuineIntel", "AVX2", []),
        ("", "AVX2", []),
    ],
)
def test_products_of_few_rows_without_gradients(monkeypatch, vendor, level, expected):
    monkeypatch.setattr(capability, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)

    def ours(operator, dtype):
        rows = (0, 1, 2, 3, 4, HALF_ROWS, HALF_ROWS + 1, 64, 65)
        return [n for n in rows if choose_backend(operator, torch.ones(n, 8, dtype=dtype)) == "cpu"]

    with torch.no_grad():
        for operator in ("linear", "bert_layers"):
            assert ours(operator, torch.float32) == expected
            assert ours(operator, torch.bfloat16) == []
        with torch.autocast("cpu", torch.bfloat16):
            assert ours("linear", torch.float32) == []
            assert ours("bert_layers", torch.float32) == [n for n in expected if n <= HALF_ROWS]
            monkeypatch.setattr(capability, "has_bfloat16_vectors", lambda: False)
            assert ours("bert_layers", torch.float32) == []
    reason = "PyTorch's own products are as fast on this CPU"
    but = f", but for {expected[0]} to 64 rows of float32 without gradients" if expected else ""
    assert report("linear", torch.ones(2, 8)) == f"torch (not cpu: {reason}{but})"
    assert choose_backend("linear", torch.ones(2, 8)) == "torch"  # its backward pass reads the weight the other way


@pytest.mark.parametrize("operator", ["lstm", "linear", "dropout"])
def test_pytorch_on_a_gpu(operator, gpu):
    for backend in ("auto", "triton", "cpu", "torch", "reference"):
        assert choose_backend(operator, gpu(), backend) == "torch"


@pytest.mark.parametrize("operator", ["attention", "contrastive"])
def test_the_interpreter_is_asked_for_by_name(operator, gpu, monkeypatch):
    with pytest.raises(ValueError, match="its kernels run on CUDA and ROCm devices, not on cpu"):
        choose_backend(operator, EXAMPLE, "triton")
    monkeypatch.setattr(capability, "INTERPRETED", True)
    assert choose_backend(operator, EXAMPLE) == COMPILED[operator]
    assert choose_backend(operator, EXAMPLE, "triton") == "triton"
    with pytest.raises(ValueError, match="wrong for bfloat16"):
        choose_backend(operator, EXAMPLE.bfloat16(), "triton")


def test_masks_under_torch_compile(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert choose_backend("dropout", EXAMPLE) == choose_backend("dropout", EXAMPLE, "cpu") == "torch"


@pytest.mark.parametrize("operator", OPERATORS)
def test_torch_compile_asks_without_a_graph_break(operator):
    torch.compiler.reset()

    def doubled_if_compiled(x):
        return x * (2 if choose_backend(operator, x) == "cpu" else 1)

    expected = 2 if COMPILED[operator] == "cpu" and operator != "dropout" else 1  # PyTorch's own masks are fused
    x = torch.ones(2, 2, 8)
    assert torch.equal(torch.compile(doubled_if_compiled, fullgraph=True, backend="eager")(x), x * expected)
