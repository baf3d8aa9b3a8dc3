"""Where a baseline's rows of text come from: fine-tuned BERT, frozen BERT, or frozen word vectors.

BERT is packed: it computes no row for padding. Its weights are in the state dict as "bert.*", so that a BertModel
checkpoint loads.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.models.bert.modeling_bert import BertPooler

from cmsbert_fast.models.baselines.configuration import BaselineConfig
from cmsbert_fast.models.cmsbert.configuration_cmsbert import CMSBertConfig
from cmsbert_fast.models.cmsbert.direct_layer import DirectLayers
from cmsbert_fast.models.cmsbert.modeling_cmsbert import CMSBertModel
from cmsbert_fast.models.configuration import BERT_FIELDS
from cmsbert_fast.models.inputs import PackedInputs
from cmsbert_fast.packing import Packing


class Text(NamedTuple):
    """Packed rows of text.

    Attributes:
        values: (T, D) a row a word piece, [CLS] and [SEP] included; or (P, D) a row a word.
        packing: Which rows belong to which utterance.
    """

    values: Tensor
    packing: Packing


class TextBert(CMSBertModel):
    """BERT as part of a baseline: CMSBERT without CMS. Its pooler it has with ``config.pooling`` "cls" only.

    Frozen (``config.text`` "bert-frozen"), it stays in eval mode, and its own weights have no gradient.
    """

    def __init__(self, config: BaselineConfig):
        taken = (*BERT_FIELDS, "vocab_size", "pad_token_id", "backend")
        super().__init__(CMSBertConfig(**{name: getattr(config, name) for name in taken}, cms_layers=[]))
        self.pooler = BertPooler(config) if config.pooling == "cls" else None
        self.frozen = config.text == "bert-frozen"
        self.frozen_layers = config.frozen_layers
        self.freeze()

    def freeze(self) -> None:
        """Marks what is not trained. Hugging Face's loading unmarks it."""
        for module in [self] if self.frozen else self.encoder.layer[: self.frozen_layers]:
            module.requires_grad_(False)
        if self.frozen:
            self.eval()

    def train(self, mode: bool = True) -> "TextBert":
        return super().train(mode and not self.frozen)

    def read(self, inputs: PackedInputs, shift: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The last hidden states, packed, (T, D).

        Args:
            inputs: The batch.
            shift: Applied to the output (T, D) of the embedding layer (MAG).
        """
        # An adapter on a frozen BERT is trained.
        trained = not self.frozen or any(parameter.requires_grad for parameter in self.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            hidden = self.embeddings(**inputs.tokens.embeddings)
            if shift is not None:
                hidden = shift(hidden[0])[None]
            direct = DirectLayers.of(self.encoder.layer, hidden, inputs.batch, self.config)
            if direct is not None:
                hidden = direct.run(list(self.encoder.layer))
            else:
                for layer in self.encoder.layer:
                    hidden = layer(hidden, batch=inputs.batch)
        return hidden[0]
