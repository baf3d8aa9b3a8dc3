"""BERT's layers on fused operators: the same mathematics in a quarter of the launches, on Triton's kernels.

A layer casts its weights in one launch, multiplies the tokens once for q, k, v and the gates, and has one launch for
each of bias and GELU, and bias, dropout, residual and LayerNorm. Frames are cast once a batch. Under autocast the
residual stays in its wide dtype, as in PyTorch; gradients of weights are not rounded to the narrow one on the way.

Which layers: those of the backend "triton", by name, until a device has timed them (:mod:`cmsbert_fast.ops.dispatch`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cmsbert_fast.data.example import MODALITIES
from cmsbert_fast.models.cmsbert.attention import CMSBertSelfAttention, ShiftInputs
from cmsbert_fast.models.cmsbert.configuration_cmsbert import CMSBertConfig
from cmsbert_fast.models.cmsbert.untouched import is_untouched
from cmsbert_fast.models.inputs import Batch, Frames
from cmsbert_fast.ops.autocast import autocast_dtype, cast_dtype
from cmsbert_fast.ops.bias_gelu.api import bias_gelu
from cmsbert_fast.ops.dispatch import choose_backend
from cmsbert_fast.ops.linear.merged import ALIGNED, Gate, attach, cast_copies, merge, merged_groups, product, project
from cmsbert_fast.ops.residual_norm.api import Normed, residual_norm
from cmsbert_fast.ops.residual_norm.types import Parameters


class FusedLayers:
    """Runs the layers of one forward pass, one after the other.

    Args:
        hidden: What the first layer reads, (1, T, D).
        batch: The frames and the layout.
        config: Of the model.
        seeds: (layers, 2, 2) int64: one of each pair for the layer's two dropouts; None where nothing is dropped.
    """

    def __init__(self, hidden: Tensor, batch: Batch, config: CMSBertConfig, seeds: Tensor | None):
        dtype = cast_dtype(hidden, autocast_dtype(hidden.device))
        self._stream = Normed(hidden[0], hidden[0].to(dtype))
        self._batch, self._config, self._dtype = batch, config, dtype
        self._seeds = iter(() if seeds is None else seeds)
        self._frames = {
            name: Frames(frames.values.to(dtype), frames.packing)
            for name in MODALITIES
            if (frames := getattr(batch, name)) is not None
        }

    @classmethod
    def of(cls, layers: nn.ModuleList, hidden: Tensor, batch: Batch, config: CMSBertConfig) -> "FusedLayers | None":
        """None where the layers are to be called instead: another backend, or something that changes or watches what
        is in them (adapters, hooks, checkpointing, torch.compile)."""
        if torch.compiler.is_compiling() or not _fits(config):
            return None
        dtype = cast_dtype(hidden, autocast_dtype(hidden.device))
        wide, inner = (hidden.new_empty(0, n, dtype=dtype) for n in (config.hidden_size, config.intermediate_size))
        wanted = {
            choose_backend("residual_norm", wide, config.backend),
            choose_backend("bias_gelu", inner, config.backend),
        }
        if wanted != {"triton"} or not all(map(is_untouched, layers)):
            return None
        drops = layers.training and config.hidden_dropout_prob > 0
        shape = (len(layers), 2, 2)  # pairs: each begins where wide loads can
        seeds = torch.randint(2**62, shape, dtype=torch.int64, device=hidden.device) if drops else None
        return cls(hidden, batch, config, seeds)

    def run(self, layers: Sequence[Any]) -> Tensor:
        """The next layers: the output of the last, (1, T, D), in the residual's dtype."""
        with torch.autocast(self._stream.wide.device.type, enabled=False):
            for layer in layers:
                self._stream = self._run(layer)
        return self._stream.wide[None]

    def _run(self, layer: Any) -> Normed:
        own: CMSBertSelfAttention = layer.attention.self
        seeds = next(self._seeds, (None, None))
        present = {name: self._frames[name] for name in own.modalities if name in self._frames}
        linear = (own.query, own.key, own.value)
        weights, biases = [x.weight for x in linear], [x.bias for x in linear]
        of_gates = [getattr(own, f"gate_{name}") for name in present]
        given = zip(present.values(), of_gates, strict=True)
        gates = [Gate(frames.values, gate.weight, gate.bias) for frames, gate in given]
        shifts = [getattr(own, f"shift_{name}").weight for name in present]
        dense = [layer.attention.output.dense, layer.intermediate.dense, layer.output.dense]
        groups = [*([x.weight] for x in dense), *([w] for w in shifts), *merged_groups(weights, biases, gates)]
        copies = cast_copies(groups, self._dtype)
        of_shifts, of_projection = copies[3 : 3 + len(shifts)], copies[3 + len(shifts) :]

        heads, of_tokens, of_frames = project(self._stream.rounded, weights, biases, gates, merge(of_projection))
        query, key, value = (x.unflatten(-1, own.heads) for x in heads)
        parts = zip(of_tokens, of_frames, present.values(), attach(of_shifts, shifts), strict=True)
        inputs = {name: ShiftInputs(*part) for name, part in zip(present, parts, strict=True)}
        z = own.attend(query, key, value, inputs, self._batch)
        middle = self._norm(layer.attention.output, product(z, copies[0], dense[0].weight), self._stream, seeds[0])
        x = product(middle.rounded, copies[1], dense[1].weight)
        x = product(bias_gelu(x, dense[1].bias, self._config.backend), copies[2], dense[2].weight)
        return self._norm(layer.output, x, middle, seeds[1])

    def _norm(self, output: Any, x: Tensor, stream: Normed, seed: Tensor | None) -> Normed:
        """What BertSelfOutput and BertOutput do behind their product."""
        norm = output.LayerNorm
        return residual_norm(
            x,
            stream.wide,
            Parameters(output.dense.bias, norm.weight, norm.bias),
            eps=norm.eps,
            rounded=self._dtype,
            dropout_p=output.dropout.p if output.training else 0.0,
            seed=seed,
            backend=self._config.backend,
        )


def _fits(config: CMSBertConfig) -> bool:
    return (
        config.hidden_act == "gelu"
        and config.chunk_size_feed_forward == 0
        and config.hidden_dropout_prob < 1
        and config.hidden_size >= ALIGNED
    )
