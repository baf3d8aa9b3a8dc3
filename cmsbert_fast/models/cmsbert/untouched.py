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
    modules = _as_known(_known.get(layer))
    if modules is None:
        _known.pop(layer, None)
        if not _has_own_parts(layer):
            return False
        modules = list(layer.modules())
        _known[layer] = list(map(_Part.of, modules))
    return not any(map(is_watched, modules)) and not (evaluating and any(module.training for module in modules))


class _Part(NamedTuple):
    """A module within a layer, and what it consisted of, by weak references and ids, so that layers are not kept alive.

    An id that another module has by now deceives nobody: the child it belonged to is a part too, and its reference is
    dead.
    """

    module: "ref[nn.Module]"
    kind: type
    children: list[int]
    parameters: list[type]

    @classmethod
    def of(cls, module: nn.Module) -> "_Part":
        return cls(ref(module), type(module), _ids(module._modules), _types(module._parameters))


_known: WeakKeyDictionary[nn.Module, list[_Part]] = WeakKeyDictionary()


def _as_known(parts: list[_Part] | None) -> list[nn.Module] | None:
    """The parts' modules; None if they have changed, or are not known."""
    if parts is None:
        return None
    modules = []
    for reference, kind, children, parameters in parts:
        module = reference()
        if module is None or type(module) is not kind:
            return None
        if _ids(module._modules) != children or _types(module._parameters) != parameters:
            return None
        modules.append(module)
    return modules


def _ids(children: dict[str, nn.Module | None]) -> list[int]:
    return list(map(id, children.values()))


def _types(parameters: dict[str, nn.Parameter | None]) -> list[type]:
    return list(map(type, parameters.values()))


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
