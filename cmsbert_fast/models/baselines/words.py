"""The words of a batch, for systems that work word by word: which pieces they are made of, their vectors and frames."""

from typing import NamedTuple

import torch
from torch import Tensor

from cmsbert_fast.models.inputs import Frames, PackedInputs
from cmsbert_fast.packing import (
    Packing,
    cumulative,
    padded_packing,
    positions,
    sequence_of_row,
    take_rows,
    valid_positions,
)


class WordInputs(NamedTuple):
    """The inputs of a batch that tell of its words.

    Attributes:
        token_words: The word of each piece, int64, -1 at [CLS], [SEP] and padding. Packed, (1, T): counted over the
            batch. Padded, (B, N): counted within the utterance.
        cu_seq_lens_words, max_length_words: Packed only: which words belong to which utterance.
        word_vectors: For ``text="vectors"``. Packed, (P, e); with padded inputs also padded, (B, W, e).
    """

    token_words: Tensor | None = None
    cu_seq_lens_words: Tensor | None = None
    max_length_words: int | None = None
    word_vectors: Tensor | None = None


class Words(NamedTuple):
    """The P words of a batch.

    Attributes:
        packing: Which of them belong to which utterance.
        of_tokens: (T,) int64, the word of each piece, -1 = none.
        total: P.
    """

    packing: Packing
    of_tokens: Tensor
    total: int

    def mean_of_pieces(self, values: Tensor) -> Tensor:
        """(T, D) -> (P, D): the mean over each word's pieces; [CLS] and [SEP] are dropped.

        Sums in float32 at least, in a fixed order.
        """
        word = torch.where(self.of_tokens < 0, self.total, self.of_tokens)
        if self.packing.is_padded:
            with_ones = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
            sums = values.new_zeros(self.total + 1, with_ones.shape[1])
            sums = sums.scatter_add(0, word[:, None].expand_as(with_ones), with_ones)[:-1]
            return sums[:, :-1] / sums[:, -1:].clamp(min=1)
        pieces = word.new_zeros(self.total + 1).scatter_add(0, word, torch.ones_like(word))[:-1]
        wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        ordered = wide.index_select(0, word.argsort(stable=True))
        total = torch.segment_reduce(ordered, "sum", lengths=pieces, axis=0, unsafe=True, initial=0)
        return (total / pieces.clamp(min=1).to(wide.dtype)[:, None]).to(values.dtype)

    def vectors(self, given: Tensor) -> Tensor:
        """The vector of each word, (P, e), from :attr:`WordInputs.word_vectors`.

        Raises:
            ValueError: There are fewer than words.
        """
        if given.dim() == 3:
            if self.packing.is_padded:
                return given.flatten(0, 1)
            given = given[valid_positions(self.packing)[:, : given.shape[1]]]
        if len(given) < self.total:
            raise ValueError(f"There are {len(given)} word_vectors but {self.total} words; give one each.")
        return given[: self.total]

    def frames(self, frames: Frames) -> Tensor:
        """Frames of word-aligned utterances, (P, d_m): the frame of each word, 0 where an utterance has none."""
        values, packing = frames
        if values.shape[0] == 0:
            return values.sum(dim=0).expand(self.total, values.shape[1])  # zeros that keep the graph connected
        utterance = sequence_of_row(self.packing, self.total).clamp(max=packing.cu_seqlens.shape[0] - 2)
        position = positions(self.packing, self.total)
        found = values.index_select(0, (packing.cu_seqlens[utterance] + position).clamp(max=values.shape[0] - 1))
        return found.masked_fill((position >= packing.lengths[utterance])[:, None], 0)


def pack_words(given: WordInputs, inputs: PackedInputs) -> Words:
    """The words of a batch, padded or packed.

    Raises:
        ValueError: The batch does not tell of its words.
    """
    if given.token_words is None:
        raise ValueError("This system works word by word; give token_words, the word of each piece.")
    if given.cu_seq_lens_words is not None and given.max_length_words is not None:
        on_host = given.cu_seq_lens_words if given.cu_seq_lens_words.device.type == "cpu" else None
        cu_seqlens = given.cu_seq_lens_words.to(given.token_words.device, non_blocking=True)
        packing = Packing(cu_seqlens, given.max_length_words, on_host)
        return Words(packing, given.token_words.flatten(), int(given.cu_seq_lens_words[-1]))
    counts = (given.token_words + 1).amax(dim=1)
    if torch.compiler.is_exporting():
        vectors = given.word_vectors
        longest = given.token_words.shape[1] if vectors is None else vectors.shape[1]
        packing = padded_packing(counts, longest)
        counted = torch.where(given.token_words < 0, -1, given.token_words + packing.cu_seqlens[:-1, None])
        return Words(packing, take_rows(counted, inputs.tokens.rows), counts.shape[0] * longest)
    cu_seqlens = cumulative(counts)
    counted = torch.where(given.token_words < 0, -1, given.token_words + cu_seqlens[:-1, None])
    packing = Packing(cu_seqlens, given.token_words.shape[1])
    return Words(packing, take_rows(counted, inputs.tokens.rows), int(cu_seqlens[-1]))
