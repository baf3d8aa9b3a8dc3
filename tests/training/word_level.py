"""A system to test the trainer with that reads word vectors, and the frames of each word."""

from typing import Any

import torch
from torch import Tensor, nn

from cmsbert_fast import CMSBertConfig, CMSBertForSequenceClassification
from cmsbert_fast.models.encoding import FrameLevel
from cmsbert_fast.models.frame_maps import FrameMaps
from cmsbert_fast.models.inputs import Inputs
from cmsbert_fast.models.registry import VARIANTS, Variant
from cmsbert_fast.packing import Packing, segment_mean

_OF_WORDS = ("cu_seq_lens_words", "max_length_words", "word_vectors")


class WordConfig(CMSBertConfig):
    text: str = "vectors"
    word_size: int = 1


class WordLevel(CMSBertForSequenceClassification):
    """Adds to CMSBERT's score that of the mean of its words, each a vector and the mean of its acoustic frames."""

    config_class = WordConfig
    config: WordConfig
    frame_level = FrameLevel.OF_WORDS
    inputs = (*Inputs._fields, *_OF_WORDS, *FrameMaps._fields)

    def __init__(self, config: WordConfig):
        super().__init__(config)
        self.words = nn.Linear(config.word_size + config.acoustic_size, self.num_labels)
        self.post_init()

    def rows(self, **inputs: Any) -> dict[str, Tensor]:
        frames = FrameMaps(**{name: inputs.pop(name) for name in FrameMaps._fields if name in inputs})
        offsets, longest, vectors = (inputs.pop(name) for name in _OF_WORDS)
        words = Packing(offsets, longest)
        assert offsets[-1] == len(vectors)
        packed = self.bert.pack(Inputs(**inputs))
        rows = self.head(self.bert.encode(packed).hidden, packed.batch)
        assert packed.batch.acoustic is not None
        own = frames.of_words("acoustic", packed.batch.acoustic, words)
        assert own.packing.cu_seqlens[-1] == len(own.values)
        heard = segment_mean(*own)
        read = segment_mean(torch.cat([vectors, heard], dim=1), words)
        return {"logits": rows["logits"] + self.words(read)}


def register() -> None:
    """Makes it known as ``--variant word-level``."""
    needs = frozenset({"frames", "frames_of_words"})
    VARIANTS["word-level"] = Variant(f"{__name__}:WordLevel", needs)  # type: ignore[index]


def unregister() -> None:
    """Undoes :func:`register`."""
    del VARIANTS["word-level"]  # type: ignore[attr-defined]
