"""The base of the baselines: from inputs, padded or packed, to packed rows of text and frames, and to the task loss."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoProcessor

from cmsbert_fast.data.example import MODALITIES
from cmsbert_fast.models.adapters import require_input_gradients
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.baselines.configuration import BaselineConfig
from cmsbert_fast.models.baselines.text import Text, TextBert
from cmsbert_fast.models.baselines.words import WordInputs, Words, pack_words
from cmsbert_fast.models.encoding import FrameLevel
from cmsbert_fast.models.frame_maps import FrameMaps
from cmsbert_fast.models.inputs import Frames, Inputs, PackedInputs, known_inputs, pack
from cmsbert_fast.models.layers import init_as_torch
from cmsbert_fast.models.losses import LossTerm, task_loss
from cmsbert_fast.models.processing import CMSBertProcessor
from cmsbert_fast.ops.dropout.api import use_cheap_dropout
from cmsbert_fast.packing import take_rows, without_rest

# A part of the names of the FrameMaps that a level has.
_MAPS = {FrameLevel.PIECES: "token_frames", FrameLevel.OF_WORDS: "words"}


class Utterances(NamedTuple):
    """A batch as a baseline reads it.

    Attributes:
        text: Rows of pieces or of words.
        frames: By modality, without those that the model lacks.
        words: The words, for a system of words, else None.
        maps: The frames of pieces and words, for a system whose ``frame_level`` is either.
        inputs: The packed inputs behind all this.
    """

    text: Text
    frames: Mapping[str, Frames]
    words: Words | None
    maps: FrameMaps
    inputs: PackedInputs


class Baseline(Classifier):
    """A published system. A subclass makes its layers and implements :meth:`read`.

    New modules start as PyTorch's own do, not as BERT's. Their names say their parameter group: ``text_*``,
    ``visual_*``, ``acoustic_*``; all others are "other". BERT's weights are ``bert.*``, in group "text".

    Attributes:
        of_words: Whether it reads one row a word; else it reads word pieces, and words only where ``config.text`` is
            "vectors".
        modalities: Those that the model has, of :data:`MODALITIES`.
        bert: BERT; None where ``config.text`` is "vectors".
    """

    config_class = BaselineConfig
    config: BaselineConfig
    base_model_prefix = "bert"
    _keys_to_ignore_on_load_unexpected = [r"^(bert\.)?pooler\.", r"^cls\."]  # noqa: RUF012
    operators: ClassVar[Sequence[str]] = ("attention", "lstm")
    parameter_groups = ("text", "visual", "acoustic", "other")
    of_words: ClassVar[bool] = False

    def __init__(self, config: BaselineConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 1
        self.modalities = [name for name in MODALITIES if config.frame_sizes[name]]
        self.bert = None if config.text == "vectors" else TextBert(config)
        self.inputs = (*Inputs._fields, *self._more_inputs())

    def post_init(self) -> None:
        """To be called at the end of ``__init__``: initialises what is new, and makes dropout cheap."""
        use_cheap_dropout(self, self.config)
        super().post_init()
        if self.bert is not None:
            self.bert.freeze()

    def require_frames(self, system: str) -> None:
        """For systems that cannot do without frames.

        Raises:
            ValueError: The model has no modality of :data:`MODALITIES`.
        """
        if not self.modalities:
            raise ValueError(
                f"{system} needs a second modality; give its configuration a visual_size or an acoustic_size."
            )

    def enable_input_require_grads(self) -> None:
        if self.bert is not None:
            require_input_gradients(self)

    @property
    def _reads_words(self) -> bool:
        return self.of_words or self.config.text == "vectors"

    def _more_inputs(self) -> list[str]:
        """The features of frozen text, and the inputs that tell of words, and of their frames or of those of pieces."""
        names = ["text_features"] if self.config.text == "bert-frozen" else []
        part = _MAPS.get(self.frame_level)
        if part is not None:
            names += [name for name in FrameMaps._fields if part in name]
        if self._reads_words:
            names += [name for name in WordInputs._fields if name != "word_vectors" or self.config.text == "vectors"]
        return names

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As Hugging Face's; what is not trained stays so."""
        loaded = super().from_pretrained(*arguments, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.bert is not None:
            model.bert.freeze()
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_as_torch(module)
        # Hugging Face guards torch.nn.init meanwhile: weights of a checkpoint stay.
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()

    def parameter_group(self, name: str) -> str:
        first = "text" if self.from_bert(name) else name.partition("_")[0]
        return first if first in self.parameter_groups else "other"

    def rows(self, **inputs: Any) -> dict[str, Tensor]:
        """The rows of :meth:`read`.

        Args:
            **inputs: Those of :class:`~cmsbert_fast.models.inputs.Inputs`, padded or packed; for a system of words
                those of :class:`~cmsbert_fast.models.baselines.words.WordInputs`, and for one of pieces' or words'
                frames those of :class:`~cmsbert_fast.models.frame_maps.FrameMaps`; and ``text_features``, the result of
                :meth:`text_features` if it is known.

        Raises:
            ValueError: As :meth:`utterances`.
        """
        return self.read(self.utterances(**inputs))

    def read(self, batch: Utterances) -> dict[str, Tensor]:
        """The rows of a packed batch: "logits" (B, num_labels), and what the losses read."""
        raise NotImplementedError

    def utterances(self, *, text_features: Tensor | None = None, **inputs: Any) -> Utterances:
        """The batch in the form of :meth:`read`; arguments as in :meth:`rows`.

        Raises:
            ValueError: A shape or a combination of arguments is invalid, or ``text_features`` are given and BERT is
                trained, or there is none; the message says which.
        """
        if text_features is not None and self.config.text != "bert-frozen":
            raise ValueError(f"text_features are for text 'bert-frozen', not {self.config.text!r}; leave them out.")
        inputs = known_inputs(inputs, (*Inputs._fields, *WordInputs._fields, *FrameMaps._fields))
        of_words = WordInputs(**{name: inputs.pop(name) for name in WordInputs._fields if name in inputs})
        maps = FrameMaps(**{name: inputs.pop(name) for name in FrameMaps._fields if name in inputs})
        given = Inputs(**inputs)
        packed = self.pack(given)
        words = pack_words(of_words, packed) if self._reads_words else None
        if self.config.text == "vectors":
            assert words is not None
            text = _vectors(of_words, words, self.dtype)
        else:
            if text_features is None:
                hidden = self.read_bert(packed, self.embedding_shift(given, packed, maps))
            else:
                known = take_rows(text_features, packed.tokens.rows).to(self.dtype)
                hidden = without_rest(known, packed.tokens.packing)
            text = Text(hidden, packed.tokens.packing)
            if self.of_words:
                assert words is not None
                text = Text(words.mean_of_pieces(hidden), words.packing)
        return Utterances(text, self._frames(packed), words, maps, packed)

    def embedding_shift(
        self, given: Inputs, packed: PackedInputs, maps: FrameMaps
    ) -> Callable[[Tensor], Tensor] | None:
        """What changes BERT's embeddings, (T, D) -> (T, D), before its first layer; None: nothing does.

        Args:
            given: The batch as it was given.
            packed: The same, packed.
            maps: The frames of its pieces.
        """
        return None

    def frames(self, **inputs: Any) -> dict[str, Frames]:
        """A batch's frames by modality, packed, without running any layer: for :meth:`prepare`."""
        return self._frames(self.pack(_inputs(inputs)))

    def _frames(self, packed: PackedInputs) -> dict[str, Frames]:
        return {name: getattr(packed.batch, name) for name in self.modalities}

    def pack(self, inputs: Inputs) -> PackedInputs:
        """Padded or packed inputs in packed form."""
        return pack(
            inputs,
            visual_size=self.config.visual_size,
            acoustic_size=self.config.acoustic_size,
            max_positions=self.config.max_position_embeddings,
            dtype=self.dtype,
        )

    def read_bert(self, packed: PackedInputs, shift: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """BERT's last hidden states, packed, (T, D); ``shift`` is that of :meth:`embedding_shift`."""
        assert self.bert is not None
        return self.bert.read(packed, shift)

    def text_features(self, **inputs: Any) -> Tensor:
        """Frozen BERT's last hidden states, (B, N, D) for padded and (1, T, D) for packed inputs.

        They never change: computed once, they may be given to :meth:`rows` as ``text_features``. Inputs as in
        :meth:`rows`; those of words are not read.

        Raises:
            ValueError: BERT is trained, or there is none.
        """
        if self.config.text != "bert-frozen":
            raise ValueError(f"With text {self.config.text!r} features of text are not fixed; compute them each time.")
        packed = self.pack(_inputs(inputs))
        return packed.restore(self.read_bert(packed)[None])

    def row_losses(
        self, rows: Mapping[str, Tensor], labels: Tensor, targets: Tensor | None = None
    ) -> dict[str, LossTerm]:
        """The task loss, as ``config.loss`` says."""
        return {"task": LossTerm(task_loss(rows["logits"], labels, self.config.loss))}


def _vectors(given: WordInputs, words: Words, dtype: torch.dtype) -> Text:
    """The vectors of the words of a batch.

    Raises:
        ValueError: They are not given, or too few.
    """
    if given.word_vectors is None:
        raise ValueError(f"text 'vectors' reads word vectors; give word_vectors of shape ({words.total}, e).")
    return Text(words.vectors(given.word_vectors).to(dtype), words.packing)


def _inputs(given: Mapping[str, Any]) -> Inputs:
    """Those of every system among the inputs of :meth:`Baseline.rows`."""
    return Inputs(**{name: value for name, value in given.items() if name in Inputs._fields})


def register(config_class: type[BaselineConfig], model_class: type[Baseline]) -> None:
    """Makes a system known to Hugging Face's Auto classes."""
    AutoConfig.register(config_class.model_type, config_class)
    AutoModelForSequenceClassification.register(config_class, model_class)
    AutoProcessor.register(config_class, CMSBertProcessor)
