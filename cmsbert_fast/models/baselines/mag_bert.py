"""MAG-BERT, the multimodal adaptation gate (Rahman et al., ACL 2020, arXiv:1908.05787).

    g_m = relu(W [f_m; X] + b), h_m = W f_m + b, m = v, a;  h = g_v * h_v + g_a * h_a
    alpha = min(beta |X| / (|h| + 1e-6), 1), where |h| = 0 counts as 1;  X' = drop(LN(alpha h + X))
    y = W drop(pooler([CLS])) + b;  with pooling "mean" y = W drop(mean over the pieces) + b

X is the output of BERT's embedding layer, its LayerNorm and dropout included; BERT goes on with X'. f_m is the frame of
the word that the piece is of, 0 at [CLS], [SEP] and where there is none.

Pooling "cls" is the published system, of the paper's Table I. "mean" is that of Table II: BERT's own row with the shift
and nothing else that differs, so its head is that of variant "bert".

Differences from published code, on purpose:
- Batches are packed; the official code pads to 50 pieces.
- One model a run is tested, the one with the lowest validation MAE. The official script tests after every epoch and
  reports the best accuracy on the test set, leaves samples with label 0 out of every metric, and draws its seed.

As published, and easy to take for mistakes: weights of 0 in all gates do not give BERT but a second LayerNorm; biases
shift [CLS], [SEP] and words without frames too, by a learned constant; two dropouts follow each other.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.baselines.base import Baseline, Utterances, register
from cmsbert_fast.models.baselines.configuration import BaselineConfig
from cmsbert_fast.models.encoding import FrameLevel
from cmsbert_fast.models.frame_maps import FrameMaps
from cmsbert_fast.models.inputs import Inputs, PackedInputs
from cmsbert_fast.packing import segment_first, segment_mean

EPSILON = 1e-6  # of alpha


class MagBertConfig(BaselineConfig):
    """MAG-BERT's own fields; the defaults are the official code's.

    Args:
        pooling: "cls" or "mean".
        beta: Bounds the shift: |alpha h| <= beta |X|.
        shift_dropout: After the LayerNorm behind the shift.
        **kwargs: Fields of :class:`BaselineConfig`.
    """

    model_type = "cmsbert-mag-bert"
    texts = ("bert",)
    poolings = ("cls", "mean")

    loss: str = "mse"
    pooling: str | None = "cls"
    beta: float = 1.0
    shift_dropout: float = 0.5

    def _check(self) -> None:
        super()._check()
        if not self.beta >= 0:
            raise ValueError(f"beta is {self.beta} but must be at least 0.")


class GatedFrame(nn.Module):
    """g_m * h_m of each piece."""

    def __init__(self, frame_size: int, size: int):
        super().__init__()
        self.gate = nn.Linear(frame_size + size, size)
        self.shift = nn.Linear(frame_size, size)

    def forward(self, frames: Tensor, hidden: Tensor) -> Tensor:
        """f_m (T, d_m) and X (T, D) -> (T, D)."""
        return torch.relu(self.gate(torch.cat([frames, hidden], dim=-1))) * self.shift(frames)


class MagBertForSequenceClassification(Baseline):
    """MAG-BERT. An absent modality's summand of h is left out.

    Raises:
        ValueError: The configuration has no frames.
    """

    config_class = MagBertConfig
    config: MagBertConfig
    operators = ("attention",)
    frame_level: ClassVar[FrameLevel] = FrameLevel.PIECES
    takes_bert_head = True

    def __init__(self, config: MagBertConfig):
        super().__init__(config)
        self.require_frames("MAG-BERT")
        for name in self.modalities:
            setattr(self, f"{name}_gated", GatedFrame(config.frame_sizes[name], config.hidden_size))
        self.shift_norm = nn.LayerNorm(config.hidden_size)
        self.shift_dropout = nn.Dropout(config.shift_dropout)
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        Classifier._init_weights(self, module)  # as BERT's, in the official code too

    def embedding_shift(self, given: Inputs, packed: PackedInputs, maps: FrameMaps) -> Callable[[Tensor], Tensor]:
        """X to X' of each piece, with the frames of its word."""
        of_pieces = {}
        for name in self.modalities:
            values, _ = getattr(packed.batch, name)
            if values.shape[0]:
                rows = maps.token_frames(name, getattr(given, f"{name}_frames"), packed)
                of_pieces[name] = frames_of_pieces(values, rows)
        return partial(self.shifted, of_pieces)

    def shifted(self, frames: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """X' of each piece.

        Args:
            frames: f_m by modality, (T, d_m); 0 where a modality is left out.
            hidden: X, (T, D).
        """
        h = hidden.new_zeros(())
        for name in self.modalities:
            gated: GatedFrame = getattr(self, f"{name}_gated")
            own = frames[name] if name in frames else hidden.new_zeros(hidden.shape[0], self.config.frame_sizes[name])
            h = h + gated(own, hidden)
        norm = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
        norm = torch.where(norm == 0, 1, norm)
        alpha = self.config.beta * torch.linalg.vector_norm(hidden, dim=-1, keepdim=True) / (norm + EPSILON)
        return self.shift_dropout(self.shift_norm(alpha.clamp(max=1) * h + hidden))

    def read(self, batch: Utterances) -> dict[str, Tensor]:
        if self.config.pooling == "mean":
            pooled = segment_mean(*batch.text)
        else:
            assert self.bert is not None
            assert self.bert.pooler is not None
            pooled = self.bert.pooler(segment_first(*batch.text)[:, None])
        return {"logits": self.classifier(self.dropout(pooled))}


def frames_of_pieces(frames: Tensor, rows: Tensor) -> Tensor:
    """The frame of each piece, (F, d) -> (T, d): that of its row (T,), 0 where the row is -1."""
    return frames.index_select(0, rows.clamp(min=0)).masked_fill((rows < 0)[:, None], 0)


register(MagBertConfig, MagBertForSequenceClassification)
