"""The oracle itself: against loops over single elements, against numbers made by hand, and by gradcheck."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmsbert_fast import reference

DOUBLE = torch.float64


def randn(*shape, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=DOUBLE, generator=generator, requires_grad=grad)


def act(name, x):
    return {"relu": max(x, 0.0), "sigmoid": 1 / (1 + math.exp(-x)), "tanh": math.tanh(x)}[name]


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_gate_and_shift_element_by_element(activation):
    n, n_v, d, d_v = 3, 4, 5, 2
    x, v = randn(1, n, d), randn(1, n_v, d_v, seed=1)
    w_g, b, w_v = randn(1, d + d_v, seed=2), randn(1, seed=3), randn(d, d_v, seed=4)
    valid = torch.tensor([[True, False, True, True]])
    gates = reference.gate(x, v, w_g, b, activation)
    a = reference.shift(gates, v, w_v, valid)
    for i in range(n):
        expected = torch.zeros(d, dtype=DOUBLE)
        for j in range(n_v):
            logit = float(w_g[0] @ torch.cat([x[0, i], v[0, j]]) + b)  # Eq. 1
            assert gates[0, i, j].item() == pytest.approx(act(activation, logit), abs=1e-14)
            if valid[0, j]:
                expected += act(activation, logit) * (w_v @ v[0, j])  # Eq. 3
        torch.testing.assert_close(a[0, i], expected / 3, rtol=0, atol=1e-14)  # Eq. 4, three valid frames


def test_attention_element_by_element():
    n, heads, d_h = 4, 2, 3
    q, k, v, a = (randn(1, n, heads, d_h, seed=s) for s in range(4))
    valid = torch.tensor([[True, True, False, True]])
    z = reference.attention(q, k, v, a.flatten(2), valid)
    for h in range(heads):
        for i in range(n):
            if not valid[0, i]:
                assert (z[0, i] == 0).all()
                continue
            keys = [j for j in range(n) if valid[0, j]]
            e = [float((q + a)[0, i, h] @ (k + a)[0, j, h]) / math.sqrt(d_h) for j in keys]  # Eq. 5
            total = sum(map(math.exp, e))
            expected = sum(math.exp(e_j) / total * (v + a)[0, j, h] for e_j, j in zip(e, keys, strict=True))  # Eq. 6, 7
            torch.testing.assert_close(z[0, i, h], expected, rtol=0, atol=1e-14)


def test_no_valid_frame_and_no_frame_shift_by_zero_not_nan():
    gates, weight = torch.ones(2, 3, 4, dtype=DOUBLE), randn(5, 2)
    frames = torch.full((2, 4, 2), torch.nan, dtype=DOUBLE)
    assert (reference.shift(gates, frames, weight, torch.zeros(2, 4, dtype=torch.bool)) == 0).all()
    assert (reference.shift(gates[:, :, :0], frames[:, :0], weight) == 0).all()


def test_gradients():
    mask = torch.tensor([[True, True, False]])
    x, v = randn(1, 2, 3, grad=True), randn(1, 3, 2, seed=1, grad=True)
    w_g, b, w_v = randn(1, 5, seed=2, grad=True), randn(1, seed=3, grad=True), randn(4, 2, seed=4, grad=True)
    qkv = [randn(1, 2, 2, 2, seed=s, grad=True) for s in (5, 6, 7)]

    def cms(x, v, w_g, b, w_v, q, k, value):
        a = reference.shift(reference.gate(x, v, w_g, b, "tanh"), v, w_v, mask)
        return reference.attention(q, k, value, a, torch.tensor([[True, True]]))

    assert torch.autograd.gradcheck(cms, (x, v, w_g, b, w_v, *qkv))

    lstm = torch.nn.LSTM(2, 3, dtype=DOUBLE)
    names, weights = zip(*lstm.named_parameters(), strict=True)
    assert torch.autograd.gradcheck(
        lambda frames, *w: reference.mean_pool(reference.lstm(frames, mask, dict(zip(names, w, strict=True))), mask),
        (v, *weights),
    )

    def weights_of(**modules):
        named = [(f"{m}.{n}", p) for m, module in modules.items() for n, p in module.double().named_parameters()]
        return zip(*named, strict=True)

    torch.manual_seed(0)  # no input of a ReLU near 0
    layers = {"dense": torch.nn.Linear(3, 4), "out_proj": torch.nn.Linear(4, 4)}
    projector_names, weights = weights_of(**layers)
    assert torch.autograd.gradcheck(
        lambda u, *w: reference.projector(u, dict(zip(projector_names, w, strict=True))),
        (randn(2, 3, grad=True), *weights),
    )
    layers = {"dense": torch.nn.Linear(12, 4), "out_proj": torch.nn.Linear(4, 1)}
    layers["transformer"] = torch.nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0)
    fusion_names, weights = weights_of(**layers)
    middles = [randn(2, 4, seed=s, grad=True) for s in range(3)]
    assert torch.autograd.gradcheck(
        lambda *t: reference.fusion(list(t[:3]), dict(zip(fusion_names, t[3:], strict=True))), (*middles, *weights)
    )

    embeddings = [randn(4, 3, seed=s, grad=True) for s in range(3)]
    labels = torch.tensor([1.0, 1.05, -1.0, 0.0])
    tau = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *t: reference.pairwise_contrastive_loss(*t[:3], labels, temperature=t[3]), (*embeddings, tau)
    )


def test_lstm_is_torch_nn_lstm_and_passes_over_invalid_frames():
    module = torch.nn.LSTM(2, 3, batch_first=True, dtype=DOUBLE)
    weights = dict(module.named_parameters())
    frames = randn(2, 5, 2)
    everything = torch.ones(2, 5, dtype=torch.bool)
    torch.testing.assert_close(reference.lstm(frames, everything, weights), module(frames)[0], rtol=0, atol=1e-14)
    mask = torch.tensor([[True, False, True, True, False], [False] * 5])
    h = reference.lstm(frames.masked_fill(~mask[..., None], torch.nan), mask, weights)
    torch.testing.assert_close(h[0, mask[0]], module(frames[:1, mask[0]])[0][0], rtol=0, atol=1e-14)
    assert (h[~mask] == 0).all()
    assert (reference.mean_pool(h, mask)[1] == 0).all()


def test_fusion_is_a_transformer_encoder_layer_and_a_predictor():
    d, modalities = 6, 3
    layer = torch.nn.TransformerEncoderLayer(d, 2, 11, dropout=0.0, batch_first=True, dtype=DOUBLE)
    dense, out = torch.nn.Linear(modalities * d, d, dtype=DOUBLE), torch.nn.Linear(d, 1, dtype=DOUBLE)
    weights = {f"transformer.{name}": p for name, p in layer.named_parameters()}
    weights |= {f"dense.{name}": p for name, p in dense.named_parameters()}
    weights |= {f"out_proj.{name}": p for name, p in out.named_parameters()}
    middles = [randn(4, d, seed=s) for s in range(modalities)]
    expected = out(torch.relu(dense(layer(torch.stack(middles, dim=1)).flatten(1))))
    torch.testing.assert_close(reference.fusion(middles, weights), expected, rtol=0, atol=1e-13)


# ------------------------------------------------------------------ contrastive learning


def targets_by_hand(labels, beta=0.9, delta=0.1):
    """Eq. 23, one pair at a time, in decimal arithmetic."""
    from decimal import Decimal

    y = [Decimal(str(label)) for label in labels]
    sign = [(value > 0) - (value < 0) for value in y]
    rows = []
    for i in range(len(y)):
        group = [j for j in range(len(y)) if j != i and sign[i] == sign[j] and abs(y[i] - y[j]) <= Decimal(str(delta))]
        row = [0.0] * len(y)
        row[i] = beta if group else 1.0
        for j in group:
            row[j] = (1 - beta) / len(group)
        rows.append(row)
    return torch.tensor(rows, dtype=DOUBLE)


@given(st.lists(st.integers(-30, 30), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_targets_on_a_grid_of_tenths(tenths):
    labels = [value / 10 for value in tenths]  # many pairs lie exactly delta apart
    t = reference.targets(torch.tensor(labels), len(labels))
    torch.testing.assert_close(t, targets_by_hand(labels), rtol=0, atol=1e-15)
    torch.testing.assert_close(t.sum(dim=1), torch.ones(len(labels), dtype=DOUBLE))


@pytest.mark.parametrize(
    ("labels", "similar"),
    [
        ([0.2, 0.3], True),  # exactly delta in decimals, a little more in float32
        ([0.2, 0.3001], False),
        ([-0.05, 0.05], False),  # signs differ
        ([0.0, 0.05], False),  # zero is a group of its own
        ([0.0, 0.0], True),
        ([-2.6, -2.7], True),
    ],
)
def test_labels_at_the_edge_of_delta(labels, similar):
    t = reference.targets(torch.tensor(labels), 2)
    expected = 0.9 if similar else 1.0
    torch.testing.assert_close(t.diagonal(), torch.full((2,), expected, dtype=DOUBLE))


def test_all_labels_equal_all_distinct_classes_and_smoothing_off():
    equal = reference.targets(torch.ones(4), 4)
    torch.testing.assert_close(equal, torch.full((4, 4), 0.1 / 3, dtype=DOUBLE).fill_diagonal_(0.9))
    distinct = reference.targets(torch.tensor([-3.0, -1.0, 1.0, 3.0]), 4)
    torch.testing.assert_close(distinct, torch.eye(4, dtype=DOUBLE))
    assert torch.equal(reference.targets(None, 4, smoothing=None), torch.eye(4, dtype=DOUBLE))
    classes = reference.targets(torch.tensor([2, 0, 2]), 3)
    torch.testing.assert_close(classes, torch.tensor([[0.9, 0, 0.1], [0, 1, 0], [0.1, 0, 0.9]], dtype=DOUBLE))
    with pytest.raises(ValueError, match="needs labels"):
        reference.targets(None, 4)


def test_contrastive_loss_pair_by_pair():
    n, tau = 4, 0.2
    z = {"l": randn(n, 3), "v": randn(n, 3, seed=1), "a": randn(n, 3, seed=2)}
    labels = torch.tensor([1.0, 1.1, -1.0, 1.0])
    t = reference.targets(labels, n)

    def cosine(x, y):
        return float(x @ y / (x.norm() * y.norm()))

    def direction(m, other):  # Eq. 17, 18 with the targets of Eq. 23
        total = 0.0
        for i in range(n):
            s = [cosine(z[m][i], z[other][j]) / tau for j in range(n)]
            normaliser = math.log(sum(map(math.exp, s)))
            total += sum(-float(t[i, j]) * (s[j] - normaliser) for j in range(n))
        return total / n

    six = ["lv", "vl", "la", "al", "va", "av"]  # the set D of Eq. 19
    expected = sum(direction(*pair) for pair in six)
    loss = reference.pairwise_contrastive_loss(*z.values(), labels, temperature=tau)
    assert loss.item() == pytest.approx(expected, abs=1e-13)
    two = reference.pairwise_contrastive_loss(z["l"], None, z["a"], labels, temperature=tau)
    assert two.item() == pytest.approx(direction("l", "a") + direction("a", "l"), abs=1e-13)


def test_one_example_has_no_contrastive_loss():
    z = [randn(1, 3, seed=s) for s in range(3)]
    assert reference.pairwise_contrastive_loss(*z, torch.zeros(1)).item() == 0


def test_exponential_moving_average():
    assert reference.updated_nu(0.5, task=2.0, contrastive=8.0, alpha=0.9) == pytest.approx(0.9 * 0.5 + 0.1 * 0.25)
    assert reference.total_loss(torch.tensor(1.0), torch.tensor(4.0), 0.25).item() == 2
