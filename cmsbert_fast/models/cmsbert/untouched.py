"""Whether BERT's layers are as they were built, so that others may compute what they compute without calling them."""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils.parametrize import is_parametrized
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import (
    BertAttention,
    BertIntermediate,
    BertLayer,
    BertOutput,
    BertSelfOutput,
)

from cmsbert_fast.models.adapters import is_plain, is_watched
from cmsbert_fast.models.cmsbert.attention import CMSBertSelfAttention
from cmsbert_fast.ops.dropout.api import Dropout

_DROPOUTS = (nn.Dropout, Dropout)


def is_untouched(layer: nn.Module, *, evaluating: bool = False) -> bool:
    """Whether a layer is BERT's with our attention and GELU, and nothing in it is wrapped, hooked or recomputed.

    What a layer consists of is looked up once, and again after it changed: the look-up takes longer than the layer does
    for one utterance.

    Args:
        evaluating: Whether everything in the layer must be in evaluation, too.
    """
    if getattr(layer, "gradient_checkpointing", False) and layer.training:
        return False
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return False
    parts = _known.get(layer)
    if parts is None or any(part.has_changed() for part in parts):
        _known.pop(layer, None)
        if not _has_own_parts(layer):
            return False
        parts = _known[layer] = [_Part.of(m) for m in layer.modules()]
    modules = [part.module() for part in parts]
    return not any(m is None or is_watched(m) or (evaluating and m.training) for m in modules)


class _Part(NamedTuple):
    """A module within a layer, and what it consisted of, by weak references: layers are not kept alive."""

    module: "ref[nn.Module]"
    kind: type
    children: "list[ref[nn.Module]]"
    parameters: list[type]

    @classmethod
    def of(cls, module: nn.Module) -> "_Part":
        return cls(ref(module), type(module), list(map(ref, _children(module))), _parameter_types(module))

    def has_changed(self) -> bool:
        module = self.module()
        return (
            module is None
            or type(module) is not self.kind
            or _children(module) != [child() for child in self.children]
            or _parameter_types(module) != self.parameters
        )


_known: WeakKeyDictionary[nn.Module, list[_Part]] = WeakKeyDictionary()


def _children(module: nn.Module) -> list[nn.Module]:
    return [child for child in module._modules.values() if child is not None]


def _parameter_types(module: nn.Module) -> list[type]:
    return list(map(type, module._parameters.values()))


def _has_own_parts(whole: nn.Module) -> bool:
    if type(whole) is not BertLayer or type(whole.attention) is not BertAttention:
        return False
    layer: Any = whole
    own, ends = layer.attention.self, (layer.attention.output, layer.output)
    inner = layer.intermediate
    parts = [type(m) for m in (own, inner, getattr(inner, "intermediate_act_fn", None), *ends)]
    if parts != [CMSBertSelfAttention, BertIntermediate, GELUActivation, BertSelfOutput, BertOutput]:
        return False
    if any(is_parametrized(getattr(own, f"gate_{name}")) for name in own.modalities):
        return False
    linear = [own.query, own.key, own.value, inner.dense, *(end.dense for end in ends)]
    linear += [getattr(own, f"{kind}_{name}") for name in own.modalities for kind in ("gate", "shift")]
    plain = all(map(is_plain, linear)) and all(type(end.LayerNorm) is nn.LayerNorm for end in ends)
    return plain and all(type(end.dropout) in _DROPOUTS for end in ends)
