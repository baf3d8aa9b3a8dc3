"""Losses: what regression minimises, and the weighted sum."""

import pytest
import torch

from cmsbert_fast.models.losses import LossTerm, task_loss, total_loss


def test_regression_by_hand():
    logits, labels = torch.tensor([[1.0], [0.0], [-2.0]]), torch.tensor([0.0, 0.0, 1.0])
    assert task_loss(logits, labels) == task_loss(logits, labels, "mse") == pytest.approx(10 / 3)
    assert task_loss(logits, labels, "l1") == pytest.approx(4 / 3)
    assert task_loss(logits.bfloat16(), labels).dtype == torch.float32
    assert task_loss(logits.double(), labels).dtype == torch.float64


@pytest.mark.parametrize("kind", ["mse", "l1"])
def test_several_outputs_are_classes_whatever_the_kind(kind):
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1, 0])
    assert torch.equal(task_loss(logits, labels, kind), torch.nn.functional.cross_entropy(logits, labels))
    with pytest.raises(ValueError, match="with 3 classes give class indices"):
        task_loss(logits, labels.float(), kind)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="kind='huber' is unknown; choose one of mse, l1"):
        task_loss(torch.zeros(2, 1), torch.zeros(2), "huber")
    with pytest.raises(ValueError, match=r"labels has shape \(3,\); it must be \(2,\)"):
        task_loss(torch.zeros(2, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="at least one term"):
        total_loss({})


def test_the_total_is_equation_20_and_weights_get_no_gradient():
    task, contrastive, nu = (torch.tensor(value, requires_grad=True) for value in (0.7, 3.1, 0.3))
    terms = {"task": LossTerm(task), "contrastive": LossTerm(contrastive, nu, per_row=False)}
    total = total_loss(terms)
    assert torch.equal(total, task + nu.detach() * contrastive)
    total.backward()
    assert (task.grad, contrastive.grad, nu.grad) == (1, nu, None)
    several = {"a": LossTerm(task, 0.5), "b": LossTerm(task, 2.0), "c": LossTerm(task)}
    assert total_loss(several).item() == pytest.approx(2.45)
