"""MISA, modality-invariant and -specific representations (Hazarika et al., ACM MM 2020, arXiv:2005.03545).

    u_l = mean of BERT's last hidden states;  u_m = [h1 fwd; h2 fwd; h1 bwd; h2 bwd], m = v, a: final states of
        BiLSTM1 on the frames and of BiLSTM2 on LN(the states of BiLSTM1)
    x_m = LN(relu W u_m);  p_m = sigmoid W_m x_m;  c_m = sigmoid W_shared x_m;  xhat_m = W'_m (p_m + c_m)
    y = W2 relu drop W1 flatten(TransformerLayer([p_l, p_v, p_a, c_l, c_v, c_a]))
    L = task + w_s similarity + w_d difference + w_r reconstruction
    similarity = mean of CMD(c_l, c_v), CMD(c_l, c_a), CMD(c_a, c_v)
    difference = sum of D over (p_m, c_m), m = l, v, a, and (p_a, p_l), (p_a, p_v), (p_l, p_v)
    reconstruction = mean over m of the mean square of xhat_m - x_m

CMD and D (:mod:`cmsbert_fast.models.baselines.set_losses`) are those of the global batch. D grows with the square of
the batch: another batch size changes what its weight means.

Differences from published code (declare-lab/MISA), on purpose:
- All pieces are read; there they are cut to the batch's largest number of words + 2.
- The gradient of CMD is 0 where moments are equal; there it is NaN.
- Frames are standardised by the training split's statistics; there by the utterance's own.
- Without its pooler, its head "sp_discriminator" and its LayerNorm of text: no loss reads them.
- An absent modality leaves out its two tokens and its terms; means are over the others.
- MMSA reads as many frames as there are word pieces; all frames are read here.

For MOSEI the paper is said to have other settings than its code; its table could not be checked. The defaults and the
presets are the code's, where MOSEI differs from MOSI in batch size and frozen layers only.
"""

import itertools
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cmsbert_fast.models.baselines.base import Baseline, Utterances, register
from cmsbert_fast.models.baselines.configuration import BaselineConfig
from cmsbert_fast.models.baselines.recurrent import BidirectionalLSTM
from cmsbert_fast.models.baselines.set_losses import central_moment_discrepancy, difference_loss
from cmsbert_fast.models.gathering import gather_rows
from cmsbert_fast.models.layers import FusionLayer
from cmsbert_fast.models.losses import LossTerm
from cmsbert_fast.ops.lstm.api import PackedLSTM
from cmsbert_fast.packing import Packing, segment_mean


class MISAConfig(BaselineConfig):
    """Sizes, dropouts and weights of MISA; the defaults are those of the published code.

    Args:
        size: d, of the spaces.
        fusion_heads: Of the Transformer layer; they share d.
        feedforward_size: Of the Transformer layer.
        transformer_dropout: In the Transformer layer.
        fusion_dropout: Before the last layer.
        similarity_weight, difference_weight, reconstruction_weight: w_s, w_d, w_r.
        **kwargs: Fields of :class:`BaselineConfig`.
    """

    model_type = "cmsbert-misa"

    loss: str = "mse"
    size: int = 128
    fusion_heads: int = 2
    feedforward_size: int = 2048
    transformer_dropout: float = 0.1
    fusion_dropout: float = 0.5
    similarity_weight: float = 1.0
    difference_weight: float = 0.3
    reconstruction_weight: float = 1.0

    def _check(self) -> None:
        super()._check()
        if self.size % self.fusion_heads:
            raise ValueError(f"size is {self.size} but must be a multiple of fusion_heads, {self.fusion_heads}.")


class SequenceNet(nn.Module):
    """A sequence -> u_m, (B, 4 d_m): two bidirectional LSTMs, one upon the other."""

    def __init__(self, size: int):
        super().__init__()
        self.lstm1 = BidirectionalLSTM(size, size)
        self.norm = nn.LayerNorm(2 * size)
        self.lstm2 = BidirectionalLSTM(2 * size, size)

    def forward(self, rows: Tensor, packing: Packing, backend: str) -> Tensor:
        first = self.lstm1(rows, packing, backend)
        second = self.lstm2(self.norm(first.hidden), packing, backend)
        directions = zip(first.last.chunk(2, dim=1), second.last.chunk(2, dim=1), strict=True)
        return torch.cat([last for pair in directions for last in pair], dim=1)


class Projection(nn.Module):
    """u_m -> x_m, (B, d)."""

    def __init__(self, input_size: int, size: int):
        super().__init__()
        self.dense = nn.Linear(input_size, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, rows: Tensor) -> Tensor:
        return self.norm(torch.relu(self.dense(rows)))


class MISAForSequenceClassification(Baseline):
    """MISA. Rows: p_m as "text_private" and so on, c_m as "text_shared", and the error of reconstruction (B,).

    Attributes:
        sources: Its modalities, text first.

    Raises:
        ValueError: The configuration has no frames.
    """

    config_class = MISAConfig
    config: MISAConfig
    has_global_terms = True

    def __init__(self, config: MISAConfig):
        super().__init__(config)
        self.require_frames("MISA")
        self.sources = ("text", *self.modalities)
        sequences = {name: config.frame_sizes[name] for name in self.modalities}
        if config.text == "vectors":
            sequences["text"] = config.text_size
        for name in self.sources:
            input_size = config.text_size
            if name in sequences:
                setattr(self, f"{name}_net", SequenceNet(sequences[name]))
                input_size = 4 * sequences[name]
            setattr(self, f"{name}_projection", Projection(input_size, config.size))
            setattr(self, f"{name}_private", nn.Linear(config.size, config.size))
            setattr(self, f"{name}_decoder", nn.Linear(config.size, config.size))
        self.shared = nn.Linear(config.size, config.size)
        self.transformer = FusionLayer(
            config.size, config.fusion_heads, config.feedforward_size, config.transformer_dropout, config
        )
        width = len(self.sources) * config.size
        self.fusion_dense = nn.Linear(2 * width, width)
        self.fusion_dropout = nn.Dropout(config.fusion_dropout)
        self.classifier = nn.Linear(width, self.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PackedLSTM):
            nn.init.orthogonal_(module.weight_hh_l0)

    def read(self, batch: Utterances) -> dict[str, Tensor]:
        rows: dict[str, Tensor] = {}
        errors = []
        for name, u in self._utterance_rows(batch).items():
            x = getattr(self, f"{name}_projection")(u)
            rows[f"{name}_private"] = private = torch.sigmoid(getattr(self, f"{name}_private")(x))
            rows[f"{name}_shared"] = shared = torch.sigmoid(self.shared(x))
            error = getattr(self, f"{name}_decoder")(private + shared) - x
            errors.append(error.square().mean(dim=1, dtype=torch.promote_types(error.dtype, torch.float32)))
        tokens = [rows[f"{name}_{kind}"] for kind in ("private", "shared") for name in self.sources]
        fused = self.fusion_dense(self.transformer(torch.stack(tokens, dim=1)).flatten(1))
        logits = self.classifier(torch.relu(self.fusion_dropout(fused)))
        return {"logits": logits, **rows, "reconstruction": torch.stack(errors).mean(dim=0)}

    def _utterance_rows(self, batch: Utterances) -> dict[str, Tensor]:
        """u_m by modality, (B, ...)."""
        rows = {}
        for name in self.sources:
            sequence = batch.text if name == "text" else batch.frames[name]
            net = getattr(self, f"{name}_net", None)
            rows[name] = segment_mean(*sequence) if net is None else net(*sequence, self.config.backend)
        return rows

    def row_losses(
        self, rows: Mapping[str, Tensor], labels: Tensor, targets: Tensor | None = None
    ) -> dict[str, LossTerm]:
        """The task loss and the reconstruction."""
        reconstruction = LossTerm(rows["reconstruction"].mean(), self.config.reconstruction_weight)
        return {**super().row_losses(rows, labels, targets), "reconstruction": reconstruction}

    def global_losses(
        self, rows: Mapping[str, Tensor], labels: Tensor, group: "dist.ProcessGroup | None" = None
    ) -> dict[str, LossTerm]:
        """Similarity and difference."""
        names = [f"{name}_{kind}" for name in self.sources for kind in ("private", "shared")]
        whole = gather_rows({name: rows[name] for name in names}, group)
        pairs = list(itertools.combinations(self.sources, 2))
        shared = [central_moment_discrepancy(whole[f"{a}_shared"], whole[f"{b}_shared"]) for a, b in pairs]
        apart = [difference_loss(whole[f"{name}_private"], whole[f"{name}_shared"]) for name in self.sources]
        apart += [difference_loss(whole[f"{a}_private"], whole[f"{b}_private"]) for a, b in pairs]
        return {
            "similarity": LossTerm(torch.stack(shared).mean(), self.config.similarity_weight, per_row=False),
            "difference": LossTerm(torch.stack(apart).sum(), self.config.difference_weight, per_row=False),
        }


register(MISAConfig, MISAForSequenceClassification)
