"""Recurrences for torch.export: over the padded layout of :mod:`cmsbert_fast.packing`, all sequences a step.

A loop over time whose length depends on the batch is a higher-order operator in a program, and ONNX's Scan.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan
from torch.nn import functional as F

from cmsbert_fast.packing import Packing, without_rest

State = tuple[Tensor, ...]


def scan_rows(
    step: Callable[[State, State], State], state: State, inputs: tuple[Tensor, ...], length: int
) -> tuple[Tensor, ...]:
    """Runs a recurrence along every row of a padded batch.

    Args:
        step: From the state before and the inputs of one time step, each (B, ...), to the new state.
        state: The first one, each (B, ...).
        inputs: Of every step, each (B * length, ...).
        length: Steps, N; at least 1.

    Returns:
        The state of every step, each (B * length, ...); also behind the sequences' ends.
    """

    def both(before: State, now: State) -> tuple[State, State]:
        # Neither may be an operand or the other.
        after = tuple(part.clone() for part in step(before, now))
        return after, tuple(part.clone() for part in after)

    by_time = tuple(values.unflatten(0, (-1, length)).transpose(0, 1) for values in inputs)
    _, states = scan(both, state, by_time)
    return tuple(part.transpose(0, 1).flatten(0, 1) for part in states)


def lstm_cell(products: Tensor, cells: Tensor | None) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: hidden states and cells (b, d) from the products (b, 4d) of frames and hidden states, biases
    included, and the cells before; None = 0."""
    i, f, g, o = products.chunk(4, dim=1)
    new = i.sigmoid() * g.tanh()
    if cells is not None:
        new = new + f.sigmoid() * cells
    return o.sigmoid() * new.tanh(), new


def padded_lstm(
    frames: Tensor, packing: Packing, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden states and cells (F, d) of frames (F, d_m), each sequence from a zero state; 0 at rows of no sequence.

    Of a :attr:`~cmsbert_fast.packing.Packing.shared` layout, rows of no sequence are not set to 0.
    """
    products = F.linear(frames, weight_ih, bias_ih + bias_hh)
    zeros = products.unflatten(0, (-1, packing.max_length))[:, 0, : weight_hh.shape[1]] * 0

    def step(before: State, now: State) -> State:
        hidden, cells = (part * now[1] for part in before) if packing.shared else before
        return lstm_cell(now[0] + F.linear(hidden, weight_hh), cells)

    inputs = (products, _goes_on(packing, products)) if packing.shared else (products,)
    hidden, cells = scan_rows(step, (zeros, zeros.clone()), inputs, packing.max_length)
    if packing.shared:
        return hidden, cells
    return without_rest(hidden, packing), without_rest(cells, packing)


def _goes_on(packing: Packing, like: Tensor) -> Tensor:
    """(F, 1): 0 where a sequence begins, else 1."""
    flat = torch.ones_like(like[:, :1])
    starts = packing.cu_seqlens[:-1].long()
    # Empty sequences "begin" where the next one does, or behind the last row.
    ahead = torch.cat([flat, flat[:1]])
    return ahead.index_fill(0, starts, 0)[:-1]
