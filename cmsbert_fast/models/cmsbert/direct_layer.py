"""BERT's layers without their modules, where no gradient is wanted: for a few utterances on the CPU in one call of
compiled C++, else by the same operators one after the other.

Calling modules within modules is a tenth of the time of one utterance.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmsbert_fast.data.example import MODALITIES
from cmsbert_fast.models.cmsbert.attention import CMSBertSelfAttention
from cmsbert_fast.models.cmsbert.configuration_cmsbert import CMSBertConfig
from cmsbert_fast.models.cmsbert.untouched import is_untouched
from cmsbert_fast.models.inputs import Batch, Frames
from cmsbert_fast.ops.bert_layers.api import bert_layers, takes
from cmsbert_fast.ops.bert_layers.types import Dense, Layer, Norm, Shift, Stream
from cmsbert_fast.ops.linear.api import Linear, linear, linear_gelu
from cmsbert_fast.packing import are_sound

_STOCK = (nn.Linear, Linear, nn.LayerNorm)


class DirectLayers:
    """Runs the layers of one forward pass.

    Args:
        hidden: What the first layer reads, (1, T, D).
        batch: The frames and the layout.
        config: Of the model.
    """

    def __init__(self, hidden: Tensor, batch: Batch, config: CMSBertConfig):
        self._hidden, self._batch, self._config = hidden[0], batch, config
        self._may_run_in_one_call = takes(hidden[0], config.backend) and _has_sound_lengths(batch, hidden.shape[1])

    @classmethod
    def of(cls, layers: nn.ModuleList, hidden: Tensor, batch: Batch, config: CMSBertConfig) -> "DirectLayers | None":
        """None where the layers are to be called instead: with gradients, under torch.compile, or where something in
        them is in training, changed or watched."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or config.chunk_size_feed_forward:
            return None
        if not all(is_untouched(layer, evaluating=True) for layer in layers):
            return None
        return cls(hidden, batch, config)

    def run(self, layers: Sequence[Any]) -> Tensor:
        """The next layers: the output of the last, (1, T, D).

        In one call all of them or none: what is unusual in one sends all to the operators.
        """
        found = self._in_one_call(layers) if self._may_run_in_one_call else None
        if found is not None:
            self._hidden = found
        else:
            for layer in layers:
                self._hidden = self._by_operators(layer)
        return self._hidden[None]

    def _in_one_call(self, layers: Sequence[Any]) -> Tensor | None:
        """None where the layers are to be run by their operators."""
        streams = {name: _stream(getattr(self._batch, name)) for name in MODALITIES}
        weights, heads = [], set()
        for layer in layers:
            own: CMSBertSelfAttention = layer._modules["attention"]._modules["self"]
            of_layer = _weights(layer, own, streams)
            if of_layer is None:
                return None
            weights.append(of_layer)
            heads.add(own.heads)
        if len(heads) != 1:
            return None
        return bert_layers(
            self._hidden,
            weights,
            streams["visual"],
            streams["acoustic"],
            self._batch.packing.cu_seqlens,
            heads=heads.pop()[0],
            activation=self._config.gate_activation,
        )

    def _by_operators(self, layer: Any) -> Tensor:
        own: CMSBertSelfAttention = layer.attention.self
        z = own.attention(self._hidden, self._batch, self._linear)
        middle = self._add_and_norm(layer.attention.output, z, self._hidden)
        dense = layer.intermediate.dense
        inner = linear_gelu(middle, dense.weight, dense.bias, self._config.backend)
        return self._add_and_norm(layer.output, inner, middle)

    def _linear(self, layer: Any, x: Tensor) -> Tensor:
        return linear(x, layer.weight, layer.bias, self._config.backend)

    def _add_and_norm(self, output: Any, x: Tensor, residual: Tensor) -> Tensor:
        """BertSelfOutput and BertOutput, without dropout."""
        norm = output.LayerNorm
        total = self._linear(output.dense, x) + residual
        return F.layer_norm(total, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _stream(frames: Frames | None) -> Stream:
    return Stream() if frames is None else Stream(frames.values, frames.packing.cu_seqlens)


def _weights(layer: Any, own: CMSBertSelfAttention, streams: Mapping[str, Stream]) -> Layer | None:
    """The weights of an untouched layer; None if a shift has a bias, which Eq. 3 has not.

    Children are read without ``nn.Module.__getattr__``, which would take longer than all else here.
    """
    attention_output, projections = layer._modules["attention"]._modules["output"]._modules, own._modules
    output = layer._modules["output"]._modules
    shifts = dict.fromkeys(MODALITIES, Shift())
    for name in own.modalities:
        if streams[name].frames is not None:
            weight, bias = _weight_and_bias(projections[f"shift_{name}"])
            if weight is None or bias is not None:
                return None
            shifts[name] = Shift(_dense(projections[f"gate_{name}"]), weight)
    return Layer(
        _dense(projections["query"]),
        _dense(projections["key"]),
        _dense(projections["value"]),
        _dense(attention_output["dense"]),
        _dense(layer._modules["intermediate"]._modules["dense"]),
        _dense(output["dense"]),
        _norm(attention_output["LayerNorm"]),
        _norm(output["LayerNorm"]),
        shifts["visual"],
        shifts["acoustic"],
    )


def _dense(layer: Any) -> Dense:
    return Dense(*_weight_and_bias(layer))


def _norm(norm: Any) -> Norm:
    return Norm(*_weight_and_bias(norm), norm.eps)


def _weight_and_bias(module: Any) -> tuple[Any, Any]:
    own = module._parameters
    if type(module) in _STOCK and "weight" in own and "bias" in own:
        return own["weight"], own["bias"]
    return module.weight, module.bias  # parametrized, or buffers


def _has_sound_lengths(batch: Batch, rows: int) -> bool:
    """Whether tokens and frames lie as the batch says; where they do not, operators say what is wrong."""
    streams = [frames for name in MODALITIES if (frames := getattr(batch, name)) is not None]
    return are_sound(batch.packing, rows) and all(are_sound(x.packing, x.values.shape[0]) for x in streams)
