"""BERT's layers without their modules, where no gradient is wanted: for a few utterances on the CPU in one call of
compiled C++, else by the same operators one after the other.

Calling modules within modules is a tenth of the time of one utterance.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmsbert_fast.data.example import MODALITIES
from cmsbert_fast.models.cmsbert.attention import CMSBertSelfAttention
from cmsbert_fast.models.cmsbert.configuration_cmsbert import CMSBertConfig
from cmsbert_fast.models.cmsbert.untouched import is_untouched
from cmsbert_fast.models.inputs import Batch, Frames
from cmsbert_fast.ops.bert_layer.api import bert_layer, takes
from cmsbert_fast.ops.bert_layer.types import Dense, Norm, Parameters, Shift
from cmsbert_fast.ops.linear.api import linear, linear_gelu
from cmsbert_fast.packing import are_sound


class DirectLayers:
    """Runs the layers of one forward pass, one after the other.

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

    def run(self, layer: Any) -> Tensor:
        """The next layer: its output, (1, T, D)."""
        found = self._in_one_call(layer) if self._may_run_in_one_call else None
        self._hidden = self._by_operators(layer) if found is None else found
        return self._hidden[None]

    def _in_one_call(self, layer: Any) -> Tensor | None:
        """None where the layer is to be run by its operators."""
        own: CMSBertSelfAttention = layer.attention.self
        shifts = dict.fromkeys(MODALITIES, Shift())
        for name in own.modalities:
            frames: Frames | None = getattr(self._batch, name)
            if frames is None:
                continue
            gate, shift = getattr(own, f"gate_{name}"), getattr(own, f"shift_{name}")
            if shift.bias is not None:
                return None
            shifts[name] = Shift(_dense(gate), shift.weight, frames.values, frames.packing.cu_seqlens)
        end = layer.attention.output
        parameters = Parameters(
            _dense(own.query),
            _dense(own.key),
            _dense(own.value),
            _dense(end.dense),
            _dense(layer.intermediate.dense),
            _dense(layer.output.dense),
            _norm(end.LayerNorm),
            _norm(layer.output.LayerNorm),
        )
        heads, _ = own.heads
        return bert_layer(
            self._hidden,
            parameters,
            shifts["visual"],
            shifts["acoustic"],
            self._batch.packing.cu_seqlens,
            heads=heads,
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


def _dense(layer: Any) -> Dense:
    return Dense(layer.weight, layer.bias)


def _norm(norm: Any) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps)


def _has_sound_lengths(batch: Batch, rows: int) -> bool:
    """Whether tokens and frames lie as the batch says; where they do not, operators say what is wrong."""
    streams = [frames for name in MODALITIES if (frames := getattr(batch, name)) is not None]
    return are_sound(batch.packing, rows) and all(are_sound(x.packing, x.values.shape[0]) for x in streams)
