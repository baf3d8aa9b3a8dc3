"""From words and frames to model inputs: tokenizer plus frame statistics, saved with the model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, PreTrainedTokenizerBase, ProcessorMixin

from cmsbert_fast.data.example import MODALITIES, Example, Label
from cmsbert_fast.data.statistics import Moments
from cmsbert_fast.models.cmsbert.configuration_cmsbert import CMSBertConfig
from cmsbert_fast.packing import cumulative


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example, ready for collation.

    Attributes:
        id: Id of the example.
        input_ids: Word pieces, [CLS] and [SEP] included.
        visual, acoustic: Standardised frames, float32 (N_m, d_m).
        token_frames: The frame of each word piece, -1 for [CLS] and [SEP]; None unless the source is word-aligned. Not
            used by CMS; models that work within a time step need it.
        label: Label of the example.
    """

    id: str
    input_ids: list[int]
    visual: np.ndarray
    acoustic: np.ndarray
    token_frames: np.ndarray | None
    label: Label | None


class CMSBertProcessor(ProcessorMixin):
    """Turns words and frames into model inputs, padded or packed.

    Args:
        tokenizer: BERT's.
        visual_mean, visual_std, acoustic_mean, acoustic_std: Statistics of the training frames, one number per feature;
            None = no standardisation. :meth:`fit` computes them.
        max_length: Maximum number of word pieces, [CLS] and [SEP] included. Longer utterances are cut at a word
            boundary, together with word-aligned frames.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        visual_mean: list[float] | None = None,
        visual_std: list[float] | None = None,
        acoustic_mean: list[float] | None = None,
        acoustic_std: list[float] | None = None,
        max_length: int = 50,
        **kwargs: object,
    ):
        if max_length < 3:
            raise ValueError(
                f"max_length={max_length} leaves no room for a word between [CLS] and [SEP]; give 3 or more."
            )
        self.visual_mean, self.visual_std = visual_mean, visual_std
        self.acoustic_mean, self.acoustic_std = acoustic_mean, acoustic_std
        self.max_length = max_length
        super().__init__(tokenizer, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "visual", "visual_mask", "acoustic", "acoustic_mask"]

    def fit(self, examples: Iterable[Example]) -> "CMSBertProcessor":
        """Computes mean and standard deviation of every feature over all frames of the (training) examples.

        In float64, one example at a time. Constant features get standard deviation 1. Non-finite values count as 0, as
        in :meth:`__call__`.

        Returns:
            The processor itself.
        """
        moments = {name: Moments() for name in MODALITIES}
        for example in examples:
            for name in MODALITIES:
                moments[name].see(_finite(getattr(example, name)))
        statistics = {name: (found.mean, found.std) for name, found in moments.items() if found.count}
        return self.set_statistics(statistics)

    def set_statistics(self, statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> "CMSBertProcessor":
        """Sets mean and standard deviation of every feature, by modality, as :meth:`fit` does.

        Returns:
            The processor itself.
        """
        for name, (mean, std) in statistics.items():
            constant = std <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
            setattr(self, f"{name}_mean", mean.tolist())
            setattr(self, f"{name}_std", np.where(constant, 1.0, std).tolist())
        return self

    def encode(self, example: Example) -> Encoded:
        """Tokenizes the words, cuts to ``max_length`` and standardises the frames; non-finite values become 0.

        Raises:
            ValueError: The frames and the statistics differ in size.
        """
        pieces, word_of_piece = self._tokenize(example.words)
        kept = example.words if not word_of_piece else example.words[: word_of_piece[-1] + 1]
        frames = {name: self._standardised(name, getattr(example, name)) for name in MODALITIES}
        token_frames = None
        if example.aligned:
            frames = {name: values[: len(kept)] for name, values in frames.items()}
            token_frames = np.array([-1, *word_of_piece, -1])
        input_ids = [self.tokenizer.cls_token_id, *pieces, self.tokenizer.sep_token_id]
        return Encoded(example.id, input_ids, frames["visual"], frames["acoustic"], token_frames, example.label)

    def _tokenize(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """Word pieces, and the word each belongs to, cut at a word boundary."""
        if not words:
            return [], []
        encoding = self.tokenizer(list(words), is_split_into_words=True, add_special_tokens=False)
        pieces, word_of_piece = encoding["input_ids"], encoding.word_ids()
        room = self.max_length - 2
        if len(pieces) > room:
            # The word at the limit is dropped whole, unless it is the first: then its beginning stays.
            cut = word_of_piece.index(word_of_piece[room]) or room
            pieces, word_of_piece = pieces[:cut], word_of_piece[:cut]
        return pieces, word_of_piece

    def _standardised(self, name: str, frames: np.ndarray) -> np.ndarray:
        frames = _finite(frames)
        mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
        if mean is None:
            return np.asarray(frames, dtype=np.float32)
        if frames.shape[-1] != len(mean):
            raise ValueError(
                f"{name} frames have {frames.shape[-1]} features, but the processor was fitted to {len(mean)}; "
                "give the features it was fitted to."
            )
        return ((frames - np.asarray(mean)) / np.asarray(std)).astype(np.float32)

    def collate(
        self, batch: Sequence[Encoded], packed: bool = True, pad_to: int | None = None
    ) -> dict[str, Tensor | int]:
        """Model inputs for a batch, with ``labels`` if every example has one.

        Args:
            batch: One or more examples.
            packed: Packed (Hugging Face's padding-free convention) or padded.
            pad_to: Padded only: minimum length of tokens and frames.

        Returns:
            Keyword arguments for the models' forward. A modality without features (d_m = 0) is left out.
        """
        inputs: dict[str, Tensor | int] = {}
        ids = [torch.tensor(example.input_ids) for example in batch]
        if packed:
            lengths = torch.tensor([len(row) for row in ids])
            cu_seqlens, longest = cumulative(lengths), int(lengths.max())
            inputs["input_ids"] = torch.cat(ids)[None]
            inputs["position_ids"] = torch.cat([torch.arange(len(row)) for row in ids])[None]
            inputs |= dict(cu_seq_lens_q=cu_seqlens, cu_seq_lens_k=cu_seqlens)
            inputs |= dict(max_length_q=longest, max_length_k=longest)
        else:
            inputs["input_ids"], inputs["attention_mask"] = _padded(ids, pad_to, self.tokenizer.pad_token_id)
        for name in MODALITIES:
            frames = [torch.from_numpy(np.ascontiguousarray(getattr(example, name))) for example in batch]
            if not frames[0].shape[1]:
                continue
            if packed:
                lengths = torch.tensor([len(rows) for rows in frames])
                inputs[name] = torch.cat(frames)
                inputs[f"cu_seq_lens_{name}"] = cumulative(lengths)
                inputs[f"max_length_{name}"] = int(lengths.max())
            else:
                inputs[name], inputs[f"{name}_mask"] = _padded(frames, pad_to, 0)
        labels = [example.label for example in batch]
        if None not in labels:
            is_class = all(isinstance(label, (int, np.integer)) for label in labels)
            inputs["labels"] = torch.tensor(labels, dtype=torch.int64 if is_class else torch.float32)
        return inputs

    def __call__(
        self,
        words: str | Sequence[str] | Sequence[Sequence[str]],
        visual: np.ndarray | Sequence[np.ndarray] | None = None,
        acoustic: np.ndarray | Sequence[np.ndarray] | None = None,
        aligned: bool = False,
        packed: bool = False,
    ) -> dict[str, Tensor | int]:
        """Model inputs for one utterance or a batch. Non-finite values become 0, as in training.

        Args:
            words: One utterance as text or as words, or a batch of texts or of lists of words. A list of single words
                is one utterance, unless the frames are a list.
            visual, acoustic: (N_m, d_m) for one utterance, a list of them for a batch; None = absent.
            aligned: Whether frame k belongs to word k; if the text is cut, so are its frames.
            packed: Packed or padded.

        Raises:
            ValueError: The numbers of utterances differ, or frames are not of shape (N_m, d_m).
        """
        batch = not isinstance(words, str) and (
            any(not isinstance(text, str) or len(text.split()) > 1 for text in words)
            or any(isinstance(frames, (list, tuple)) for frames in (visual, acoustic))
        )
        texts: Sequence = words if batch else [words]
        utterances = [tuple(text.split() if isinstance(text, str) else text) for text in texts]
        frames = {
            name: self._utterance_frames(name, values, batch, len(utterances))
            for name, values in (("visual", visual), ("acoustic", acoustic))
        }
        examples = [
            Example(str(k), text, None, v, a, aligned)
            for k, (text, v, a) in enumerate(zip(utterances, frames["visual"], frames["acoustic"], strict=True))
        ]
        return self.collate([self.encode(example) for example in examples], packed=packed)

    def _utterance_frames(
        self, name: str, values: np.ndarray | Sequence[np.ndarray] | None, batch: bool, count: int
    ) -> list[np.ndarray]:
        """The frames of one modality for ``count`` utterances, non-finite values set to 0."""
        if values is None:
            size = len(getattr(self, f"{name}_mean") or ())
            return [np.zeros((0, size), np.float32)] * count
        arrays = [np.asarray(frames) for frames in (values if batch else [values])]
        if len(arrays) != count:
            raise ValueError(f"{name} has {len(arrays)} utterances but words has {count}; give one each.")
        for frames in arrays:
            if frames.ndim != 2:
                raise ValueError(
                    f"{name} has an utterance of shape {frames.shape}; give (frames, features), a list for a batch."
                )
        return [_finite(frames) for frames in arrays]


def _finite(frames: np.ndarray) -> np.ndarray:
    """Frames with 0 in place of what is not finite."""
    return np.where(np.isfinite(frames), frames, 0)


def _padded(rows: list[Tensor], pad_to: int | None, value: int) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one tensor, and the mask, 1 = valid."""
    lengths = torch.tensor([len(row) for row in rows])
    width = max(int(lengths.max()), pad_to or 0)
    tensor = rows[0].new_full((len(rows), width, *rows[0].shape[1:]), value)
    for out, row in zip(tensor, rows, strict=True):
        out[: len(row)] = row
    return tensor, (torch.arange(width) < lengths[:, None]).long()


AutoProcessor.register(CMSBertConfig, CMSBertProcessor)
