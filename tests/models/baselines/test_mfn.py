"""MFN's own checks."""

import dataclasses

import pytest
import torch

from cmsbert_fast.models.baselines.mfn import Memory, MFNConfig, MFNForSequenceClassification
from cmsbert_fast.models.baselines.recurrent import order_of_time
from cmsbert_fast.packing import Packing, cumulative
from cmsbert_fast.reference import mfn
from tests.models.baselines.systems import config, system
from tests.models.baselines.utterances import packed, utterances


def test_size_of_the_published_model():
    config = MFNConfig(visual_size=47, acoustic_size=74, num_hidden_layers=1)
    with torch.device("meta"):
        model = MFNForSequenceClassification(config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 469_169


def run(memory, cells, packing):
    return memory(cells, packing, order_of_time(packing, cells.device))


def small_memory():
    torch.manual_seed(0)
    return Memory(config("mfn"), 9).double()


def test_the_memory_by_hand():
    """With all weights 0 but L4's bias: Chat = C / 2H, gates 1/2, and a proposal of tanh(b)."""
    memory, b = small_memory(), torch.linspace(-2, 1, 5, dtype=torch.float64)
    for parameter in memory.parameters():
        parameter.data.zero_()
    memory.proposal.out_proj.bias.data.copy_(b)
    lengths = torch.tensor([1, 2, 0, 3])
    u = run(memory, torch.ones(6, 9, dtype=torch.float64), Packing(cumulative(lengths), 3))
    for found, share in zip(u, (1 / 2, 3 / 4, 0, 7 / 8), strict=True):
        torch.testing.assert_close(found, share * b.tanh(), rtol=0, atol=1e-15)
    # The proposal sees Chat: the cells of two steps, each divided by 2H.
    memory.proposal.dense.weight.data[0] = 1
    memory.proposal.out_proj.weight.data[0, 0] = 1
    cells = torch.arange(1, 19, dtype=torch.float64).reshape(2, 9)
    for n, total in ((1, 45.0), (2, 171.0)):  # W = 1 has c_0 = 0
        packing = Packing(cumulative(torch.tensor([n])), n)
        last = torch.tanh(b[0] + total / 18) / 2 + (torch.tanh(b[0] + 45 / 18) / 4 if n == 2 else 0)
        torch.testing.assert_close(run(memory, cells[:n], packing)[0, 0], last, rtol=0, atol=1e-14)


def test_memory_is_the_literal_loop():
    """Cells of other sequences are not seen, and the split of L5 and L7 is exact."""
    memory, lengths = small_memory(), [4, 1, 0, 7, 2]
    for parameter in memory.parameters():
        parameter.data.mul_(3)
    cells = torch.randn(sum(lengths), 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = run(memory, cells, Packing(cumulative(torch.tensor(lengths)), 7))
    weights = memory.state_dict()
    for u, rows in zip(found, cells.split(lengths), strict=True):
        expected, before = torch.zeros(5, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
        for row in rows:
            both, before = torch.cat([before, row]), row
            nets = {name: mfn.part(weights, name) for name in ("attention", "proposal", "retain", "update")}
            chat = torch.softmax(mfn.two_layers(nets["attention"], both), 0) * both
            seen = torch.cat([chat, expected])
            retain, update = (torch.sigmoid(mfn.two_layers(nets[name], seen)) for name in ("retain", "update"))
            expected = retain * expected + update * torch.tanh(mfn.two_layers(nets["proposal"], chat))
        torch.testing.assert_close(u, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("absent", ["visual", "acoustic"])
def test_an_absent_view_takes_its_columns_along(absent):
    whole = system("mfn", text="bert-frozen")
    without = system("mfn", text="bert-frozen", **{f"{absent}_size": 0})
    sizes = {"text": 4, "acoustic": 3, "visual": 2}
    kept = torch.tensor([name != absent for name, size in sizes.items() for _ in range(size)])
    both, rest = kept.repeat(2), torch.ones(5, dtype=torch.bool)
    columns = {
        "memory.attention.dense.weight": both,
        "memory.proposal.dense.weight": both,
        "memory.retain.dense.weight": torch.cat([both, rest]),
        "memory.update.dense.weight": torch.cat([both, rest]),
        "classifier.dense.weight": torch.cat([kept, rest]),
    }
    state = whole.state_dict()
    for name, some in columns.items():
        state[name][:, ~some] = 0
    state["memory.attention.out_proj.bias"][~both] = -torch.inf  # the softmax leaves these entries out
    batch = utterances(aligned=True)
    expected = whole.rows(**packed(batch, whole))["logits"]
    taken = {name: values[:, columns[name]] if name in columns else values for name, values in state.items()}
    for name in ("memory.attention.out_proj.weight", "memory.attention.out_proj.bias"):
        taken[name] = taken[name][both]
    without.load_state_dict({name: taken[name] for name in without.state_dict()})
    torch.testing.assert_close(without.rows(**packed(batch, without))["logits"], expected, rtol=0, atol=1e-13)


def test_dropout_acts_on_every_net():
    batch = utterances(aligned=True)
    for name in ("attention", "proposal", "retain", "update", "output"):
        model = system("mfn", **{f"{name}_dropout": 0.5})
        inputs = packed(batch, model)
        assert not torch.equal(model.train().rows(**inputs)["logits"], model.eval().rows(**inputs)["logits"]), name


def test_words_are_read_in_order_and_frames_with_their_words():
    model, batch = system("mfn"), utterances(aligned=True)[:1]
    row = model.rows(**packed(batch, model))["logits"]
    for name in ("vectors", "visual", "acoustic"):
        changed = [dataclasses.replace(batch[0], **{name: getattr(batch[0], name).flip(0)})]
        assert not torch.allclose(model.rows(**packed(changed, model))["logits"], row), name
