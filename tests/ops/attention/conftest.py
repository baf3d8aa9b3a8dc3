"""Fixtures of CMS attention's tests."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

from cmsbert_fast.ops import capability
from cmsbert_fast.ops.attention import cpu
from cmsbert_fast.ops.attention import triton as attention_triton
from tests.ops.attention.operator_cases import SHAPE_CLASSES, ShapeClass


@pytest.fixture
def poisoned(monkeypatch):
    """Every output starts as NaN: what is not written is found."""

    def spoilt(function):
        return lambda *arguments: tree_map(lambda x: x.fill_(torch.nan), function(*arguments))

    for name in ("_outputs", "_gradients"):
        monkeypatch.setattr(cpu, name, spoilt(getattr(cpu, name)))


@pytest.fixture(params=SHAPE_CLASSES)
def shape_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShapeClass]:
    """Forces calls into a shape class; afterwards exactly its kernels have run, or none where another backend ran."""
    chosen = SHAPE_CLASSES[request.param]
    launched: set[str] = set()
    if capability.HAS_TRITON:
        kernels, run = attention_triton.kernels, attention_triton.kernels.launch.run

        def record(kernel: Any, *arguments: Any) -> None:
            launched.add(kernel.fn.__name__.removesuffix("_kernel"))
            run(kernel, *arguments)

        monkeypatch.setattr(kernels.call, "SHORT_TOKENS", chosen.limits[0])
        monkeypatch.setattr(kernels.call, "MEDIUM_TOKENS", chosen.limits[1])
        monkeypatch.setattr(kernels.launch, "run", record)
    yield chosen
    torch.compiler.reset()  # what was traced under the forced limits
    backend = request.node.callspec.params.get("backend", "triton")
    assert launched == (chosen.kernels if backend == "triton" else set())
