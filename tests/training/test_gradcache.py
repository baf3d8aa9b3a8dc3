"""Gradient accumulation with the whole batch's negatives: the gradient of all micro-batches in one graph."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from cmsbert_fast import pairwise_contrastive_loss
from cmsbert_fast.training.gradcache import gradcache_backward


class Model(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 16)).double()
        self.heads = nn.ModuleList(nn.Linear(16, 5) for _ in range(3)).double()

    def forward(self, x: Tensor) -> tuple[Tensor | None, ...]:
        hidden = self.body(x)
        first, second, third = (head(hidden) for head in self.heads)
        return first, second, None, third, torch.arange(len(x))  # an absent output, and one without gradient


LABELS = torch.linspace(-1, 1, 12)
X = torch.randn(12, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def total(first: Tensor, second: Tensor, absent: None, third: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    assert absent is None
    assert index.shape == (12,)
    contrastive = pairwise_contrastive_loss(first, second, None, LABELS)
    noise = torch.rand(())  # losses may draw random numbers as well
    return contrastive + noise * third.square().mean(), contrastive


def gradients(model: Model) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]


def run_in_one_graph(dropout: float, sizes: list[int]) -> tuple[Tensor, list[Tensor], Tensor]:
    model = Model(dropout)
    torch.manual_seed(3)
    outputs = [model(part) for part in X.split(sizes)]
    whole = [None if column[0] is None else torch.cat(column) for column in zip(*outputs, strict=True)]
    loss, _ = total(*whole)
    loss.backward()
    return loss.detach(), gradients(model), torch.rand(3)


@pytest.mark.parametrize("sizes", [[12], [6, 6], [5, 4, 3], [1] * 12])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_equals_one_graph(sizes: list[int], dropout: float) -> None:
    """Dropout included; the random stream afterwards is the same as well."""
    expected, wanted, next_numbers = run_in_one_graph(dropout, sizes)
    model = Model(dropout)
    torch.manual_seed(3)
    result = gradcache_backward(model, X.split(sizes), total)
    torch.testing.assert_close(result.loss[0], expected)
    for got, want in zip(gradients(model), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    assert torch.rand(3).equal(next_numbers)
    assert not any(isinstance(z, Tensor) and z.requires_grad for z in (*result.loss, *result.outputs))
    assert result.outputs[4].equal(torch.cat([torch.arange(size) for size in sizes]))


NAMES = ("first", "second", "absent", "third", "index")


@pytest.mark.parametrize("sizes", [[12], [5, 4, 3]])
def test_outputs_by_name(sizes: list[int]) -> None:
    """A mapping of outputs gives what the tuple gives; the loss gets a dict and may return one beside the total."""
    expected, wanted, _ = run_in_one_graph(0.4, sizes)
    model = Model(0.4)
    torch.manual_seed(3)

    def loss(outputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        assert list(outputs) == list(NAMES)
        value, contrastive = total(*outputs.values())
        return value, {"contrastive": contrastive}

    result = gradcache_backward(lambda part: dict(zip(NAMES, model(part), strict=True)), X.split(sizes), loss)
    torch.testing.assert_close(result.loss[0], expected)
    for got, want in zip(gradients(model), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    assert not result.loss[1]["contrastive"].requires_grad
    assert list(result.outputs) == list(NAMES)
    assert result.outputs["first"].shape == (12, 5)
    assert not result.outputs["first"].requires_grad


def test_equals_the_unaccumulated_batch() -> None:
    _, wanted, _ = run_in_one_graph(0.0, [12])
    model = Model(0.0)
    torch.manual_seed(3)
    gradcache_backward(model, X.split(4), total)
    for got, want in zip(gradients(model), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_plain_accumulation_is_something_else() -> None:
    """What the helper is for: losses of micro-batches do not add up to the batch's."""
    _, wanted, _ = run_in_one_graph(0.0, [12])
    model = Model(0.0)
    for part, labels in zip(X.split(4), LABELS.split(4), strict=True):
        first, second, *_ = model(part)
        (pairwise_contrastive_loss(first, second, None, labels) / 3).backward()
    head = wanted[4]  # the contrastive loss alone acts on it
    assert (model.heads[0].weight.grad - head).abs().max() > 0.1 * head.abs().max()


def test_adds_to_existing_gradients_scales_and_synchronises_once() -> None:
    _, wanted, _ = run_in_one_graph(0.0, [12])
    model = Model(0.0)
    entered = []

    @contextlib.contextmanager
    def no_sync() -> Iterator[None]:
        entered.append(True)
        yield

    torch.manual_seed(3)
    gradcache_backward(model, X.split(4), total, no_sync=no_sync)
    torch.manual_seed(3)
    gradcache_backward(model, X.split(4), total, scale=lambda loss: 4 * loss)
    assert len(entered) == 2
    for got, want in zip(gradients(model), wanted, strict=True):
        torch.testing.assert_close(got, 5 * want, rtol=1e-12, atol=1e-14)


def test_one_micro_batch_of_activations_at_a_time() -> None:
    """Saved activations of two micro-batches are never alive together."""
    alive, most = 0, 0

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            nonlocal alive
            alive -= 1
            return grad

    model = Model(0.0)

    def forward(part: Tensor) -> tuple[Tensor | None, ...]:
        first, *rest = model(part)
        return Counted.apply(first) if first.requires_grad else first, *rest

    gradcache_backward(forward, X.split(3), total)
    assert (alive, most) == (0, 1)


def test_no_micro_batch() -> None:
    with pytest.raises(ValueError, match="at least one"):
        gradcache_backward(Model(0.0), [], total)


@pytest.mark.parametrize("first_has_it", [False, True])
def test_output_that_some_micro_batches_lack(first_has_it: bool) -> None:
    def forward(part: Tensor) -> tuple[Tensor | None, ...]:
        first, second, _, third, index = Model(0.0)(part)
        return first, second if (len(part) == 4) == first_has_it else None, third, index

    with pytest.raises(ValueError, match="Output 1 of forward is None in 1 of 2"):
        gradcache_backward(forward, X.split([4, 8]), total)

    def by_name(part: Tensor) -> dict[str, Tensor]:
        first, second, *_ = forward(part)
        return {"first": first} if second is None else {"first": first, "second": second}

    with pytest.raises(ValueError, match="Output 'second' of forward is None in 1 of 2"):
        gradcache_backward(by_name, X.split([4, 8]), total)


@pytest.mark.cuda
def test_random_numbers_of_every_gpu() -> None:
    """Both passes see the same dropout on every device, not only the current one's."""
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    seen: list[Tensor] = []

    def forward(part: Tensor) -> tuple[Tensor]:
        noise = torch.stack([torch.rand(3, dtype=torch.float64, device=device).cpu() for device in devices])
        seen.append(noise)
        return ((part[:, :3] * weight * noise.sum(0)),)

    gradcache_backward(forward, X.split(4), lambda z: z.square().sum())
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert first.equal(second)
