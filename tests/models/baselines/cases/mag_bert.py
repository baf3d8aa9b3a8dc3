"""MAG-BERT, small. What surrounds the gate is Hugging Face's BertModel."""

import torch
from transformers import BertConfig, BertModel

from cmsbert_fast.reference import mag_bert
from tests.models.baselines.systems import BERT

FIELDS = {}


def reference(model, text, frames, utterance):
    weights = model.state_dict()
    pooled = model.config.pooling == "cls"
    bert = BertModel(BertConfig(**BERT, attn_implementation="eager"), add_pooling_layer=pooled).double().eval()
    bert.load_state_dict(model.bert.state_dict())
    of_pieces = {
        name: [values[word] if word >= 0 and len(values) else None for word in utterance.words.tolist()]
        for name, values in frames.items()
    }
    x = bert.embeddings(utterance.ids[None])[0]
    shifted = mag_bert.shifted(weights, x, of_pieces, model.config.beta, model.shift_norm.eps)
    hidden = bert.encoder(shifted[None]).last_hidden_state[0]
    if pooled:
        row = torch.tanh(weights["bert.pooler.dense.weight"] @ hidden[0] + weights["bert.pooler.dense.bias"])
    else:
        row = hidden.sum(dim=0) / len(hidden)
    return {"logits": weights["classifier.weight"] @ row + weights["classifier.bias"]}
