"""The registry: every variant can be built, and its names cost nothing."""

import inspect
import subprocess
import sys

import pytest
import torch

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertForSequenceClassification
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.registry import NEEDS, VARIANTS, class_of_architecture
from cmsbert_fast.training.config import declared_fields
from cmsbert_fast.training.settings import TrainingSettings
from tests.models.small import OURS, SIZES, config


@pytest.mark.parametrize("name", OURS)
def test_every_variant_builds(name, batch):
    variant = VARIANTS[name]
    assert variant.needs <= set(NEEDS)
    model_class = variant.model_class
    assert issubclass(model_class, Classifier)
    sizes = SIZES if variant.multimodal else dict.fromkeys(SIZES, 0)
    model = model_class(config(**sizes, **variant.config)).double()
    assert isinstance(model.config, model_class.config_class)
    inputs = batch if variant.multimodal else {n: batch[n] for n in ("input_ids", "attention_mask")}
    assert model.rows(**inputs)["logits"].shape == (4, 1)
    state = model.training_state(4, **{"momentum": 0.9, **variant.state_options})
    assert (state is not None) == model.has_global_terms == name.startswith("cmsbert-clr")
    terms = model.losses(model.rows(**inputs), torch.zeros(4))
    assert model.has_global_terms == any(not term.per_row for term in terms.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_variant_fixes_exists(name):
    """A configuration and a training state ignore what they do not know."""
    variant = VARIANTS[name]
    assert variant.config.keys() <= declared_fields(variant.model_class.config_class)
    assert variant.state_options.keys() <= inspect.signature(variant.model_class.training_state).parameters.keys()


def test_the_papers_rows():
    shifting = {name: v.config.get("cms_layers") for name, v in VARIANTS.items()}
    assert {name: layers for name, layers in shifting.items() if layers is not None} == {"bert": [], "cmsbert/1": [0]}
    assert [name for name, v in VARIANTS.items() if not v.multimodal] == ["bert"]
    clr = {name: v for name, v in VARIANTS.items() if v.model_class is CMSBertCLRForSequenceClassification}
    off = {name: ("momentum" in v.state_options, "smoothing" in v.config) for name, v in clr.items()}
    assert off == {
        "cmsbert-clr": (False, False),
        "cmsbert-clr-no-ema": (True, False),
        "cmsbert-clr-no-ls": (False, True),
        "cmsbert-clr-no-ema-no-ls": (True, True),
    }


def test_a_checkpoint_names_its_class():
    for kind in (CMSBertForSequenceClassification, CMSBertCLRForSequenceClassification):
        assert class_of_architecture(kind.__name__) is kind
    assert class_of_architecture("BertForSequenceClassification") is None
    assert class_of_architecture(None) is None


def test_an_unknown_name_is_an_error_with_the_known_ones():
    with pytest.raises(Exception, match=r"variant is 'cmsbert-crl' but must be one of bert, cmsbert/1, cmsbert, "):
        TrainingSettings(variant="cmsbert-crl")


def test_names_are_there_without_pytorch():
    code = (
        "import sys; from cmsbert_fast.models.registry import VARIANTS; "
        "sys.exit(len({'torch', 'transformers', 'numpy'} & set(sys.modules)) + (not VARIANTS))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
