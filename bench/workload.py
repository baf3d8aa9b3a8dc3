"""What is measured: sequence lengths, random batches in both forms, models, and the work each of them means.

Lengths are those of real CMU-MOSI (``mosi_lengths.txt``: word pieces of the 1,284 training segments, cut at 50; mean
14.8), or all the same. Every modality has one frame a word piece, as word-aligned data have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cmsbert_fast import CMSBertConfig, ModalityShift
from cmsbert_fast.packing import Packing, cumulative, pad, valid_positions
from cmsbert_fast.training.batches import stays_on_host

MOSI_LENGTHS = np.loadtxt(Path(__file__).with_name("mosi_lengths.txt"), dtype=int)
PADDED_LENGTH = 50  # what the published code pads MOSI and MOSEI to
VISUAL_SIZE, ACOUSTIC_SIZE = 47, 74  # Facet and COVAREP of CMU-MOSI
HIDDEN, HEADS = 768, 12  # BERT-base

SHAPES = {  # hidden size, layers, heads
    "BERT-base": (768, 12, 12),
    "MiniLM": (384, 6, 12),
    "tiny": (64, 2, 4),
}


def draw_lengths(kind: str | int, batch: int) -> list[int]:
    """``batch`` lengths: "mosi" = evenly spaced quantiles of MOSI's, shuffled; a number = that one.

    Quantiles, because a random draw of 32 has 10 % more or fewer tokens than the average batch.
    """
    if kind == "mosi":
        quantiles = np.sort(MOSI_LENGTHS)[((np.arange(batch) + 0.5) / batch * len(MOSI_LENGTHS)).astype(int)]
        return np.random.default_rng(0).permutation(quantiles).tolist()
    return [int(kind)] * batch


def draw_random_lengths(batch: int, batches: int) -> list[list[int]]:
    """Lengths of several batches, drawn from MOSI's at random: their numbers of tokens differ as in training."""
    draws = np.random.default_rng(0).choice(MOSI_LENGTHS, (batches, batch))
    return [lengths.tolist() for lengths in draws]


def make_config(shape: str = "BERT-base", **options: object) -> CMSBertConfig:
    """A model's configuration, both modalities present."""
    hidden, layers, heads = SHAPES[shape]
    return CMSBertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        visual_size=VISUAL_SIZE,
        acoustic_size=ACOUSTIC_SIZE,
        **options,
    )


@dataclass(frozen=True, slots=True)
class ModelBatch:
    """The same random utterances packed and padded, as keyword arguments of a model's forward, with labels."""

    packed: dict[str, Tensor | int]
    padded: dict[str, Tensor]

    @classmethod
    def draw(
        cls, config: CMSBertConfig, lengths: Sequence[int], device: torch.device, pad_to: int | None = None
    ) -> "ModelBatch":
        """Random words, frames and labels; ``pad_to`` None = the longest."""
        generator = torch.Generator().manual_seed(len(lengths))
        total, longest = sum(lengths), max(lengths)
        width = max(pad_to or 0, longest)
        packing = Packing(cumulative(torch.tensor(lengths)), width)
        ids = torch.randint(1, config.vocab_size, (total,), generator=generator)
        frames = {
            "visual": torch.randn(total, config.visual_size, generator=generator),
            "acoustic": torch.randn(total, config.acoustic_size, generator=generator),
        }
        labels = torch.empty(len(lengths)).uniform_(-3, 3, generator=generator)
        mask = valid_positions(packing)
        packed: dict[str, Tensor | int] = {
            "input_ids": ids[None],
            "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
            "cu_seq_lens_q": packing.cu_seqlens,
            "max_length_q": longest,
            "labels": labels,
        }
        padded = {"input_ids": pad(ids[:, None], packing)[..., 0], "attention_mask": mask.long(), "labels": labels}
        for name, values in frames.items():
            packed |= {name: values, f"cu_seq_lens_{name}": packing.cu_seqlens, f"max_length_{name}": longest}
            padded |= {name: pad(values, packing), f"{name}_mask": mask.long()}
        return cls(
            {k: v.to(device) if isinstance(v, Tensor) and not stays_on_host(k) else v for k, v in packed.items()},
            {k: v.to(device) for k, v in padded.items()},
        )


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Arguments of ``cms_attention``, packed and padded, that share their numbers; all require gradients."""

    packed: tuple[tuple, dict]
    padded: tuple[tuple, dict]
    inputs: tuple[Tensor, ...]  # leaves of the packed form: q, k, v, then gates, frames' gates and weights
    padded_inputs: tuple[Tensor, ...]
    packing: Packing

    @classmethod
    def draw(
        cls,
        lengths: Sequence[int],
        frames: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
        heads: int = HEADS,
        head_size: int = HIDDEN // HEADS,
        sizes: tuple[int, int] = (VISUAL_SIZE, ACOUSTIC_SIZE),
    ) -> "AttentionBatch":
        """Random tensors: ``lengths`` of the tokens, ``frames`` of both modalities."""
        torch.manual_seed(0)
        packing = Packing(cumulative(torch.tensor(lengths)).to(device), max(lengths))
        frame_packing = Packing(cumulative(torch.tensor(frames)).to(device), max(frames))
        total, count = sum(lengths), sum(frames)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, device=device) * scale).to(dtype)

        qkv = [draw(total, heads, head_size) for _ in range(3)]
        shifts = []
        for size in sizes:
            gates = (draw(total), draw(count))
            shifts.append((*gates, draw(count, size), draw(heads * head_size, size, scale=0.02)))
        # Without padding there is no mask to pay for.
        mask, frame_mask = (
            valid_positions(p) if len(set(n)) > 1 else None for p, n in ((packing, lengths), (frame_packing, frames))
        )
        leaves = [x.requires_grad_() for x in qkv]
        padded_leaves = [pad(x.detach(), packing).requires_grad_() for x in qkv]
        modalities, padded_modalities = [], []
        for token_gate, frame_gate, values, weight in shifts:
            own = [token_gate.requires_grad_(), frame_gate.requires_grad_(), weight.requires_grad_()]
            other = [
                pad(token_gate.detach(), packing).requires_grad_(),
                pad(frame_gate.detach(), frame_packing).requires_grad_(),
                weight.detach().clone().requires_grad_(),
            ]
            leaves += own
            padded_leaves += other
            modalities.append(
                ModalityShift(own[0], own[1], values, own[2], frame_packing.cu_seqlens, frame_packing.max_length)
            )
            padded_modalities.append(
                ModalityShift(other[0], other[1], pad(values, frame_packing), other[2], mask=frame_mask)
            )
        return cls(
            ((*leaves[:3], *modalities), dict(cu_seqlens=packing.cu_seqlens, max_seqlen=packing.max_length)),
            ((*padded_leaves[:3], *padded_modalities), dict(attention_mask=mask)),
            tuple(leaves),
            tuple(padded_leaves),
            packing,
        )


# ------------------------------------------------------------------ the work: multiply-adds count as two operations


class Work(NamedTuple):
    """What a case has to do at least; the report puts it beside what the machine can do."""

    flops: float | None = None
    bytes: float | None = None
    dtype: str = "float32"  # of the matrix products


UNKNOWN_WORK = Work()


def attention_flops(lengths: Sequence[int], frames: Sequence[int], backward: bool, hidden: int = HIDDEN) -> float:
    """Operations of CMS attention on valid tokens and frames: scores, values, mean frames and shifts.

    Backward two products for each, but one for the mean frames: frames need no gradient. Nothing is computed again.
    """
    size = VISUAL_SIZE + ACOUSTIC_SIZE
    scores = sum(2 * n * n * hidden for n in lengths)
    mean = sum(2 * n * m * size for n, m in zip(lengths, frames, strict=True))
    shift = 2 * sum(lengths) * size * hidden
    forward = 2 * scores + mean + shift
    return forward + (4 * scores + 2 * shift + mean if backward else 0)


def attention_bytes(
    lengths: Sequence[int], frames: Sequence[int], backward: bool, element: int, hidden: int = HIDDEN
) -> float:
    """Least traffic: q, k, v, frames and weights read and z written once; backward reads them and dz again and writes
    dq, dk, dv and the weights' gradients.

    Gates are thousands of times smaller than the rest and left out.
    """
    size = VISUAL_SIZE + ACOUSTIC_SIZE
    tokens, inputs = sum(lengths) * hidden, (sum(frames) + hidden) * size
    forward = 4 * tokens + inputs
    return element * (forward + (7 * tokens + inputs + hidden * size if backward else 0))


def contrastive_flops(n: int, size: int, modalities: int = 3) -> float:
    """Operations the loss and its gradient need at least where no n x n matrix is kept.

    Per pair one product forward, the same again backward, and two for the gradients.
    """
    pairs = modalities * (modalities - 1) // 2
    return 2.0 * 4 * pairs * n * n * size


def contrastive_bytes(n: int, size: int, element: int, modalities: int = 3) -> float:
    """Least traffic: embeddings read in both passes, gradients written."""
    return float(element * 3 * modalities * n * size)


def step_flops(config: CMSBertConfig, lengths: Sequence[int], contrastive: bool) -> float:
    """Operations of one training step's matrix products on valid tokens: forward once, backward twice."""
    hidden, tokens = config.hidden_size, sum(lengths)
    linear = config.num_hidden_layers * tokens * 2 * (4 * hidden * hidden + 2 * hidden * config.intermediate_size)
    attention = 0.0
    for layer in range(config.num_hidden_layers):
        scores = sum(4 * n * n * hidden for n in lengths)
        attention += scores
        if layer in config.cms_layers:
            attention += attention_flops(lengths, lengths, False, hidden) - scores
    head = 0.0
    if contrastive:
        size = config.projection_size
        for frame_size in (config.visual_size, config.acoustic_size):
            head += tokens * 2 * 4 * size * (frame_size + size)  # the LSTM
        head += len(lengths) * 2 * (hidden * size + 5 * size * size)  # projectors
        head += len(lengths) * 2 * (3 * 12 * size * size + 3 * size * size)  # fusion: three tokens, one layer
    return 3 * (linear + attention + head)
