"""Configuration of CMSBERT and CMSBERT-CLR, in Hugging Face form."""

from typing import Any

from transformers import AutoConfig

from cmsbert_fast.models.configuration import MultimodalConfig
from cmsbert_fast.ops.attention.types import ACTIVATIONS

FUSION_HEADS = 2  # heads of the Transformer layer that fuses the modalities (section III.C, after MISA)


class CMSBertConfig(MultimodalConfig):
    """BertConfig plus the fields of context-driven modality shifting and contrastive learning.

    Args:
        gate_activation: sigma of Eq. 1 and 2: "relu", "sigmoid" or "tanh".
        cms_layers: Layers with CMS, counted from 0. None: all (CMSBERT); [0]: CMSBERT/1; []: plain BERT.
        projection_size: d, size of the LSTMs, projectors and fusion (Eq. 10-16). None: hidden_size.
        temperature: tau of Eq. 17 and 18.
        smoothing: beta of Eq. 23. None: no label smoothing.
        threshold: delta of Eq. 23.
        **kwargs: Fields of :class:`~cmsbert_fast.models.configuration.MultimodalConfig`.

    Raises:
        ValueError: A field is out of range; the message names it.
    """

    model_type = "cmsbert"

    gate_activation: str = "relu"
    cms_layers: list[int] = None  # type: ignore[assignment]  # __post_init__ replaces None
    projection_size: int = None  # type: ignore[assignment]  # __post_init__ replaces None
    temperature: float = 0.1
    smoothing: float | None = 0.9
    threshold: float = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.cms_layers is None:
            self.cms_layers = list(range(self.num_hidden_layers))
        self.cms_layers = sorted(set(self.cms_layers))  # as the maps of ``output_shift_maps`` come
        if self.projection_size is None:
            self.projection_size = self.hidden_size
        self._check()

    def _check(self) -> None:
        super()._check()
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

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As :meth:`MultimodalConfig.from_dict`; with another number of layers, all layers stays all layers."""
        everywhere = list(range(config_dict.get("num_hidden_layers", 0)))
        if "num_hidden_layers" in kwargs and config_dict.get("cms_layers") == everywhere:
            kwargs.setdefault("cms_layers", None)
        return super().from_dict(config_dict, **kwargs)


AutoConfig.register("cmsbert", CMSBertConfig)
