"""The literal equations of the CMSBERT-CLR paper: the oracle that every backend is tested against.

Plain PyTorch, any floating dtype, gradients by autograd, nothing else from this project. Clarity and fidelity come
before speed: Eq. 3 does build its ``N x N_v x D`` tensor. Numbers in parentheses are equation numbers.

Shapes: B utterances, N word pieces, N_m frames of modality m, D hidden size, H heads, d_h = D / H, d_m frame size,
n examples, d projection size. Masks are boolean, True = valid, and may have any pattern.
"""

import math
from collections.abc import Callable, Mapping
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}

LABEL_TOLERANCE = 1e-5  # labels are float32: 0.3 - 0.2 must count as a difference of 0.1


# ------------------------------------------------------------------ context-driven modality shifting, Eq. 1-4


def gate(hidden: Tensor, frames: Tensor, weight: Tensor, bias: Tensor, activation: str = "relu") -> Tensor:
    """g_ij = act(W_g [X_i; V_j] + b): how much frame j moves word i (Eq. 1, 2).

    Args:
        hidden: X, (B, N, D).
        frames: V or A, (B, N_m, d_m).
        weight: W_g, (1, D + d_m).
        bias: b, (1,).
        activation: "relu", "sigmoid" or "tanh".

    Returns:
        (B, N, N_m).
    """
    n, n_frames = hidden.shape[1], frames.shape[1]
    pairs = torch.cat(
        [hidden[:, :, None].expand(-1, -1, n_frames, -1), frames[:, None].expand(-1, n, -1, -1)], dim=-1
    )  # [X_i; V_j]
    return ACTIVATIONS[activation](F.linear(pairs, weight, bias)[..., 0])


def shift(gates: Tensor, frames: Tensor, weight: Tensor, frame_mask: Tensor | None = None) -> Tensor:
    """One modality's share of a_i = 1/N_m sum_j g_ij (W_m V_j), the mean over valid frames (Eq. 3, 4).

    Args:
        gates: g, (B, N, N_m).
        frames: (B, N_m, d_m).
        weight: W_m, (D, d_m).
        frame_mask: (B, N_m); None = all valid.

    Returns:
        (B, N, D); 0 where an utterance has no valid frame.
    """
    if frame_mask is None:
        frame_mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
    frames = frames.masked_fill(~frame_mask[..., None], 0)  # padding must not matter, even NaN
    gates = gates.masked_fill(~frame_mask[:, None], 0)
    a_ij = gates[..., None] * F.linear(frames, weight)[:, None]  # (B, N, N_m, D)   (3)
    count = frame_mask.sum(dim=1).clamp(min=1).to(a_ij.dtype)
    return a_ij.sum(dim=2) / count[:, None, None]  # (4)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    a: Tensor,
    attention_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """z = softmax((q + a)(k + a)^T / sqrt(d_h)) (v + a) with one a, split over heads like q, k and v (Eq. 5-7).

    Args:
        query, key, value: X W + b, (B, N, H, d_h).
        a: (B, N, D).
        attention_mask: (B, N); None = all valid.
        scale: Factor of the scores; None = 1 / sqrt(d_h).
        dropout_p: Dropout probability on the attention probabilities.

    Returns:
        (B, N, H, d_h); 0 at invalid tokens.
    """
    a = a.unflatten(-1, query.shape[-2:])
    q, k, v = ((x + a).transpose(1, 2) for x in (query, key, value))  # (B, H, N, d_h)
    if attention_mask is not None:  # padding must not matter, even NaN
        q, k, v = (x.masked_fill(~attention_mask[:, None, :, None], 0) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)  # (5)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask[:, None, None], torch.finfo(scores.dtype).min)
    probabilities = F.dropout(torch.softmax(scores, dim=-1), dropout_p)  # (6)
    z = (probabilities @ v).transpose(1, 2)  # (7)
    return z if attention_mask is None else z.masked_fill(~attention_mask[:, :, None, None], 0)


def cms_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visual: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None] | None = None,
    acoustic: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None] | None = None,
    attention_mask: Tensor | None = None,
    activation: str = "relu",
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Eq. 1-7 from the gates' two halves: W_g [X_i; V_j] + b = p_i + r_j.

    Args:
        query, key, value: (B, N, H, d_h), before the shift.
        visual, acoustic: ``(token_gate p (B, N), frame_gate r (B, N_m), frames (B, N_m, d_m), weight (D, d_m),
            mask (B, N_m) or None)``; None = the modality is absent.
        attention_mask, scale, dropout_p: As in :func:`attention`.
        activation: As in :func:`gate`.

    Returns:
        (B, N, H, d_h); 0 at invalid tokens.
    """
    a = torch.zeros_like(query.flatten(2))
    for modality in (visual, acoustic):
        if modality is not None:
            token_gate, frame_gate, frames, weight, mask = modality
            if attention_mask is not None:
                token_gate = token_gate.masked_fill(~attention_mask, 0)
            if mask is not None:
                frame_gate = frame_gate.masked_fill(~mask, 0)
            gates = ACTIVATIONS[activation](token_gate[:, :, None] + frame_gate[:, None])
            a = a + shift(gates, frames, weight, mask)
    return attention(query, key, value, a, attention_mask, scale, dropout_p)


# ------------------------------------------------------------------ subnetworks and fusion, Eq. 8-16


def lstm(frames: Tensor, frame_mask: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """h_m = LSTM(frames), one layer, one direction; invalid frames are skipped (Eq. 11).

    Args:
        frames: (B, N_m, d_m).
        frame_mask: (B, N_m).
        weights: ``weight_ih_l0`` (4d, d_m), ``weight_hh_l0`` (4d, d), ``bias_ih_l0``, ``bias_hh_l0`` (4d,), gates in
            the order of ``torch.nn.LSTM``.

    Returns:
        (B, N_m, d); 0 at invalid frames.
    """
    h = c = frames.new_zeros(frames.shape[0], weights["weight_hh_l0"].shape[1])
    outputs = []
    for step in range(frames.shape[1]):
        valid = frame_mask[:, step, None]
        x = frames[:, step].masked_fill(~valid, 0)
        gates = F.linear(x, weights["weight_ih_l0"], weights["bias_ih_l0"]) + F.linear(
            h, weights["weight_hh_l0"], weights["bias_hh_l0"]
        )
        i, f, g, o = gates.chunk(4, dim=-1)
        new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        new_h = torch.sigmoid(o) * torch.tanh(new_c)
        h, c = torch.where(valid, new_h, h), torch.where(valid, new_c, c)
        outputs.append(new_h.masked_fill(~valid, 0))
    if not outputs:
        return frames.new_zeros(frames.shape[0], 0, h.shape[1])
    return torch.stack(outputs, dim=1)


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """u_m: the mean of h_m over valid positions (Eq. 9, 12).

    Args:
        hidden: (B, N, d).
        mask: (B, N).

    Returns:
        (B, d); 0 where nothing is valid.
    """
    total = hidden.masked_fill(~mask[..., None], 0).sum(dim=1)
    return total / mask.sum(dim=1).clamp(min=1).to(hidden.dtype)[:, None]


def projector(pooled: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """q_m: Linear - ReLU - Linear (Eq. 10, 13).

    Args:
        pooled: u_m, (B, d_m).
        weights: ``dense.weight`` (d, d_m), ``dense.bias``, ``out_proj.weight`` (d, d), ``out_proj.bias``.

    Returns:
        z_m^(1), the output of the ReLU, and z_m, both (B, d).
    """
    middle = torch.relu(F.linear(pooled, weights["dense.weight"], weights["dense.bias"]))
    return middle, F.linear(middle, weights["out_proj.weight"], weights["out_proj.bias"])


def fusion(middles: list[Tensor], weights: Mapping[str, Tensor], num_heads: int = 2, eps: float = 1e-5) -> Tensor:
    """The modalities' z_m^(1) as tokens of one Transformer encoder layer, flattened, then the predictor (Eq. 14-16).

    Args:
        middles: z_m^(1), each (B, d), one per modality present.
        weights: ``transformer.*``, named as in ``torch.nn.TransformerEncoderLayer`` (post-norm, ReLU), then ``dense.*``
            (W_1, b_1) and ``out_proj.*`` (W_2, b_2).

    Returns:
        y hat, (B, num_labels).
    """
    x = torch.stack(middles, dim=1)  # z', (B, M, d)   (14)
    qkv = F.linear(x, weights["transformer.self_attn.in_proj_weight"], weights["transformer.self_attn.in_proj_bias"])
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in qkv.chunk(3, dim=-1))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    z = (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2)
    z = F.linear(z, weights["transformer.self_attn.out_proj.weight"], weights["transformer.self_attn.out_proj.bias"])
    x = F.layer_norm(x + z, x.shape[-1:], weights["transformer.norm1.weight"], weights["transformer.norm1.bias"], eps)
    inner = torch.relu(F.linear(x, weights["transformer.linear1.weight"], weights["transformer.linear1.bias"]))
    z = F.linear(inner, weights["transformer.linear2.weight"], weights["transformer.linear2.bias"])
    x = F.layer_norm(x + z, x.shape[-1:], weights["transformer.norm2.weight"], weights["transformer.norm2.bias"], eps)
    z = x.flatten(1)  # (15)
    hidden = torch.relu(F.linear(z, weights["dense.weight"], weights["dense.bias"]))
    return F.linear(hidden, weights["out_proj.weight"], weights["out_proj.bias"])  # (16)


# ------------------------------------------------------------------ contrastive learning, Eq. 17-23


def targets(labels: Tensor | None, n: int, smoothing: float | None = 0.9, threshold: float = 0.1) -> Tensor:
    """t_ij: beta for the true pair, (1 - beta) / |S_i| for the pairs in S_i, else 0 (Eq. 23).

    S_i = {j != i : sign(y_i) = sign(y_j), |y_i - y_j| <= delta}, or the other members of the class for integer labels.
    If S_i is empty, t_ii = 1.

    Args:
        labels: (n,), floating (scores) or integer (classes); unused if smoothing is None.
        n: Number of examples.
        smoothing: beta; None = identity targets.
        threshold: delta.

    Returns:
        (n, n), float64.
    """
    identity = torch.eye(n, dtype=torch.float64, device=None if labels is None else labels.device)
    if smoothing is None:
        return identity
    if labels is None:
        raise ValueError("Label smoothing needs labels; give them, or smoothing=None.")
    if labels.is_floating_point():
        y = labels.double()
        near = (y[:, None] - y[None]).abs() <= threshold + LABEL_TOLERANCE
        similar = near & (torch.sign(y)[:, None] == torch.sign(y)[None])
    else:
        similar = labels[:, None] == labels[None]
    similar = similar & ~torch.eye(n, dtype=torch.bool, device=labels.device)
    count = similar.sum(dim=1, keepdim=True)
    smoothed = smoothing * identity + (1 - smoothing) * similar.double() / count.clamp(min=1)
    return torch.where(count > 0, smoothed, identity)


def directional_loss(anchor: Tensor, other: Tensor, target: Tensor, temperature: float | Tensor = 0.1) -> Tensor:
    """l(m -> m') = mean_i - sum_j t_ij log softmax_j(<z_mi, z_m'j> / tau), cosine similarities (Eq. 17, 18).

    Args:
        anchor, other: z_m and z_m', (n, d).
        target: (n, n).

    Returns:
        Scalar.
    """
    similarity = F.normalize(anchor, dim=-1, eps=1e-12) @ F.normalize(other, dim=-1, eps=1e-12).T / temperature
    return -(target.to(similarity.dtype) * torch.log_softmax(similarity, dim=1)).sum(dim=1).mean()


def pairwise_contrastive_loss(
    linguistic: Tensor | None,
    visual: Tensor | None,
    acoustic: Tensor | None,
    labels: Tensor | None,
    temperature: float | Tensor = 0.1,
    smoothing: float | None = 0.9,
    threshold: float = 0.1,
) -> Tensor:
    """l_con: the sum of the directional losses over both directions of every pair of modalities (Eq. 19).

    Args:
        linguistic, visual, acoustic: z_m, (n, d); None = absent: its directions are dropped.
        labels, smoothing, threshold: As in :func:`targets`.
        temperature: tau.

    Returns:
        Scalar.
    """
    embeddings = [z for z in (linguistic, visual, acoustic) if z is not None]
    target = targets(labels, embeddings[0].shape[0], smoothing, threshold).to(embeddings[0].device)
    losses = [directional_loss(anchor, other, target, temperature) for anchor, other in permutations(embeddings, 2)]
    return torch.stack(losses).sum()


def total_loss(task: Tensor, contrastive: Tensor, nu: float | Tensor) -> Tensor:
    """l = l_task + nu l_con (Eq. 20)."""
    return task + nu * contrastive


def updated_nu(nu: float, task: float, contrastive: float, alpha: float = 0.9) -> float:
    """nu <- alpha nu + (1 - alpha) l_task / l_con, both losses from the last validation epoch (Eq. 21, 22)."""
    return alpha * nu + (1 - alpha) * task / contrastive
