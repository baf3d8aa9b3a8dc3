"""The baselines of the registry, small enough for tests.

``cases/NAME.py`` (the variant's name with ``_`` for ``-``) holds of each:

- ``FIELDS``: small sizes, by name of the configuration's field;
- ``reference(model, text, frames, utterance)``: rows of one utterance, in eval mode, from the literal reference, by
  name; ``text`` (N, D) and ``frames`` by modality are what the model reads, ``utterance`` is one of
  :func:`tests.models.baselines.utterances.utterances`.
"""

import importlib
from types import ModuleType
from typing import Any

import torch

from cmsbert_fast.models.baselines.base import Baseline
from cmsbert_fast.models.registry import VARIANTS
from tests.models.baselines.utterances import SIZES, WORD_SIZE

BERT = dict(
    vocab_size=40,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=24,
)


def case(name: str) -> ModuleType:
    return importlib.import_module(f"tests.models.baselines.cases.{name.replace('-', '_')}")


def config(name: str, dropout: bool = False, **changes: Any) -> Any:
    """A small configuration; without ``dropout`` every probability is 0."""
    config_class = VARIANTS[name].model_class.config_class
    assert config_class is not None
    fields = {**BERT, **SIZES, "word_size": WORD_SIZE, **case(name).FIELDS, **VARIANTS[name].config}
    if not dropout:
        own = [field for field in config_class.architecture_fields if field.endswith("_dropout")]
        fields |= dict.fromkeys((*own, "hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    return config_class(**{**fields, **changes})


def system(name: str, *, lively: bool = True, **changes: Any) -> Baseline:
    """A small model in float64 and eval mode, lively: larger weights than the initial ones, so that all matter."""
    torch.manual_seed(0)
    model = VARIANTS[name].model_class(config(name, **changes))
    if lively:
        generator = torch.Generator().manual_seed(5)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.double().eval()


def needs(name: str) -> frozenset[str]:
    return VARIANTS[name].needs


def texts(name: str) -> tuple[str, ...]:
    """The encoders of text that a system can take."""
    return VARIANTS[name].model_class.config_class.texts
