"""What the recurrent baselines need besides PackedLSTM: last states, both directions, cells, a decoder.

All are packed: nothing is computed on padding, and an utterance's states do not depend on the others. They compute in
their parameters' dtype, whatever autocast says, as PackedLSTM does. A sequence without rows has the last state 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmsbert_fast.ops.lstm.api import PackedLSTM
from cmsbert_fast.ops.lstm.padded import State, lstm_cell, padded_lstm, scan_rows
from cmsbert_fast.ops.lstm.steps import TimeSteps, time_steps
from cmsbert_fast.packing import Packing, reversed_rows, segment_last, without_rest


class States(NamedTuple):
    """States of an LSTM.

    Attributes:
        hidden: (F, d), of every row; 0 at rows of no sequence.
        last: (B, d), the final ones.
    """

    hidden: Tensor
    last: Tensor


class LastLSTM(PackedLSTM):
    """A PackedLSTM of which only the final hidden states are read."""

    def forward(self, frames: Tensor, packing: Packing, backend: str = "auto") -> Tensor:
        """(F, d_m) -> (B, d)."""
        return segment_last(super().forward(frames, packing, backend), packing)


class BidirectionalLSTM(nn.Module):
    """torch.nn.LSTM(bidirectional=True), one layer; its parameters without suffix are ``forwards``, with "_reverse"
    ``backwards``.

    Args:
        input_size: d_m.
        hidden_size: d, of each direction.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.forwards = PackedLSTM(input_size, hidden_size)
        self.backwards = PackedLSTM(input_size, hidden_size)

    def forward(self, frames: Tensor, packing: Packing, backend: str = "auto") -> States:
        """(F, d_m) -> hidden (F, 2d) and last (B, 2d), forwards then backwards.

        The last state backwards is that of the first row.
        """
        mirror = reversed_rows(packing, frames.shape[0])
        ahead = self.forwards(frames, packing, backend)
        behind = self.backwards(frames.index_select(0, mirror), packing, backend)
        last = torch.cat([segment_last(ahead, packing), segment_last(behind, packing)], dim=-1)
        return States(torch.cat([ahead, behind.index_select(0, mirror)], dim=-1), last)


class CellStates(NamedTuple):
    """Hidden states and cells of an LSTM, both (F, d), 0 at rows of no sequence."""

    hidden: Tensor
    cells: Tensor


class CellLSTM(PackedLSTM):
    """A PackedLSTM whose cells are an output too, with gradient: for MFN's memory."""

    def forward(self, frames: Tensor, steps: "TimeSteps | Packing") -> CellStates:  # type: ignore[override]
        """(F, d_m) -> hidden states and cells, by PyTorch's own loop; ``steps`` from :func:`order_of_time`."""
        frames = frames.to(self.weight_ih_l0.dtype)
        if isinstance(steps, Packing):
            weights = (self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0)
            return CellStates(*padded_lstm(frames, steps, *weights))
        rows, batch_sizes = steps
        with torch.autocast(frames.device.type, enabled=False):
            bias = self.bias_ih_l0 + self.bias_hh_l0
            inputs = F.linear(frames.index_select(0, rows), self.weight_ih_l0, bias).split(batch_sizes.tolist())
            hidden: list[Tensor] = []
            cells: list[Tensor] = []
            for products in inputs:
                before = (hidden[-1][: len(products)], cells[-1][: len(products)]) if hidden else None
                h, c = _cell(products, before, self.weight_hh_l0)
                hidden.append(h)
                cells.append(c)
            size = (len(frames), self.hidden_size)
            sources = (*self.parameters(), frames[:0])
            return CellStates(in_order(hidden, rows, size, *sources), in_order(cells, rows, size, *sources))


class DecoderLSTM(nn.Module):
    """An LSTM that runs freely: its input is the hidden state of the step before (MFM).

    s_1 = Cell(start, 0), s_t = Cell(s_{t-1}, state), so the start has the size of a state. Parameters are those of
    torch.nn.LSTMCell.

    Args:
        size: Of start, hidden state and cell.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.weight_ih = nn.Parameter(torch.empty(4 * size, size))
        self.weight_hh = nn.Parameter(torch.empty(4 * size, size))
        self.bias_ih = nn.Parameter(torch.empty(4 * size))
        self.bias_hh = nn.Parameter(torch.empty(4 * size))

    def reset_parameters(self) -> None:
        """As torch.nn.LSTMCell's."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(self.size**-0.5), self.size**-0.5)

    def forward(self, start: Tensor, packing: Packing, total: int) -> Tensor:
        """Decodes as many states as each sequence has rows.

        Args:
            start: (B, size).
            packing: The rows to decode.
            total: P, their number.

        Returns:
            (P, size), the hidden states.
        """
        start = start.to(self.weight_ih.dtype)
        if packing.is_padded:
            return self._padded(start, packing, total)
        rows, batch_sizes = time_steps(packing.on_host, start.device)
        with torch.autocast(start.device.type, enabled=False):
            bias = self.bias_ih + self.bias_hh
            weight = self.weight_ih + self.weight_hh  # of the steps after the first: input and hidden state are one
            order = packing.on_host.diff().sort(descending=True, stable=True).indices.to(start.device)
            hidden: list[Tensor] = []
            state = None
            for size in batch_sizes.tolist():
                if state is None:
                    state = _cell(F.linear(start.index_select(0, order[:size]), self.weight_ih, bias))
                else:
                    h, c = (part[:size] for part in state)
                    state = _cell(F.linear(h, weight, bias), (h, c))
                hidden.append(state[0])
            return in_order(hidden, rows, (total, self.size), *self.parameters(), start)

    def _padded(self, start: Tensor, packing: Packing, total: int) -> Tensor:
        """The same for the padded layout of torch.export."""

        def step(before: State, now: State) -> State:
            source, hidden, cells = before
            products = F.linear(source, self.weight_ih, self.bias_ih) + F.linear(hidden, self.weight_hh, self.bias_hh)
            new, cells = lstm_cell(products, cells)
            return new, new, cells

        clock = start.new_zeros(total, 1)
        zeros = torch.zeros_like(start)
        _, hidden, _ = scan_rows(step, (start, zeros, zeros.clone()), (clock,), packing.max_length)
        return without_rest(hidden, packing)


def _cell(
    products: Tensor, before: tuple[Tensor, Tensor] | None = None, weight_hh: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: hidden states and cells (b, d) from W_ih x + b, (b, 4d), and the states before, None = 0.

    Without ``weight_hh`` the products hold those of the hidden states already.
    """
    if before is not None and weight_hh is not None:
        products = torch.addmm(products, before[0], weight_hh.T)
    return lstm_cell(products, None if before is None else before[1])


def in_order(states: list[Tensor], rows: Tensor, size: tuple[int, int], *sources: Tensor) -> Tensor:
    """States in the order of time -> in that of the packed rows, 0 at others.

    Fewer than two steps do not read all of the sources; they stay in the graph, as DistributedDataParallel needs it.
    """
    zeros = sources[0].new_zeros(size)
    if len(states) < 2:
        zeros = zeros + 0 * torch.stack([source.sum() for source in sources]).sum()
    return zeros.index_copy(0, rows, torch.cat(states)) if states else zeros


def order_of_time(packing: Packing, device: torch.device) -> "TimeSteps | Packing":
    """The order in which a recurrence reads packed rows, laid out on the host; a padded layout is its own."""
    if packing.is_padded:
        return packing
    return time_steps(packing.on_host, device)
