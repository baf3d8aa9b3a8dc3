"""What the configurations of all systems share: BERT's fields, the frames' sizes and the backend."""

import dataclasses
import os
from typing import Any, ClassVar

from transformers import BertConfig, PreTrainedConfig
from transformers.utils import logging

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

# Fields of a checkpoint's config.json that would decide which code runs, or what is read beside its folder.
_POWERFUL = frozenset(
    {
        *("attn_implementation", "experts_implementation", "use_kernels", "auto_map", "custom_pipelines"),
        *("transformers_weights", "per_layer_config", "distributed_config", "name_or_path"),
    }
)
_KEPT = frozenset({"model_type", "quantization_config", "output_attentions"})  # attributes of every class
_LABELS = frozenset({"num_labels", "id2label", "label2id", "problem_type"})  # every configuration takes them
_logger = logging.get_logger(__name__)


def declared_fields(config_class: type[PreTrainedConfig]) -> frozenset[str]:
    """The names of the fields that a class of configurations has."""
    return frozenset(field.name for field in dataclasses.fields(config_class)) | _LABELS


def harmless_fields(fields: dict[str, Any], config_class: type[PreTrainedConfig]) -> tuple[dict[str, Any], list[str]]:
    """The fields of a stranger's config.json that cannot do more than describe the model.

    Left out are those in ``_POWERFUL``, private ones, and those that would replace a method.

    Returns:
        The others, and the names of those left out that ask for something.
    """
    declared = declared_fields(config_class)

    def has_power(name: str) -> bool:
        if name in _POWERFUL or name.startswith("_"):
            return True
        return name not in declared | _KEPT and hasattr(config_class, name)

    left_out = [name for name in fields if has_power(name)]
    asking = [name for name in left_out if name != "_name_or_path" and fields[name] not in (None, "eager", "sdpa")]
    return {name: value for name, value in fields.items() if name not in left_out}, asking


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
        fields, ignored = harmless_fields(fields, cls)
        if ignored:
            _logger.warning(
                f"{pretrained_model_name_or_path}: its config.json sets {', '.join(ignored):.200}, which is ignored."
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
