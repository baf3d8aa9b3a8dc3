"""From words and frames to model inputs: tokenizer plus frame statistics, saved with the model."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import cached_file

from cmsbert_fast.data.example import MODALITIES, Alignment, Example
from cmsbert_fast.data.statistics import Moments
from cmsbert_fast.data.word_vectors import WordVectors
from cmsbert_fast.models.cmsbert.configuration_cmsbert import CMSBertConfig
from cmsbert_fast.models.collation import WORD_INPUTS, packed_batch, padded_batch, word_inputs
from cmsbert_fast.models.encoding import Encoded, FrameLevel, encode, frame_words, tokenize

WORD_VECTORS = "word_vectors.safetensors"
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class Reader(Protocol):
    """A :class:`~cmsbert_fast.models.base.Classifier` or its class, as the processor sees it."""

    inputs: Collection[str]
    frame_level: FrameLevel


class CMSBertProcessor(ProcessorMixin):
    """Turns words and frames into model inputs, padded or packed.

    Args:
        tokenizer: BERT's.
        visual_mean, visual_std, acoustic_mean, acoustic_std: Statistics of the training frames, one number per feature;
            None = no standardisation. :meth:`fit` computes them.
        max_length: Maximum number of word pieces, [CLS] and [SEP] included. Longer utterances are cut at a word
            boundary, together with word-aligned frames.
        repeat_frames: For systems that work per word, whether the only frame of an utterance belongs to each word.
        extraction: The fingerprint of the extraction that the training frames are of, by modality
            (:attr:`cmsbert_fast.data.example.Corpus.extraction`); None or no entry: `cmsbert_fast.extract` did not make
            them.
        feature_names: The names of the training frames' features, by modality; None or no entry: not known.

    Attributes:
        word_vectors: For systems that read words as vectors; saved in a file of its own.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        visual_mean: list[float] | None = None,
        visual_std: list[float] | None = None,
        acoustic_mean: list[float] | None = None,
        acoustic_std: list[float] | None = None,
        max_length: int = 50,
        repeat_frames: bool = False,
        extraction: dict[str, str] | None = None,
        feature_names: dict[str, list[str]] | None = None,
        **kwargs: object,
    ):
        if isinstance(max_length, bool) or not isinstance(max_length, int):
            raise TypeError(f"max_length={max_length!r:.100} is no whole number.")
        if max_length < 3:
            raise ValueError(
                f"max_length={max_length} leaves no room for a word between [CLS] and [SEP]; give 3 or more."
            )
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(f"tokenizer is a {type(tokenizer).__name__}; give BERT's tokenizer.")
        _check_statistics("visual", visual_mean, visual_std)
        _check_statistics("acoustic", acoustic_mean, acoustic_std)
        self.visual_mean, self.visual_std = visual_mean, visual_std
        self.acoustic_mean, self.acoustic_std = acoustic_mean, acoustic_std
        self.max_length = max_length
        self.repeat_frames = repeat_frames
        check_known_features(extraction, feature_names)
        self.extraction, self.feature_names = extraction, feature_names
        self.word_vectors: WordVectors | None = None
        super().__init__(tokenizer, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """As Hugging Face's; word vectors go to a file of their own."""
        if self.word_vectors is not None:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            self.word_vectors.save(Path(save_directory) / WORD_VECTORS)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:  # type: ignore[override]
        """As Hugging Face's, with the word vectors if there are any."""
        kwargs.setdefault("trust_remote_code", False)  # else a tokenizer with code of its own asks whether to run it
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        hub = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
        missing = dict(_raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
        path = cached_file(pretrained_model_name_or_path, WORD_VECTORS, **missing, **hub)
        if path is not None:
            processor.word_vectors = WordVectors.load(Path(path))
        return processor

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "visual", "visual_mask", "acoustic", "acoustic_mask"]

    def fit(self, examples: Iterable[Example]) -> "CMSBertProcessor":
        """Computes mean and standard deviation of every feature over all frames of the (training) examples.

        In float64, one example at a time. Constant features get standard deviation 1. Non-finite values count as 0, as
        in :meth:`__call__`.

        Args:
            examples: :class:`cmsbert_fast.data.example.Example`, as ``read_corpus(...).splits["train"]`` holds them.

        Returns:
            The processor itself.

        Raises:
            TypeError: They are something else.
        """
        moments = {name: Moments() for name in MODALITIES}
        for example in examples:
            if not all(hasattr(example, name) for name in MODALITIES):
                raise TypeError(
                    f"fit takes cmsbert_fast.data.Example, as read_corpus(...).splits['train'] holds them, not "
                    f"{type(example).__name__}; for arrays: Example(id, words, label, visual, acoustic)."
                )
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

    def encode(self, example: Example, level: FrameLevel = FrameLevel.UTTERANCE) -> Encoded:
        """Tokenizes the words, cuts to ``max_length`` and standardises the frames; non-finite values become 0.

        Args:
            example: The example.
            level: Which of its frames are needed.

        Raises:
            ValueError: The frames and the statistics differ in size, or the frames of words are needed and not known.
        """
        special = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        pieces = tokenize(self.tokenizer, example.words, self.max_length)
        return encode(example, pieces, self._standardised, special, level, self.repeat_frames)

    def input_ids(self, words: Sequence[str]) -> list[int]:
        """The word pieces of an utterance as :meth:`encode` cuts them, [CLS] and [SEP] included."""
        pieces = tokenize(self.tokenizer, words, self.max_length).ids
        return [self.tokenizer.cls_token_id, *pieces, self.tokenizer.sep_token_id]

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
        self,
        batch: Sequence[Encoded],
        packed: bool = True,
        pad_to: int | None = None,
        names: Collection[str] = (),
    ) -> dict[str, Tensor | int]:
        """Model inputs for a batch, with ``labels`` if every example has one.

        Args:
            batch: One or more examples.
            packed: Packed (Hugging Face's padding-free convention) or padded.
            pad_to: Padded only: minimum length of tokens and frames.
            names: Further inputs, of :func:`~cmsbert_fast.models.collation.word_inputs`.

        Returns:
            Keyword arguments for the models' forward. A modality without features (d_m = 0) is left out.
        """
        inputs = packed_batch(batch) if packed else padded_batch(batch, self.tokenizer.pad_token_id, pad_to)
        if not WORD_INPUTS.isdisjoint(names):
            vectors_of = None if self.word_vectors is None else self.word_vectors.rows
            inputs |= word_inputs(batch, names, packed, pad_to, vectors_of)
        labels = [example.label for example in batch]
        if None not in labels:
            is_class = all(isinstance(label, (int, np.integer)) for label in labels)
            inputs["labels"] = torch.tensor(labels, dtype=torch.int64 if is_class else torch.float32)
        return inputs

    def __call__(
        self,
        words: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        visual: np.ndarray | Sequence[np.ndarray] | None = None,
        acoustic: np.ndarray | Sequence[np.ndarray] | None = None,
        aligned: bool = False,
        packed: bool = False,
        *,
        visual_words: np.ndarray | Sequence[np.ndarray] | None = None,
        acoustic_words: np.ndarray | Sequence[np.ndarray] | None = None,
        model: Reader | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Model inputs for one utterance or a batch. Non-finite values become 0, as in training.

        Args:
            words: One utterance as text or as words, or a batch of texts or of lists of words. A list of single words
                is one utterance, unless the frames are a list.
            visual, acoustic: (N_m, d_m) for one utterance, a list of them for a batch; None = absent.
            aligned: Whether frame k belongs to word k; if the text is cut, so are its frames.
            packed: Packed or padded.
            visual_words, acoustic_words: Not ``aligned``: the word of each frame, int (N_m,), ascending from 0, -1 for
                frames between words; a list of them for a batch. Give them for every modality that has frames.
            model: A baseline: its inputs are made, of words and their frames too. None: those of CMSBERT.
            text: The same as ``words``, under the name that Hugging Face's processors have.
            return_tensors: "pt" or "np".

        Returns:
            Arguments of the models' forward, with Hugging Face's ``.to(device)``.

        Raises:
            ValueError: The numbers of utterances differ, frames are not of shape (N_m, d_m), their words are not one a
                frame or no such word is there, not exactly one of ``words`` and ``text`` is given; or ``model`` reads
                frames of words, and which those are is not told, or word vectors, and the processor has none.
        """
        if (words is None) == (text is None):
            raise ValueError("Give the utterances as words or as text, one of them.")
        if return_tensors not in ("pt", "np"):
            raise ValueError(f"return_tensors={return_tensors!r} is unknown; choose 'pt' or 'np'.")
        words = text if words is None else words
        assert words is not None
        of_frames = {"visual": visual_words, "acoustic": acoustic_words}
        examples = self._examples(words, {"visual": visual, "acoustic": acoustic}, of_frames, aligned)
        inputs: Mapping[str, Any] = self._read_by(model, examples, packed)
        if return_tensors == "np":
            inputs = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        return BatchFeature(dict(inputs))

    def _examples(
        self,
        words: str | Sequence[str] | Sequence[Sequence[str]],
        given: Mapping[str, np.ndarray | Sequence[np.ndarray] | None],
        of_frames: Mapping[str, np.ndarray | Sequence[np.ndarray] | None],
        aligned: bool,
    ) -> list[Example]:
        """The utterances of a call, of the arguments of :meth:`__call__`; frames and their words by modality."""
        batch = not isinstance(words, str) and (
            any(not isinstance(text, str) or len(text.split()) > 1 for text in words)
            or any(isinstance(frames, (list, tuple)) for frames in given.values())
        )
        texts: Sequence = words if batch else [words]
        utterances = [tuple(text.split() if isinstance(text, str) else text) for text in texts]
        frames = {name: self._utterance_frames(name, v, batch, len(utterances)) for name, v in given.items()}
        known = None
        if any(values is not None for values in of_frames.values()):
            if aligned:
                raise ValueError("Give aligned=True or the words of the frames, one of them.")
            listed: Any = {n: [v] if v is not None and not batch else v for n, v in of_frames.items()}
            known = frame_words(listed, frames, utterances)
        alignment = Alignment.WORDS if aligned else Alignment.NONE
        return [
            Example(str(k), text, None, v, a, alignment, None if known is None else known[k])
            for k, (text, v, a) in enumerate(zip(utterances, frames["visual"], frames["acoustic"], strict=True))
        ]

    def _read_by(self, model: Reader | None, examples: Sequence[Example], packed: bool) -> Mapping[str, Any]:
        """The inputs that a model reads; None: CMSBERT."""
        if model is None:
            return self.collate([self.encode(example) for example in examples], packed=packed)
        names, most = frozenset(model.inputs), 1 if self.repeat_frames else 0
        if "word_vectors" in names and self.word_vectors is None:
            raise ValueError("The model reads word vectors: set the processor's word_vectors, or load it from a run.")
        if model.frame_level is not FrameLevel.UTTERANCE and any(
            example.alignment is Alignment.NONE
            and example.frame_words is None
            and max(len(example.visual), len(example.acoustic)) > most
            for example in examples
        ):
            raise ValueError(
                "The model reads the frames of each word: say which those are, by aligned=True (one frame a word) or "
                "by visual_words and acoustic_words."
            )
        return self.collate([self.encode(example, model.frame_level) for example in examples], packed, names=names)

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


def _check_statistics(name: str, mean: object, std: object) -> None:
    """Checks means and standard deviations, which may come from a file.

    Raises:
        ValueError: They are not lists of as many finite numbers, or a standard deviation is not above 0.
    """
    if mean is None and std is None:
        return
    for values in (mean, std):
        if not isinstance(values, list | tuple) or not all(type(value) in (int, float) for value in values):
            raise ValueError(f"{name}_mean and {name}_std must be lists of numbers.")
        if not np.isfinite(np.array(values, dtype=np.float64)).all():
            raise ValueError(f"{name}_mean and {name}_std must be finite.")
    if len(mean) != len(std) or not all(value > 0 for value in std):  # type: ignore[arg-type,attr-defined]
        raise ValueError(f"{name}_std must have as many numbers as {name}_mean, all above 0.")


def check_known_features(extraction: object, feature_names: object) -> None:
    """Checks the processor's arguments of these names, which may come from a file.

    Raises:
        ValueError: They are not texts, or lists of texts, by modality.
    """
    for name, found, what, is_right in (
        ("extraction", extraction, "a fingerprint", _is_text),
        ("feature_names", feature_names, "a list of names", _are_texts),
    ):
        if found is None:
            continue
        if not isinstance(found, dict) or not (set(MODALITIES) >= found.keys() and all(map(is_right, found.values()))):
            raise ValueError(f"{name} must hold {what} for each of {', '.join(MODALITIES)}, or for one of them.")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_texts(values: object) -> bool:
    return isinstance(values, list | tuple) and all(map(_is_text, values))


def _finite(frames: np.ndarray) -> np.ndarray:
    """Frames with 0 in place of what is not finite."""
    return np.where(np.isfinite(frames), frames, 0)


AutoProcessor.register(CMSBertConfig, CMSBertProcessor)
