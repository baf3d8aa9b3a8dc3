"""The LSTM of one utterance, step by step: for the references of the baselines."""

from collections.abc import Mapping

import torch
from torch import Tensor


def cell(x: Tensor, h: Tensor, c: Tensor, weights: Mapping[str, Tensor], suffix: str = "_l0") -> tuple[Tensor, Tensor]:
    """One step: x (e,), h and c (d,) -> the new h and c.

    Args:
        weights: ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh``, each with ``suffix``, as in torch.nn.LSTM.
    """
    d = len(h)
    z = weights[f"weight_ih{suffix}"] @ x + weights[f"bias_ih{suffix}"]
    z = z + weights[f"weight_hh{suffix}"] @ h + weights[f"bias_hh{suffix}"]
    i, f, o = torch.sigmoid(z[:d]), torch.sigmoid(z[d : 2 * d]), torch.sigmoid(z[3 * d :])
    c = f * c + i * torch.tanh(z[2 * d : 3 * d])
    return o * torch.tanh(c), c


def states(rows: Tensor, weights: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The hidden states and the cells of every step, from a zero state; rows (n, e)."""
    h = c = rows.new_zeros(weights["weight_hh_l0"].shape[1])
    hidden, cells = [], []
    for x in rows:
        h, c = cell(x, h, c, weights)
        hidden.append(h)
        cells.append(c)
    return hidden, cells


def last(rows: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The last hidden state (d,); 0 for no rows."""
    hidden, _ = states(rows, weights)
    return hidden[-1] if hidden else rows.new_zeros(weights["weight_hh_l0"].shape[1])


def part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of one module: those whose names begin with ``prefix`` and a dot, without it."""
    return {name[len(prefix) + 1 :]: w for name, w in weights.items() if name.startswith(f"{prefix}.")}
