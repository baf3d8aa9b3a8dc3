"""How much a layer of the model launches, counted without a GPU: a stand-in for Triton's driver notes its launches, and
PyTorch's own are those of its operators that are no views.

On a GPU an operator may be two or three kernels, and dropout is one where a CPU takes three: what is held here is that
the number does not grow.
"""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.workload import ModelBatch, make_config
from cmsbert_fast import CMSBertForSequenceClassification
from cmsbert_fast.ops import capability
from tests.kernels import aot
from tests.kernels.aot import needs_compiler

# What neither reads nor writes a number.
FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view")
LENGTHS = [20, 7]
MOST = {"forward": 50, "backward": 72}  # PyTorch's operators beside our kernels


class Operators(TorchDispatchMode):
    """The operators that would launch something, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not func.is_view and name not in FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def count(layers: int, device: str = "sm_90") -> dict[str, tuple[int, int]]:
    """Operators and kernels of forward and of backward, in bfloat16 by autocast, with dropout."""
    from cmsbert_fast.kernels import common

    config = make_config("tiny", backend="triton")
    config.num_hidden_layers, config.cms_layers = layers, list(range(layers))
    model = CMSBertForSequenceClassification(config).train()
    batch = ModelBatch.draw(config, LENGTHS, torch.device("cpu")).packed
    found, losses = {}, []

    def forward() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model(**batch).loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "device_class", lambda _: device)
        patch.setattr(capability, "why_not_triton", lambda *_: None)
        for name, run in (("forward", forward), ("backward", lambda: losses[0].backward())):
            with Operators() as operators:
                kernels = aot.record(run)
            found[name] = len(operators.names), len(kernels)
    return found


@needs_compiler
def test_launches_of_a_layer() -> None:
    pytest.importorskip("triton")
    one, two = count(1), count(2)
    of_a_layer = {name: tuple(b - a for a, b in zip(one[name], two[name], strict=True)) for name in one}
    assert {name: kernels for name, (_, kernels) in of_a_layer.items()} == {"forward": 1, "backward": 2}
    for name, most in MOST.items():
        assert of_a_layer[name][0] <= most, f"{name}: {of_a_layer[name][0]} operators; lower MOST where it is fewer"
