"""A layer of BERT in one call: against float64 and PyTorch's float32, and when it runs."""

import pytest
import torch
from torch.nn import functional as F

from cmsbert_fast import ModalityShift, cms_attention
from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.bert_layer.api import bert_layer, takes
from cmsbert_fast.ops.bert_layer.types import Dense, Norm, Parameters, Shift
from cmsbert_fast.ops.dispatch import LAYER_ROWS
from cmsbert_fast.packing import cumulative

MISSING = library.why_not()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

# Lengths of tokens, of the face, of the voice.
CASES = {
    "one utterance": ([15], [40], [3]),
    "one token": ([1], [1], [2]),
    "several": ([5, 1, 40], [4, 1, 2], [2, 9, 3]),
    "no frames": ([4, 2], [0, 3], [5, 0]),
    "an utterance without tokens": ([0, 17], [3, 2], [1, 5]),
    "visual only": ([16], [3], None),
    "acoustic only": ([4, 33], None, [31, 6]),
    "text only": ([9], None, None),
    "many rows": ([130, 64], [70, 2], [1, 40]),
}
OPTIONS = dict(heads=3, activation="relu")  # of the first sizes
SIZES = [(3, 8, 30, (47, 74)), (2, 20, 50, (5, 1)), (12, 64, 3072, (47, 74))]  # heads, of a head, inner, of frames


@pytest.fixture(autouse=True)
def own_products(monkeypatch):
    monkeypatch.delenv("CMSBERT_BACKEND", raising=False)
    monkeypatch.setattr(capability, "why_not_own_products", lambda *_: None)


def make(case, sizes, extra_rows=2):
    """Arguments of bert_layer, float64."""
    heads, head_size, inner, frame_sizes = sizes
    width, (tokens, *frames) = heads * head_size, case
    generator = torch.Generator().manual_seed(0)

    def random(*shape, scale=1.0):
        return torch.randn(*shape, dtype=torch.float64, generator=generator) * scale

    shapes = [(width, width)] * 4 + [(inner, width), (width, inner)]
    dense = [Dense(random(n, d, scale=d**-0.5), random(n)) for n, d in shapes]
    norms = [Norm(1 + random(width, scale=0.1), random(width), epsilon) for epsilon in (0.3, 0.05)]
    shifts = []
    for lengths, size in zip(frames, frame_sizes, strict=True):
        if lengths is None:
            shifts.append(Shift())
            continue
        gate = Dense(random(1, width + size, scale=width**-0.5), random(1))
        rows = random(sum(lengths) + extra_rows, size)
        weight = random(width, size, scale=0.2 * size**-0.5)
        shifts.append(Shift(gate, weight, rows, cumulative(torch.tensor(lengths))))
    x = random(sum(tokens) + extra_rows, width)
    return [x, Parameters(*dense, *norms), *shifts, cumulative(torch.tensor(tokens))], heads


def each(change, part):
    """The part of the arguments with its tensors changed."""
    if isinstance(part, tuple):
        return type(part)(*(each(change, x) for x in part))
    return change(part) if isinstance(part, torch.Tensor) else part


def in_dtype(arguments, dtype):
    return [each(lambda x: x.to(dtype) if x.is_floating_point() else x, part) for part in arguments]


def by_pytorch(arguments, heads, activation):
    """The equations on PyTorch's operators, in the arguments' dtype."""
    x, parameters, visual, acoustic, cu_seqlens = arguments
    query, key, value, of_attention, intermediate, output = parameters.dense
    query, key, value = (F.linear(x, *layer).unflatten(-1, (heads, -1)) for layer in (query, key, value))
    shifts = []
    for shift in (visual, acoustic):
        if shift.frames is None:
            shifts.append(None)
            continue
        of_tokens, of_frames = shift.gate.weight[0].split([x.shape[1], shift.frames.shape[1]])
        longest = int(shift.cu_seqlens.diff().max())
        gates = x @ of_tokens, shift.frames @ of_frames + shift.gate.bias
        shifts.append(ModalityShift(*gates, shift.frames, shift.weight, shift.cu_seqlens, longest))
    options = dict(cu_seqlens=cu_seqlens, max_seqlen=int(cu_seqlens.diff().max()), activation=activation)
    z = cms_attention(query, key, value, *shifts, **options, backend="torch").flatten(-2)
    norm, output_norm = parameters.norms
    middle = F.layer_norm(F.linear(z, *of_attention) + x, x.shape[1:], *norm)
    inner = F.gelu(F.linear(middle, *intermediate))
    return F.layer_norm(F.linear(inner, *output) + middle, x.shape[1:], *output_norm)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_as_exact_as_pytorch(case, sizes, activation):
    arguments, heads = make(case, sizes)
    expected = by_pytorch(arguments, heads, activation)
    single = in_dtype(arguments, torch.float32)
    actual = bert_layer(*single, heads=heads, activation=activation)
    allowed = 2 * (by_pytorch(single, heads, activation) - expected).abs().max()
    assert (actual - expected).abs().max() <= allowed


def test_one_thread_gives_the_same_bits():
    arguments, heads = make(CASES["many rows"], SIZES[2])
    arguments, before, results = in_dtype(arguments, torch.float32), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(bert_layer(*arguments, heads=heads, activation="tanh"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)


def test_tensors_with_gaps():
    arguments, heads = make(CASES["one utterance"], SIZES[1])
    *arguments, cu_seqlens = in_dtype(arguments, torch.float32)
    expected = bert_layer(*arguments, cu_seqlens, heads=heads, activation="relu")

    def apart(x):
        return torch.stack([x, x + 1], dim=-1)[..., 0] if x.is_floating_point() else x

    x, parameters, *shifts = (each(apart, part) for part in arguments)
    assert not any(tensor.is_contiguous() for tensor in (x, parameters.query.weight, shifts[0].weight))
    assert torch.equal(bert_layer(x, parameters, *shifts, cu_seqlens, heads=heads, activation="relu"), expected)


def test_operator():
    arguments, heads = make(CASES["several"], SIZES[0])
    x, parameters, visual, acoustic, cu_seqlens = in_dtype(arguments, torch.float32)
    dense = [tensor for layer in parameters.dense for tensor in layer]
    norms = [tensor for norm in parameters.norms for tensor in (norm.weight, norm.bias)]
    flat = (x, dense, norms, [0.1, 0.2], *visual.tensors, *acoustic.tensors, cu_seqlens, heads, "relu")
    torch.library.opcheck(torch.ops.cmsbert_fast.bert_layer.default, flat)
    for tensor in (x, parameters.key.bias, parameters.output_norm.weight, acoustic.weight):
        tensor.requires_grad_()
        with pytest.raises(RuntimeError, match="not differentiable"):
            torch.ops.cmsbert_fast.bert_layer(*flat)
        with torch.no_grad():
            torch.ops.cmsbert_fast.bert_layer(*flat)
        tensor.requires_grad_(False)


def test_lengths_that_do_not_fit():
    arguments, heads = make(CASES["several"], SIZES[0])
    *others, cu_seqlens = in_dtype(arguments, torch.float32)
    with pytest.raises(ValueError, match="cu_seqlens must start at 0"):
        bert_layer(*others, cu_seqlens + 1, heads=heads, activation="relu")


OTHERS = {
    "absent": lambda x: None,
    "float64": lambda x: x.double(),
    "meta": lambda x: x.to("meta"),
    "short": lambda x: x[:-1],
    "wide": lambda x: torch.cat([x, x], dim=-1),
    "sparse": lambda x: x.to_sparse(),
    "a class of its own": lambda x: x.as_subclass(type("Quantised", (torch.Tensor,), {})),
}


def with_one_changed(change, part):
    """The part as often as it has floating tensors, each time with another of them changed."""
    for name, value in zip(part._fields, part, strict=True):
        if isinstance(value, tuple):
            yield from (part._replace(**{name: other}) for other in with_one_changed(change, value))
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            yield part._replace(**{name: change(value)})


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_other_tensors_are_left_to_the_operators(change):
    """Every parameter and every tensor of a modality: nothing reads beyond their memory."""
    arguments, _ = make(CASES["several"], SIZES[0])
    x, parameters, visual, acoustic, cu_seqlens = in_dtype(arguments, torch.float32)
    calls = [
        *((x, other, visual, acoustic) for other in with_one_changed(change, parameters)),
        *((x, parameters, other, acoustic) for other in with_one_changed(change, visual)),
        *((x, parameters, visual, other) for other in with_one_changed(change, acoustic)),
    ]
    assert len(calls) == 12 + 4 + 2 * 4
    if change is OTHERS["short"]:  # frames fewer than their offsets say
        with pytest.raises(ValueError, match="cu_seqlens must"):
            bert_layer(x, parameters, visual._replace(frames=visual.frames[:3]), acoustic, cu_seqlens, **OPTIONS)
        calls = [call for call in calls if call[2].frames is visual.frames and call[3].frames is acoustic.frames]
    elif change is not OTHERS["absent"]:
        calls.append((change(x), parameters, visual, acoustic))
    for call in calls:
        assert bert_layer(*call, cu_seqlens, **OPTIONS) is None


@pytest.mark.parametrize("change", [lambda x: x[0], lambda x: x[None], lambda x: x[:, :0]])
def test_frames_and_rows_of_other_shapes(change):
    arguments, _ = make(CASES["several"], SIZES[0])
    x, parameters, visual, acoustic, cu_seqlens = in_dtype(arguments, torch.float32)
    frames = change(visual.frames)
    narrow = visual._replace(frames=frames, weight=visual.weight[:, : frames.shape[-1]])
    narrow = narrow._replace(gate=Dense(visual.gate.weight[:, : 24 + frames.shape[-1]], visual.gate.bias))
    assert bert_layer(x, parameters, narrow, acoustic, cu_seqlens, **OPTIONS) is None
    assert bert_layer(change(x), parameters, visual, acoustic, cu_seqlens, **OPTIONS) is None


@pytest.mark.parametrize("options", [dict(heads=5), dict(heads=48), dict(heads=0), dict(activation="gelu")], ids=str)
def test_other_options_are_left_to_the_operators(options):
    arguments, _ = make(CASES["several"], SIZES[0])
    assert bert_layer(*in_dtype(arguments, torch.float32), **(OPTIONS | options)) is None


LENGTHS = {
    "int64": lambda x: x.long(),
    "every second": lambda x: torch.stack([x, x], dim=1)[:, 0],
    "of one sequence less": lambda x: x[:-1],
    "of none": lambda x: x[:1],
    "a table": lambda x: x[None],
    "meta": lambda x: x.to("meta"),
    "a class of its own": lambda x: x.as_subclass(type("Other", (torch.Tensor,), {})),
}


@pytest.mark.parametrize("change", LENGTHS.values(), ids=LENGTHS)
def test_other_lengths_are_left_to_the_operators(change):
    arguments, _ = make(CASES["several"], SIZES[0])
    x, parameters, visual, acoustic, cu_seqlens = in_dtype(arguments, torch.float32)
    other = [shift._replace(cu_seqlens=change(shift.cu_seqlens)) for shift in (visual, acoustic)]
    assert bert_layer(x, parameters, visual, other[1], cu_seqlens, **OPTIONS) is None
    assert bert_layer(x, parameters, visual, acoustic, change(cu_seqlens), **OPTIONS) is None
    if change is not LENGTHS["of one sequence less"]:
        assert bert_layer(x, parameters, *other, change(cu_seqlens), **OPTIONS) is None


def test_when_it_runs(monkeypatch):
    x = torch.zeros(5, 24)
    assert takes(x, "auto")
    assert takes(x, "cpu")
    assert takes(torch.zeros(LAYER_ROWS, 24), "auto")
    assert not takes(torch.zeros(LAYER_ROWS + 1, 24), "auto")
    assert not takes(x[:0], "auto")
    assert not takes(x.double(), "auto")
    assert not takes(x.bfloat16(), "auto")
    for backend in ("torch", "reference", "triton", "varlen"):
        assert not takes(x, backend)
        with monkeypatch.context() as patch:
            patch.setenv("CMSBERT_BACKEND", backend)
            assert not takes(x, "auto")
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes(x, "auto")
    monkeypatch.setattr(capability, "why_not_own_products", lambda *_: "PyTorch's are as fast")
    assert not takes(x, "auto")
