"""CMS attention (Eq. 1-7), forward and forward + backward, BERT-base's heads."""

import functools

import pytest
import torch

from bench import names
from bench.rivals.attention import augmented_attention, bucketed_attention, lean_attention, make_buckets, text_attention
from bench.rivals.varlen import augmented_varlen, lean_varlen, text_varlen, why_not_varlen
from bench.workload import HEADS, HIDDEN, AttentionBatch, Work, attention_bytes, attention_flops, draw_lengths
from cmsbert_fast import cms_attention
from cmsbert_fast.ops.dispatch import choose_backend
from cmsbert_fast.packing import pad, unpad, valid_positions

ELEMENTS = {"cpu": 2**25, "cuda": 2**30}  # of q at most; larger cases are beyond the machine's memory or patience
REFERENCE_ELEMENTS = {"cpu": 2**28, "cuda": 2**32}  # of the reference's N x N_v x D tensor
CASES = [
    ("mosi", 16),
    ("mosi", 32),
    ("mosi", 128),
    ("mosi", 1024),
    ("mosi", 4096),
    (50, 32),
    (50, 1024),
    (128, 32),
    (128, 512),
    (512, 16),
    (512, 128),
]

TEXT_ONLY = "text only, no shift"  # does less; what text-only BERT spends
COMPILED_ONCE = "compiled for batch 32 only: a minute each on this machine"


def dtype_of(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def with_gradients(function, inputs, grad, backward):
    """The call of a function without arguments: z, and where ``backward``, its gradients to the inputs."""

    def run():
        with torch.set_grad_enabled(backward):
            z = function()
        return z, torch.autograd.grad(z, inputs, grad) if backward else ()

    return run


def calls(batch: AttentionBatch, backward: bool, grad: torch.Tensor) -> dict:
    """Every way to compute the same thing: name -> call; a call returns z of the valid tokens, packed or padded."""
    compiled = torch.compile(lean_attention, dynamic=False)

    def call(operator, form, backend):
        arguments, options = batch.packed if form == "packed" else batch.padded
        inputs, own = (batch.inputs, grad) if form == "packed" else (batch.padded_inputs, padded_grad)
        chosen = {"backend": backend} if backend else {}
        return with_gradients(lambda: operator(*arguments, **options, **chosen), inputs, own, backward)

    def text(eager):
        arguments, options = batch.padded
        qkv = arguments[:3]
        attend = functools.partial(text_attention, *qkv, options["attention_mask"], eager)
        return with_gradients(attend, qkv, padded_grad, backward)

    padded_grad = pad(grad, batch.packing) * valid_positions(batch.packing)[..., None, None].to(grad.dtype)
    lengths = batch.packing.lengths.tolist()
    buckets = make_buckets(lengths, grad.device)
    runs = {
        names.OURS: call(cms_attention, "packed", "auto"),
        names.TORCH: call(cms_attention, "packed", "torch"),
        names.TORCH_PADDED: call(cms_attention, "padded", "torch"),
        names.LEAN: call(lean_attention, "padded", None),
        names.BUCKETED: call(functools.partial(bucketed_attention, buckets=buckets), "padded", None),
        names.LEAN_COMPILED: call(compiled, "padded", None),
        names.LITERAL_PADDED: call(cms_attention, "padded", "reference"),
        f"{TEXT_ONLY}: SDPA, padded": text(False),
        f"{TEXT_ONLY}: eager, padded": text(True),
    }
    if len(set(lengths)) == 1:
        del runs[names.BUCKETED]  # there is one length
    if why_not_varlen(grad) is None:
        runs |= varlen_calls(batch, backward, grad)
    return runs


def varlen_calls(batch: AttentionBatch, backward: bool, grad: torch.Tensor) -> dict:
    """PyTorch's attention over packed sequences: with the shift, and what text-only BERT spends."""
    qkv, shifts = batch.packed[0][:3], batch.padded[0][3:]
    rows = valid_positions(batch.packing).flatten().nonzero()[:, 0]
    known = batch.packing.cu_seqlens, batch.packing.max_length

    lean = functools.partial(lean_varlen, *qkv, *shifts, rows, *known)
    text = functools.partial(text_varlen, *qkv, *known)
    return {
        names.VARLEN: with_gradients(lean, (*qkv, *batch.padded_inputs[3:]), grad, backward),
        f"{TEXT_ONLY}: varlen attention": with_gradients(text, qkv, grad, backward),
    }


def check(runs: dict, batch: AttentionBatch, tolerance: float) -> None:
    """All of them compute the same: outputs at valid tokens, and gradients."""
    total = int(batch.packing.cu_seqlens[-1])
    padded_shape = (batch.packing.cu_seqlens.shape[0] - 1, batch.packing.max_length)

    def packed(tensor):
        return unpad(tensor, batch.packing, total) if tensor.shape[:2] == padded_shape else tensor

    expected = None
    for name, run in runs.items():
        if name.startswith(TEXT_ONLY):
            continue
        z, gradients = run()
        got = [packed(t) for t in (z, *gradients)]
        expected = expected or [t.double() for t in got]
        for value, reference in zip(got, expected, strict=True):
            error = (value.double() - reference).abs().max() / reference.abs().max().clamp(min=1e-6)
            assert error < tolerance, f"{name} and ours differ by {error:.2e}; no speed is reported for a wrong result"


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward + backward"])
@pytest.mark.parametrize(("kind", "batch_size"), CASES, ids=str)
def test_attention(race, device, kind, batch_size, backward):
    lengths = draw_lengths(kind, batch_size)
    case = names.attention_case(kind, batch_size, backward)
    if sum(lengths) * 768 > ELEMENTS[device.type]:
        race.skip(names.ATTENTION, case, f"{sum(lengths)} tokens are too many for this machine")
        return
    dtype = dtype_of(device)
    batch = AttentionBatch.draw(lengths, lengths, device, dtype)
    torch.compiler.reset()
    runs = calls(batch, backward, torch.randn_like(batch.inputs[0]))
    missing = race.without_compiled(runs)
    if len(lengths) * max(lengths) ** 2 * 768 > REFERENCE_ELEMENTS[device.type]:
        missing[names.LITERAL_PADDED] = "its N x N_v x D tensor does not fit"
    if device.type == "cpu" and batch_size != 32:
        missing[names.LEAN_COMPILED] = COMPILED_ONCE
    runs = {name: run for name, run in runs.items() if name not in missing}
    check(runs, batch, 1e-4 if dtype == torch.float32 else 4e-2)
    element = batch.inputs[0].element_size()
    race(
        names.ATTENTION,
        case,
        runs,
        seconds=10,
        work=Work(
            attention_flops(lengths, lengths, backward),
            attention_bytes(lengths, lengths, backward, element),
            str(dtype).removeprefix("torch."),
        ),
        facts={"tokens": sum(lengths), "ours": choose_backend("attention", batch.inputs[0])},
        missing=missing,
        graphs=True,
    )


def calls_with_projections(batch: AttentionBatch, backward: bool, grad: torch.Tensor) -> dict:
    """The same from the hidden states on: the rival has the shift in the projections' product."""
    device, dtype = grad.device, grad.dtype
    hidden = torch.randn(len(grad), HIDDEN, device=device, dtype=dtype)
    weight = (torch.randn(3 * HIDDEN, HIDDEN, device=device) * HIDDEN**-0.5).to(dtype)
    bias = torch.randn(3 * HIDDEN, device=device, dtype=dtype)
    for leaf in (hidden, weight, bias):
        leaf.requires_grad_()
    (arguments, options), (padded_arguments, padded_options) = batch.packed, batch.padded
    compiled = torch.compile(augmented_attention, dynamic=False)
    padded_grad = pad(grad, batch.packing) * valid_positions(batch.packing)[..., None, None].to(grad.dtype)
    rows = valid_positions(batch.packing).flatten().nonzero()[:, 0]
    buckets = make_buckets(batch.packing.lengths.tolist(), device)

    def ours():
        q, k, v = torch.nn.functional.linear(hidden, weight, bias).unflatten(1, (3, HEADS, -1)).unbind(1)
        return cms_attention(q, k, v, *arguments[3:], **options)

    def augmented(function):
        known = dict(padded_options, rows=rows, buckets=buckets)
        return lambda: function(hidden, weight, bias, HEADS, *padded_arguments[3:], **known)

    def call(function, inputs, own):
        return with_gradients(function, (hidden, weight, bias, *inputs), own, backward)

    theirs = batch.padded_inputs[3:]
    runs = {
        names.OURS_PROJECTIONS: call(ours, batch.inputs[3:], grad),
        names.AUGMENTED: call(augmented(augmented_attention), theirs, padded_grad),
        names.AUGMENTED_COMPILED: call(augmented(compiled), theirs, padded_grad),
    }
    if why_not_varlen(grad) is None:
        packed = batch.packing.cu_seqlens, batch.packing.max_length
        shifts = padded_arguments[3:]

        def varlen():
            return augmented_varlen(hidden, weight, bias, HEADS, *shifts, rows, *packed)

        runs[names.AUGMENTED_VARLEN] = call(varlen, theirs, grad)
    return runs


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward + backward"])
@pytest.mark.parametrize(("kind", "batch_size"), CASES, ids=str)
def test_with_projections(race, device, kind, batch_size, backward):
    """Against the cleverest plain form, which has no product for the shift of its own."""
    lengths = draw_lengths(kind, batch_size)
    case = names.with_projections(names.attention_case(kind, batch_size, backward))
    if sum(lengths) * 768 > ELEMENTS[device.type] / 4:  # three times the work of attention alone, and more
        race.skip(names.ATTENTION, case, f"{sum(lengths)} tokens are too many for this machine")
        return
    dtype = dtype_of(device)
    batch = AttentionBatch.draw(lengths, lengths, device, dtype)
    torch.compiler.reset()
    runs = calls_with_projections(batch, backward, torch.randn_like(batch.inputs[0]))
    missing = race.without_compiled(runs)
    if device.type == "cpu" and batch_size != 32:
        missing[names.AUGMENTED_COMPILED] = COMPILED_ONCE
    runs = {name: run for name, run in runs.items() if name not in missing}
    check(runs, batch, 1e-4 if dtype == torch.float32 else 4e-2)
    flops = attention_flops(lengths, lengths, backward) + (3 if backward else 1) * 6 * sum(lengths) * HIDDEN**2
    race(
        names.ATTENTION,
        case,
        runs,
        seconds=10,
        work=Work(flops, dtype=str(dtype).removeprefix("torch.")),
        facts={"tokens": sum(lengths)},
        missing=missing,
        graphs=True,
    )


def grown(lengths, frames, device):
    batch = AttentionBatch.draw(lengths, frames, device, dtype_of(device))
    grad = torch.randn_like(batch.inputs[0])

    def run():
        arguments, options = batch.packed
        return torch.autograd.grad(cms_attention(*arguments, **options), batch.inputs, grad)

    return run


def test_growth_with_tokens(race, device):
    sizes = [64, 128, 256, 512, 1024]
    runs = {n: grown([n] * 8, [50] * 8, device) for n in sizes}
    race.growth(names.ATTENTION, "forward + backward, 8 sequences of N tokens and 50 frames", "N", runs)


def test_growth_with_frames(race, device):
    sizes = [64, 256, 1024, 4096]
    runs = {n: grown([50] * 8, [n] * 8, device) for n in sizes}
    race.growth(names.ATTENTION, "forward + backward, 8 sequences of 50 tokens and N_v = N_a frames", "N_v", runs)


def test_growth_with_batch(race, device):
    sizes = [16, 64, 256, 1024]
    runs = {n: grown(draw_lengths("mosi", n), draw_lengths("mosi", n), device) for n in sizes}
    race.growth(names.ATTENTION, names.ATTENTION_GROWTH, "batch", runs)
