"""BERT's layers without their modules: the same operators one after the other, where no gradient is wanted.

Calling modules within modules is a tenth of the time of one utterance.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmsbert_fast.models.cmsbert.attention import CMSBertSelfAttention
from cmsbert_fast.models.cmsbert.configuration_cmsbert import CMSBertConfig
from cmsbert_fast.models.cmsbert.untouched import is_untouched
from cmsbert_fast.models.inputs import Batch
from cmsbert_fast.ops.linear.api import linear, linear_gelu


class DirectLayers:
    """Runs the layers of one forward pass, one after the other.

    Args:
        hidden: What the first layer reads, (1, T, D).
        batch: The frames and the layout.
        config: Of the model.
    """

    def __init__(self, hidden: Tensor, batch: Batch, config: CMSBertConfig):
        self._hidden, self._batch, self._backend = hidden[0], batch, config.backend

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
        own: CMSBertSelfAttention = layer.attention.self
        z = own.attention(self._hidden, self._batch, self._linear)
        middle = self._add_and_norm(layer.attention.output, z, self._hidden)
        dense = layer.intermediate.dense
        inner = linear_gelu(middle, dense.weight, dense.bias, self._backend)
        self._hidden = self._add_and_norm(layer.output, inner, middle)
        return self._hidden[None]

    def _linear(self, layer: Any, x: Tensor) -> Tensor:
        return linear(x, layer.weight, layer.bias, self._backend)

    def _add_and_norm(self, output: Any, x: Tensor, residual: Tensor) -> Tensor:
        """BertSelfOutput and BertOutput, without dropout."""
        norm = output.LayerNorm
        total = self._linear(output.dense, x) + residual
        return F.layer_norm(total, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
