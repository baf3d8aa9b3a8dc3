"""Model inputs for a batch of encoded examples, packed (Hugging Face's padding-free convention) or padded."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cmsbert_fast.data.example import MODALITIES
from cmsbert_fast.models.encoding import Encoded
from cmsbert_fast.models.frame_maps import FrameMaps
from cmsbert_fast.packing import cumulative

Inputs = dict[str, Tensor | int]
# All that word_inputs makes.
WORD_INPUTS = frozenset({"token_words", "cu_seq_lens_words", "max_length_words", "word_vectors", *FrameMaps._fields})


def packed_batch(batch: Sequence[Encoded]) -> Inputs:
    """Pieces and frames, packed."""
    ids = [torch.tensor(example.input_ids) for example in batch]
    lengths = torch.tensor([len(row) for row in ids])
    cu_seqlens, longest = cumulative(lengths), int(lengths.max())
    inputs: Inputs = {"input_ids": torch.cat(ids)[None]}
    inputs["position_ids"] = torch.cat([torch.arange(len(row)) for row in ids])[None]
    inputs |= dict(cu_seq_lens_q=cu_seqlens, cu_seq_lens_k=cu_seqlens)
    inputs |= dict(max_length_q=longest, max_length_k=longest)
    for name in present(batch):
        frames = [_frames(example, name) for example in batch]
        lengths = torch.tensor([len(rows) for rows in frames])
        inputs[name] = torch.cat(frames)
        inputs |= _layout(name, lengths)
    return inputs


def padded_batch(batch: Sequence[Encoded], pad_token_id: int, pad_to: int | None = None) -> Inputs:
    """Pieces and frames, padded to the longest, or to ``pad_to`` if that is more."""
    inputs: Inputs = {}
    ids = [torch.tensor(example.input_ids) for example in batch]
    inputs["input_ids"], inputs["attention_mask"] = _padded(ids, pad_to, pad_token_id)
    for name in present(batch):
        frames = [_frames(example, name) for example in batch]
        inputs[name], inputs[f"{name}_mask"] = _padded(frames, pad_to, 0)
    return inputs


def word_inputs(
    batch: Sequence[Encoded],
    names: Collection[str],
    packed: bool,
    pad_to: int | None = None,
    vectors_of: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> Inputs:
    """The inputs that tell of words, and of the frames of pieces and words: those named that the examples know.

    Args:
        batch: Encoded at the level of the system.
        names: ``token_words``, ``cu_seq_lens_words``, ``max_length_words``, ``word_vectors``; for each modality m
            ``token_frames_m``, ``cu_seq_lens_m_of_words``, ``max_length_m_of_words`` and, padded, ``m_words``. Others
            are ignored. See :class:`~cmsbert_fast.models.frame_maps.FrameMaps`.
        packed: Packed or padded.
        pad_to: Padded only: minimum length.
        vectors_of: Vectors of n words, float32 (n, e); None: there are none, and no ``word_vectors``.
    """
    inputs: Inputs = {}
    counts = torch.tensor([len(example.words) for example in batch])
    if "token_words" in names:
        rows = [torch.from_numpy(example.token_words) for example in batch]
        inputs["token_words"] = _map(rows, counts, packed, pad_to)
    if packed:
        inputs |= _layout("words", counts)
    if "word_vectors" in names and vectors_of is not None:
        inputs["word_vectors"] = torch.from_numpy(vectors_of([word for example in batch for word in example.words]))
    for name in present(batch):
        lengths = torch.tensor([len(getattr(example, name)) for example in batch])
        pieces = _of_modality([example.token_frames for example in batch], name)
        words = _of_modality([example.word_frames for example in batch], name)
        if pieces is not None and f"token_frames_{name}" in names:
            inputs[f"token_frames_{name}"] = _map(pieces, lengths, packed, pad_to)
        if words is not None and packed:
            inputs |= _layout(f"{name}_of_words", torch.cat(words))
        elif words is not None:
            of_frames = [torch.arange(len(own)).repeat_interleave(own) for own in words]
            inputs[f"{name}_words"], _ = _padded(of_frames, pad_to, -1)
    return {name: value for name, value in inputs.items() if name in names}


def present(batch: Sequence[Encoded]) -> list[str]:
    """The modalities that have features."""
    return [name for name in MODALITIES if getattr(batch[0], name).shape[1]]


def _frames(example: Encoded, name: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(getattr(example, name)))


def _layout(name: str, lengths: Tensor) -> Inputs:
    """Offsets and the greatest length of packed sequences."""
    longest = int(lengths.max()) if len(lengths) else 0
    return {f"cu_seq_lens_{name}": cumulative(lengths), f"max_length_{name}": longest}


def _of_modality(known: Sequence[Mapping[str, np.ndarray] | None], name: str) -> list[Tensor] | None:
    """The arrays of a modality; None if any is unknown."""
    found = [torch.from_numpy(own[name]) for own in known if own is not None]
    return found if len(found) == len(known) else None


def _map(rows: Sequence[Tensor], lengths: Tensor, packed: bool, pad_to: int | None) -> Tensor:
    """Indices into sequences of these lengths, -1 = none: of the whole batch, (1, T), or within each, (B, N)."""
    if not packed:
        return _padded(rows, pad_to, -1)[0]
    begins = lengths.cumsum(0) - lengths
    counted = [torch.where(own < 0, own, own + begin) for own, begin in zip(rows, begins, strict=True)]
    return torch.cat(counted)[None]


def _padded(rows: Sequence[Tensor], pad_to: int | None, value: int) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one tensor, and the mask, 1 = valid."""
    lengths = torch.tensor([len(row) for row in rows])
    width = max(int(lengths.max()), pad_to or 0)
    tensor = rows[0].new_full((len(rows), width, *rows[0].shape[1:]), value)
    for out, row in zip(tensor, rows, strict=True):
        out[: len(row)] = row
    return tensor, (torch.arange(width) < lengths[:, None]).long()
