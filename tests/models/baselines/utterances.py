"""A few utterances, from ordinary to nearly empty, and batches of them, padded and packed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmsbert_fast.packing import cumulative

SIZES = dict(visual_size=5, acoustic_size=3)
WORD_SIZE = 6


@dataclass(frozen=True)
class Utterance:
    """One utterance.

    Attributes:
        ids: (N,) pieces, [CLS] and [SEP] included.
        words: (N,) the word of each piece, -1 at [CLS] and [SEP].
        vectors: (W, e) of the words.
        visual, acoustic: Frames.
        label: A score.
        counts: By modality, how many frames each word has, (W,); empty where frames do not belong to words.
    """

    ids: Tensor
    words: Tensor
    vectors: Tensor
    visual: Tensor
    acoustic: Tensor
    label: float
    counts: dict[str, Tensor] = field(default_factory=dict)


# Pieces of each word; numbers of frames where they are not one a word.
_SHAPES = (
    ((1, 2, 1, 1, 3), (6, 4)),
    ((1,), (1, 1)),
    ((2, 1, 1), (0, 9)),
    ((1, 1), (0, 0)),
    ((1, 1, 2, 1, 1, 1, 1), (3, 1)),
    ((), (2, 5)),  # no word at all
)
_FRAMELESS = ((), (), ("visual",), ("visual", "acoustic"), (), ())


def utterances(aligned: bool, of_words: bool = False) -> list[Utterance]:
    """Six utterances.

    Args:
        aligned: One frame a word, or none in the whole utterance.
        of_words: Any number of frames a word, or none in the whole utterance.
    """
    generator = torch.Generator().manual_seed(3)
    found = []
    for (pieces, counts), frameless in zip(_SHAPES, _FRAMELESS, strict=True):
        words = torch.tensor([-1, *np.repeat(np.arange(len(pieces)), pieces), -1], dtype=torch.int64)
        ids = torch.randint(5, 40, (len(words),), generator=generator)
        frames, own = {}, {}
        for (name, size), count in zip(SIZES.items(), counts, strict=True):
            name = name.removesuffix("_size")
            if aligned or of_words:
                most = torch.arange(len(pieces)) * 5 % 4 if of_words else torch.ones(len(pieces), dtype=torch.int64)
                own[name] = torch.zeros_like(most) if name in frameless else most
                count = int(own[name].sum())
            frames[name] = torch.randn(count, size, generator=generator, dtype=torch.float64)
        vectors = torch.randn(len(pieces), WORD_SIZE, generator=generator, dtype=torch.float64)
        label = float(torch.randn((), generator=generator)) * 1.5
        found.append(Utterance(ids, words, vectors, label=label, counts=own, **frames))
    return found


def labels(batch: Sequence[Utterance]) -> Tensor:
    return torch.tensor([u.label for u in batch], dtype=torch.float64)


def packed(batch: Sequence[Utterance], model: Any) -> dict[str, Any]:
    """The inputs that a model reads, in Hugging Face's padding-free convention."""
    inputs: dict[str, Any] = {}
    inputs["input_ids"] = torch.cat([u.ids for u in batch])[None]
    inputs["position_ids"] = torch.cat([torch.arange(len(u.ids)) for u in batch])[None]
    starts = np.cumsum([0, *(len(u.vectors) for u in batch)])
    shifted = [torch.where(u.words < 0, -1, u.words + start) for u, start in zip(batch, starts, strict=False)]
    inputs["token_words"] = torch.cat(shifted)[None]
    inputs["word_vectors"] = torch.cat([u.vectors for u in batch])
    for name in SIZES:
        name = name.removesuffix("_size")
        starts = np.cumsum([0, *(len(getattr(u, name)) for u in batch)])
        frames = [_frames_of_pieces(u, name) for u in batch]
        shifted = [torch.where(own < 0, -1, own + start) for own, start in zip(frames, starts, strict=False)]
        inputs[f"token_frames_{name}"] = torch.cat(shifted)[None]
    for name, rows in (("q", "ids"), ("k", "ids"), ("words", "vectors"), ("visual",) * 2, ("acoustic",) * 2):
        lengths = torch.tensor([len(getattr(u, rows)) for u in batch])
        inputs[f"cu_seq_lens_{name}"] = cumulative(lengths)
        inputs[f"max_length_{name}"] = int(lengths.max())
        if name == rows:
            inputs[name] = torch.cat([getattr(u, name) for u in batch])
    for name in batch[0].counts:
        counts = torch.cat([u.counts[name] for u in batch])
        inputs[f"cu_seq_lens_{name}_of_words"] = cumulative(counts)
        inputs[f"max_length_{name}_of_words"] = max(counts.tolist(), default=0)
    return _read_by(model, inputs)


def padded(batch: Sequence[Utterance], model: Any, extra: int = 2) -> dict[str, Any]:
    """The same, padded by ``extra`` more than needed, with rubbish at padding."""
    inputs: dict[str, Any] = {}
    inputs["input_ids"], inputs["attention_mask"] = _pad([u.ids for u in batch], extra, 7)
    inputs["token_words"], _ = _pad([u.words for u in batch], extra, -1)
    inputs["word_vectors"] = torch.cat([u.vectors for u in batch])
    for name in ("visual", "acoustic"):
        inputs[name], inputs[f"{name}_mask"] = _pad([getattr(u, name) for u in batch], extra, 1e3)
        inputs[f"token_frames_{name}"], _ = _pad([_frames_of_pieces(u, name) for u in batch], extra, -1)
    for name in batch[0].counts:
        words = [torch.arange(len(u.vectors)).repeat_interleave(u.counts[name]) for u in batch]
        inputs[f"{name}_words"], _ = _pad(words, extra, -1)
    return _read_by(model, inputs)


def _frames_of_pieces(utterance: Utterance, name: str) -> Tensor:
    """The frame of each piece, where frames are aligned: that of its word."""
    return utterance.words if len(getattr(utterance, name)) else torch.full_like(utterance.words, -1)


def _pad(rows: list[Tensor], extra: int, value: float) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows)) + extra
    whole = torch.full((len(rows), width, *rows[0].shape[1:]), value, dtype=rows[0].dtype)
    for out, row in zip(whole, rows, strict=True):
        out[: len(row)] = row
    return whole, (torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]).long()


def _read_by(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    absent = [name for name in ("visual", "acoustic") if not getattr(model.config, f"{name}_size")]
    return {n: x for n, x in inputs.items() if n in model.inputs and not any(m in n for m in absent)}
