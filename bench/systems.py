"""Every system in one shape, with the batches that training and prediction give it.

The utterances have MOSI's lengths, one word a piece and one frame a word, as word-aligned data have.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.steps import Trainer, autocast
from bench.test_batches import make_examples, make_processor
from bench.workload import make_config
from cmsbert_fast.data.word_vectors import WordVectors
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.baselines.configuration import BaselineConfig
from cmsbert_fast.models.configuration import BERT_FIELDS
from cmsbert_fast.models.registry import VARIANTS
from cmsbert_fast.training import text_features
from cmsbert_fast.training.batches import Batches
from cmsbert_fast.training.text_features import TextFeatures


def text_of(name: str) -> str:
    """Where a system's text comes from, "bert", "bert-frozen" or "vectors"; ours train BERT."""
    config_class = VARIANTS[name].model_class.config_class
    return config_class.text if config_class is not None and issubclass(config_class, BaselineConfig) else "bert"


def make_model(name: str, device: torch.device) -> Classifier:
    """A system in BERT-base shape, with the sizes of its MOSI preset."""
    torch.manual_seed(0)
    variant, shape = VARIANTS[name], make_config()
    taken = (*BERT_FIELDS, "vocab_size", "visual_size", "acoustic_size")
    assert variant.model_class.config_class is not None
    config = variant.model_class.config_class(**{field: getattr(shape, field) for field in taken}, **variant.config)
    return variant.model_class(config).to(device)  # type: ignore[arg-type]


class Utterances:
    """Random utterances of ``lengths`` pieces, [CLS] and [SEP] included, for any system.

    Args:
        lengths: At least 2 each.
        device: Of the batches.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device):
        self.tokens = sum(lengths)
        self._device, self._indices = device, range(len(lengths))
        self._examples = make_examples(lengths)
        self._processor = make_processor(self._examples)

    def batches(self, model: Classifier) -> Batches:
        """As the trainer makes them."""
        if getattr(model.config, "text", None) == "vectors":
            words = tuple(f"w{i}" for i in range(5000))
            table = np.random.default_rng(0).normal(size=(len(words) + 1, model.config.word_size)).astype(np.float32)
            self._processor.word_vectors = WordVectors(table, words, "random")
        return Batches(self._examples, self._processor, model, self._device)

    def inputs(self, model: Classifier) -> dict[str, Any]:
        """All of them as one batch, with labels; features of frozen text are known, as after the first epoch."""
        return self.batches(model).load(self._indices)

    def predicted(self, model: Any) -> Callable[[], Tensor]:
        """A call that returns the logits of prepared inputs; frozen BERT reads them as in prediction, one by one."""
        inputs = self.inputs(model.eval())
        del inputs["labels"]
        pieces = [self._processor.input_ids(example.words) for example in self._examples]

        def run() -> Tensor:
            with torch.inference_mode():
                if text_features.NAME in inputs:
                    found = TextFeatures(model, pieces.__getitem__, limit=0).of(self._indices)
                    inputs[text_features.NAME] = found.to(self._device)
                return model.rows(**inputs)["logits"]

        return run


def step(name: str, utterances: Utterances, device: torch.device) -> Callable[[], Tensor]:
    """A training step: float32 on a CPU, bfloat16 on a GPU."""
    model = make_model(name, device).train()
    inputs = utterances.inputs(model)

    def forward() -> Tensor:
        return model(**inputs).loss

    return Trainer(model, device).step(autocast(forward, device) if device.type == "cuda" else forward)
