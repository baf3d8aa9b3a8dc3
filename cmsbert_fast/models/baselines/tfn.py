"""TFN, the tensor fusion network (Zadeh et al., EMNLP 2017, arXiv:1707.07250).

    z_l = W (drop last LSTM(X)) + b          z_m = relu L3 relu L2 relu L1 (drop norm(mean of the frames)), m = a, v
    Z = [1; z_a] x [1; z_v] x [1; z_l], the outer product; flat index (i_a (h_v + 1) + i_v)(t + 1) + i_l
    y = 6 sigmoid(W2 relu W1 relu W0 drop Z) - 3;  for classes W2 alone

Differences from published code, on purpose:
- ``norm`` uses mean and deviation of the training split's utterance means instead of batch statistics (BatchNorm), so
  that a row does not depend on the batch, the ranks or micro-batches.
- Means are over true frames and the last state is that of the true end; MMSA divides by the padded length and runs the
  LSTM through padding.
- The range of scores is +-3 as in MMSA and Justin1904/TensorFusionNetworks; the original has +-4.
- The text dropout acts, as the original's does; MMSA's does not.
- All pieces are read, as frozen BERT features by default. The original reads the 20 last words, as GloVe vectors that
  it trains.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cmsbert_fast.data.statistics import Moments
from cmsbert_fast.models.baselines.base import Baseline, Utterances, register
from cmsbert_fast.models.baselines.configuration import BaselineConfig
from cmsbert_fast.models.baselines.recurrent import LastLSTM
from cmsbert_fast.packing import segment_mean

SCALE, SHIFT = 6.0, -3.0  # scores lie in (-3, 3)
EPSILON = 1e-5  # of BatchNorm


class TFNConfig(BaselineConfig):
    """Sizes and dropouts of TFN; the defaults are MMSA v1.0's for MOSI.

    Args:
        text_hidden_size: Of the LSTM.
        text_output_size: t.
        visual_hidden_size, acoustic_hidden_size: h_v, h_a.
        fusion_size: p.
        text_dropout, visual_dropout, acoustic_dropout, fusion_dropout: Probabilities.
        **kwargs: Fields of :class:`BaselineConfig`.
    """

    model_type = "cmsbert-tfn"

    text: str = "bert-frozen"
    text_hidden_size: int = 128
    text_output_size: int = 128
    visual_hidden_size: int = 128
    acoustic_hidden_size: int = 16
    fusion_size: int = 32
    text_dropout: float = 0.2
    visual_dropout: float = 0.2
    acoustic_dropout: float = 0.2
    fusion_dropout: float = 0.2


class UtteranceNorm(nn.Module):
    """Standardises the rows of utterances by the training split's statistics, then scales and shifts.

    Attributes:
        mean, deviation: Of the training split, buffers, set once by :meth:`fit`.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))

    def reset_parameters(self) -> None:
        """The identity, but for the statistics that a checkpoint brings."""
        for ones in (self.weight, self.deviation):
            nn.init.ones_(ones)
        for zeros in (self.bias, self.mean):
            nn.init.zeros_(zeros)

    @torch.no_grad()
    def fit(self, moments: Moments) -> None:
        """Takes mean and deviation over; epsilon is added to the variance, as BatchNorm does."""
        self.mean.copy_(torch.from_numpy(moments.mean))
        self.deviation.copy_((torch.from_numpy(moments.std).square() + EPSILON).sqrt())

    def forward(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.deviation * self.weight + self.bias


class FrameNet(nn.Module):
    """The mean frame of an utterance -> z_m, (B, h_m)."""

    def __init__(self, input_size: int, hidden_size: int, dropout: float):
        super().__init__()
        self.norm = UtteranceNorm(input_size)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(nn.Linear(size, hidden_size) for size in (input_size, hidden_size, hidden_size))

    def forward(self, means: Tensor) -> Tensor:
        z = self.dropout(self.norm(means))
        for layer in self.layers:
            z = torch.relu(layer(z))
        return z


class TFNForSequenceClassification(Baseline):
    """TFN. An absent modality's factor is left out of the product."""

    config_class = TFNConfig
    config: TFNConfig

    def __init__(self, config: TFNConfig):
        super().__init__(config)
        self.text_lstm = LastLSTM(config.text_size, config.text_hidden_size)
        self.text_dropout = nn.Dropout(config.text_dropout)
        self.text_linear = nn.Linear(config.text_hidden_size, config.text_output_size)
        product = config.text_output_size + 1
        for name in self.modalities:
            size = getattr(config, f"{name}_hidden_size")
            setattr(self, f"{name}_net", FrameNet(config.frame_sizes[name], size, getattr(config, f"{name}_dropout")))
            product *= size + 1
        self.fusion_dropout = nn.Dropout(config.fusion_dropout)
        self.fusion_dense = nn.Linear(product, config.fusion_size)
        self.fusion_dense2 = nn.Linear(config.fusion_size, config.fusion_size)
        self.classifier = nn.Linear(config.fusion_size, self.num_labels)
        self.post_init()

    def prepare(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Mean and deviation of the utterances' mean frames."""
        moments = {name: Moments() for name in self.modalities}
        for inputs in batches:
            for name, frames in self.frames(**inputs).items():
                moments[name].see(segment_mean(frames.values, frames.packing).cpu().numpy())
        for name, found in moments.items():
            getattr(self, f"{name}_net").norm.fit(found)

    def read(self, batch: Utterances) -> dict[str, Tensor]:
        last = self.text_lstm(*batch.text, self.config.backend)
        z = with_one(self.text_linear(self.text_dropout(last)))
        for name in self.modalities:  # visual, then acoustic: the last one varies slowest
            frames = batch.frames[name]
            z = outer(with_one(getattr(self, f"{name}_net")(segment_mean(frames.values, frames.packing))), z)
        fused = torch.relu(self.fusion_dense(self.fusion_dropout(z)))
        scores = self.classifier(torch.relu(self.fusion_dense2(fused)))
        if self.num_labels == 1:
            # In float32 at least: near 0, half precision would have steps of 0.01.
            wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
            scores = SCALE * torch.sigmoid(wide) + SHIFT
        return {"logits": scores}


def with_one(rows: Tensor) -> Tensor:
    """[1; z], (B, d) -> (B, d + 1)."""
    return torch.cat([rows.new_ones(rows.shape[0], 1), rows], dim=1)


def outer(slow: Tensor, fast: Tensor) -> Tensor:
    """The flat outer product of each row, (B, m), (B, n) -> (B, m n); index i n + j."""
    return (slow[:, :, None] * fast[:, None]).flatten(1)


register(TFNConfig, TFNForSequenceClassification)
