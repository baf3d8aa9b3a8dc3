"""Whole models on padded batches: CMSBERT-CLR itself, text-only BERT, MAG-BERT."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertConfig, ModalityShift, cms_attention
from cmsbert_fast.models.baselines.mag_bert import MagBertForSequenceClassification
from cmsbert_fast.models.cmsbert.contrastive_loss import contrastive_loss
from cmsbert_fast.models.configuration import MultimodalConfig
from cmsbert_fast.models.losses import LossTerm, task_loss, total_loss


def padded_clr(model: CMSBertCLRForSequenceClassification, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """CMSBERT-CLR with the weights of ``model``, all of it computed on padding: the "torch" backend in padded form.

    Returns:
        logits and loss (None without labels); what the model itself returns for the same utterances, to rounding.
    """
    config = model.config
    mask = batch["attention_mask"].bool()
    hidden = model.bert.embeddings(batch["input_ids"])
    for layer in model.bert.encoder.layer:
        z = _padded_attention(layer.attention.self, hidden, batch, config, model.training)
        hidden = layer.feed_forward_chunk(layer.attention.output(z.flatten(-2), hidden))
    middle, linguistic = model.linguistic_projector(_masked_mean(hidden, mask))
    middles, embeds = [middle], {"linguistic_embeds": linguistic}
    for name in model.modalities:
        lstm = getattr(model, f"{name}_lstm")
        state = hidden.new_zeros(1, len(hidden), lstm.hidden_size)
        weights = [lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0]
        # Padding follows the frames, so that no valid state depends on it.
        encoded = _lstm(batch[name], state, weights, model.training)
        pooled = _masked_mean(encoded, batch[f"{name}_mask"].bool())
        middle, embeds[f"{name}_embeds"] = getattr(model, f"{name}_projector")(pooled)
        middles.append(middle)
    logits = model.fusion(middles)
    if "labels" not in batch:
        return logits, None
    task = task_loss(logits, batch["labels"])
    contrastive = contrastive_loss(embeds, batch["labels"], config, backend="torch")
    return logits, total_loss({"task": LossTerm(task), "contrastive": LossTerm(contrastive, model.nu, per_row=False)})


def _padded_attention(
    attention: nn.Module, hidden: Tensor, batch: dict[str, Tensor], config: CMSBertConfig, training: bool
) -> Tensor:
    """A layer's CMS attention: (B, N, heads, head size)."""
    query, key, value = (
        linear(hidden).unflatten(-1, attention.heads) for linear in (attention.query, attention.key, attention.value)
    )
    shifts: dict[str, ModalityShift | None] = {"visual": None, "acoustic": None}
    for name in attention.modalities:
        gate, shift = getattr(attention, f"gate_{name}"), getattr(attention, f"shift_{name}")
        split = hidden.shape[-1]
        shifts[name] = ModalityShift(
            F.linear(hidden, gate.weight[:, :split])[..., 0],
            F.linear(batch[name], gate.weight[:, split:], gate.bias)[..., 0],
            batch[name],
            shift.weight,
            mask=batch[f"{name}_mask"].bool(),
        )
    return cms_attention(
        query,
        key,
        value,
        shifts["visual"],
        shifts["acoustic"],
        attention_mask=batch["attention_mask"].bool(),
        activation=config.gate_activation,
        dropout_p=config.attention_probs_dropout_prob if training else 0.0,
        backend="torch",
    )


@torch.compiler.disable  # as torch.compile does with torch.nn.LSTM
def _lstm(frames: Tensor, state: Tensor, weights: list[Tensor], training: bool) -> Tensor:
    return torch.lstm(frames, (state, state), weights, True, 1, 0.0, training, False, True)[0]


class TextBert(nn.Module):
    """Text alone, as most people run it: Hugging Face's BertModel on a padded batch, mean pool, linear head."""

    def __init__(self, config: CMSBertConfig, attention: str = "sdpa"):
        super().__init__()
        self.bert = BertModel(_bert_config(config, attention), add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, 1)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Returns logits (B, 1) and the loss (None without labels)."""
        hidden = self.bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        logits = self.classifier(_masked_mean(hidden, batch["attention_mask"].bool()))
        return logits, task_loss(logits, batch["labels"]) if "labels" in batch else None


class MagBert(nn.Module):
    """MAG-BERT as its authors run it: padded to 50 word pieces with a frame each, eager attention, float32.

    Args:
        model: Variant mag-bert with pooling "cls"; its weights are copied.
    """

    def __init__(self, model: MagBertForSequenceClassification):
        super().__init__()
        self.beta = model.config.beta
        self.bert = BertModel(_bert_config(model.config, "eager")).to(model.dtype)
        self.bert.load_state_dict(model.bert.state_dict())
        self.visual, self.acoustic = copy.deepcopy(model.visual_gated), copy.deepcopy(model.acoustic_gated)
        self.norm, self.dropout = copy.deepcopy(model.shift_norm), nn.Dropout(model.config.shift_dropout)
        self.classifier = copy.deepcopy(model.classifier)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Returns logits (B, 1) and the loss (None without labels)."""
        text = self.bert.embeddings(batch["input_ids"])
        shift: Tensor | float = 0.0
        for own, frames in ((self.visual, batch["visual"]), (self.acoustic, batch["acoustic"])):
            shift = shift + torch.relu(own.gate(torch.cat([frames, text], dim=-1))) * own.shift(frames)
        norm = shift.norm(dim=-1, keepdim=True)
        factor = (text.norm(dim=-1, keepdim=True) / (norm + 1e-6) * self.beta).clamp(max=1.0)
        text = self.dropout(self.norm(text + factor * shift))
        mask = (1.0 - batch["attention_mask"][:, None, None].to(text.dtype)) * torch.finfo(text.dtype).min
        hidden = self.bert.encoder(text, attention_mask=mask).last_hidden_state
        logits = self.classifier(F.dropout(self.bert.pooler(hidden), 0.1, self.training))
        return logits, task_loss(logits, batch["labels"]) if "labels" in batch else None


def _bert_config(config: MultimodalConfig, attention: str) -> BertConfig:
    values = {name: value for name, value in config.to_dict().items() if hasattr(BertConfig(), name)}
    values |= {"model_type": "bert", "architectures": None}
    return BertConfig(**values, attn_implementation=attention)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
