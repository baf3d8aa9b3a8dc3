"""The compiled CPU backend of cms_attention as a registered operator, and when it runs."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from cmsbert_fast.kernels.cpu import build
from cmsbert_fast.ops.dispatch import choose_backend, why_not
from tests.ops.attention.cpu_cases import CASES, DIMENSIONS, call, make, needs_compiler


def operator_arguments(dropout_p):
    leaves, shifts, arguments = make(CASES["one utterance without frames"], DIMENSIONS[2])
    tensors = [x.detach() for x in leaves]
    seed = torch.tensor([7]) if dropout_p else None
    modalities = (*tensors[3:7], shifts[0][0], *tensors[7:], shifts[1][0])
    return (*tensors[:3], *modalities, arguments["cu_seqlens"], seed, "tanh", 0.5, dropout_p)  # of both operators


@needs_compiler
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_operators_pass_opcheck(poisoned, dropout_p):
    arguments = operator_arguments(dropout_p)
    operators = torch.ops.cmsbert_fast
    for for_backward in (False, True):
        torch.library.opcheck(operators.cms_attention_cpu_forward.default, (*arguments, for_backward))
    out, *saved = operators.cms_attention_cpu_forward(*arguments, True)
    assert all(x.isfinite().all() for x in saved)  # also where no sequence is
    backward = (torch.ones_like(out), *saved, [True, True, False, True], *arguments)
    torch.library.opcheck(operators.cms_attention_cpu_backward.default, backward)


@needs_compiler
def test_a_backward_pass_of_what_kept_nothing_is_refused():
    arguments = operator_arguments(0.0)
    out, *saved = torch.ops.cmsbert_fast.cms_attention_cpu_forward(*arguments, False)
    with pytest.raises(ValueError, match="call it with for_backward=True"):
        torch.ops.cmsbert_fast.cms_attention_cpu_backward(torch.ones_like(out), *saved, [False] * 4, *arguments)


@needs_compiler
@pytest.mark.parametrize(("backend", "dropout_p"), [("cpu", 0.0), ("cpu", 0.5), ("auto", 0.0)])
def test_compiles_without_a_graph_break_for_any_lengths(backend, dropout_p):
    torch.compiler.reset()
    build.load.cache_clear()  # the library may not even be loaded before tracing
    compiled = torch.compile(
        lambda *x: call(*x, backend=backend, dropout_p=dropout_p).sin(),
        fullgraph=True, backend="aot_eager", dynamic=True,
    )  # fmt: skip
    for case in (([5, 3, 7], [4, 1, 2], [2, 9, 3]), ([6, 2, 11], [5, 3, 2], [2, 9, 4])):
        leaves, shifts, arguments = make(case, DIMENSIONS[0])
        torch.manual_seed(0)
        z = call(leaves, shifts, arguments, backend="cpu", dropout_p=dropout_p).sin()
        expected = torch.autograd.grad(z.sum(), leaves)
        torch.manual_seed(0)
        actual = torch.autograd.grad(compiled(leaves, shifts, arguments).sum(), leaves)
        for a, e in zip(actual, expected, strict=True):
            assert torch.equal(a, e)


@needs_compiler
def test_checkpointing_draws_the_same_mask():
    leaves, *rest = make(CASES["unequal"], DIMENSIONS[0])

    def attention(*leaves):
        return call(leaves, *rest, backend="cpu", dropout_p=0.4)

    results = []
    for run in (
        attention,
        lambda *x: checkpoint(attention, *x, use_reentrant=False),
        lambda *x: checkpoint(attention, *x, use_reentrant=True),
    ):
        torch.manual_seed(5)
        own = [x.detach().requires_grad_() for x in leaves]
        run(*own).square().sum().backward()
        results.append([x.grad for x in own])
    for gradients in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], gradients, strict=True))


@needs_compiler
def test_autocast():
    leaves, *rest = make(CASES["unequal"], DIMENSIONS[0])
    with torch.autocast("cpu", torch.bfloat16):
        z = call(leaves, *rest, backend="cpu")
    assert z.dtype == torch.bfloat16
    gradients = torch.autograd.grad(z.float().sum(), leaves)
    assert all(x.dtype == torch.float32 for x in gradients)


# ------------------------------------------------------------------ which backend runs


@needs_compiler
def test_auto_picks_the_compiled_code_where_it_can_run(monkeypatch):
    monkeypatch.delenv("CMSBERT_BACKEND", raising=False)
    expected = {torch.float32: "cpu", torch.float64: "torch", torch.float16: "torch"}
    assert {dtype: choose_backend("attention", torch.zeros(1, dtype=dtype)) for dtype in expected} == expected
    with pytest.raises(ValueError, match=r'backend="cpu" cannot run here: .* not in torch.float64; use backend="auto"'):
        choose_backend("attention", torch.zeros(1, dtype=torch.float64), "cpu")


def test_without_a_compiler_everything_works_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CMSBERT_BACKEND", raising=False)
    build.load.cache_clear()
    try:
        assert choose_backend("attention", torch.zeros(1)) == "torch"
        assert "no C++ compiler found (looked for c++, g++, clang++)" in why_not("attention", "cpu", torch.zeros(1))
        with pytest.raises(ValueError, match=r'backend="cpu" cannot run here: no C\+\+ compiler found'):
            choose_backend("attention", torch.zeros(1), "cpu")
        leaves, *rest = make(CASES["unequal"], DIMENSIONS[2])
        assert call(leaves, *rest).isfinite().all()
    finally:
        build.load.cache_clear()
