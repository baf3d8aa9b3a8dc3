"""What the configurations of the baselines share."""

import dataclasses
from typing import Any, ClassVar

from cmsbert_fast.models.configuration import BERT_FIELDS, MultimodalConfig
from cmsbert_fast.models.losses import TASK_LOSSES

TEXTS = ("bert", "bert-frozen", "vectors")


class BaselineConfig(MultimodalConfig):
    """The fields of every baseline. A subclass adds its own and sets ``model_type``, ``text`` and ``loss``.

    A subclass's fields are free to choose (setting ``architecture``) and are checked by their names and types: whole
    numbers are at least 1, numbers named ``*_dropout`` lie in [0, 1), and those named ``*_weight`` are at least 0. For
    more, it extends :meth:`_check`.

    Args:
        text: Where the rows of text come from (:mod:`cmsbert_fast.models.baselines.text`): "bert", fine-tuned;
            "bert-frozen", features of BERT as it is; "vectors", frozen word vectors.
        word_size: e, size of a word vector. Read for ``text="vectors"`` only.
        loss: The task loss for scores, "mse" or "l1".
        pooling: How BERT's output becomes one row an utterance, one of :attr:`poolings`; None: there is no choice.
        frozen_layers: Number of BERT's first layers that are not trained; its embeddings are, as in MISA's code. For
            ``text="bert"`` only.
        **kwargs: Fields of :class:`~cmsbert_fast.models.configuration.MultimodalConfig`.

    Attributes:
        texts: The values of ``text`` that the system can take.
        poolings: The values of ``pooling`` that the system can take.

    Raises:
        ValueError: A field is out of range; the message names it.
    """

    texts: ClassVar[tuple[str, ...]] = TEXTS
    poolings: ClassVar[tuple[str, ...]] = ()

    text: str = "bert"
    word_size: int = 300
    loss: str = "l1"
    pooling: str | None = None
    frozen_layers: int = 0

    def __init_subclass__(cls, *args: Any, **kwargs: Any) -> None:
        super().__init_subclass__(*args, **kwargs)
        cls.architecture_fields = (*BERT_FIELDS, *cls.own_fields())

    @classmethod
    def own_fields(cls) -> tuple[str, ...]:
        """The fields that the system adds to those of every baseline."""
        shared = {field.name for field in dataclasses.fields(BaselineConfig)}
        return tuple(field.name for field in dataclasses.fields(cls) if field.name not in shared)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._check()

    @property
    def text_size(self) -> int:
        """Size of a row of text: that of BERT, or of a word vector."""
        return self.word_size if self.text == "vectors" else self.hidden_size

    def _check(self) -> None:
        super()._check()
        kinds = {field.name: field.type for field in dataclasses.fields(self)}
        for name in self.own_fields():
            _check_number(name, getattr(self, name), kinds[name])
        for name, choices in (("text", self.texts), ("loss", TASK_LOSSES), ("pooling", self.poolings)):
            value = getattr(self, name)
            if value not in choices and (choices or value is not None):
                known = f"choose one of {', '.join(choices)}" if choices else "this system has none"
                raise ValueError(f"{name} is {value!r}; {known}.")
        if not 0 <= self.frozen_layers <= self.num_hidden_layers:
            raise ValueError(f"frozen_layers is {self.frozen_layers} of {self.num_hidden_layers} layers.")
        if self.frozen_layers and self.text != "bert":
            raise ValueError(f"frozen_layers is for text 'bert', not {self.text!r}; leave it out.")
        if self.text == "vectors" and self.word_size < 1:
            raise ValueError(f"word_size is {self.word_size} but must be at least 1.")


def _check_number(name: str, value: Any, kind: Any) -> None:
    """Checks a field of type int or float; others are the system's own affair."""
    if kind is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} is {value!r} but must be a whole number of at least 1.")
    if kind is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{name} is {value!r} but must be a number.")
    if name.endswith("_dropout") and not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r} but must be at least 0 and less than 1.")
    if name.endswith("_weight") and not value >= 0:
        raise ValueError(f"{name} is {value!r} but must be at least 0.")
