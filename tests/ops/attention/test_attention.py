"""cms_attention: every backend that runs here against the literal reference, in float64, values and gradients."""

from itertools import pairwise

import pytest
import torch

from cmsbert_fast import ModalityShift, cms_attention, reference
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.dispatch import choose_backend, why_not
from cmsbert_fast.packing import Packing, cumulative, pad, valid_positions

HEADS, HEAD_SIZE = 2, 4
SIZES = {"visual": 5, "acoustic": 3}


def modality(lengths, token_rows, size, generator):
    frames = sum(lengths)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)

    return ModalityShift(
        random(token_rows),
        random(frames),
        random(frames, size),
        random(HEADS * HEAD_SIZE, size),
        cumulative(torch.tensor(lengths)),
        max(lengths),
    )


def converted(shift, dtype):
    return shift._replace(**{name: getattr(shift, name).detach().to(dtype) for name in shift._fields[:4]})


def packed_case(tokens, visual, acoustic, extra_rows=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = sum(tokens) + extra_rows
    qkv = [
        torch.randn(rows, HEADS, HEAD_SIZE, dtype=torch.float64, generator=generator, requires_grad=True)
        for _ in range(3)
    ]
    shifts = [
        None if lengths is None else modality(lengths, rows, SIZES[name], generator)
        for name, lengths in (("visual", visual), ("acoustic", acoustic))
    ]
    return qkv, shifts, Packing(cumulative(torch.tensor(tokens)), max(tokens))


def one_by_one(qkv, shifts, packing, activation):
    """The definition of the packed form: the reference on each sequence alone, without any padding."""
    z = torch.zeros_like(qkv[0])
    starts = packing.cu_seqlens.tolist()
    for b, (start, stop) in enumerate(pairwise(starts)):
        parts = []
        for shift in shifts:
            if shift is None:
                parts.append(None)
                continue
            first, last = shift.cu_seqlens[b], shift.cu_seqlens[b + 1]
            parts.append(
                (
                    shift.token_gate[None, start:stop],
                    shift.frame_gate[None, first:last],
                    shift.frames[None, first:last],
                    shift.weight,
                    None,
                )
            )
        z[start:stop] = reference.cms_attention(*(x[None, start:stop] for x in qkv), *parts, activation=activation)[0]
    return z


def leaves(qkv, shifts):
    return qkv + [tensor for shift in shifts if shift is not None for tensor in shift[:4]]


CASES = {
    "unequal": ([5, 3, 7], [4, 1, 2], [2, 9, 3]),
    "one token": ([1], [3], [2]),
    "no frames anywhere": ([4, 2], [0, 0], [0, 0]),
    "one utterance without frames": ([4, 2], [3, 0], [0, 5]),
    "an utterance without tokens": ([4, 0, 2], [3, 2, 1], [1, 1, 5]),
    "visual only": ([4, 2], [3, 6], None),
    "acoustic only": ([4, 2], None, [3, 6]),
    "text only": ([4, 2], None, None),
}


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_packed_equals_each_sequence_alone(backend, case, activation):
    qkv, shifts, packing = packed_case(*CASES[case], extra_rows=3)
    expected = one_by_one(qkv, shifts, packing, activation)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs = leaves(qkv, shifts)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs, allow_unused=True, materialize_grads=True)

    z = cms_attention(
        *qkv,
        *shifts,
        cu_seqlens=packing.cu_seqlens,
        max_seqlen=packing.max_length,
        activation=activation,
        backend=backend,
    )
    grads = torch.autograd.grad((z * weights).sum(), inputs, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-12)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12)


def test_what_lies_in_padding_reaches_no_gradient():
    mask, frame_mask = torch.tensor([[True, True, False]]), torch.tensor([[True, False]])
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 3, 2, 4)] * 3 + [(1, 3), (1, 2), (1, 2, 5), (8, 5)]
    clean = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    masks = [mask] * 4 + [frame_mask] * 2

    def gradients(tensors, backend):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        z = cms_attention(
            *leaves[:3],
            ModalityShift(*leaves[3:], mask=frame_mask),
            attention_mask=mask,
            activation="tanh",
            backend=backend,
        )
        return torch.autograd.grad(z.square().sum(), leaves)

    poisoned = [
        tensor.masked_fill(~valid.view(*valid.shape, *[1] * (tensor.dim() - 2)), torch.nan)
        for tensor, valid in zip(clean, masks, strict=False)
    ] + clean[6:]
    expected = gradients(clean, "reference")
    for backend in ("reference", "torch"):
        for grad, expected_grad in zip(gradients(poisoned, backend), expected, strict=True):
            torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12)


runs_interpreted = pytest.mark.skipif(
    not (capability.INTERPRETED or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"
)

every_backend = pytest.mark.parametrize(
    "backend", ["reference", "torch", "cpu", pytest.param("triton", marks=runs_interpreted)]
)


def device_and_dtype(backend):
    """Where a backend runs, and in its widest dtype; skips where it cannot."""
    if backend == "cpu" and (reason := why_not("attention", "cpu", torch.empty(1))):
        pytest.skip(reason)
    device = "cuda" if backend == "triton" and not capability.INTERPRETED else "cpu"
    return device, torch.float64 if backend in ("reference", "torch") else torch.float32


@every_backend
@pytest.mark.parametrize("poison", ["tokens", "frames"])
def test_what_lies_in_rows_of_no_sequence_reaches_no_gradient(backend, poison):
    """NaN beyond cu_seqlens[-1], as memory that a batch rounded up to a static shape never wrote may hold."""
    device, dtype = device_and_dtype(backend)
    (cu, cu_frames), generator = ([0, 3, 5], [0, 2, 3]), torch.Generator().manual_seed(0)
    shapes = [(7, 2, 4)] * 3 + [(7,), (5,), (5, 6), (8, 6)]  # two rows of tokens and of frames in no sequence
    clean = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    valid = [5, 5, 5, 5, 3, 3, 8]

    def gradients(tensors, backend):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        shift = ModalityShift(*leaves[3:], torch.tensor(cu_frames, dtype=torch.int32, device=device), 4)
        z = cms_attention(
            *leaves[:3],
            shift,
            cu_seqlens=torch.tensor(cu, dtype=torch.int32, device=device),
            max_seqlen=4,
            activation="tanh",
            backend=backend,
        )
        return torch.autograd.grad(z[:5].square().sum(), leaves)

    poisoned = [tensor.clone() for tensor in clean]
    for i in range(4) if poison == "tokens" else (4, 5):
        poisoned[i][valid[i] :] = torch.nan
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for grad, expected, rows in zip(gradients(poisoned, backend), gradients(clean, "reference"), valid, strict=True):
        torch.testing.assert_close(grad, expected, rtol=tolerance, atol=tolerance)
        assert (grad[rows:] == 0).all()


@every_backend
@pytest.mark.parametrize("with_frames", [True, False])
@pytest.mark.parametrize("form", ["packed", "packed, rows of no sequence", "padded", "padded, masked", "no sequence"])
def test_a_batch_without_tokens_has_gradients_of_zero(backend, form, with_frames):
    """On one rank of several the batch may be empty, and DistributedDataParallel waits for its gradients."""
    device, dtype = device_and_dtype(backend)

    def random(*shape):
        return torch.randn(*shape, device=device, dtype=dtype).requires_grad_()

    if form.startswith("packed"):
        cu = torch.zeros(3, dtype=torch.int32, device=device)
        tokens, frames = ((5,), (3,)) if "rows" in form else ((0,), (0,))
        options, where = {"cu_seqlens": cu, "max_seqlen": 0}, {"cu_seqlens": cu, "max_length": 0}
    else:
        batch, n = {"padded": (2, 0), "padded, masked": (2, 3), "no sequence": (0, 3)}[form]
        tokens, frames = (batch, n), (batch, 4)
        options = {"attention_mask": torch.zeros(tokens, dtype=torch.bool, device=device)}
        where = {"mask": torch.ones(frames, dtype=torch.bool, device=device)}
    qkv = [random(*tokens, HEADS, HEAD_SIZE) for _ in range(3)]
    shift = [random(*tokens), random(*frames), random(*frames, 5), random(HEADS * HEAD_SIZE, 5)] if with_frames else []

    z = cms_attention(*qkv, ModalityShift(*shift, **where) if with_frames else None, backend=backend, **options)
    assert torch.equal(z, torch.zeros_like(qkv[0]))
    for x, grad in zip([*qkv, *shift], torch.autograd.grad(z.square().sum(), [*qkv, *shift]), strict=True):
        assert torch.equal(grad, torch.zeros_like(x))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_padded_equals_packed_whatever_lies_in_the_padding(backend):
    qkv, shifts, packing = packed_case([5, 3, 0, 7], [4, 0, 2, 3], [2, 9, 3, 1])
    expected = cms_attention(*qkv, *shifts, cu_seqlens=packing.cu_seqlens, max_seqlen=packing.max_length)

    mask = valid_positions(packing)

    def poisoned(packed, valid, lengths):
        padded = pad(packed, lengths).detach()
        return padded.masked_fill(~valid.view(*valid.shape, *[1] * (padded.dim() - 2)), torch.nan)

    padded_shifts = [
        ModalityShift(
            poisoned(s.token_gate, mask, packing),
            poisoned(s.frame_gate, valid_positions(s.packing), s.packing),
            poisoned(s.frames, valid_positions(s.packing), s.packing),
            s.weight,
            mask=valid_positions(s.packing),
        )
        for s in shifts
    ]
    z = cms_attention(*(poisoned(x, mask, packing) for x in qkv), *padded_shifts, attention_mask=mask, backend=backend)
    torch.testing.assert_close(z[mask], expected, rtol=0, atol=1e-12)
    assert (z[~mask] == 0).all()


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_masks_may_have_any_pattern(backend):
    generator = torch.Generator().manual_seed(3)
    batch, n, n_v = 2, 6, 5
    qkv = [torch.randn(batch, n, HEADS, HEAD_SIZE, dtype=torch.float64, generator=generator) for _ in range(3)]
    p, r = torch.randn(batch, n, dtype=torch.float64), torch.randn(batch, n_v, dtype=torch.float64)
    frames, weight = torch.randn(batch, n_v, 5, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0]]).bool()
    frame_mask = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]).bool()
    z = cms_attention(*qkv, ModalityShift(p, r, frames, weight, mask=frame_mask), attention_mask=mask, backend=backend)
    for b in range(batch):
        m, fm = mask[b], frame_mask[b]
        alone = reference.cms_attention(
            *(x[b : b + 1, m] for x in qkv), (p[b : b + 1, m], r[b : b + 1, fm], frames[b : b + 1, fm], weight, None)
        )
        torch.testing.assert_close(z[b, m], alone[0], rtol=0, atol=1e-12)
    assert (z[~mask] == 0).all()


def test_gradcheck_through_the_reference_and_torch():
    qkv, shifts, packing = packed_case([3, 0, 2], [2, 1, 0], [1, 0, 3], extra_rows=1)
    fields = [type(shift) for shift in shifts]
    assert fields == [ModalityShift, ModalityShift]

    for backend in ("torch", "reference"):

        def run(*tensors, backend=backend):
            new = [
                shift._replace(**dict(zip(shift._fields[:4], tensors[3 + 4 * k : 7 + 4 * k], strict=True)))
                for k, shift in enumerate(shifts)
            ]
            return cms_attention(
                *tensors[:3],
                *new,
                cu_seqlens=packing.cu_seqlens,
                max_seqlen=3,
                activation="tanh",
                backend=backend,
            )

        assert torch.autograd.gradcheck(run, leaves(qkv, shifts))


def test_order_of_frames_does_not_matter():
    qkv, shifts, packing = packed_case([5], [6], [4])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    shuffled = shifts[0]._replace(frame_gate=shifts[0].frame_gate[order], frames=shifts[0].frames[order])
    first, second = (
        cms_attention(*qkv, visual, shifts[1], cu_seqlens=packing.cu_seqlens, max_seqlen=5)
        for visual in (shifts[0], shuffled)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=1e-13)


def test_non_contiguous_inputs():
    qkv, shifts, packing = packed_case([5, 3], [4, 2], None)
    expected = cms_attention(*qkv, shifts[0], cu_seqlens=packing.cu_seqlens, max_seqlen=5)
    fused = torch.stack(qkv, dim=1)  # slices of a fused projection are strided
    strided = shifts[0]._replace(frames=shifts[0].frames.T.contiguous().T, weight=shifts[0].weight.T.contiguous().T)
    z = cms_attention(*fused.unbind(1), strided, cu_seqlens=packing.cu_seqlens, max_seqlen=5)
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_against_float64_is_a_rounding_error(dtype):
    qkv, shifts, packing = packed_case([33, 64, 1, 17], [20, 3, 0, 9], [5, 1, 2, 70])

    def low(tensor):
        return tensor.detach().to(dtype)

    lowered = [converted(shift, dtype) for shift in shifts]
    arguments = dict(cu_seqlens=packing.cu_seqlens, max_seqlen=packing.max_length)
    z = cms_attention(*map(low, qkv), *lowered, **arguments, backend="torch")
    exact = cms_attention(
        *(low(x).double() for x in qkv),
        *(converted(shift, torch.float64) for shift in lowered),
        **arguments,
        backend="reference",
    )
    eager = cms_attention(*map(low, qkv), *lowered, **arguments, backend="reference")
    assert z.dtype == dtype
    limit = 2 * (eager.double() - exact).abs().max() + 4 * torch.finfo(dtype).eps
    assert (z.double() - exact).abs().max() <= limit


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("frames", [512, 16384])
def test_a_sum_over_frames_beyond_float16_has_a_mean_within(frames, masked):
    """The sum of 512 gates of 10 times frames of 20 is 102,400; the largest float16 is 65,504."""
    half = {"dtype": torch.float16}
    qkv = [torch.zeros(1, 1, 1, 8, **half)] * 3
    gate, values = torch.full((1, frames), 10.0, **half), torch.full((1, frames, 2), 20.0, **half)
    values[..., 1] = 0.01  # over 16,384 frames 6e-7, which float16 has only ten steps for
    leaves = [torch.zeros(1, 1, **half), gate, values, torch.eye(8, 2, **half)]
    mask = torch.ones(1, frames, dtype=torch.bool) if masked else None
    leaves = [x.requires_grad_() for x in leaves]
    z = cms_attention(*qkv, ModalityShift(*leaves, mask=mask), backend="torch")
    torch.testing.assert_close(z[0, 0, 0, :2], torch.tensor([200, 0.1], **half), rtol=2e-3, atol=0)
    for grad in torch.autograd.grad(z.sum(), leaves):
        assert grad.isfinite().all()


def test_dropout_drops_probabilities_at_its_rate_and_keeps_the_mean():
    torch.manual_seed(0)
    ones = torch.ones(400, 1, 16)
    z = cms_attention(
        ones, ones, ones, cu_seqlens=torch.tensor([0, 400], dtype=torch.int32), max_seqlen=400, dropout_p=0.5
    )
    assert z.mean().item() == pytest.approx(1, abs=0.02)
    assert z.std().item() == pytest.approx((1 / 400) ** 0.5, rel=0.3)


def test_autocast_casts_every_operand():
    qkv, shifts, packing = packed_case([5, 3], [4, 2], [1, 1])
    single = [x.detach().float() for x in qkv]
    shifts = [converted(s, torch.float32) for s in shifts]
    with torch.autocast("cpu", torch.bfloat16):
        z = cms_attention(*single, *shifts, cu_seqlens=packing.cu_seqlens, max_seqlen=5)
    assert z.dtype == torch.bfloat16


def test_autocast_casts_neither_integers_nor_float64():
    """As PyTorch's own attention: what would lose precision, or hide a mistake, stays an error or as it is."""
    qkv, shifts, packing = packed_case([5, 3], [4, 2], [1, 1])  # float64
    arguments = dict(cu_seqlens=packing.cu_seqlens, max_seqlen=5)
    single = [x.float() for x in qkv]
    face = converted(shifts[0], torch.float32)._replace(frames=shifts[0].frames.long())
    with torch.autocast("cpu", torch.bfloat16):
        assert cms_attention(*qkv, *shifts, **arguments).dtype == torch.float64
        with pytest.raises(TypeError, match=r"key is torch.float64 but query is torch.bfloat16"):
            cms_attention(single[0], *qkv[1:], *shifts, **arguments)
        with pytest.raises(TypeError, match=r"query is torch.int64; it must be a floating dtype"):
            cms_attention(*(x.long() for x in qkv), **arguments)
        with pytest.raises(TypeError, match=r"visual.frames is torch.int64 but query is torch.bfloat16"):
            cms_attention(*single, face, **arguments)


def test_auto_says_what_it_picks_under_autocast():
    query = torch.zeros(1, 2, 64)
    with torch.autocast("cpu", torch.float16):  # compiled code computes no float16
        assert {choose_backend("attention", x) for x in (query, query.half())} == {"torch"}
    with torch.autocast("cpu", torch.bfloat16):
        assert {choose_backend("attention", x) for x in (query.double(), query.to("meta"))} == {"torch"}


def test_auto_says_what_it_picks(monkeypatch):
    assert choose_backend("attention", torch.zeros(1, dtype=torch.float64)) == "torch"
    monkeypatch.setenv("CMSBERT_BACKEND", "reference")
    assert choose_backend("attention", torch.zeros(1, dtype=torch.float64)) == "reference"
    monkeypatch.setenv("CMSBERT_BACKEND", "fast")
    with pytest.raises(ValueError, match="CMSBERT_BACKEND='fast' is not a backend"):
        choose_backend("attention", torch.zeros(1))
