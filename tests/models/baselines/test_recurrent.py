"""The packed recurrent parts against PyTorch's own, utterance by utterance, in float64."""

import pytest
import torch
from torch import nn

from cmsbert_fast.models.baselines.recurrent import (
    BidirectionalLSTM,
    CellLSTM,
    DecoderLSTM,
    LastLSTM,
    order_of_time,
)
from cmsbert_fast.packing import Packing, cumulative

LENGTHS = [[3, 1, 5, 5], [1], [0, 4, 0, 2], [0, 0], [6]]
TAIL = 2  # rows of no sequence behind
every_shape = pytest.mark.parametrize("lengths", LENGTHS, ids=str)


def initialised(module):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def layout(lengths):
    return Packing(cumulative(torch.tensor(lengths)), max(lengths))


def run(lstm, frames, packing, backend="auto"):
    """Calls an LSTM; a CellLSTM takes the order of time, and has one backend."""
    if isinstance(lstm, CellLSTM):
        return lstm(frames, order_of_time(packing, frames.device))
    return lstm(frames, packing, backend)


def rows(lengths, size=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(sum(lengths) + TAIL, size, generator=generator, dtype=torch.float64, requires_grad=True)


def check(found, expected, inputs):
    """Values, and the gradients of a weighted sum of all of them."""
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    total, goal = (sum((x * x.detach().cos()).sum() for x in values) for values in (found, expected))
    anchor = 0 * sum(x.sum() for x in inputs)
    ours, theirs = torch.autograd.grad(total, inputs), torch.autograd.grad(goal + anchor, inputs)
    for gradient, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, right, rtol=0, atol=1e-11)


def with_tail(parts, size):
    return torch.cat([*parts, torch.zeros(TAIL, size, dtype=torch.float64)])


def library(lstm, bidirectional=False):
    """torch.nn.LSTM with the same weights, for functional calls that keep their gradients."""
    their = nn.LSTM(lstm.input_size, lstm.hidden_size, bidirectional=bidirectional, dtype=torch.float64)

    def call(frames, parameters):
        if not len(frames):
            width = lstm.hidden_size * (1 + bidirectional)
            return frames.new_zeros(0, width), frames.new_zeros(1 + bidirectional, lstm.hidden_size)
        hidden, (last, _) = torch.func.functional_call(their, parameters, (frames[:, None],))
        return hidden[:, 0], last[:, 0]

    return call


@every_shape
def test_last_state(lengths):
    lstm, frames = initialised(LastLSTM(3, 4)), rows(lengths)
    call, parameters = library(lstm), dict(lstm.named_parameters())
    expected = [call(part, parameters)[1] for part in frames[: sum(lengths)].split(lengths)]
    check([lstm(frames, layout(lengths))], [torch.cat(expected)], [frames, *lstm.parameters()])


@every_shape
def test_both_directions(lengths):
    lstm, frames = initialised(BidirectionalLSTM(3, 4)), rows(lengths)
    call = library(lstm.forwards, bidirectional=True)
    parameters = {
        **dict(lstm.forwards.named_parameters()),
        **{f"{name}_reverse": p for name, p in lstm.backwards.named_parameters()},
    }
    parts = [call(part, parameters) for part in frames[: sum(lengths)].split(lengths)]
    expected = [
        with_tail([hidden for hidden, _ in parts], 8),
        torch.stack([last.flatten() for _, last in parts]),
    ]
    found = lstm(frames, layout(lengths))
    check([found.hidden, found.last], expected, [frames, *lstm.parameters()])


@every_shape
def test_cells(lengths):
    lstm, frames = initialised(CellLSTM(3, 4)), rows(lengths)
    cell = nn.LSTMCell(3, 4, dtype=torch.float64)
    parameters = {name.removesuffix("_l0"): p for name, p in lstm.named_parameters()}
    hidden, cells = [], []
    for part in frames[: sum(lengths)].split(lengths):
        state = None
        for x in part:
            state = torch.func.functional_call(cell, parameters, (x[None], state))
            hidden.append(state[0])
            cells.append(state[1])
    found = run(lstm, frames, layout(lengths))
    check([*found], [with_tail(hidden, 4), with_tail(cells, 4)], [frames, *lstm.parameters()])


@every_shape
def test_decoder(lengths):
    decoder = initialised(DecoderLSTM(4))
    cell = nn.LSTMCell(4, 4, dtype=torch.float64)
    start = torch.randn(len(lengths), 4, dtype=torch.float64, requires_grad=True)
    states = []
    for first, length in zip(start, lengths, strict=True):
        given, state = first[None], None
        for _ in range(length):
            state = torch.func.functional_call(cell, dict(decoder.named_parameters()), (given, state))
            states.append(state[0])
            given = state[0]
    found = decoder(start, layout(lengths), sum(lengths) + TAIL)
    check([found], [with_tail(states, 4)], [start, *decoder.parameters()])


@pytest.mark.parametrize("make", [LastLSTM, BidirectionalLSTM, CellLSTM])
def test_lengths_on_the_host_are_used(make):
    lengths = [2, 0, 3]
    lstm, frames, packing = initialised(make(3, 4)), rows(lengths), layout(lengths)
    with_host = packing._replace(host_cu_seqlens=packing.cu_seqlens.clone())
    torch.testing.assert_close(run(lstm, frames, with_host), run(lstm, frames, packing), rtol=0, atol=0)


@pytest.mark.parametrize("make", [LastLSTM, BidirectionalLSTM, CellLSTM])
def test_autocast_leaves_the_weights_dtype(make):
    lstm, packing = initialised(make(3, 4)).float(), layout([2, 3])
    frames = torch.randn(5, 3)
    expected = run(lstm, frames, packing, backend="torch")
    with torch.autocast("cpu", torch.bfloat16):
        found = run(lstm, frames, packing, backend="torch")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
