"""Configuration of CMSBERT and CMSBERT-CLR, in Hugging Face form."""

import dataclasses
import os
from typing import Any, ClassVar

from transformers import AutoConfig, BertConfig

from cmsbert_fast.data.example import MODALITIES
from cmsbert_fast.ops.attention.types import ACTIVATIONS
from cmsbert_fast.ops.dispatch import BACKENDS

FUSION_HEADS = 2  # heads of the Transformer layer that fuses the modalities (section III.C, after MISA)


class CMSBertConfig(BertConfig):
    """BertConfig plus the fields of context-driven modality shifting and contrastive learning.

    Args:
        visual_size: d_v, size of a visual frame (MOSI 47, MOSEI 35). 0 or None: no visual modality.
        acoustic_size: d_a, size of an acoustic frame (74). 0 or None: no acoustic modality.
        gate_activation: sigma of Eq. 1 and 2: "relu", "sigmoid" or "tanh".
        cms_layers: Layers with CMS, counted from 0. None: all (CMSBERT); [0]: CMSBERT/1; []: plain BERT.
        projection_size: d, size of the LSTMs, projectors and fusion (Eq. 8-16). None: hidden_size.
        temperature: tau of Eq. 17 and 18.
        smoothing: beta of Eq. 23. None: no label smoothing.
        threshold: delta of Eq. 23.
        backend: Implementation of CMS attention and of the contrastive loss, see :mod:`cmsbert_fast.ops.dispatch`.
            Depends on the machine, not the model: not saved.
        **kwargs: Fields of BertConfig. ``num_labels`` defaults to 1, regression.

    Attributes:
        architecture_fields: Those that are free to choose; the others follow from data, tokenizer or variant.

    Raises:
        ValueError: A field is out of range; the message names it.
    """

    model_type = "cmsbert"
    architecture_fields: ClassVar[tuple[str, ...]] = (
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

    visual_size: int = 0
    acoustic_size: int = 0
    gate_activation: str = "relu"
    cms_layers: list[int] = None  # type: ignore[assignment]  # __post_init__ replaces None
    projection_size: int = None  # type: ignore[assignment]  # __post_init__ replaces None
    temperature: float = 0.1
    smoothing: float | None = 0.9
    threshold: float = 0.1
    backend: str = "auto"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None:
            kwargs.setdefault("num_labels", 1)  # sentiment is a score, not one of two classes
        super().__post_init__(**kwargs)
        self.visual_size = self.visual_size or 0
        self.acoustic_size = self.acoustic_size or 0
        if self.cms_layers is None:
            self.cms_layers = list(range(self.num_hidden_layers))
        if self.projection_size is None:
            self.projection_size = self.hidden_size
        self._check()

    @property
    def frame_sizes(self) -> dict[str, int]:
        """d_m by modality; 0 = no such modality."""
        return {name: getattr(self, f"{name}_size") for name in MODALITIES}

    def _check(self) -> None:
        for name, size in self.frame_sizes.items():
            if size < 0:
                raise ValueError(f"{name}_size={size} is negative; give the size of a frame, or 0 for none.")
        if self.gate_activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"gate_activation={self.gate_activation!r} is unknown; choose one of {known}.")
        outside = [layer for layer in self.cms_layers if not 0 <= layer < self.num_hidden_layers]
        if outside:
            raise ValueError(
                f"cms_layers holds {outside}, but the model has layers 0 to {self.num_hidden_layers - 1}; "
                "give only those."
            )
        if self.projection_size < 1 or self.projection_size % FUSION_HEADS:
            raise ValueError(
                f"projection_size={self.projection_size} cannot be split over the {FUSION_HEADS} heads of the fusion; "
                "give a positive even number."
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be positive.")
        if self.smoothing is not None and not 0 < self.smoothing <= 1:
            raise ValueError(
                f"smoothing={self.smoothing} is out of range; give beta in (0, 1], or None to turn it off."
            )
        if not self.threshold >= 0:
            raise ValueError(
                f"threshold={self.threshold} is negative; give the largest difference between similar labels."
            )
        if self.backend not in BACKENDS:
            raise ValueError(f"backend={self.backend!r} is unknown; choose one of {', '.join(BACKENDS)}.")
        if self.is_decoder or self.add_cross_attention:
            raise ValueError("CMSBERT is an encoder; is_decoder and add_cross_attention must be False.")

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads the configuration of a CMSBERT checkpoint, or of a BERT checkpoint to start from.

        Raises:
            ValueError: The checkpoint has another architecture.
        """
        fields, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = fields.get("model_type", cls.model_type)
        if model_type not in ("bert", cls.model_type):
            raise ValueError(
                f"{pretrained_model_name_or_path} is a {model_type} checkpoint; CMSBERT starts from a bert checkpoint."
            )
        return fields | {"model_type": cls.model_type}, rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds the configuration from saved fields, overridden by ``kwargs`` (from ``from_pretrained``).

        Hugging Face would set these ``kwargs`` after construction, too late for checks and defaults.
        """
        own = {field.name for field in dataclasses.fields(cls)} - {"dtype"}
        given = {name: kwargs.pop(name) for name in list(kwargs) if name in own}
        everywhere = list(range(config_dict.get("num_hidden_layers", 0)))
        if "num_hidden_layers" in given and config_dict.get("cms_layers") == everywhere:
            given.setdefault("cms_layers", None)  # all layers stays all layers
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


AutoConfig.register("cmsbert", CMSBertConfig)
