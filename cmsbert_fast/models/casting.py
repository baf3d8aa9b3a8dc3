"""Weights in half precision for inference under autocast, which else casts them again and again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cmsbert_fast.models.adapters import is_plain, is_watched
from cmsbert_fast.models.baselines.text import TextBert
from cmsbert_fast.models.layers import FusionLayer
from cmsbert_fast.ops.linear.api import Linear

_PLAIN = (nn.Parameter, torch.Tensor)  # other classes may hold no numbers to cast
_READ_IN_FLOAT32 = ("gate_", "shift_")  # of CMS attention: small, and no layer's call multiplies with them


@contextmanager
def cast_weights(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Holds copies of the large float32 weights in ``dtype`` in place of the parameters, which come back in the end.

    For inference on a CPU under autocast to this dtype, whose results are the same with and without: the linear layers
    of BERT, our projectors and our fusion. A baseline's frozen BERT never runs under autocast and stays as it is. A
    copy takes half of a weight's memory, beside it. What changes a weight meanwhile changes the copy only, which is
    dropped in the end. Contexts of one model may overlap: the inner finds nothing to cast::

        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), cast_weights(model, torch.bfloat16):
            for batch in batches:
                model(**batch)

    Raises:
        ValueError: Gradients are enabled, which the copies would not pass on.
    """
    if torch.is_grad_enabled():
        raise ValueError("cast_weights is for inference; call it within torch.inference_mode() or torch.no_grad().")
    kept = [(module, name, module._parameters[name]) for module, name in _large_weights(model, "")]
    try:
        for module, name, weight in kept:
            assert weight is not None
            module._parameters[name] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        yield
    finally:
        for module, name, weight in kept:
            module._parameters[name] = weight


def _large_weights(module: nn.Module, name: str) -> Iterator[tuple[nn.Module, str]]:
    """Modules, and the names of those parameters of theirs that are cast."""
    if name.startswith(_READ_IN_FLOAT32) or (isinstance(module, TextBert) and module.frozen):
        return
    if isinstance(module, Linear) and is_plain(module) and _is_float32(module, "weight"):
        yield module, "weight"
    if isinstance(module, FusionLayer):
        attention = module.self_attn
        plain = type(attention) is nn.MultiheadAttention and not is_watched(attention)
        if plain and _is_float32(attention, "in_proj_weight"):
            yield attention, "in_proj_weight"
    for child_name, child in module.named_children():
        yield from _large_weights(child, child_name)


def _is_float32(module: nn.Module, name: str) -> bool:
    weight = module._parameters.get(name)
    return weight is not None and type(weight) in _PLAIN and weight.dtype == torch.float32
