"""Gradients of large embeddings: those of PyTorch to the bit, but only the rows of a step's words are touched."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cmsbert_fast.training.distributed import Gradients
from cmsbert_fast.training.embedding_gradient import COLUMNS, LEAST_ROWS, large_embeddings
from tests.training.helpers import CPU


class Text(nn.Module):
    """Words and positions, a linear layer, one number; ``tied``: a second term uses the words' weight as a layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(LEAST_ROWS, COLUMNS, padding_idx=0)
        self.places = nn.Embedding(16, COLUMNS)
        self.dense = nn.Linear(COLUMNS, COLUMNS)

    def forward(self, ids: Tensor, tied: bool = False) -> Tensor:
        x = self.dense(self.words(ids) + self.places.weight[: ids.shape[1]])
        return x.pow(3).sum() + (F.linear(x, self.words.weight).logsumexp(-1).sum() if tied else 0.0)


def draw(step: int, count: int = 2) -> Tensor:
    """Ids of which some are there several times, and 0, the padding, is one."""
    ids = torch.randint(1, 300, (count, 12), generator=torch.Generator().manual_seed(step))
    ids[:, 3:6], ids[:, 7] = ids[0, 0], 0
    return ids + (step % 2) * 1000 * (ids > 0)


def plain(model: Text, batches: list[Tensor], **options: bool) -> None:
    """One step's gradients without :class:`Gradients`."""
    model.zero_grad()
    for ids in batches:
        model(ids, **options).backward()


def ours(model: Text, gradients: Gradients, batches: list[Tensor], **options: bool) -> None:
    gradients.zero()
    for ids in batches[:-1]:
        with gradients.no_sync():
            model(ids, **options).backward()
    model(batches[-1], **options).backward()
    gradients.finish()


def assert_same(model: Text, other: Text) -> None:
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert p.grad is not None
        assert p.grad.layout == torch.strided
        assert torch.equal(p.grad, q.grad), name


def pair() -> tuple[Text, Gradients, Text]:
    model = Text()
    return model, Gradients(model, CPU), copy.deepcopy(model)


@pytest.mark.parametrize("passes", [1, 3])
def test_steps_have_pytorchs_bits(passes):
    model, gradients, twin = pair()
    kept = set()
    for step in range(4):
        batches = [draw(10 * step + i) for i in range(passes)]
        ours(model, gradients, batches)
        plain(twin, batches)
        assert_same(model, twin)
        assert model.words.weight.grad.count_nonzero(dim=1).bool().sum() < 100
        kept.add(model.words.weight.grad.data_ptr())
    assert len(kept) == 1


def test_words_without_a_gradient():
    """Padding only, and a step that does not reach the embedding at all."""
    model, gradients, _ = pair()
    ours(model, gradients, [draw(0)])
    ours(model, gradients, [torch.zeros(1, 4, dtype=torch.int64)])
    assert not model.words.weight.grad.any()
    ours(model, gradients, [draw(1)])
    gradients.zero()
    model.dense(torch.ones(COLUMNS)).sum().backward()
    gradients.finish()
    assert not model.words.weight.grad.any()
    assert gradients.norm() > 0


def test_a_tied_weight():
    """Dense and sparse gradients meet: all rows are filled, and cleared in the next step."""
    model, gradients, twin = pair()
    for step, tied in enumerate((False, True, False, True, True)):
        batches = [draw(step), draw(step + 5)]
        ours(model, gradients, batches, tied=tied)
        plain(twin, batches, tied=tied)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
        if not tied:
            assert_same(model, twin)
        expected = nn.utils.get_total_norm([p.grad for p in model.parameters()])
        assert torch.equal(gradients.norm(), expected)


def test_an_embedding_that_is_used_twice_in_one_graph():
    model, gradients, twin = pair()
    for step in range(2):
        first, second = draw(step), draw(step + 1)
        gradients.zero()
        (model(first) + model(second)).backward()
        gradients.finish()
        twin.zero_grad()
        (twin(first) + twin(second)).backward()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_gradients_of_gradients():
    """create_graph makes autograd replace the gradient instead of adding to it."""
    model, gradients, twin = pair()
    for step in range(2):
        gradients.zero()
        model(draw(step)).backward(create_graph=True)
        gradients.finish()
        plain(twin, [draw(step)])
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad.detach(), q.grad)
        expected = nn.utils.get_total_norm([q.grad for q in twin.parameters()])
        torch.testing.assert_close(gradients.norm().detach(), expected)
    ours(model, gradients, [draw(3)])
    plain(twin, [draw(3)])
    assert_same(model, twin)


def test_norm_and_clipping_have_pytorchs_bits():
    model, gradients, twin = pair()
    for step in range(3):
        batches = [draw(step), draw(step + 3)]
        ours(model, gradients, batches)
        plain(twin, batches)
        expected = nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        assert torch.equal(gradients.norm(), expected)
        gradients.clip(expected, 0.1)
        assert_same(model, twin)
        nn.utils.clip_grad_value_(twin.parameters(), 1e-3)
        gradients.clip_values(1e-3)
        assert_same(model, twin)
        assert 0 < model.words.weight.grad.max() <= 1e-3


def test_a_step_that_failed_leaves_no_hook_to_the_next():
    model, gradients, twin = pair()
    gradients.zero()  # and no more: an exception came
    for step in range(2):
        ours(model, gradients, [draw(step)])
        plain(twin, [draw(step)])
        assert_same(model, twin)
    assert not model.words.weight._backward_hooks
    assert not model.words.sparse


def test_nothing_is_left_after_a_step():
    """A loop of the user's own has PyTorch's gradients, which are new tensors."""
    model, gradients, twin = pair()
    ours(model, gradients, [draw(0)])
    held = model.words.weight.grad
    for m in (model, twin):
        plain(m, [draw(1)])
    assert_same(model, twin)
    assert model.words.weight.grad is not held
    assert not model.words.sparse
    assert not model.words.weight._backward_hooks


def test_a_step_makes_nothing_of_the_embeddings_size():
    made = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.layout == torch.strided]
            if any(x.shape[:1] == (LEAST_ROWS,) for x in tensors) and not func._schema.is_mutable:
                made.append(str(func))
            return out

    model, gradients, _ = pair()
    ours(model, gradients, [draw(0)])
    with Sizes():
        ours(model, gradients, [draw(1), draw(2)])
        gradients.clip(gradients.norm(), 0.1)
    assert [name for name in made if "detach" not in name] == []
    with Sizes():
        plain(model, [draw(0)])
    assert any("embedding_dense_backward" in name for name in made)


def test_which_embeddings():
    def of(change):
        model = Text()
        change(model.words)
        return large_embeddings(model)

    model = Text()
    assert large_embeddings(model) == [model.words]  # not the positions
    assert of(lambda words: words.requires_grad_(False)) == []
    assert of(lambda words: setattr(words, "sparse", True)) == []
    assert of(lambda words: setattr(words, "scale_grad_by_freq", True)) == []
    assert large_embeddings(nn.Embedding(LEAST_ROWS, COLUMNS, device="meta")) == []
    assert large_embeddings(nn.Embedding(LEAST_ROWS, COLUMNS + 1)) == []
    assert large_embeddings(nn.Embedding(LEAST_ROWS - 1, COLUMNS)) == []
    assert large_embeddings(nn.ModuleList([model.words, copy.copy(model.words)])) == [model.words]


RANKS = """
import torch
from torch import distributed as dist
from cmsbert_fast.training import distributed
from tests.training.test_embedding_gradient import Text, draw, ours, plain
ranks = distributed.start("cpu")
model, twin = Text(), Text()
gradients = distributed.Gradients(model, ranks)
for step in range(3):
    batches = [draw(10 * step + 5 * ranks.rank + i) for i in range(2)]
    ours(model, gradients, batches)
    plain(twin, batches)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        dist.all_reduce(q.grad)
        assert torch.equal(p.grad, q.grad / 2)
    both = model.words.weight.grad.count_nonzero(dim=1).bool().sum()
    mine = torch.cat(batches).unique().numel() - 1
    assert both > mine
    gradients.clip(gradients.norm(), 0.1)
    torch.testing.assert_close(gradients.norm(), torch.tensor(0.1))
distributed.wait_for_all(ranks)
"""


def test_two_ranks(tmp_path, start_code):
    """Rows that only the other rank has filled are reduced, clipped and cleared too."""
    run = start_code(tmp_path, RANKS, ranks=2)
    assert run.wait() == [0, 0], run.errors()
