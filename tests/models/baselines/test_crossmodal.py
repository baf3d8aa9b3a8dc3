"""The crossmodal encoder: buckets, masks and attention, against PyTorch's own, utterance by utterance, in float64."""

import math

import pytest
import torch

from cmsbert_fast.models.baselines.crossmodal import (
    CrossAttention,
    CrossmodalEncoder,
    Dropouts,
    pair,
    with_positions,
)
from cmsbert_fast.packing import Packing, cumulative

LENGTHS = [
    ([3, 1, 5, 5, 4], [2, 4, 5, 1, 9]),
    ([2], [4]),
    ([0, 4, 3, 0], [2, 0, 3, 0]),
    ([0, 2], [3, 0]),
    ([7] * 4, [7] * 4),
    (list(range(1, 20)), list(range(19, 0, -1))),
]
TAIL = 2  # rows of no sequence behind
every_shape = pytest.mark.parametrize(("targets", "sources"), LENGTHS, ids=str)
NONE = Dropouts(0, 0, 0, 0)


def layout(lengths):
    return Packing(cumulative(torch.tensor(lengths)), max(lengths))


def pairing_of(targets, sources):
    return pair(layout(targets), layout(sources), sum(targets) + TAIL, sum(sources) + TAIL)


def rows(lengths, size=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths) + TAIL, size, generator=generator, dtype=torch.float64, requires_grad=True)


def lively(module):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def hidden(n_q, n_k):
    """The mask by definition: True = not seen."""
    return torch.tensor([[j > i + abs(n_k - n_q) for j in range(n_k)] for i in range(n_q)])


@every_shape
def test_buckets_hold_every_pair_once(targets, sources):
    found = pairing_of(targets, sources)
    starts = [0]
    for bucket in found.buckets:
        starts.append(starts[-1] + bucket.shape[0] * bucket.shape[1])
    total = sum(b * n_q for (b, n_q, _), _ in found.buckets)
    assert len(found.queries) == total
    assert len(found.keys) == sum(b * n_k for (b, _, n_k), _ in found.buckets)
    within = [k for k, (n_q, n_k) in enumerate(zip(targets, sources, strict=True)) if n_q and n_k]
    assert sum(bucket.shape[0] for bucket in found.buckets) == len(within)
    first = layout(targets).cu_seqlens.tolist()
    for k, count in enumerate(targets):
        mine = found.place[first[k] : first[k + 1]]
        if k in within:
            assert torch.equal(found.queries[mine], torch.arange(first[k], first[k + 1]))
        else:
            assert (mine == total).all()
        assert len(mine) == count
    assert (found.place[sum(targets) :] == total).all()
    for bucket in found.buckets:
        _, n_q, n_k = bucket.shape
        assert bucket.visible.shape == (bucket.shape[0], 1, n_q, n_k)
        assert bucket.visible.any(dim=-1).all()  # else NaN


def test_lengths_of_a_bucket_are_similar():
    lengths = list(range(1, 200))
    found = pairing_of(lengths, lengths)
    assert len(found.buckets) <= 17
    padded = sum(b * n_q * n_k for (b, n_q, n_k), _ in found.buckets)
    assert padded < 1.5 * sum(n * n for n in lengths)


@pytest.mark.parametrize(
    ("n_q", "n_k", "unseen"), [(2, 4, [(0, 3)]), (4, 2, []), (3, 3, [(0, 1), (0, 2), (1, 2)]), (1, 1, [])]
)
def test_the_mask(n_q, n_k, unseen):
    (bucket,) = pairing_of([n_q], [n_k]).buckets
    assert [tuple(place) for place in (~bucket.visible[0, 0]).nonzero().tolist()] == unseen


@every_shape
def test_attention_is_the_librarys(targets, sources):
    ours = lively(CrossAttention(4, 2, 0.0)).eval()
    library = torch.nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64)
    library.load_state_dict(ours.state_dict())
    queries, keys = rows(targets), rows(sources, seed=2)
    found = ours(queries, keys, pairing_of(targets, sources))[: sum(targets)].split(targets)
    parts = zip(queries[: sum(targets)].split(targets), keys[: sum(sources)].split(sources), strict=True)
    loss, goal = queries.sum() * 0, queries.sum() * 0 + keys.sum() * 0
    for z, (q, k) in zip(found, parts, strict=True):
        expected = ours.out_proj.bias.expand(len(q), 4)
        if len(q) and len(k):
            expected, _ = library(q[None], k[None], k[None], attn_mask=hidden(len(q), len(k)))
            expected = expected[0]
        torch.testing.assert_close(z, expected, rtol=0, atol=1e-12)
        loss, goal = loss + (z * z.detach().cos()).sum(), goal + (expected * expected.detach().cos()).sum()
    gradients = [torch.autograd.grad(x, [queries, keys], retain_graph=True) for x in (loss, goal)]
    for mine, right in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, right, rtol=0, atol=1e-10)


def test_one_key_is_seen_whatever_the_query_is():
    attention = lively(CrossAttention(4, 2, 0.0))
    keys = rows([1, 1], seed=2)
    found = attention(rows([3, 2]), keys, pairing_of([3, 2], [1, 1]))
    weight, bias = attention.in_proj_weight[8:], attention.in_proj_bias[8:]
    for k, some in enumerate(found[:5].split([3, 2])):
        expected = attention.out_proj(weight @ keys[k] + bias)
        torch.testing.assert_close(some, expected.expand(len(some), 4), rtol=0, atol=1e-13)


def test_a_hidden_key_changes_nothing():
    attention = lively(CrossAttention(4, 2, 0.0))
    keys = rows([4], seed=2)
    changed = keys.detach().clone()
    changed[3] += 1
    before, after = (attention(rows([2]), some, pairing_of([2], [4])) for some in (keys, changed))
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)  # sees keys 0, 1, 2
    assert not torch.allclose(after[1], before[1])  # sees all


@pytest.mark.parametrize("self_attention", [False, True])
def test_no_row_of_an_encoder_depends_on_other_utterances(self_attention):
    targets, sources = [3, 5, 0, 12], [4, 0, 2, 3]
    sources = targets if self_attention else sources
    encoder = lively(CrossmodalEncoder(4, 2, 2, NONE)).eval()
    queries, keys = rows(targets), None if self_attention else rows(sources, seed=2)
    whole = encoder(queries, keys, pairing_of(targets, sources))[: sum(targets)].split(targets)
    parts = queries[: sum(targets)].split(targets)
    for k, q in enumerate(parts):
        pairing = pair(layout(targets[k : k + 1]), layout(sources[k : k + 1]), targets[k], sources[k])
        alone = encoder(q, None if keys is None else keys[: sum(sources)].split(sources)[k], pairing)
        torch.testing.assert_close(alone, whole[k], rtol=0, atol=1e-12)


def test_positions():
    zeros = torch.zeros(2, 4, dtype=torch.float64)
    found = with_positions(zeros, torch.tensor([1, 3]), torch.float64)
    expected = [[math.sin(p), math.sin(p * 1e-4), math.cos(p), math.cos(p * 1e-4)] for p in (1, 3)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)
    x = torch.arange(8.0, dtype=torch.float64).view(2, 4)
    torch.testing.assert_close(with_positions(x, torch.tensor([1, 3]), torch.float64), 2 * x + found)


def test_initial_weights():
    encoder = CrossmodalEncoder(4, 2, 1, NONE)
    for module in encoder.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, parameter in encoder.layers[0].named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" not in name:
            bound = math.sqrt(6 / sum(parameter.shape))
            assert 0.5 * bound < parameter.abs().max() <= bound, name


@pytest.mark.parametrize("kind", Dropouts._fields)
def test_every_dropout_acts_in_training_only(kind):
    encoder = lively(CrossmodalEncoder(4, 2, 1, NONE._replace(**{kind: 0.5})))
    arguments = rows([4, 6]), rows([5, 3], seed=2), pairing_of([4, 6], [5, 3])
    expected = lively(CrossmodalEncoder(4, 2, 1, NONE))(*arguments)
    torch.testing.assert_close(encoder.eval()(*arguments), expected, rtol=0, atol=0)
    assert not torch.allclose(encoder.train()(*arguments), expected)


@pytest.mark.parametrize("zeros", ["target", "source"])
def test_dropout_acts_on_both_inputs(zeros):
    """Zeros stay what they are."""
    encoder = lively(CrossmodalEncoder(4, 2, 1, NONE._replace(embedding=0.5)))
    queries, keys = rows([4, 6]).detach(), rows([5, 3], seed=2).detach()
    (queries if zeros == "target" else keys).zero_()
    arguments = queries, keys, pairing_of([4, 6], [5, 3])
    assert not torch.allclose(encoder.train()(*arguments), encoder.eval()(*arguments))
