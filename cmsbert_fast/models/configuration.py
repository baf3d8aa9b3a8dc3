"""What the configurations of all systems share: BERT's fields, the frames' sizes and the backend."""

import dataclasses
import os
from typing import Any, ClassVar

from transformers import BertConfig

from cmsbert_fast.data.example import MODALITIES
from cmsbert_fast.ops.dispatch import BACKENDS

# Fields of BertConfig that are free to choose; the others follow from data, tokenizer or variant.
BERT_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
)


class MultimodalConfig(BertConfig):
    """BertConfig plus the frames of face and voice.

    Args:
        visual_size: d_v, size of a visual frame (MOSI 47, MOSEI 35). 0 or None: no visual modality.
        acoustic_size: d_a, size of an acoustic frame (74). 0 or None: no acoustic modality.
        backend: Implementation of the operators, see :mod:`cmsbert_fast.ops.dispatch`. Depends on the machine, not the
            model: not saved.
        **kwargs: Fields of BertConfig. ``num_labels`` defaults to 1, regression.

    Attributes:
        architecture_fields: Those that are free to choose with the setting ``architecture``.

    Raises:
        ValueError: A field is out of range; the message names it.
    """

    architecture_fields: ClassVar[tuple[str, ...]] = BERT_FIELDS

    visual_size: int = 0
    acoustic_size: int = 0
    backend: str = "auto"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None:
            kwargs.setdefault("num_labels", 1)  # sentiment is a score, not one of two classes
        super().__post_init__(**kwargs)
        self.visual_size = self.visual_size or 0
        self.acoustic_size = self.acoustic_size or 0

    @property
    def frame_sizes(self) -> dict[str, int]:
        """d_m by modality; 0 = no such modality."""
        return {name: getattr(self, f"{name}_size") for name in MODALITIES}

    def _check(self) -> None:
        """Raises ValueError for a field that is out of range. Each class calls it once its fields are complete."""
        for name, size in self.frame_sizes.items():
            if size < 0:
                raise ValueError(f"{name}_size={size} is negative; give the size of a frame, or 0 for none.")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend={self.backend!r} is unknown; choose one of {', '.join(BACKENDS)}.")
        if self.is_decoder or self.add_cross_attention:
            raise ValueError(
                f"{self.model_type.upper()} is an encoder; is_decoder and add_cross_attention must be False."
            )

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads the configuration of a checkpoint of this class, or of a BERT checkpoint to start from.

        Raises:
            ValueError: The checkpoint has another architecture.
        """
        fields, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = fields.get("model_type", cls.model_type)
        if model_type not in ("bert", cls.model_type):
            raise ValueError(
                f"{pretrained_model_name_or_path} is a {model_type} checkpoint; {cls.model_type.upper()} starts from "
                "a bert checkpoint."
            )
        return fields | {"model_type": cls.model_type}, rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds the configuration from saved fields, overridden by ``kwargs`` (from ``from_pretrained``).

        Hugging Face would set these ``kwargs`` after construction, too late for checks and defaults.
        """
        own = {field.name for field in dataclasses.fields(cls)} - {"dtype"}
        given = {name: kwargs.pop(name) for name in list(kwargs) if name in own}
        return super().from_dict({**config_dict, **given}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields to save: all but ``backend``, which depends on the machine."""
        fields = super().to_dict()
        fields.pop("backend", None)
        return fields

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields to save that differ from the defaults, and the labels, whose default is not Hugging Face's."""
        fields = self.to_dict()
        return super().to_diff_dict() | {name: fields[name] for name in ("id2label", "label2id")}
