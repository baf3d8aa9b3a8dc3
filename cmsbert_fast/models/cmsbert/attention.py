"""The self-attention of CMSBERT (Eq. 1-7), as a module of BERT's layers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cmsbert_fast.data.example import MODALITIES
from cmsbert_fast.models.adapters import weight_and_bias
from cmsbert_fast.models.cmsbert.configuration_cmsbert import CMSBertConfig
from cmsbert_fast.models.inputs import Batch, Frames
from cmsbert_fast.ops.attention.api import cms_attention
from cmsbert_fast.ops.attention.torch import ACTIVATIONS
from cmsbert_fast.ops.attention.types import ModalityShift
from cmsbert_fast.packing import pad, valid_positions


class ShiftInputs(NamedTuple):
    """What a modality gives to attention.

    Attributes:
        token_gate, frame_gate: p (T,) and r (F,), of W_g [X_i; V_j] + b = p_i + r_j.
        frames: V.
        weight: W_v or W_a of Eq. 3, (D, d_m).
    """

    token_gate: Tensor
    frame_gate: Tensor
    frames: Frames
    weight: Tensor


def _called(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


class CMSBertSelfAttention(nn.Module):
    """BERT's self-attention with q, k and v shifted by the face and voice of the whole utterance (Eq. 1-7).

    A modality of size 0, or a layer outside ``config.cms_layers``, has no gate and no shift.
    """

    def __init__(self, config: CMSBertConfig, layer_index: int):
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.heads = (config.num_attention_heads, hidden // config.num_attention_heads)
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        sizes = config.frame_sizes if layer_index in config.cms_layers else {}
        self.modalities = [name for name, size in sizes.items() if size]
        for name in self.modalities:
            setattr(self, f"gate_{name}", nn.Linear(hidden + sizes[name], 1))  # W_g, b of Eq. 1, 2
            setattr(self, f"shift_{name}", nn.Linear(sizes[name], hidden, bias=False))  # W_v, W_a of Eq. 3

    def forward(
        self, hidden_states: Tensor, attention_mask: None = None, *, batch: Batch, **kwargs: object
    ) -> tuple[Tensor, None]:
        """hidden_states (1, T, D) -> (1, T, D)."""
        return self.attention(hidden_states[0], batch, _called)[None], None

    def attention(self, hidden: Tensor, batch: Batch, linear: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Eq. 1-7, (T, D) -> (T, D); ``linear(layer, x)`` computes q, k and v."""
        layers = (self.query, self.key, self.value)
        query, key, value = (linear(layer, hidden).unflatten(-1, self.heads) for layer in layers)
        inputs = {
            name: ShiftInputs(*halves, self._shift_weight(name, halves[-1].values))
            for name, halves in self._gate_halves(hidden, batch).items()
        }
        return self.attend(query, key, value, inputs, batch)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, inputs: Mapping[str, ShiftInputs], batch: Batch
    ) -> Tensor:
        """Eq. 1-7 from q, k and v before the shift, each (T, H, d_h), and the modalities present: (T, D)."""
        shifts: dict[str, ModalityShift | None] = dict.fromkeys(MODALITIES)
        for name, (token_gate, frame_gate, frames, weight) in inputs.items():
            if batch.is_padded:
                gates = batch.by_utterance(token_gate), batch.by_utterance(frame_gate)
                mask = batch.mask_of(frames.packing)
                shifts[name] = ModalityShift(*gates, batch.by_utterance(frames.values), weight, mask=mask)
            else:
                lengths = frames.packing.cu_seqlens, frames.packing.max_length
                shifts[name] = ModalityShift(token_gate, frame_gate, frames.values, weight, *lengths)
        arguments: dict[str, Any] = dict(
            activation=self.config.gate_activation,
            dropout_p=self.config.attention_probs_dropout_prob if self.training else 0.0,
            backend=self.config.backend,
        )
        if batch.is_padded:  # no gathering
            query, key, value = (batch.by_utterance(rows) for rows in (query, key, value))
            arguments["attention_mask"] = batch.mask_of(batch.packing)
            z = cms_attention(query, key, value, shifts["visual"], shifts["acoustic"], **arguments).flatten(0, 1)
        else:
            arguments |= dict(cu_seqlens=batch.packing.cu_seqlens, max_seqlen=batch.packing.max_length)
            z = cms_attention(query, key, value, shifts["visual"], shifts["acoustic"], **arguments)
        return z.flatten(-2)

    def _gate_halves(self, hidden: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor, Frames]]:
        """W_g [X_i; V_j] + b = p_i + r_j: p (T,), r (F,) and the frames of each modality present."""
        present = [(name, frames) for name in self.modalities if (frames := getattr(batch, name)) is not None]
        if not present:
            return {}
        size = hidden.shape[-1]
        gates = [weight_and_bias(getattr(self, f"gate_{name}"), hidden) for name, _ in present]
        token_gates = nn.functional.linear(hidden, torch.cat([weight[:, :size] for weight, _ in gates]))
        halves = {}
        for (weight, bias), token_gate, (name, frames) in zip(gates, token_gates.unbind(-1), present, strict=True):
            frame_gate = nn.functional.linear(frames.values, weight[:, size:], bias)[..., 0]
            halves[name] = (token_gate, frame_gate, frames)
        return halves

    def _shift_weight(self, name: str, frames: Tensor) -> Tensor:
        """W_v or W_a of Eq. 3 and 4.

        Raises:
            ValueError: An adapter adds a bias, which the equations do not have.
        """
        weight, bias = weight_and_bias(getattr(self, f"shift_{name}"), frames)
        if bias is not None and not torch.compiler.is_compiling() and bias.any():
            raise ValueError(f"shift_{name} has no bias (Eq. 3), but its adapter adds one; leave out lora_bias.")
        return weight

    def shift_maps(self, hidden: Tensor, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """The gates g^v (B, N, N_v) and g^a (B, N, N_a) of Eq. 1 and 2, 0 at padding; hidden is X, (T, D)."""
        maps: dict[str, Tensor | None] = dict.fromkeys(MODALITIES)
        tokens = valid_positions(batch.packing)
        for name, (token_gate, frame_gate, frames) in self._gate_halves(hidden, batch).items():
            logits = pad(token_gate, batch.packing)[:, :, None] + pad(frame_gate, frames.packing)[:, None]
            valid = tokens[:, :, None] & valid_positions(frames.packing)[:, None]
            maps[name] = ACTIVATIONS[self.config.gate_activation](logits).masked_fill(~valid, 0)
        return maps["visual"], maps["acoustic"]
