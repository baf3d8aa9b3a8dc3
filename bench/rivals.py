"""What a user could run instead of this project, written from the definitions; none of it serves any other purpose."""

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertConfig, ModalityShift, cms_attention
from cmsbert_fast.models.cmsbert.contrastive_loss import contrastive_loss
from cmsbert_fast.models.losses import LossTerm, task_loss, total_loss


def padded_clr(model: CMSBertCLRForSequenceClassification, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """CMSBERT-CLR with the weights of ``model``, all of it computed on padding: the "torch" backend in padded form.

    Returns:
        logits and loss (None without labels); what the model itself returns for the same utterances, to rounding.
    """
    config = model.config
    masks = {name: batch[f"{name}_mask"].bool() for name in ("visual", "acoustic")}
    attention_mask = batch["attention_mask"].bool()
    hidden = model.bert.embeddings(batch["input_ids"])
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        query, key, value = (
            linear(hidden).unflatten(-1, attention.heads)
            for linear in (attention.query, attention.key, attention.value)
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
                mask=masks[name],
            )
        z = cms_attention(
            query,
            key,
            value,
            shifts["visual"],
            shifts["acoustic"],
            attention_mask=attention_mask,
            activation=config.gate_activation,
            dropout_p=config.attention_probs_dropout_prob if model.training else 0.0,
            backend="torch",
        )
        hidden = layer.feed_forward_chunk(layer.attention.output(z.flatten(-2), hidden))
    middle, linguistic = model.linguistic_projector(_masked_mean(hidden, attention_mask))
    middles, embeds = [middle], {"linguistic_embeds": linguistic}
    for name in model.modalities:
        lstm = getattr(model, f"{name}_lstm")
        state = hidden.new_zeros(1, len(hidden), lstm.hidden_size)
        weights = [lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0]
        # Padding follows the frames, so that no valid state depends on it.
        encoded = _lstm(batch[name], state, weights, model.training)
        middle, embeds[f"{name}_embeds"] = getattr(model, f"{name}_projector")(_masked_mean(encoded, masks[name]))
        middles.append(middle)
    logits = model.fusion(middles)
    if "labels" not in batch:
        return logits, None
    task = task_loss(logits, batch["labels"])
    contrastive = contrastive_loss(embeds, batch["labels"], config, backend="torch")
    return logits, total_loss({"task": LossTerm(task), "contrastive": LossTerm(contrastive, model.nu, per_row=False)})


@torch.compiler.disable  # as torch.compile does with torch.nn.LSTM
def _lstm(frames: Tensor, state: Tensor, weights: list[Tensor], training: bool) -> Tensor:
    return torch.lstm(frames, (state, state), weights, True, 1, 0.0, training, False, True)[0]


def lean_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visual: ModalityShift,
    acoustic: ModalityShift,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """CMS attention, padded, with nothing but what valid tokens need: padding may hold anything finite, and gets
    anything. The low-rank identity of SPEC 8, one mask for scaled_dot_product_attention."""
    a = None
    for shift in (visual, acoustic):
        own = F.linear(_mean_frames(shift), shift.weight)
        a = own if a is None else a + own
    assert a is not None
    a = a.unflatten(-1, query.shape[-2:])
    keys = None if attention_mask is None else attention_mask[:, None, None]
    q, k, v = ((x + a).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2)


def _mean_frames(shift: ModalityShift) -> Tensor:
    """Gated mean over a padded modality's frames, for every token: (B, N, d_m)."""
    gates = torch.relu(shift.token_gate[:, :, None] + shift.frame_gate[:, None])
    if shift.mask is None:
        gates = gates / shift.frames.shape[1]
    else:
        mask = shift.mask.to(gates.dtype)
        gates = gates * (mask / mask.sum(dim=1, keepdim=True).clamp(min=1))[:, None]
    return gates @ shift.frames


Buckets = list[tuple[Tensor, int]]


def make_buckets(lengths: Sequence[int], device: torch.device, count: int = 4) -> Buckets:
    """What a collator can know: the sequences of similar length, and the longest of each group."""
    groups = np.array_split(np.argsort(lengths, kind="stable"), count)
    return [(torch.tensor(rows, device=device), max(lengths[i] for i in rows)) for rows in groups if len(rows)]


def bucketed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visual: ModalityShift,
    acoustic: ModalityShift,
    attention_mask: Tensor | None = None,
    *,
    buckets: Buckets,
) -> Tensor:
    """:func:`lean_attention` of a few groups of similar length, each padded to its own longest sequence."""
    parts = []
    for rows, longest in buckets:

        def cut(x: Tensor | None, rows: Tensor = rows, longest: int = longest) -> Tensor | None:
            return None if x is None else x.index_select(0, rows)[:, :longest]

        shifts = [ModalityShift(*map(cut, m[:3]), m.weight, mask=cut(m.mask)) for m in (visual, acoustic)]
        z = lean_attention(cut(query), cut(key), cut(value), *shifts, cut(attention_mask))
        parts.append(F.pad(z, (0, 0, 0, 0, 0, query.shape[1] - longest)))
    return torch.cat(parts).index_select(0, torch.cat([rows for rows, _ in buckets]).argsort())


def augmented_attention(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    heads: int,
    visual: ModalityShift,
    acoustic: ModalityShift,
    attention_mask: Tensor | None = None,
    *,
    rows: Tensor,
    buckets: Buckets,
) -> Tensor:
    """Projections and CMS attention with the shift inside the projections' one product, on the valid tokens only:
    [h, mean_v, mean_a] [W, S_v, S_a]^T, where S, shared by query, key and value, stands in W's rows three times.

    ``hidden`` is packed, (T, D); ``rows`` (T,) is where its tokens lie in the padded batch, flattened. Where lengths
    differ, attention runs in buckets. Returns z, padded.
    """
    means = [_mean_frames(shift).flatten(0, 1) for shift in (visual, acoustic)]
    if attention_mask is not None:
        means = [mean.index_select(0, rows) for mean in means]
    shared = torch.cat([visual.weight, acoustic.weight], dim=1).repeat(3, 1)
    qkv = F.linear(torch.cat([hidden, *means], dim=1), torch.cat([weight, shared], dim=1), bias)
    shape = visual.token_gate.shape
    if attention_mask is None:
        q, k, v = qkv.unflatten(0, shape).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    padded = qkv.new_zeros(shape.numel(), qkv.shape[1]).index_copy(0, rows, qkv).unflatten(0, shape)
    parts = []
    for chosen, longest in buckets:
        own = padded.index_select(0, chosen)[:, :longest]
        q, k, v = own.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        keys = attention_mask.index_select(0, chosen)[:, None, None, :longest]
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2)
        parts.append(F.pad(z, (0, 0, 0, 0, 0, shape[1] - longest)))
    return torch.cat(parts).index_select(0, torch.cat([chosen for chosen, _ in buckets]).argsort())


def text_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, eager: bool) -> Tensor:
    """What text-only BERT does instead, padded: no shift. Hugging Face's sdpa, or its eager form."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if not eager:
        keys = None if mask is None else mask[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2)
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + (1.0 - mask[:, None, None].to(q.dtype)) * torch.finfo(q.dtype).min
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)


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
    """MAG-BERT (Rahman et al., ACL 2020, Section 4): frames shift the embeddings of their own word piece, once.

    Run as its authors do: padded to 50 word pieces with a frame each, eager attention, float32, [CLS] pooler.
    """

    beta = 1.0

    def __init__(self, config: CMSBertConfig):
        super().__init__()
        hidden = config.hidden_size
        self.bert = BertModel(_bert_config(config, "eager"))
        self.visual_gate = nn.Linear(config.visual_size + hidden, hidden)
        self.acoustic_gate = nn.Linear(config.acoustic_size + hidden, hidden)
        self.visual = nn.Linear(config.visual_size, hidden)
        self.acoustic = nn.Linear(config.acoustic_size, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(hidden, 1)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Returns logits (B, 1) and the loss (None without labels)."""
        text = self.bert.embeddings(batch["input_ids"])
        visual, acoustic = batch["visual"], batch["acoustic"]
        shift = torch.relu(self.visual_gate(torch.cat([visual, text], dim=-1))) * self.visual(visual)
        shift = shift + torch.relu(self.acoustic_gate(torch.cat([acoustic, text], dim=-1))) * self.acoustic(acoustic)
        norm = shift.norm(dim=-1, keepdim=True)
        factor = (text.norm(dim=-1, keepdim=True) / (norm + 1e-6) * self.beta).clamp(max=1.0)
        text = self.dropout(self.norm(text + factor * shift))
        mask = (1.0 - batch["attention_mask"][:, None, None].to(text.dtype)) * torch.finfo(text.dtype).min
        hidden = self.bert.encoder(text, attention_mask=mask).last_hidden_state
        logits = self.classifier(F.dropout(self.bert.pooler(hidden), 0.1, self.training))
        return logits, task_loss(logits, batch["labels"]) if "labels" in batch else None


def _bert_config(config: CMSBertConfig, attention: str) -> BertConfig:
    values = {name: value for name, value in config.to_dict().items() if hasattr(BertConfig(), name)}
    values |= {"model_type": "bert", "architectures": None}
    return BertConfig(**values, attn_implementation=attention)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


# ------------------------------------------------------------------ contrastive losses, targets one-hot


def open_clip_loss(embeddings: list[Tensor], temperature: float) -> Tensor:
    """open_clip's ClipLoss for every pair: both n x n matrices of logits, cross-entropy against the diagonal.

    ClipLoss halves the sum of its two directions; the six-way loss adds them, hence the 2.
    """
    normalised = [F.normalize(z, dim=1) for z in embeddings]
    diagonal = torch.arange(len(embeddings[0]), device=embeddings[0].device)
    losses = []
    for a, b in combinations(normalised, 2):
        per_a = a @ b.T / temperature
        per_b = b @ a.T / temperature
        losses.append(2 * (F.cross_entropy(per_a, diagonal) + F.cross_entropy(per_b, diagonal)) / 2)
    return torch.stack(losses).sum()


class _TiledLogSumExp(torch.autograd.Function):
    """Inf-CL (Cheng et al., 2024): row log-sum-exps of a b^T tile by tile; every tile again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, tile: int) -> Tensor:
        parts = []
        for rows in a.split(tile):
            total = rows.new_full((len(rows),), -torch.inf, dtype=torch.promote_types(a.dtype, torch.float32))
            for columns in b.split(tile):
                total = torch.logaddexp(total, torch.logsumexp((rows @ columns.T).to(total.dtype), dim=1))
            parts.append(total)
        result = torch.cat(parts)
        ctx.save_for_backward(a, b, result)
        ctx.tile = tile
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b, lse = ctx.saved_tensors
        grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(b)
        # Rows and columns in turns, as its kernels have them: each makes the tiles anew.
        for i in range(0, len(a), ctx.tile):
            rows = slice(i, i + ctx.tile)
            for j in range(0, len(b), ctx.tile):
                columns = slice(j, j + ctx.tile)
                p = (torch.exp(a[rows] @ b[columns].T - lse[rows, None]) * grad[rows, None]).to(a.dtype)
                grad_a[rows] += p @ b[columns]
        for j in range(0, len(b), ctx.tile):
            columns = slice(j, j + ctx.tile)
            for i in range(0, len(a), ctx.tile):
                rows = slice(i, i + ctx.tile)
                p = (torch.exp(a[rows] @ b[columns].T - lse[rows, None]) * grad[rows, None]).to(a.dtype)
                grad_b[columns] += p.T @ a[rows]
        return grad_a, grad_b, None


def inf_cl_loss(embeddings: list[Tensor], temperature: float, tile: int = 1024) -> Tensor:
    """Inf-CL's loss for every ordered pair, one direction a call; memory O(n)."""
    normalised = [F.normalize(z, dim=1) for z in embeddings]
    losses = []
    for a, b in permutations(normalised, 2):
        scaled = a / temperature
        losses.append((_TiledLogSumExp.apply(scaled, b, tile) - (scaled * b).sum(dim=1)).mean())
    return torch.stack(losses).sum()
