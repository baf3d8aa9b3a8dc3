"""cms_attention under torch.compile and activation checkpointing."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.ops.attention.operator_cases import (
    COMPILER,
    ShapeClass,
    every_way,
    inputs,
    run,
    runs_kernels,
    value_and_gradients,
)


@every_way
@pytest.mark.parametrize("packed", [True, False])
def test_compiles_without_a_graph_break(backend: str, packed: bool, shape_class: ShapeClass) -> None:
    leaves, options = inputs(shape_class.dtype, packed)
    torch.compiler.reset()

    def function(x: list[Tensor]) -> Tensor:
        return run(x, backend, **options).sin()

    expected = value_and_gradients(function, leaves)
    actual = value_and_gradients(torch.compile(function, fullgraph=True, backend=COMPILER), leaves)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=shape_class.tolerance, atol=shape_class.tolerance)


@runs_kernels
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_dropout_is_that_of_eager(checkpointed: bool, shape_class: ShapeClass) -> None:
    leaves, options = inputs(shape_class.dtype)
    torch.compiler.reset()

    def attend(*x: Tensor) -> Tensor:
        return run(list(x), "triton", dropout_p=0.5, **options).sin()

    def function(x: list[Tensor]) -> Tensor:
        return checkpoint(attend, *x, use_reentrant=False) if checkpointed else attend(*x)

    results = []
    with torch._inductor.config.patch(fallback_random=True):  # from the generator eager draws from
        for form in (function, torch.compile(function, fullgraph=True, backend=COMPILER)):
            torch.manual_seed(0)
            results.append(value_and_gradients(form, leaves))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, rtol=shape_class.tolerance, atol=shape_class.tolerance)


@runs_kernels
def test_compiles_with_dynamic_shapes(shape_class: ShapeClass) -> None:
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x, options: run(x, "triton", **options), fullgraph=True, backend=COMPILER, dynamic=True
    )
    for seed in range(2):
        leaves, options = inputs(shape_class.dtype, seed=seed)
        if seed:
            leaves = [x if x.shape[0] != 9 else torch.cat([x, x[:2]]).detach().requires_grad_() for x in leaves]
        expected = value_and_gradients(lambda x: run(x, "triton", **options), leaves)  # noqa: B023
        actual = value_and_gradients(lambda x: compiled(x, options), leaves)  # noqa: B023
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=shape_class.tolerance, atol=shape_class.tolerance)


@every_way
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_recomputes_the_same_dropout(backend: str, reentrant: bool, shape_class: ShapeClass) -> None:
    leaves, options = inputs(shape_class.dtype)

    def function(*x: Tensor) -> Tensor:
        return run(list(x), backend, dropout_p=0.5, **options)

    torch.manual_seed(0)
    expected = value_and_gradients(lambda x: function(*x), leaves)
    torch.manual_seed(0)
    actual = value_and_gradients(lambda x: checkpoint(function, *x, use_reentrant=reentrant), leaves)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)
    torch.manual_seed(1)
    assert not torch.equal(function(*leaves), expected[0])
