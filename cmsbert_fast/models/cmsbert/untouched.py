"""Whether BERT's layers are as they were built, so that others may compute what they compute without calling them."""

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import BertIntermediate, BertOutput, BertSelfOutput

from cmsbert_fast.models.adapters import is_plain
from cmsbert_fast.models.cmsbert.attention import CMSBertSelfAttention

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_untouched(layer: nn.Module) -> bool:
    """Whether a layer is BERT's with our attention and GELU, and nothing in it is wrapped, hooked or recomputed.

    What a layer consists of is looked up once, and again after it changed: that takes longer than to compute it for one
    utterance.
    """
    if getattr(layer, "gradient_checkpointing", False) and layer.training:
        return False
    parts = _known.get(layer)
    if parts is None or parts.have_changed():
        _known.pop(layer, None)
        if not _has_own_parts(layer):
            return False
        parts = _known[layer] = _Parts(layer)
    return parts.are_unwatched()


class _Parts:
    """What a layer consists of, without a reference to the layer itself."""

    def __init__(self, layer: nn.Module):
        everything = list(layer.modules())
        self._within = everything[1:]
        self._types = [type(m) for m in self._within]
        self._children = [(m._modules, list(m._modules.values())) for m in everything if m._modules]
        self._parameters = [(m._parameters, list(map(type, m._parameters.values()))) for m in everything]
        self._hooks = [getattr(m, name) for m in everything for name in _HOOKS]
        self._attributes = [vars(m) for m in everything]

    def have_changed(self) -> bool:
        return (
            any(list(now.values()) != before for now, before in self._children)
            or [type(m) for m in self._within] != self._types
            or any(list(map(type, now.values())) != before for now, before in self._parameters)
        )

    def are_unwatched(self) -> bool:
        """Whether no module has hooks, or a forward of its own instance, as Accelerate's hooks give it."""
        return not any(self._hooks) and not any("forward" in attributes for attributes in self._attributes)


_known: WeakKeyDictionary[nn.Module, _Parts] = WeakKeyDictionary()


def _has_own_parts(layer: Any) -> bool:
    own, ends = layer.attention.self, (layer.attention.output, layer.output)
    inner = layer.intermediate
    parts = [type(m) for m in (own, inner, getattr(inner, "intermediate_act_fn", None), *ends)]
    if parts != [CMSBertSelfAttention, BertIntermediate, GELUActivation, BertSelfOutput, BertOutput]:
        return False
    if any(is_parametrized(getattr(own, f"gate_{name}")) for name in own.modalities):
        return False
    linear = [own.query, own.key, own.value, inner.dense, *(end.dense for end in ends)]
    linear += [getattr(own, f"{kind}_{name}") for name in own.modalities for kind in ("gate", "shift")]
    return all(map(is_plain, linear)) and all(type(end.LayerNorm) is nn.LayerNorm for end in ends)
