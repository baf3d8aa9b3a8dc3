"""The crossmodal Transformer of MulT: the rows of one modality attend to those of another, of any two lengths.

All is packed. Attention alone, whose heads are small, works on padded sequences: pairs of similar lengths are padded to
the longest of their bucket and masked.

    q_0 = drop x, k = drop x';  q += drop MHA(LN q, LN k, LN k);  q += drop W2 drop relu W1 LN' q;  at the end LN q

for the rows x of the target and x' of the source, which stay for all layers; in self-attention k is q.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmsbert_fast.packing import Packing, positions, sequence_of_row

BUCKETS_PER_OCTAVE = 2  # lengths of one bucket differ by a factor of at most 2^(1/2), but for rounding


class Bucket(NamedTuple):
    """Pairs of sequences of similar lengths.

    Attributes:
        shape: Their number b, and the lengths n_q and n_k that they are padded to.
        visible: (b, 1, n_q, n_k), whether a query attends to a key.
    """

    shape: tuple[int, int, int]
    visible: Tensor


class Pairing(NamedTuple):
    """How the queries of each utterance meet its keys. Utterances without queries or keys are in no bucket.

    Attributes:
        queries, keys: The packed rows of all buckets, one after the other, padded; int64.
        buckets: At least 0.
        place: (T_q,) int64, where the buckets hold each packed query; their number of rows for a query in none.
    """

    queries: Tensor
    keys: Tensor
    buckets: Sequence[Bucket]
    place: Tensor


def pair(target: Packing, source: Packing, total_target: int, total_source: int) -> Pairing:
    """Sorts the pairs of sequences (n_q, n_k) into buckets. It reads the lengths on the CPU.

    The padded layout of torch.export is one bucket, of all pairs.

    Args:
        target, source: The rows of queries and those of keys, of the same utterances.
        total_target, total_source: T_q and T_k.
    """
    device = target.cu_seqlens.device
    if target.is_padded:
        shape = (target.cu_seqlens.shape[0] - 1, target.max_length, source.max_length)
        buckets = [Bucket(shape, _visible(target.lengths, source.lengths, shape))]
        rows_q, rows_k = (torch.arange(total, device=device) for total in (total_target, total_source))
        seen = source.lengths[:, None].expand(-1, target.max_length).flatten() > 0
        return Pairing(rows_q, rows_k, buckets, torch.where(seen, rows_q, total_target))
    starts_q, starts_k = (packing.on_host.long() for packing in (target, source))
    n_q, n_k = starts_q.diff(), starts_k.diff()
    steps = [(BUCKETS_PER_OCTAVE * n.clamp(min=1).double().log2()).ceil().long() for n in (n_q, n_k)]
    key = torch.where((n_q > 0) & (n_k > 0), steps[0] * 1000 + steps[1], -1)
    order = key.argsort(stable=True)
    values, counts = key[order].unique_consecutive(return_counts=True)
    members = [some for value, some in zip(values, order.split(counts.tolist()), strict=True) if value >= 0]

    begin = torch.full((len(key) + 1,), -1)  # of each utterance in the buckets; the last for rows of no sequence
    queries, keys, buckets, total = [], [], [], 0
    for some in members:
        shape = len(some), int(n_q[some].max()), int(n_k[some].max())
        queries.append(_padded_rows(starts_q[some], shape[1], total_target))
        keys.append(_padded_rows(starts_k[some], shape[2], total_source))
        begin[some] = total + torch.arange(len(some)) * shape[1]
        total += len(queries[-1])
        buckets.append(Bucket(shape, _visible(n_q[some].to(device), n_k[some].to(device), shape)))
    begin = begin.to(device)[sequence_of_row(target, total_target)]
    return Pairing(
        _joined(queries).to(device, non_blocking=True),
        _joined(keys).to(device, non_blocking=True),
        buckets,
        torch.where(begin < 0, total, begin + positions(target, total_target)),
    )


def _padded_rows(starts: Tensor, length: int, total: int) -> Tensor:
    """(b * length,): ``length`` rows from each start on, within ``total``."""
    return (starts[:, None] + torch.arange(length)).clamp(max=total - 1).flatten()


def _joined(rows: list[Tensor]) -> Tensor:
    return torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)


def _visible(n_q: Tensor, n_k: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The mask: query i sees key j if j <= i + |n_k - n_q|, and no padding. Every query sees the first key."""
    n_q, n_k = n_q[:, None, None], n_k[:, None, None]
    query = torch.arange(shape[1], device=n_q.device)[:, None]
    key = torch.arange(shape[2], device=n_q.device)
    return ((key < n_k.clamp(min=1)) & (key <= query + (n_k - n_q).abs()))[:, None]


class XavierLinear(nn.Linear):
    """A linear layer that starts with Xavier's uniform weights and bias 0."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


class CrossAttention(nn.Module):
    """Multi-head attention from packed queries to packed keys; parameters are torch.nn.MultiheadAttention's.

    A query without keys gets the output projection's bias: the sum over no values is 0.
    """

    def __init__(self, size: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * size, size))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * size))
        self.out_proj = XavierLinear(size, size)

    def reset_parameters(self) -> None:
        """As in the published code: Xavier's uniform weights, biases 0."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)

    def forward(self, target: Tensor, source: Tensor, pairing: Pairing) -> Tensor:
        """(T_q, d), (T_k, d) -> (T_q, d)."""
        size = target.shape[1]
        head_sizes = (self.heads, size // self.heads)
        query = F.linear(target, self.in_proj_weight[:size], self.in_proj_bias[:size]).unflatten(1, head_sizes)
        both = F.linear(source, self.in_proj_weight[size:], self.in_proj_bias[size:]).unflatten(1, (2, *head_sizes))
        if not pairing.buckets:
            nothing = query[:0].sum(dim=0) + both[:0].sum(dim=(0, 1))  # zeros that keep the graph connected
            return self.out_proj(nothing.flatten().expand(len(target), size))
        shapes = [bucket.shape for bucket in pairing.buckets]
        queries = query.index_select(0, pairing.queries).split([b * n_q for b, n_q, _ in shapes])
        keys_and_values = both.index_select(0, pairing.keys).split([b * n_k for b, _, n_k in shapes])
        found = [
            self._attend(q, kv, bucket) for q, kv, bucket in zip(queries, keys_and_values, pairing.buckets, strict=True)
        ]
        found.append(found[0].new_zeros(1, size))  # of queries in no bucket
        return self.out_proj(torch.cat(found).index_select(0, pairing.place))

    def _attend(self, query: Tensor, both: Tensor, bucket: Bucket) -> Tensor:
        """(b n_q, heads, e), (b n_k, 2, heads, e) -> (b n_q, d)."""
        pairs = bucket.shape[0]
        q = query.unflatten(0, (pairs, -1)).transpose(1, 2)
        k, v = both.unflatten(0, (pairs, -1)).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=bucket.visible, dropout_p=p)
        return z.transpose(1, 2).flatten(0, 1).flatten(1)


class Dropouts(NamedTuple):
    """Probabilities: of attention, in the feed-forward net, of both before they are added, of an encoder's input."""

    attention: float
    relu: float
    residual: float
    embedding: float


class CrossmodalLayer(nn.Module):
    """One layer; one LayerNorm for query, key and value, as in the published code."""

    def __init__(self, size: int, heads: int, dropouts: Dropouts):
        super().__init__()
        self.attention = CrossAttention(size, heads, dropouts.attention)
        self.dense = XavierLinear(size, 4 * size)
        self.out = XavierLinear(4 * size, size)
        self.norm1 = nn.LayerNorm(size)
        self.norm2 = nn.LayerNorm(size)
        self.relu_dropout = nn.Dropout(dropouts.relu)
        self.residual_dropout = nn.Dropout(dropouts.residual)

    def forward(self, target: Tensor, source: Tensor | None, pairing: Pairing) -> Tensor:
        query = self.norm1(target)
        key = query if source is None else self.norm1(source)
        target = target + self.residual_dropout(self.attention(query, key, pairing))
        wide = self.relu_dropout(torch.relu(self.dense(self.norm2(target))))
        return target + self.residual_dropout(self.out(wide))


class CrossmodalEncoder(nn.Module):
    """Layers of attention from the rows of a target to those of a source.

    Args:
        size: Of a row; a multiple of ``heads``.
        heads: Of attention.
        layers: Their number.
        dropouts: Probabilities.
    """

    def __init__(self, size: int, heads: int, layers: int, dropouts: Dropouts):
        super().__init__()
        self.embedding_dropout = nn.Dropout(dropouts.embedding)
        self.layers = nn.ModuleList(CrossmodalLayer(size, heads, dropouts) for _ in range(layers))
        self.norm = nn.LayerNorm(size)

    def forward(self, target: Tensor, source: Tensor | None, pairing: Pairing) -> Tensor:
        """(T_q, d), (T_k, d) with positions (:func:`with_positions`) -> (T_q, d); no source: self-attention."""
        target = self.embedding_dropout(target)
        source = None if source is None else self.embedding_dropout(source)
        for layer in self.layers:
            target = layer(target, source, pairing)
        return self.norm(target)


def with_positions(rows: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
    """sqrt(d) x + pos(p), (T, d): the input of an encoder.

    pos(p) = [sin(p w_k); cos(p w_k)], w_k = 10000^(-k / (d/2 - 1)), k = 0, ..., d/2 - 1.

    Args:
        rows: x, (T, d); d is even, 4 at least.
        places: p, (T,), 1 for the first row of a sequence.
        dtype: Of the positions, that of the weights: under autocast the sum is not in half precision.
    """
    half = rows.shape[1] // 2
    wide = torch.promote_types(dtype, torch.float32)
    rates = torch.exp(torch.arange(half, device=rows.device, dtype=wide) * (-math.log(10000) / (half - 1)))
    angles = places.to(wide)[:, None] * rates
    return math.sqrt(rows.shape[1]) * rows + torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype)
