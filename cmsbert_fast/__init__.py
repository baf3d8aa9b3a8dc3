"""CMSBERT-CLR, fast: context-driven modality shifting BERT with contrastive learning.

The public names are listed in ``__all__`` and loaded on first use, so that ``import cmsbert_fast`` stays cheap.
Hugging Face's Auto classes know "cmsbert" once ``CMSBertModel`` (AutoProcessor: ``CMSBertProcessor``) is loaded.
"""

import importlib
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.2.0"


def _expose_kernels() -> None:
    """Make ``cmsbert_fast.kernels`` importable from a checkout, where the folder is next to this package.

    It never goes on ``sys.path``: as a top-level package it would collide with Hugging Face's ``kernels``. A wheel has
    the folder inside this package and needs none of this.
    """
    here = Path(__file__).resolve().parent
    checkout = here.parent / "kernels"
    if (here / "kernels").is_dir() or not checkout.is_dir():
        return
    package = types.ModuleType("cmsbert_fast.kernels")
    package.__path__ = [str(checkout)]
    sys.modules[package.__name__] = package
    globals()["kernels"] = package


_expose_kernels()

if TYPE_CHECKING:  # for type checkers, which do not run __getattr__
    from cmsbert_fast import reference as reference
    from cmsbert_fast.models.cmsbert.configuration_cmsbert import CMSBertConfig as CMSBertConfig
    from cmsbert_fast.models.cmsbert.modeling_cmsbert import (
        CMSBertCLRForSequenceClassification as CMSBertCLRForSequenceClassification,
    )
    from cmsbert_fast.models.cmsbert.modeling_cmsbert import (
        CMSBertForSequenceClassification as CMSBertForSequenceClassification,
    )
    from cmsbert_fast.models.cmsbert.modeling_cmsbert import CMSBertModel as CMSBertModel
    from cmsbert_fast.models.processing import CMSBertProcessor as CMSBertProcessor
    from cmsbert_fast.ops.attention.api import cms_attention as cms_attention
    from cmsbert_fast.ops.attention.types import ModalityShift as ModalityShift
    from cmsbert_fast.ops.contrastive.api import pairwise_contrastive_loss as pairwise_contrastive_loss
    from cmsbert_fast.training.hugging_face import ContrastiveWeightCallback as ContrastiveWeightCallback

_MODULE_OF = {
    "CMSBertConfig": "models.cmsbert.configuration_cmsbert",
    "CMSBertModel": "models.cmsbert.modeling_cmsbert",
    "CMSBertForSequenceClassification": "models.cmsbert.modeling_cmsbert",
    "CMSBertCLRForSequenceClassification": "models.cmsbert.modeling_cmsbert",
    "CMSBertProcessor": "models.processing",
    "ContrastiveWeightCallback": "training.hugging_face",
    "ModalityShift": "ops.attention.types",
    "cms_attention": "ops.attention.api",
    "pairwise_contrastive_loss": "ops.contrastive.api",
}

__all__ = [  # written out: type checkers do not compute it
    "CMSBertCLRForSequenceClassification",
    "CMSBertConfig",
    "CMSBertForSequenceClassification",
    "CMSBertModel",
    "CMSBertProcessor",
    "ContrastiveWeightCallback",
    "ModalityShift",
    "__version__",
    "cms_attention",
    "pairwise_contrastive_loss",
    "reference",
]


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    if name == "reference":
        return importlib.import_module(f"{__name__}.reference")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
