"""Layers of BERT in one call: against float64 and PyTorch's float32, and when it runs."""

import pytest
import torch
from torch.nn import functional as F

from cmsbert_fast import ModalityShift, cms_attention
from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.bert_layers.api import bert_layers, takes
from cmsbert_fast.ops.bert_layers.types import TENSORS, Dense, Layer, Norm, Shift, Stream
from cmsbert_fast.ops.dispatch import HALF_ROWS, LAYER_ROWS
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
    """Arguments of bert_layers, float64: three layers of different sizes, the second without shifts, the third without
    acoustic."""
    heads, head_size, inner, frame_sizes = sizes
    width, (tokens, *frames) = heads * head_size, case
    generator = torch.Generator().manual_seed(0)

    def random(*shape, scale=1.0):
        return torch.randn(*shape, dtype=torch.float64, generator=generator) * scale

    def dense(n, depth):
        return Dense(random(n, depth, scale=depth**-0.5), random(n))

    def norm(epsilon):
        return Norm(1 + random(width, scale=0.1), random(width), epsilon)

    def shift(lengths, size):
        if lengths is None:
            return Shift()
        gate = Dense(random(1, width + size, scale=width**-0.5), random(1))
        return Shift(gate, random(width, size, scale=0.2 * size**-0.5))

    layers = []
    for i in range(3):
        shapes = [(width, width)] * 4 + [(inner + i, width), (width, inner + i)]
        norms = norm(0.3 / (1 + i)), norm(0.05 * (1 + i))
        layers.append(Layer(*(dense(*shape) for shape in shapes), *norms, *map(shift, frames, frame_sizes)))
    layers[1] = layers[1]._replace(visual=Shift(), acoustic=Shift())
    layers[2] = layers[2]._replace(acoustic=Shift())

    def stream(lengths, size):
        if lengths is None:
            return Stream()
        return Stream(random(sum(lengths) + extra_rows, size), cumulative(torch.tensor(lengths)))

    streams = list(map(stream, frames, frame_sizes))
    x = random(sum(tokens) + extra_rows, width)
    return [x, layers, *streams, cumulative(torch.tensor(tokens))], heads


def each(change, part):
    """The part of the arguments with its tensors changed."""
    if isinstance(part, list):
        return [each(change, x) for x in part]
    if isinstance(part, tuple):
        return type(part)(*(each(change, x) for x in part))
    return change(part) if isinstance(part, torch.Tensor) else part


def in_dtype(arguments, dtype):
    return each(lambda x: x.to(dtype) if x.is_floating_point() else x, arguments)


def by_pytorch(arguments, heads, activation):
    """The equations on PyTorch's operators, in the arguments' dtype."""
    x, layers, visual, acoustic, cu_seqlens = arguments
    for layer in layers:
        x = layer_by_pytorch(x, layer, (visual, acoustic), cu_seqlens, heads, activation)
    return x


def layer_by_pytorch(x, layer, streams, cu_seqlens, heads, activation):
    query, key, value, of_attention, intermediate, output = layer.dense
    query, key, value = (F.linear(x, *dense).unflatten(-1, (heads, -1)) for dense in (query, key, value))
    shifts = []
    for shift, stream in zip(layer.shifts, streams, strict=True):
        if shift.weight is None:
            shifts.append(None)
            continue
        of_tokens, of_frames = shift.gate.weight[0].split([x.shape[1], stream.frames.shape[1]])
        longest = int(stream.cu_seqlens.diff().max())
        gates = x @ of_tokens, stream.frames @ of_frames + shift.gate.bias
        shifts.append(ModalityShift(*gates, stream.frames, shift.weight, stream.cu_seqlens, longest))
    options = dict(cu_seqlens=cu_seqlens, max_seqlen=int(cu_seqlens.diff().max()), activation=activation)
    z = cms_attention(query, key, value, *shifts, **options, backend="torch").flatten(-2)
    norm, output_norm = layer.norms
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
    actual = bert_layers(*single, heads=heads, activation=activation)
    allowed = 2 * (by_pytorch(single, heads, activation) - expected).abs().max()
    assert (actual - expected).abs().max() <= allowed


def with_weights(change, layers):
    """The layers with the weights of their linear layers changed."""

    def changed(layer):
        dense = {name: value for name, value in layer._asdict().items() if isinstance(value, Dense)}
        return layer._replace(**{name: x._replace(weight=change(x.weight)) for name, x in dense.items()})

    return list(map(changed, layers))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_as_exact_as_pytorch_under_autocast(case, sizes):
    """Products in bfloat16: from its own weights, whose numbers are those that are rounded on the way."""
    arguments, heads = make(case, sizes)
    expected = by_pytorch(arguments, heads, "sigmoid")
    x, layers, *others = in_dtype(arguments, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain = by_pytorch([x, layers, *others], heads, "sigmoid")
        actual = bert_layers(x, layers, *others, heads=heads, activation="sigmoid")
        halves = with_weights(torch.Tensor.bfloat16, layers)
        of_halves = bert_layers(x, halves, *others, heads=heads, activation="sigmoid")
    assert actual.dtype == torch.float32
    assert torch.equal(actual, of_halves)
    assert (actual - expected).abs().max() <= 2 * (plain - expected).abs().max()
    in_full = bert_layers(x, layers, *others, heads=heads, activation="sigmoid")
    assert not torch.equal(actual, in_full)


def test_other_dtypes_of_weights_are_left_to_the_operators():
    arguments, _ = make(CASES["several"], SIZES[0])
    x, layers, *others = in_dtype(arguments, torch.float32)
    halves = with_weights(torch.Tensor.bfloat16, layers)
    sixteen = with_weights(torch.Tensor.half, layers)
    assert bert_layers(x, halves, *others, **OPTIONS) is None  # the operators say that dtypes differ
    with torch.autocast("cpu", torch.float16):
        assert bert_layers(x, sixteen, *others, **OPTIONS) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert bert_layers(x, halves, *others, **OPTIONS) is not None
        for given in ([*halves[:2], layers[2]], [*layers[:2], halves[2]], sixteen):
            assert bert_layers(x, given, *others, **OPTIONS) is None
        biases = halves[0]._replace(query=Dense(halves[0].query.weight, halves[0].query.bias.bfloat16()))
        assert bert_layers(x, [biases], *others, **OPTIONS) is None


def test_one_thread_gives_the_same_bits():
    arguments, heads = make(CASES["many rows"], SIZES[2])
    arguments, before, results = in_dtype(arguments, torch.float32), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(bert_layers(*arguments, heads=heads, activation="tanh"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)


def test_tensors_with_gaps():
    arguments, heads = make(CASES["one utterance"], SIZES[1])
    *arguments, cu_seqlens = in_dtype(arguments, torch.float32)
    expected = bert_layers(*arguments, cu_seqlens, heads=heads, activation="relu")

    def apart(x):
        return torch.stack([x, x + 1], dim=-1)[..., 0] if x.is_floating_point() else x

    x, layers, *streams = each(apart, arguments)
    for tensor in (x, layers[2].query.weight, layers[0].visual.weight, streams[0].frames):
        assert not tensor.is_contiguous()
    assert torch.equal(bert_layers(x, layers, *streams, cu_seqlens, heads=heads, activation="relu"), expected)


def test_operator():
    arguments, heads = make(CASES["several"], SIZES[0])
    x, layers, visual, acoustic, cu_seqlens = in_dtype(arguments, torch.float32)
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    assert len(tensors) == len(layers) * TENSORS
    flat = (x, tensors, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], *visual, *acoustic, cu_seqlens, heads, "relu", torch.float32)
    torch.library.opcheck(torch.ops.cmsbert_fast.bert_layers.default, flat)
    torch.library.opcheck(torch.ops.cmsbert_fast.bert_layers.default, (*flat[:-1], torch.bfloat16))
    for tensor in (x, layers[1].key.bias, layers[2].output_norm.weight, layers[0].acoustic.weight):
        tensor.requires_grad_()
        with pytest.raises(RuntimeError, match="not differentiable"):
            torch.ops.cmsbert_fast.bert_layers(*flat)
        with torch.no_grad():
            torch.ops.cmsbert_fast.bert_layers(*flat)
        tensor.requires_grad_(False)


def test_lengths_that_do_not_fit():
    arguments, heads = make(CASES["several"], SIZES[0])
    *others, cu_seqlens = in_dtype(arguments, torch.float32)
    with pytest.raises(ValueError, match="cu_seqlens must start at 0"):
        bert_layers(*others, cu_seqlens + 1, heads=heads, activation="relu")


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


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_other_tensors_are_left_to_the_operators(change, place):
    """Every parameter and every tensor of a modality: nothing reads beyond their memory."""
    arguments, _ = make(CASES["several"], SIZES[0])
    x, layers, visual, acoustic, cu_seqlens = in_dtype(arguments, torch.float32)
    others = list(with_one_changed(change, layers[place]))
    assert len(others) == (TENSORS if place == 0 else TENSORS - 3)
    calls = [(x, [*layers[:place], other, *layers[place + 1 :]], visual, acoustic) for other in others]
    if change is OTHERS["short"]:  # frames fewer than their offsets say
        with pytest.raises(ValueError, match="cu_seqlens must"):
            bert_layers(x, layers, visual._replace(frames=visual.frames[:3]), acoustic, cu_seqlens, **OPTIONS)
    else:
        calls += [(x, layers, visual._replace(frames=change(visual.frames)), acoustic)]
        calls += [(x, layers, visual, acoustic._replace(frames=change(acoustic.frames)))]
        if change is not OTHERS["absent"]:
            calls.append((change(x), layers, visual, acoustic))
    for call in calls:
        assert bert_layers(*call, cu_seqlens, **OPTIONS) is None


def test_a_layer_without_shifts_does_not_look_at_frames():
    arguments, heads = make(CASES["several"], SIZES[0])
    x, layers, visual, acoustic, cu_seqlens = in_dtype(arguments, torch.float32)
    options = dict(heads=heads, activation="relu")
    expected = bert_layers(x, layers[1:2], Stream(), Stream(), cu_seqlens, **options)
    assert torch.equal(bert_layers(x, layers[1:2], visual, acoustic, cu_seqlens, **options), expected)


def test_layers_follow_one_another():
    """Bit by bit what one call a layer gives: each reads what the one before wrote."""
    arguments, heads = make(CASES["several"], SIZES[0])
    x, layers, *others = in_dtype(arguments, torch.float32)
    given = x.clone()
    together = bert_layers(x, layers, *others, heads=heads, activation="sigmoid")
    assert torch.equal(x, given)
    for layer in layers:
        x = bert_layers(x, [layer], *others, heads=heads, activation="sigmoid")
    assert torch.equal(x, together)


def test_shifts_without_their_modality_and_no_layers():
    arguments, _ = make(CASES["several"], SIZES[0])
    x, layers, visual, acoustic, cu_seqlens = in_dtype(arguments, torch.float32)
    assert bert_layers(x, layers, Stream(), acoustic, cu_seqlens, **OPTIONS) is None
    assert bert_layers(x, layers, visual, Stream(), cu_seqlens, **OPTIONS) is None
    assert bert_layers(x, [], visual, acoustic, cu_seqlens, **OPTIONS) is None


@pytest.mark.parametrize("change", [lambda x: x[0], lambda x: x[None], lambda x: x[:, :0]])
def test_frames_and_rows_of_other_shapes(change):
    arguments, _ = make(CASES["several"], SIZES[0])
    x, layers, visual, acoustic, cu_seqlens = in_dtype(arguments, torch.float32)
    frames = change(visual.frames)
    narrow = [
        layer
        if layer.visual.weight is None
        else layer._replace(
            visual=Shift(
                Dense(layer.visual.gate.weight[:, : 24 + frames.shape[-1]], layer.visual.gate.bias),
                layer.visual.weight[:, : frames.shape[-1]],
            )
        )
        for layer in layers
    ]
    assert bert_layers(x, narrow, visual._replace(frames=frames), acoustic, cu_seqlens, **OPTIONS) is None
    assert bert_layers(change(x), layers, visual, acoustic, cu_seqlens, **OPTIONS) is None


@pytest.mark.parametrize("options", [dict(heads=5), dict(heads=48), dict(heads=0), dict(activation="gelu")], ids=str)
def test_other_options_are_left_to_the_operators(options):
    arguments, _ = make(CASES["several"], SIZES[0])
    assert bert_layers(*in_dtype(arguments, torch.float32), **(OPTIONS | options)) is None


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
    x, layers, visual, acoustic, cu_seqlens = in_dtype(arguments, torch.float32)
    other = [stream._replace(cu_seqlens=change(stream.cu_seqlens)) for stream in (visual, acoustic)]
    assert bert_layers(x, layers, visual, other[1], cu_seqlens, **OPTIONS) is None
    assert bert_layers(x, layers, visual, acoustic, change(cu_seqlens), **OPTIONS) is None
    if change is not LENGTHS["of one sequence less"]:
        assert bert_layers(x, layers, *other, change(cu_seqlens), **OPTIONS) is None


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
    with torch.autocast("cpu", torch.float16):
        assert not takes(x, "auto")
    monkeypatch.setattr(capability, "has_bfloat16_vectors", lambda: False)
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes(x, "auto")
        monkeypatch.setattr(capability, "has_bfloat16_vectors", lambda: True)
        assert takes(x, "auto")
        assert takes(torch.zeros(LAYER_ROWS, 24), "auto")
        # oneDNN's bfloat16 products are as fast as ours, so that one call pays for fewer rows.
        of_float32 = lambda dtype, *_: None if dtype == torch.float32 else "PyTorch's are as fast"  # noqa: E731
        monkeypatch.setattr(capability, "why_not_own_products", of_float32)
        assert takes(torch.zeros(HALF_ROWS, 24), "auto")
        assert not takes(torch.zeros(HALF_ROWS + 1, 24), "auto")
    monkeypatch.setattr(capability, "why_not_own_products", lambda *_: "PyTorch's are as fast")
    assert not takes(x, "auto")
