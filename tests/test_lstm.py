"""The packed LSTM, the library's and our operator, against the literal reference."""

import pytest
import torch

from cmsbert_fast import reference
from cmsbert_fast.lstm import PackedLSTM, _cudnn_lstm
from cmsbert_fast.packing import Packing, cumulative, pad, valid_positions

LENGTHS = [[3, 1, 5, 5], [1], [0, 4, 0, 2], [0, 0]]


def module(dtype=torch.float64):
    lstm = PackedLSTM(3, 4)
    generator = torch.Generator().manual_seed(0)
    for parameter in lstm.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return lstm


def run_operator(lstm, frames, packing):
    return torch.ops.cmsbert_fast.lstm(frames, packing.cu_seqlens, *lstm.parameters())[0]


def run_library(lstm, frames, packing):
    return _cudnn_lstm(frames, packing.cu_seqlens, *lstm.parameters())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("run", [PackedLSTM.__call__, run_operator, run_library], ids=["module", "operator", "library"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_the_reference(run, lengths, device):
    """On a GPU the library is cuDNN, and the module takes it; on the CPU it is ATen, and the module takes the other."""
    lstm, packing = module().to(device), Packing(cumulative(torch.tensor(lengths, device=device)), max(lengths))
    frames = torch.randn(sum(lengths) + 2, 3, dtype=torch.float64, device=device, requires_grad=True)
    weight = torch.randn(sum(lengths) + 2, 4, dtype=torch.float64, device=device)
    inputs = [frames, *lstm.parameters()]

    hidden = run(lstm, frames, packing)
    mask = valid_positions(packing)
    expected = reference.lstm(pad(frames, packing), mask, dict(lstm.named_parameters()))[mask]
    tolerance = 1e-13 if device == "cpu" else 1e-12
    torch.testing.assert_close(hidden[: sum(lengths)], expected, rtol=0, atol=tolerance)
    assert (hidden[sum(lengths) :] == 0).all()

    grads = torch.autograd.grad((hidden * weight).sum(), inputs)
    expected_grads = torch.autograd.grad(
        (expected * weight[: sum(lengths)]).sum() + 0 * sum(t.sum() for t in inputs), inputs
    )
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=10 * tolerance)


def test_operator_passes_opcheck():
    lstm, packing = module(), Packing(cumulative(torch.tensor([3, 0, 2])), 3)
    frames = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.cmsbert_fast.lstm.default, (frames, packing.cu_seqlens, *lstm.parameters()))


def test_rows_of_no_sequence_may_hold_nan_and_backward_may_run_under_autocast():
    lstm, packing = module(torch.float32), Packing(cumulative(torch.tensor([3, 2])), 3)
    frames = torch.randn(7, 3)

    def gradients(frames, autocast):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return torch.autograd.grad(lstm(frames, packing).square().sum(), list(lstm.parameters()))

    expected = gradients(frames, False)
    poisoned = frames.clone()
    poisoned[5:] = torch.nan
    for got in (gradients(poisoned, False), gradients(frames, True)):
        for gradient, wanted in zip(got, expected, strict=True):
            assert torch.equal(gradient, wanted)
