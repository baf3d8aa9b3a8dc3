"""Weights in half precision for inference under autocast, which otherwise casts every one of them at every call."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cmsbert_fast.models.adapters import is_plain
from cmsbert_fast.ops.linear.api import Linear

_READ_IN_FLOAT32 = ("gate_", "shift_")  # of CMS attention: small, and no layer's call multiplies with them


@contextmanager
def cast_weights(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Holds copies of the large weights in ``dtype`` in the place of the parameters, which come back in the end.

    For inference on a CPU under autocast to this dtype, whose results are the same with and without: BERT's linear
    layers, our projectors and our fusion. A copy takes half of a float32 weight's memory, beside it. What changes a
    weight meanwhile changes the copy only, which is then dropped::

        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), cast_weights(model, torch.bfloat16):
            for batch in batches:
                model(**batch)
    """
    kept = [(module, name, module._parameters[name]) for module, name in _large_weights(model)]
    try:
        for module, name, weight in kept:
            assert weight is not None
            module._parameters[name] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        yield
    finally:
        for module, name, weight in kept:
            module._parameters[name] = weight


def _large_weights(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules, and the names of those parameters of theirs that their calls multiply with."""
    for path, module in model.named_modules():
        if isinstance(module, Linear) and not path.rpartition(".")[2].startswith(_READ_IN_FLOAT32):
            if module._parameters.get("weight") is not None and is_plain(module):
                yield module, "weight"
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield module, "in_proj_weight"
