"""MulT, the multimodal Transformer (Tsai et al., ACL 2019, arXiv:1906.00295), for sequences that are not aligned.

    x_m = Conv1d(features of m), k_m wide, without bias; the text's features through dropout
    E_{b->a} = Encoder(x_a to x_b), six of them; h_a = last row of Encoder([E_{b->a}; E_{c->a}] to itself)
    r = [h_l; h_a; h_v];  y = W (r + W2 drop relu W1 r) + b

The encoders (:mod:`cmsbert_fast.models.baselines.crossmodal`) read sqrt(d) x + pos. Those of [E; E] have 3 layers at
least.

Differences from published code (yaohungt/Multimodal-Transformer; MMSA), on purpose:
- There is no padding: every sequence has its true length, first and last row. Published code attends to padding; for
  positions it takes a row for padding whose first feature is exactly 0. MMSA's last row is one of padding.
- The convolution keeps the length: rows outside a sequence count as 0. MMSA's shortens it; the original's default is
  k = 1, but its paper has 3.
- Positions are on. MMSA has had them off since 2022; its v1.0 had them.
- Keys and values of a layer share a dropout mask of their input; there each has its own.
- Constant learning rate. There it falls to a tenth after 20 epochs without improvement, later than the presets stop.
- An absent modality leaves out its encoders. A row without any row to attend to gets 0 from attention, before the
  output projection; an utterance without frames has h_m = 0.

Its text was GloVe; the BERT features of the presets are MMSA's choice.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmsbert_fast.models.baselines.base import Baseline, Utterances, register
from cmsbert_fast.models.baselines.configuration import BaselineConfig
from cmsbert_fast.models.baselines.crossmodal import CrossmodalEncoder, Dropouts, pair, with_positions
from cmsbert_fast.packing import Packing, positions, segment_last, sequence_of_row

ORDER = ("text", "acoustic", "visual")  # of the parts of r, and of an encoder's sources
LEAST_LAYERS = 3  # of the encoders of [E; E]


class MulTConfig(BaselineConfig):
    """Sizes and dropouts of MulT; the defaults are MMSA v1.0's for MOSI.

    Args:
        size: d, even and at least 4.
        heads: Of every attention; they share d.
        layers: Of an encoder.
        text_kernel_size, visual_kernel_size, acoustic_kernel_size: k_m, odd.
        text_dropout: Of the features of text.
        attention_dropout, visual_attention_dropout, acoustic_attention_dropout: Of attention to text, and of all
            self-attention; to visual; and to acoustic rows.
        relu_dropout, residual_dropout: In the layers of the encoders.
        embedding_dropout: Of their inputs.
        output_dropout: Before the last layer.
        **kwargs: Fields of :class:`BaselineConfig`.
    """

    model_type = "cmsbert-mult"

    text: str = "bert-frozen"
    size: int = 40
    heads: int = 10
    layers: int = 4
    text_kernel_size: int = 1
    visual_kernel_size: int = 1
    acoustic_kernel_size: int = 5
    text_dropout: float = 0.2
    attention_dropout: float = 0.1
    visual_attention_dropout: float = 0.2
    acoustic_attention_dropout: float = 0.1
    relu_dropout: float = 0.2
    residual_dropout: float = 0.2
    embedding_dropout: float = 0.1
    output_dropout: float = 0.1

    def _check(self) -> None:
        super()._check()
        if self.size % self.heads or self.size % 2 or self.size < 4:
            raise ValueError(f"size is {self.size} but must be even, at least 4 and a multiple of heads, {self.heads}.")
        for name in ORDER:
            value = getattr(self, f"{name}_kernel_size")
            if value % 2 == 0:
                raise ValueError(f"{name}_kernel_size is {value} but must be odd.")


class PackedConv(nn.Conv1d):
    """A convolution without bias inside each sequence, which keeps its length; ``kernel_size`` is odd."""

    def __init__(self, input_size: int, size: int, kernel_size: int):
        super().__init__(input_size, size, kernel_size, bias=False)

    def forward(self, rows: Tensor, packing: Packing) -> Tensor:  # type: ignore[override]
        """(T, d_m) -> (T, d)."""
        size, _, width = self.weight.shape
        weight = self.weight.permute(2, 0, 1).flatten(0, 1)
        products = F.linear(rows, weight).unflatten(1, (width, size))  # of each row with each tap
        if width == 1:
            return products[:, 0]
        total, half = rows.shape[0], width // 2
        sequence = sequence_of_row(packing, total)
        neighbours = F.pad(sequence, (half, half), value=-1)
        shifted = F.pad(products, (0, 0, 0, 0, half, half))
        taps = []
        for k in range(width):
            outside = neighbours[k : k + total] != sequence
            taps.append(shifted[k : k + total, k].masked_fill(outside[:, None], 0))
        return torch.stack(taps).sum(dim=0)


class MulTForSequenceClassification(Baseline):
    """MulT.

    Attributes:
        sources: Its modalities, in the order of r.

    Raises:
        ValueError: The configuration has no frames.
    """

    config_class = MulTConfig
    config: MulTConfig

    def __init__(self, config: MulTConfig):
        super().__init__(config)
        self.require_frames("MulT")
        self.sources = tuple(name for name in ORDER if name in ("text", *self.modalities))
        sizes = {**config.frame_sizes, "text": config.text_size}
        attention = {
            "text": config.attention_dropout,
            "visual": config.visual_attention_dropout,
            "acoustic": config.acoustic_attention_dropout,
        }
        self.text_dropout = nn.Dropout(config.text_dropout)
        self.crossmodal, self.memory = nn.ModuleDict(), nn.ModuleDict()
        joint = (len(self.sources) - 1) * config.size
        for name in self.sources:
            conv = PackedConv(sizes[name], config.size, getattr(config, f"{name}_kernel_size"))
            setattr(self, f"{name}_conv", conv)
            for source in self._others(name):
                self.crossmodal[f"{name}_from_{source}"] = self._encoder(config.size, config.layers, attention[source])
            self.memory[name] = self._encoder(joint, max(config.layers, LEAST_LAYERS), config.attention_dropout)
        width = len(self.sources) * joint
        self.dense = nn.Linear(width, width)
        self.output_dropout = nn.Dropout(config.output_dropout)
        self.dense2 = nn.Linear(width, width)
        self.classifier = nn.Linear(width, self.num_labels)
        self.post_init()

    def _others(self, target: str) -> list[str]:
        return [name for name in self.sources if name != target]

    def _encoder(self, size: int, layers: int, attention_dropout: float) -> CrossmodalEncoder:
        config = self.config
        dropouts = Dropouts(attention_dropout, config.relu_dropout, config.residual_dropout, config.embedding_dropout)
        return CrossmodalEncoder(size, config.heads, layers, dropouts)

    def read(self, batch: Utterances) -> dict[str, Tensor]:
        rows = {"text": self.text_dropout(batch.text.values), **{m: f.values for m, f in batch.frames.items()}}
        packings = {"text": batch.text.packing, **{m: f.packing for m, f in batch.frames.items()}}
        # Every pairing reads the lengths: wait for the device once.
        if not torch.compiler.is_exporting():
            packings = {name: packing._replace(host_cu_seqlens=packing.on_host) for name, packing in packings.items()}
        totals = {name: rows[name].shape[0] for name in self.sources}
        places = {name: positions(packings[name], totals[name]) + 1 for name in self.sources}
        dtype = self.classifier.weight.dtype
        x = {name: getattr(self, f"{name}_conv")(rows[name], packings[name]) for name in self.sources}
        x = {name: with_positions(x[name], places[name], dtype) for name in self.sources}
        last = []
        for a in self.sources:
            crossed = []
            for b in self._others(a):
                pairing = pair(packings[a], packings[b], totals[a], totals[b])
                crossed.append(self.crossmodal[f"{a}_from_{b}"](x[a], x[b], pairing))
            joint = with_positions(torch.cat(crossed, dim=1), places[a], dtype)
            pairing = pair(packings[a], packings[a], totals[a], totals[a])
            last.append(segment_last(self.memory[a](joint, None, pairing), packings[a]))
        r = torch.cat(last, dim=1)
        return {"logits": self.classifier(r + self.dense2(self.output_dropout(torch.relu(self.dense(r)))))}


register(MulTConfig, MulTForSequenceClassification)
