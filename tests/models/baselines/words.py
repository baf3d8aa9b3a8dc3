"""Frames as systems of words see them."""

from collections.abc import Mapping

from torch import Tensor


def frame_of_each_word(frames: Mapping[str, Tensor], words: int) -> dict[str, Tensor]:
    """Zeros in place of the frames of a word-aligned utterance that has none."""
    return {name: rows if len(rows) else rows.new_zeros(words, rows.shape[1]) for name, rows in frames.items()}
