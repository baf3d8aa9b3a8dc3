"""Which frames of a batch belong to its word pieces and words."""

from typing import NamedTuple

import torch
from torch import Tensor

from cmsbert_fast.models.inputs import FrameInputs, Frames, PackedInputs
from cmsbert_fast.packing import Packing, cumulative, take_rows


class FrameMaps(NamedTuple):
    """Input frames of pieces and words, by modality m.

    Attributes:
        token_frames_visual, token_frames_acoustic: The frame of each piece, int64, -1 = none. Packed, (1, T): a row of
            m, counted over the batch. Padded, (B, N): counted within the utterance.
        cu_seq_lens_visual_of_words, cu_seq_lens_acoustic_of_words: Packed only: offsets of the frames of each of the P
            words of the batch, int32 (P + 1,). m holds no other frames.
        max_length_visual_of_words, max_length_acoustic_of_words: Most frames of a word.
        visual_words, acoustic_words: Padded only: the word of each frame, counted within the utterance, int64 (B, N_m),
            ascending, -1 at padding.
    """

    token_frames_visual: Tensor | None = None
    token_frames_acoustic: Tensor | None = None
    cu_seq_lens_visual_of_words: Tensor | None = None
    max_length_visual_of_words: int | None = None
    cu_seq_lens_acoustic_of_words: Tensor | None = None
    max_length_acoustic_of_words: int | None = None
    visual_words: Tensor | None = None
    acoustic_words: Tensor | None = None

    def token_frames(self, name: str, given: FrameInputs, inputs: PackedInputs) -> Tensor:
        """The frame of each packed piece, (T,) int64: a row of the packed frames of modality ``name``, -1 = none.

        Args:
            name: The modality.
            given: Its frames, as they were given.
            inputs: The batch, packed.

        Raises:
            ValueError: The batch does not tell.
        """
        frames: Tensor | None = getattr(self, f"token_frames_{name}")
        if frames is None:
            raise ValueError(f"This system works piece by piece; give token_frames_{name}, the frame of each piece.")
        if given.values is None or given.values.dim() == 2:
            return frames.flatten()
        size, steps = given.values.shape[:2]
        flat = torch.arange(size * steps, device=frames.device)
        begins = torch.arange(size, device=frames.device)[:, None] * steps
        if given.mask is not None:
            valid = given.mask.bool()
            if torch.compiler.is_exporting():  # the rows of an utterance begin where the padded ones do
                flat = torch.where(valid, begins + valid.cumsum(1) - 1, -1).flatten()
            else:
                valid = valid.flatten()
                flat = torch.where(valid, valid.cumsum(0) - 1, -1)
        known = (frames >= 0) & (frames < steps)
        rows = flat.index_select(0, (begins + frames).where(known, 0).flatten()) if steps else frames.flatten()
        counted = torch.where(known.flatten(), rows, -1).view_as(frames)
        return take_rows(counted, inputs.tokens.rows)

    def of_words(self, name: str, frames: Frames, words: Packing) -> Frames:
        """The frames of modality ``name``, packed by the P words instead of by utterance.

        Args:
            name: The modality.
            frames: Its packed frames.
            words: The words of each utterance, with host lengths if the offsets lie on the CPU.

        Raises:
            ValueError: The batch does not tell.
        """
        offsets: Tensor | None = getattr(self, f"cu_seq_lens_{name}_of_words")
        longest: int | None = getattr(self, f"max_length_{name}_of_words")
        if offsets is not None and longest is not None:
            on_host = offsets if offsets.device.type == "cpu" else None
            return Frames(frames.values, Packing(offsets.to(frames.values.device, non_blocking=True), longest, on_host))
        own: Tensor | None = getattr(self, f"{name}_words")
        if own is None:
            raise ValueError(
                f"This system reads the frames of each word; give cu_seq_lens_{name}_of_words and "
                f"max_length_{name}_of_words, or {name}_words with padded frames."
            )
        if frames.packing.is_padded:
            return _by_word(own, frames, words)
        total = int(words.cu_seqlens[-1])
        word = torch.where(own < 0, total, own + words.cu_seqlens[:-1, None])
        counts = word.new_zeros(total + 1).scatter_add(0, word.flatten(), torch.ones_like(word.flatten()))[:-1]
        return Frames(frames.values, Packing(cumulative(counts), own.shape[1]))


def _by_word(own: Tensor, frames: Frames, words: Packing) -> Frames:
    """:meth:`FrameMaps.of_words` for the padded layout of torch.export, where the words share the rows of frames.

    Args:
        own: (B, N_m), the word of each frame, -1 at padding.
        frames: Padded; the valid ones come first.
        words: Padded.
    """
    word = torch.arange(words.max_length, device=own.device)[:, None]
    counts = (own[:, None] == word).sum(dim=2)  # (B, W)
    starts = counts.cumsum(dim=1) - counts + frames.packing.cu_seqlens[:-1, None]
    ends = torch.cat([starts.flatten(), frames.packing.cu_seqlens[-1:]]).int()
    packing = Packing(ends, frames.packing.max_length, row_lengths=counts.flatten().int(), shared=True)
    return Frames(frames.values, packing)
