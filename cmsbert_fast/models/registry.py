"""Every system by name: its class, the data it needs, and what sets it apart from others of its class.

A new system is one file below ``models`` and one line here. This module imports no model and no PyTorch: a system is
imported when it is asked for.
"""

import dataclasses
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmsbert_fast.models.base import Classifier

# Data that a system can need. Where they are missing, training.preflight.check_needs says so.
NEEDS = {
    "frames": "visual or acoustic frames",
    "word_frames": "frames aligned to words",
    "frames_of_words": "frames of each word",
    "word_vectors": "word vectors",  # not in Variant.needs: asked for by text "vectors"
    "regression": "scores",
}


OF_WORDS = frozenset({"word_frames", "frames_of_words"})  # the needs of systems that work word by word


@dataclass(frozen=True, slots=True)
class Variant:
    """A system that can be trained: a row of the paper's tables.

    Attributes:
        model: Module and name of its class, "package.module:Class"; :attr:`model_class` imports it.
        needs: Required data, from :data:`NEEDS`.
        config: Fixed configuration fields; they override the settings.
        state_options: Fixed options of :meth:`~cmsbert_fast.models.base.Classifier.training_state`.
    """

    model: str
    needs: frozenset[str] = frozenset()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    state_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def model_class(self) -> "type[Classifier]":
        """The class; its ``config_class`` is the class of its configuration."""
        return pkgutil.resolve_name(self.model)

    @property
    def multimodal(self) -> bool:
        """Whether it reads frames."""
        return bool(self.needs & {"frames", *OF_WORDS})


_CMSBERT = "cmsbert_fast.models.cmsbert.modeling_cmsbert:CMSBertForSequenceClassification"
_CLR = "cmsbert_fast.models.cmsbert.modeling_cmsbert:CMSBertCLRForSequenceClassification"
_BASELINES = "cmsbert_fast.models.baselines"
_FRAMES = frozenset({"frames"})
_WORD_FRAMES = frozenset({"frames", "word_frames"})
_FRAMES_OF_WORDS = frozenset({"frames", "frames_of_words"})
_NO_EMA = {"momentum": None}
_NO_LS = {"smoothing": None}

VARIANTS: Mapping[str, Variant] = {
    "bert": Variant(_CMSBERT, config={"cms_layers": []}),
    "cmsbert/1": Variant(_CMSBERT, _FRAMES, config={"cms_layers": [0]}),
    "cmsbert": Variant(_CMSBERT, _FRAMES),
    "cmsbert-clr": Variant(_CLR, _FRAMES),
    "cmsbert-clr-no-ema": Variant(_CLR, _FRAMES, state_options=_NO_EMA),
    "cmsbert-clr-no-ls": Variant(_CLR, _FRAMES, config=_NO_LS),
    "cmsbert-clr-no-ema-no-ls": Variant(_CLR, _FRAMES, config=_NO_LS, state_options=_NO_EMA),
    "mag-bert": Variant(f"{_BASELINES}.mag_bert:MagBertForSequenceClassification", _FRAMES | {"word_frames"}),
    "self-mm": Variant(f"{_BASELINES}.self_mm:SelfMMForSequenceClassification", _FRAMES | {"regression"}),
    "misa": Variant(f"{_BASELINES}.misa:MISAForSequenceClassification", _FRAMES),
    "mult": Variant(f"{_BASELINES}.mult:MulTForSequenceClassification", _FRAMES),
    "tfn": Variant(f"{_BASELINES}.tfn:TFNForSequenceClassification", _FRAMES),
    "mfn": Variant(f"{_BASELINES}.mfn:MFNForSequenceClassification", _WORD_FRAMES),
    "raven": Variant(f"{_BASELINES}.raven:RAVENForSequenceClassification", _FRAMES_OF_WORDS),
    "mfm": Variant(f"{_BASELINES}.mfm:MFMForSequenceClassification", _WORD_FRAMES),
}

# The published systems that the paper compares with.
BASELINES = tuple(name for name, variant in VARIANTS.items() if ".models.baselines." in variant.model)


def class_of_architecture(architecture: str | None) -> "type[Classifier] | None":
    """The class for a name from ``architectures`` in a checkpoint's ``config.json``; None if no variant has it."""
    for variant in VARIANTS.values():
        if variant.model.rpartition(":")[2] == architecture:
            return variant.model_class
    return None
