"""cms_attention as a registered operator: opcheck, gradcheck, gradients, dropout seeds, autocast, choice of backend.

The Triton operator runs on a GPU or in Triton's interpreter; without a GPU one test runs the operator's tests again
with ``TRITON_INTERPRET=1``, and what else has a case for the interpreter.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from cmsbert_fast.ops.dispatch import choose_backend, why_not
from tests.interpreter import INTERPRETED, run_in_the_interpreter
from tests.ops.attention.operator_cases import DEVICE, ShapeClass, inputs, run, runs_kernels, value_and_gradients


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the kernels run in this process already")
def test_in_the_interpreter() -> None:
    others = [
        "tests/ops/attention/test_attention.py::test_what_lies_in_rows_of_no_sequence_reaches_no_gradient",
        "tests/ops/attention/test_attention.py::test_a_batch_without_tokens_has_gradients_of_zero",
        "tests/models/cmsbert/test_modeling.py::test_the_kernels_give_the_references_loss_and_gradients",
        "tests/models/cmsbert/test_padding_free.py::test_nothing_is_computed_on_padding[triton]",
    ]
    operator = [f"tests/ops/attention/test_{name}.py" for name in ("operator", "compile", "distributed")]
    run_in_the_interpreter(*operator, *others, at_least=40)


def operator_arguments(dtype: torch.dtype, packed: bool, dropout_p: float) -> tuple[Any, ...]:
    leaves, options = inputs(dtype, packed)
    tensors = [x.detach() for x in leaves]
    masks = (None, None)
    cu = [options.get(name) for name in ("cu_visual", "cu_acoustic", "cu_seqlens")]
    visual, acoustic = ((*tensors[3 + 4 * i : 7 + 4 * i], cu[i], masks[i]) for i in range(2))
    seed = torch.tensor([7], device=DEVICE) if dropout_p else None
    lengths = (5, 5, 4) if packed else (5, 4, 3)
    mask = options.get("attention_mask")
    return (*tensors[:3], *visual, *acoustic, cu[2], mask, seed, *lengths, "tanh", 0.5, dropout_p, False)


@runs_kernels
@pytest.mark.parametrize(("packed", "dropout_p"), [(True, 0.0), (False, 0.5)])
def test_operators_pass_opcheck(shape_class: ShapeClass, packed: bool, dropout_p: float) -> None:
    """Without gradients: the operators have none by themselves, and those of cms_attention are tested below."""
    arguments = operator_arguments(shape_class.dtype, packed, dropout_p)
    operators = torch.ops.cmsbert_fast
    torch.library.opcheck(operators.cms_attention_forward.default, arguments)
    out, *saved = operators.cms_attention_forward(*arguments)
    backward = (torch.ones_like(out), out, *saved, True, False, *arguments)
    torch.library.opcheck(operators.cms_attention_backward.default, backward)


@runs_kernels
def test_the_operator_by_itself_never_loses_a_gradient(shape_class: ShapeClass) -> None:
    arguments = operator_arguments(shape_class.dtype, True, 0.0)
    operator = torch.ops.cmsbert_fast.cms_attention_forward
    expected = operator(*arguments)[0]
    leaves, options = inputs(shape_class.dtype)
    value_and_gradients(lambda x: run(x, "triton", **options), leaves)  # the way to get gradients
    for i in (0, 1, 2, *range(3, 7), *range(9, 13)):  # q, k, v, and what is floating of each modality
        asking = list(arguments)
        asking[i] = arguments[i].clone().requires_grad_()
        with pytest.raises(RuntimeError, match="not differentiable by itself"):
            operator(*asking)
        with torch.no_grad():
            assert torch.equal(operator(*asking)[0], expected)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("packed", [True, False])
def test_gradcheck_in_float64(backend: str, packed: bool) -> None:
    leaves, options = inputs(torch.float64, packed)
    assert torch.autograd.gradcheck(
        lambda *x: run(list(x), backend, activation="tanh", **options), leaves, fast_mode=True
    )


@runs_kernels
def test_gradients_of_triton_are_those_of_the_path_that_passes_gradcheck(shape_class: ShapeClass) -> None:
    for packed in (True, False):
        leaves, options = inputs(shape_class.dtype, packed)
        wide = [x.detach().double().requires_grad_() for x in leaves]
        expected = value_and_gradients(lambda x: run(x, "reference", **options), wide)  # noqa: B023
        actual = value_and_gradients(lambda x: run(x, "triton", **options), leaves)  # noqa: B023
        for a, e in zip(actual, expected, strict=True):
            allowed = 64 * torch.finfo(shape_class.dtype).eps * max(1.0, e.abs().max().item())
            torch.testing.assert_close(a.double(), e, rtol=0, atol=allowed)


@runs_kernels
def test_only_what_is_asked_for_gets_a_gradient() -> None:
    leaves, options = inputs()
    for index in range(len(leaves)):
        chosen = [x.detach().requires_grad_(i == index) for i, x in enumerate(leaves)]
        z = run(chosen, "triton", **options)
        z.sum().backward()
        assert [i for i, x in enumerate(chosen) if x.grad is not None] == [index]
        assert chosen[index].grad.shape == chosen[index].shape


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=runs_kernels)])
def test_a_second_derivative_is_refused(backend: str) -> None:
    """A gradient penalty must not lose its part in silence, also where the upstream gradient needs no gradient."""
    leaves, options = inputs(torch.float32)
    if backend == "cpu":
        leaves = [x.detach().cpu().requires_grad_() for x in leaves]
        options = {name: x.cpu() if isinstance(x, Tensor) else x for name, x in options.items()}
        if reason := why_not("attention", "cpu", leaves[0]):
            pytest.skip(reason)
    loss = run(leaves, backend, **options).sum()
    once = torch.autograd.grad(loss, leaves, retain_graph=True)
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    for a, b, x in zip(once, gradients, leaves, strict=True):
        assert torch.equal(a, b)
        assert b.shape == x.shape
    for gradient in gradients:
        with pytest.raises(RuntimeError, match=r"only once; .* cms_attention\(\.\.\., backend=\"reference\"\)"):
            (loss + gradient.square().sum()).backward(retain_graph=True)


def test_the_error_names_the_environment_that_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.empty(1, 2, 64, dtype=torch.float64)
    with pytest.raises(ValueError, match=r'^backend="triton" cannot run here: .*; use backend="auto" or "torch"\.'):
        choose_backend("attention", query, "triton")
    monkeypatch.setenv("CMSBERT_BACKEND", "triton")
    for operator in ("attention", "contrastive"):
        with pytest.raises(ValueError, match=r"^CMSBERT_BACKEND=triton in the environment.*; unset CMSBERT_BACKEND"):
            choose_backend(operator, query)


@runs_kernels
def test_dropout_seed_is_drawn_from_the_device_generator() -> None:
    leaves, options = inputs()
    torch.manual_seed(0)
    first, second = (run(leaves, "triton", dropout_p=0.5, **options) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(first, run(leaves, "triton", dropout_p=0.5, **options))
    assert not torch.equal(first, second)
    before = torch.get_rng_state() if DEVICE == "cpu" else torch.cuda.get_rng_state()
    run(leaves, "triton", **options)
    after = torch.get_rng_state() if DEVICE == "cpu" else torch.cuda.get_rng_state()
    assert torch.equal(before, after)  # without dropout nothing is drawn


@runs_kernels
def test_autocast() -> None:
    leaves, options = inputs(torch.float32)
    with torch.autocast(DEVICE, torch.float16):
        z = run(leaves, "triton", **options)
    assert z.dtype == torch.float16
    gradients = torch.autograd.grad(z.float().sum(), leaves)
    assert {g.dtype for g in gradients} == {torch.float32}


@pytest.mark.cuda
def test_auto_picks_triton_on_a_gpu() -> None:
    assert choose_backend("attention", torch.empty(1, 2, 64, device="cuda", dtype=torch.bfloat16)) == "triton"
    assert choose_backend("attention", torch.empty(1, 2, 64, device="cuda", dtype=torch.float64)) == "torch"


def test_auto_never_interprets() -> None:
    assert choose_backend("attention", torch.empty(1, 2, 64)) != "triton"
