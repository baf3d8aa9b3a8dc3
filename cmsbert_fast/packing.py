"""Packed sequences: B sequences of different lengths, one after another in the rows of one tensor, without padding.

Rows from ``cu_seqlens[-1]`` on belong to no sequence. They allow a batch to be rounded up to a static shape (CUDA
graphs, torch.compile). Every operator returns zeros there and sends them no gradient.

torch.export has shapes that may not depend on data, and its programs run where the project is not installed. There the
layout is another, the padded one: every sequence has ``max_length`` rows, and those behind its own belong to no
sequence (:attr:`Packing.row_lengths`).
"""

from operator import sub
from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """The rows of each sequence.

    Attributes:
        cu_seqlens: (B + 1,) int32; sequence b is rows ``cu_seqlens[b]:cu_seqlens[b + 1]``.
        max_length: Length of the longest sequence, or any larger number. A host number, so no operator waits for the
            device.
        host_cu_seqlens: ``cu_seqlens`` on the CPU, if known: some operators would otherwise wait for it.
        row_lengths: (B,) int32 in the padded layout of torch.export, None in the packed one. Sequence b has so many
            rows from ``cu_seqlens[b]`` on; ``max_length`` rows further the next row of the padded batch begins.
        shared: Padded layout only: whether several sequences, one after another, share a row of the padded batch.
    """

    cu_seqlens: Tensor
    max_length: int
    host_cu_seqlens: Tensor | None = None
    row_lengths: Tensor | None = None
    shared: bool = False

    @property
    def is_padded(self) -> bool:
        """Whether the layout is the padded one of torch.export."""
        return self.row_lengths is not None

    @property
    def lengths(self) -> Tensor:
        """(B,) int32."""
        return self.cu_seqlens.diff() if self.row_lengths is None else self.row_lengths

    @property
    def on_host(self) -> Tensor:
        """``cu_seqlens`` on the CPU; waits for the device where ``host_cu_seqlens`` is not known."""
        return (self.cu_seqlens if self.host_cu_seqlens is None else self.host_cu_seqlens).cpu()


def are_sound(packing: Packing, rows: int) -> bool:
    """Whether sequences on the CPU lie one after the other in so many rows, none of them longer than ``max_length``."""
    cu_seqlens = packing.cu_seqlens
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        return False
    ends = cu_seqlens.tolist()
    lengths = list(map(sub, ends[1:], ends))
    return ends[0] == 0 and min(lengths) >= 0 and ends[-1] <= rows and max(lengths) <= packing.max_length


def cumulative(lengths: Tensor) -> Tensor:
    """``cu_seqlens``, (B + 1,) int32, from lengths (B,)."""
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def uniform_packing(batch: int, length: int, device: torch.device) -> Packing:
    """The packing of ``batch`` sequences of ``length`` rows each: an unpadded (B, N, ...) tensor, flattened."""
    packing = Packing(torch.arange(batch + 1, dtype=torch.int32, device=device) * length, length)
    if torch.compiler.is_exporting():
        return packing._replace(row_lengths=torch.full((batch,), length, dtype=torch.int32, device=device))
    return packing


def padded_packing(lengths: Tensor, length: int) -> Packing:
    """The padded layout of sequences of ``lengths`` (B,) in rows of ``length``."""
    starts = torch.arange(lengths.shape[0] + 1, dtype=torch.int32, device=lengths.device) * length
    return Packing(starts, length, row_lengths=lengths.int())


def pack_mask(mask: Tensor) -> tuple[Tensor, Packing]:
    """Finds the valid positions of a padded batch.

    Args:
        mask: (B, N), nonzero = valid, any pattern.

    Returns:
        ``rows`` (T,) int64: the flat position b * N + i of each packed row, in order; and the packing. T is the number
        of valid positions. Under torch.compile, whose shapes may not depend on data, T is B * N: the invalid positions
        follow the valid ones, as rows of no sequence. Under torch.export they do so within each sequence.
    """
    mask = mask.bool()
    if torch.compiler.is_exporting():
        return _valid_first(mask), padded_packing(mask.sum(dim=1), mask.shape[1])
    flat = mask.flatten()
    packing = Packing(cumulative(mask.sum(dim=1)), mask.shape[1])
    if torch.compiler.is_compiling():
        return (~flat).to(torch.uint8).argsort(stable=True), packing
    return flat.nonzero()[:, 0], packing


def _valid_first(mask: Tensor) -> Tensor:
    """(B, N) bool -> (B * N,): the flat positions of each sequence, the valid ones first, both in order.

    Without sorting, which ONNX has no stable form of.
    """
    valid = mask.cumsum(dim=1)
    place = torch.where(mask, valid, valid[:, -1:] + (~mask).cumsum(dim=1)) - 1
    batch, length = mask.shape
    place = place + torch.arange(batch, device=mask.device)[:, None] * length
    flat = torch.arange(batch * length, device=mask.device)
    return torch.zeros_like(flat).scatter(0, place.flatten(), flat)


def take_rows(padded: Tensor, rows: Tensor | None) -> Tensor:
    """(B, N, ...) -> (T, ...): the ``rows`` of :func:`pack_mask`; None = all."""
    flat = padded.flatten(0, 1)
    return flat if rows is None else flat.index_select(0, rows)


def without_rest(packed: Tensor, packing: Packing) -> Tensor:
    """(T, ...) with 0 at rows of no sequence.

    For what a linear layer reads: those rows get gradient 0, but 0 times NaN is NaN in the layer's weight gradient.
    Without a copy where the host knows that there are none.
    """
    ends = packing.cu_seqlens if packing.host_cu_seqlens is None else packing.host_cu_seqlens
    if not torch.compiler.is_compiling() and ends.device.type == "cpu" and int(ends[-1]) == packed.shape[0]:
        return packed
    if packing.is_padded:
        rest = ~valid_positions(packing).flatten()
    else:
        rest = torch.arange(packed.shape[0], device=packed.device) >= packing.cu_seqlens[-1]
    return packed.masked_fill(rest.view(-1, *[1] * (packed.dim() - 1)), 0)


def valid_positions(packing: Packing) -> Tensor:
    """The (B, max_length) boolean mask of the padded form."""
    return torch.arange(packing.max_length, device=packing.cu_seqlens.device) < packing.lengths[:, None]


def pad(packed: Tensor, packing: Packing) -> Tensor:
    """(T, ...) -> (B, max_length, ...). Padding holds arbitrary values, finite if ``packed`` is.

    Mask with :func:`valid_positions`.
    """
    batch, length = packing.cu_seqlens.shape[0] - 1, packing.max_length
    if packing.is_padded:
        return packed.unflatten(0, (batch, length))
    if packed.shape[0] == 0:
        return packed.sum(dim=0).expand(batch, length, *packed.shape[1:])  # zeros that keep the graph connected
    rows = packing.cu_seqlens[:-1, None] + torch.arange(length, device=packed.device)
    rows = rows.clamp(max=packed.shape[0] - 1).flatten()
    return packed.index_select(0, rows).unflatten(0, (batch, length))


def unpad(padded: Tensor, packing: Packing, total: int) -> Tensor:
    """(B, max_length, ...) -> (total, ...); rows of no sequence are 0."""
    if packing.is_padded:
        return without_rest(padded.flatten(0, 1), packing)
    if padded.numel() == 0:
        nothing = padded.flatten(0, 1).sum(dim=0, dtype=padded.dtype)  # zeros that keep the graph connected
        return padded.new_zeros(total, *padded.shape[2:]) + nothing
    sequence = sequence_of_row(packing, total)
    row = torch.arange(total, device=padded.device)
    belongs = sequence < padded.shape[0]
    sequence = sequence.clamp(max=padded.shape[0] - 1)
    flat = sequence * packing.max_length + (row - packing.cu_seqlens[sequence]).clamp(max=packing.max_length - 1)
    packed = padded.flatten(0, 1).index_select(0, flat)
    return packed.masked_fill(~belongs.view(-1, *[1] * (packed.dim() - 1)), 0)


def sequence_of_row(packing: Packing, total: int) -> Tensor:
    """(total,) int64: the sequence each row belongs to; B for rows of no sequence."""
    if packing.is_padded:
        count = packing.cu_seqlens.shape[0] - 1
        own = torch.arange(count, device=packing.cu_seqlens.device)[:, None]
        return torch.where(valid_positions(packing), own, count).flatten()
    rows = torch.arange(total, dtype=torch.int32, device=packing.cu_seqlens.device)
    return torch.searchsorted(packing.cu_seqlens[1:].contiguous(), rows, right=True)


def positions(packing: Packing, total: int) -> Tensor:
    """(total,) int64: 0, 1, ... within every sequence; 0 at rows of no sequence."""
    if packing.is_padded:
        valid = valid_positions(packing)
        return torch.where(valid, torch.arange(packing.max_length, device=valid.device), 0).flatten()
    rows = torch.arange(total, device=packing.cu_seqlens.device)
    position = rows - packing.cu_seqlens[sequence_of_row(packing, total)]
    return position.masked_fill(rows >= packing.cu_seqlens[-1], 0)


def segment_mean(packed: Tensor, packing: Packing) -> Tensor:
    """The mean over each sequence's rows, (T, d) -> (B, d); 0 for a sequence without rows (Eq. 9, 12).

    Sums in float32 at least, in a fixed order.
    """
    wide = packed.float() if packed.dtype in (torch.float16, torch.bfloat16) else packed
    lengths = packing.lengths.long()
    if packing.is_padded:
        own = pad(wide, packing).masked_fill(~valid_positions(packing)[:, :, None], 0)
        return (own.sum(dim=1) / lengths.clamp(min=1).to(wide.dtype)[:, None]).to(packed.dtype)
    # unsafe: no check that the lengths sum to T; it would wait for the device and forbid rows of no sequence
    total = torch.segment_reduce(wide, "sum", lengths=lengths, axis=0, unsafe=True, initial=0)
    return (total / lengths.clamp(min=1).to(wide.dtype)[:, None]).to(packed.dtype)


def segment_first(packed: Tensor, packing: Packing) -> Tensor:
    """The first row of each sequence, (T, d) -> (B, d); 0 for a sequence without rows."""
    return _row_of_each(packed, packing, packing.cu_seqlens[:-1])


def segment_last(packed: Tensor, packing: Packing) -> Tensor:
    """The last row of each sequence, (T, d) -> (B, d); 0 for a sequence without rows."""
    return _row_of_each(packed, packing, packing.cu_seqlens[:-1] + packing.lengths - 1)


def _row_of_each(packed: Tensor, packing: Packing, rows: Tensor) -> Tensor:
    lengths = packing.lengths
    if not packing.is_padded and packed.shape[0] == 0:
        return packed.sum(dim=0).expand(len(lengths), *packed.shape[1:])  # zeros that keep the graph connected
    found = packed.index_select(0, rows.clamp(min=0, max=packed.shape[0] - 1))
    return found.masked_fill((lengths == 0).view(-1, *[1] * (packed.dim() - 1)), 0)


def reversed_rows(packing: Packing, total: int) -> Tensor:
    """(total,) int64: for each row, the row that takes its place where every sequence runs backwards.

    Applied twice, every row is in its own place again, those of no sequence all the time.
    """
    rows = torch.arange(total, device=packing.cu_seqlens.device)
    if packing.is_padded:
        starts, lengths = packing.cu_seqlens[:-1, None], packing.lengths[:, None]
        mirrored = (2 * starts + lengths - 1).expand(-1, packing.max_length).flatten() - rows
        return torch.where(valid_positions(packing).flatten(), mirrored, rows)
    sequence = sequence_of_row(packing, total).clamp(max=packing.cu_seqlens.shape[0] - 2)
    mirrored = packing.cu_seqlens[sequence] + packing.cu_seqlens[sequence + 1] - 1 - rows
    return torch.where(rows < packing.cu_seqlens[-1], mirrored, rows)
