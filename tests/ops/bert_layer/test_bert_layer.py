"""A layer of BERT in one call: against float64 and PyTorch's float32, and when it runs."""

import pytest
import torch
from torch.nn import functional as F

from cmsbert_fast import ModalityShift, cms_attention
from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.bert_layer.api import bert_layer, takes
from cmsbert_fast.ops.bert_layer.types import Parameters, Shift
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
    dense = [x for n, d in shapes for x in (random(n, d, scale=d**-0.5), random(n))]
    norms = [x for _ in range(2) for x in (1 + random(width, scale=0.1), random(width))]
    shifts = []
    for lengths, size in zip(frames, frame_sizes, strict=True):
        if lengths is None:
            shifts.append(Shift())
            continue
        gate = random(1, width + size, scale=width**-0.5), random(1)
        rows = random(sum(lengths) + extra_rows, size)
        weight = random(width, size, scale=0.2 * size**-0.5)
        shifts.append(Shift(*gate, weight, rows, cumulative(torch.tensor(lengths))))
    x = random(sum(tokens) + extra_rows, width)
    return [x, Parameters(dense, norms, [0.3, 0.05]), *shifts, cumulative(torch.tensor(tokens))], heads


def in_dtype(arguments, dtype):
    x, parameters, visual, acoustic, cu_seqlens = arguments
    of = [None if t is None else t.to(dtype) if t.is_floating_point() else t for t in (*visual, *acoustic)]
    parameters = Parameters(*([t.to(dtype) for t in ts] for ts in parameters[:2]), parameters.epsilons)
    return [x.to(dtype), parameters, Shift(*of[:5]), Shift(*of[5:]), cu_seqlens]


def by_pytorch(arguments, heads, activation):
    """The equations on PyTorch's operators, in the arguments' dtype."""
    x, (dense, norms, epsilons), visual, acoustic, cu_seqlens = arguments
    layers = list(zip(dense[::2], dense[1::2], strict=True))
    query, key, value = (F.linear(x, *layer).unflatten(-1, (heads, -1)) for layer in layers[:3])
    shifts = []
    for shift in (visual, acoustic):
        if shift.frames is None:
            shifts.append(None)
            continue
        of_tokens, of_frames = shift.gate_weight[0].split([x.shape[1], shift.frames.shape[1]])
        longest = int(shift.cu_seqlens.diff().max())
        gates = x @ of_tokens, shift.frames @ of_frames + shift.gate_bias
        shifts.append(ModalityShift(*gates, shift.frames, shift.weight, shift.cu_seqlens, longest))
    options = dict(cu_seqlens=cu_seqlens, max_seqlen=int(cu_seqlens.diff().max()), activation=activation)
    z = cms_attention(query, key, value, *shifts, **options, backend="torch").flatten(-2)
    width = x.shape[1:]
    middle = F.layer_norm(F.linear(z, *layers[3]) + x, width, *norms[:2], epsilons[0])
    inner = F.gelu(F.linear(middle, *layers[4]))
    return F.layer_norm(F.linear(inner, *layers[5]) + middle, width, *norms[2:], epsilons[1])


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
    x, parameters, visual, acoustic, cu_seqlens = in_dtype(arguments, torch.float32)
    expected = bert_layer(x, parameters, visual, acoustic, cu_seqlens, heads=heads, activation="relu")

    def apart(tensor):
        return tensor if tensor.dtype == torch.int32 else torch.stack([tensor, tensor + 1], dim=-1)[..., 0]

    parameters = Parameters(*([apart(t) for t in ts] for ts in parameters[:2]), parameters.epsilons)
    shifts = [Shift(*map(apart, shift)) for shift in (visual, acoustic)]
    assert not shifts[0].weight.is_contiguous()
    actual = bert_layer(apart(x), parameters, *shifts, cu_seqlens, heads=heads, activation="relu")
    assert torch.equal(actual, expected)


def test_operator():
    arguments, heads = make(CASES["several"], SIZES[0])
    x, parameters, visual, acoustic, cu_seqlens = in_dtype(arguments, torch.float32)
    flat = (x, *parameters, *visual, *acoustic, cu_seqlens, heads, "relu")
    torch.library.opcheck(torch.ops.cmsbert_fast.bert_layer.default, flat)
    for tensor in (x, parameters.dense[3], parameters.norms[0], acoustic.weight):
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


def changed(values, place, change):
    values = list(values)
    values[place] = change(values[place])
    return values


OTHERS = {
    "absent": lambda x: None,
    "float64": lambda x: x.double(),
    "meta": lambda x: x.to("meta"),
    "short": lambda x: x[:-1],
    "wide": lambda x: torch.cat([x, x], dim=-1),
    "a class of its own": lambda x: x.as_subclass(type("Quantised", (torch.Tensor,), {})),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_other_tensors_are_left_to_the_operators(change):
    """Every parameter and every tensor of a modality: nothing reads beyond their memory."""
    arguments, heads = make(CASES["several"], SIZES[0])
    x, parameters, visual, acoustic, cu_seqlens = in_dtype(arguments, torch.float32)
    calls = [
        *((parameters._replace(dense=changed(parameters.dense, i, change)), visual) for i in range(12)),
        *((parameters._replace(norms=changed(parameters.norms, i, change)), visual) for i in range(4)),
        *((parameters, Shift(*changed(visual, i, change))) for i in range(3)),
    ]
    if change not in (OTHERS["short"], OTHERS["wide"]):  # frames are as many, and of the size, that they are
        calls.append((parameters, Shift(*changed(visual, 3, change))))
    for of_layer, of_face in calls:
        assert bert_layer(x, of_layer, of_face, acoustic, cu_seqlens, heads=heads, activation="relu") is None


LENGTHS = {
    "int64": lambda x: x.long(),
    "every second": lambda x: torch.stack([x, x], dim=1)[:, 0],
    "of one sequence less": lambda x: x[:-1],
    "of none": lambda x: x[:1],
    "a table": lambda x: x[None],
    "absent": lambda x: None,
}


@pytest.mark.parametrize("change", LENGTHS.values(), ids=LENGTHS)
def test_other_lengths_are_left_to_the_operators(change):
    arguments, heads = make(CASES["several"], SIZES[0])
    x, parameters, visual, acoustic, cu_seqlens = in_dtype(arguments, torch.float32)
    other = acoustic._replace(cu_seqlens=change(acoustic.cu_seqlens))
    options = dict(heads=heads, activation="relu")
    assert bert_layer(x, parameters, visual, other, cu_seqlens, **options) is None
    if change(cu_seqlens) is not None:
        assert bert_layer(x, parameters, visual, acoustic, change(cu_seqlens), **options) is None


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
