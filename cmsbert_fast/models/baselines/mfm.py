"""MFM, the multimodal factorisation model (Tsai et al., ICLR 2019, arXiv:1806.06176), word by word.

    z_m = Lin last LSTM_m(x^m), m = l, a, v;   z_y = Lin [h^l; h^a; h^v; u]_W of MFN's memory
    f_k = relu Lin drop relu Lin z_k, k = y, l, a, v;   y = Lin drop relu Lin f_y
    s_1 = Cell([f_y; f_m], 0), s_t = Cell(s_{t-1}, state), xhat^m_t = Lin s_t, t = 1..W
    L = task + sum_m lambda_m MSE_m + lambda_mmd sum_k MMD(z_k, g_k), g_k a sample of N(0, I), drawn anew each step

Differences from published code, on purpose:
- An utterance is decoded to its own length, and MSE_m is the mean over its words, then over utterances. The original
  pads to 20 words and reconstructs the padding too.
- MMD is that of the global batch, whatever the ranks and micro-batches, and has no part in evaluation.
- Prediction does not decode.
- The learning rate is the setting's. The original and MMSA ignore theirs and use Adam's 1e-3.
- BERT's features are means over a word's pieces. They must be frozen: as a trained target they would collapse.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cmsbert_fast.models.baselines.base import Utterances, register
from cmsbert_fast.models.baselines.mfn import MFN, MemoryConfig, TwoLayers
from cmsbert_fast.models.baselines.recurrent import DecoderLSTM, LastLSTM
from cmsbert_fast.models.baselines.set_losses import gaussian, maximum_mean_discrepancy
from cmsbert_fast.models.gathering import gather_rows
from cmsbert_fast.models.losses import LossTerm
from cmsbert_fast.packing import Packing, segment_mean


class MFMConfig(MemoryConfig):
    """Sizes and dropouts of MFM, and the weights of its losses; the defaults are MMSA v1.0's for MOSI.

    Args:
        text_code_size, acoustic_code_size, visual_code_size, shared_code_size: Sizes of z_l, z_a, z_v, z_y.
        text_factor_size, acoustic_factor_size, visual_factor_size, shared_factor_size: Sizes of f_l, f_a, f_v, f_y.
        text_factor_dropout, acoustic_factor_dropout, visual_factor_dropout, shared_factor_dropout: Probabilities,
            between z and f.
        output_dropout: Probability, in the head.
        text_weight, acoustic_weight, visual_weight: lambda_m.
        mmd_weight: lambda_mmd.
        **kwargs: Fields of :class:`~cmsbert_fast.models.baselines.mfn.MemoryConfig`.
    """

    model_type = "cmsbert-mfm"
    texts = ("bert-frozen", "vectors")

    text: str = "bert-frozen"
    text_hidden_size: int = 128
    acoustic_hidden_size: int = 32
    visual_hidden_size: int = 128
    memory_size: int = 400
    attention_dropout: float = 0.2
    proposal_dropout: float = 0.7
    retain_size: int = 64
    update_size: int = 256
    update_dropout: float = 0.0
    text_code_size: int = 32
    acoustic_code_size: int = 8
    visual_code_size: int = 80
    shared_code_size: int = 32
    text_factor_size: int = 88
    acoustic_factor_size: int = 8
    visual_factor_size: int = 8
    shared_factor_size: int = 16
    text_factor_dropout: float = 0.2
    acoustic_factor_dropout: float = 0.2
    visual_factor_dropout: float = 0.7
    shared_factor_dropout: float = 0.0
    output_dropout: float = 0.0
    text_weight: float = 1.0
    acoustic_weight: float = 0.01
    visual_weight: float = 0.5
    mmd_weight: float = 1.0


class SampleSeed:
    """The :class:`~cmsbert_fast.models.base.TrainingState` of MFM: the samples g of a step follow from seed and step.

    So they are alike on every rank, and in a resumed run.
    """

    row_names = ()
    starts_with_validation = False

    def __init__(self, seed: int):
        self.seed, self.steps = seed, 0

    def start(self, labels: Tensor) -> None:
        self.steps = 0

    def targets(self, indices: Tensor) -> None:
        return None

    def step(self, epoch: int, indices: Tensor, rows: Mapping[str, Tensor]) -> None:
        self.steps += 1

    def validated(self, losses: Mapping[str, float]) -> None:
        pass

    def report(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]


class Autoencoder(nn.Module):
    """A view: from its rows to z_m, and from z_m and f_y to its rows again.

    Args:
        size: d_m.
        config: Sizes and dropouts.
        view: Name of the view.
    """

    def __init__(self, size: int, config: MFMConfig, view: str):
        super().__init__()
        code, factor = (getattr(config, f"{view}_{part}_size") for part in ("code", "factor"))
        state = config.shared_factor_size + factor
        self.encoder = LastLSTM(size, code)
        self.code = nn.Linear(code, code)
        self.factor = TwoLayers(code, factor, factor, getattr(config, f"{view}_factor_dropout"))
        self.decoder = DecoderLSTM(state)
        self.output = nn.Linear(state, size)

    def encode(self, rows: Tensor, packing: Packing, backend: str) -> Tensor:
        """(P, d_m) -> z_m, (B, z_m)."""
        return self.code(self.encoder(rows, packing, backend))

    def decode(self, code: Tensor, shared: Tensor, packing: Packing, total: int) -> Tensor:
        """z_m (B, z_m) and f_y (B, f_y) -> xhat^m (P, d_m)."""
        start = torch.cat([shared, torch.relu(self.factor(code))], dim=1)
        return self.output(self.decoder(start, packing, total))


class MFMForSequenceClassification(MFN):
    """MFM. An absent modality has no view in the memory, no code and no decoder.

    Its rows are "logits", the codes "text_code", ... and "shared_code", and the errors of reconstruction "text_error",
    ... (B,).
    """

    config_class = MFMConfig
    config: MFMConfig
    has_global_terms = True

    def __init__(self, config: MFMConfig):
        super().__init__(config)
        shared = config.shared_factor_size
        for name, size in self.view_sizes().items():
            setattr(self, f"{name}_autoencoder", Autoencoder(size, config, name))
        self.shared_code = nn.Linear(self.fused_size, config.shared_code_size)
        self.shared_factor = TwoLayers(config.shared_code_size, shared, shared, config.shared_factor_dropout)
        self.classifier = TwoLayers(shared, shared, self.num_labels, config.output_dropout)
        self.sample_seed: SampleSeed | None = None
        self.post_init()

    def training_state(self, count: int, *, seed: int = 0, **options: Any) -> SampleSeed:
        """What seeds the samples of MMD; ``seed`` is the run's."""
        self.sample_seed = SampleSeed(seed)
        return self.sample_seed

    def predicted_rows(self, **inputs: Any) -> dict[str, Tensor]:
        """The logits alone: nothing is decoded."""
        batch = self.utterances(**inputs)
        return {"logits": self._head(self.shared_code(self.fuse(self.views(batch), batch.text.packing)))[0]}

    def _head(self, shared_code: Tensor) -> tuple[Tensor, Tensor]:
        """z_y (B, z_y) -> the logits, (B, num_labels), and f_y, (B, f_y)."""
        shared = torch.relu(self.shared_factor(shared_code))
        return self.classifier(shared), shared

    def read(self, batch: Utterances) -> dict[str, Tensor]:
        views, packing = self.views(batch), batch.text.packing
        rows = {"shared_code": self.shared_code(self.fuse(views, packing))}
        rows["logits"], shared = self._head(rows["shared_code"])
        for name, x in views.items():
            autoencoder: Autoencoder = getattr(self, f"{name}_autoencoder")
            rows[f"{name}_code"] = code = autoencoder.encode(x, packing, self.config.backend)
            error = (autoencoder.decode(code, shared, packing, x.shape[0]) - x).square().mean(dim=1, keepdim=True)
            rows[f"{name}_error"] = segment_mean(error, packing)[:, 0]
        return rows

    def row_losses(
        self, rows: Mapping[str, Tensor], labels: Tensor, targets: Tensor | None = None
    ) -> dict[str, LossTerm]:
        """The task loss, and lambda_m MSE_m of each view."""
        terms = super().row_losses(rows, labels, targets)
        for name in self.view_sizes():
            weight = getattr(self.config, f"{name}_weight")
            terms[f"{name}_reconstruction"] = LossTerm(rows[f"{name}_error"].mean(), weight)
        return terms

    def global_losses(
        self, rows: Mapping[str, Tensor], labels: Tensor, group: "dist.ProcessGroup | None" = None
    ) -> dict[str, LossTerm]:
        """In training, lambda_mmd times the sum of MMD over the codes."""
        if not self.training:
            return {}
        codes = [f"{name}_code" for name in ("shared", *self.view_sizes())]
        gathered = list(gather_rows({name: rows[name] for name in codes}, group).values())
        samples = self._samples(gathered, group)
        distances = [maximum_mean_discrepancy(z, g) for z, g in zip(gathered, samples, strict=True)]
        return {"mmd": LossTerm(torch.stack(distances).sum(), self.config.mmd_weight, per_row=False)}

    def _samples(self, codes: Sequence[Tensor], group: "dist.ProcessGroup | None") -> Sequence[Tensor]:
        """g for each code, alike on all ranks: of PyTorch's generator on the first where no trainer counts steps."""
        if self.sample_seed is not None:
            return [gaussian(z, self.sample_seed.seed, self.sample_seed.steps, k) for k, z in enumerate(codes)]
        widths = [z.shape[1] for z in codes]
        drawn = torch.randn(len(codes[0]), sum(widths), dtype=codes[0].dtype, device=codes[0].device)
        if group is not None:
            dist.broadcast(drawn, group=group, group_src=0)
        return drawn.split(widths, dim=1)


register(MFMConfig, MFMForSequenceClassification)
