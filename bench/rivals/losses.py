"""Contrastive losses that others publish, targets one-hot, written from their definitions."""

from itertools import combinations, permutations
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


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
