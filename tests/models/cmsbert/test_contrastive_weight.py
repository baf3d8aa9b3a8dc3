"""nu by hand (Eq. 21, 22), and what a checkpoint keeps of it."""

import pytest
import torch

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertForSequenceClassification
from tests.models.small import config

# Validation losses before training and after three epochs, alpha = 0.9.
PASSES = [(2.0, 4.0), (1.0, 4.0), (0.6, 0.0), (3.0, 1.0)]
BY_HAND = [
    0.5,  # 2 / 4
    0.475,  # 0.9 * 0.5 + 0.1 * 1 / 4
    0.475,  # nothing to scale
    0.7275,  # 0.9 * 0.475 + 0.1 * 3 / 1
]


def losses(values):
    return dict(zip(("task", "contrastive"), values, strict=True))


def test_nu_over_three_epochs():
    model = CMSBertCLRForSequenceClassification(config())
    model.nu.fill_(7.0)  # of a checkpoint it starts from
    state = model.training_state(100)
    assert state.starts_with_validation
    state.start(torch.zeros(100))
    assert model.nu == 1
    exact = torch.ones(())
    for i, (values, expected) in enumerate(zip(PASSES, BY_HAND, strict=True)):
        state.validated(losses(values))
        ratio = values[0] / values[1] if values[1] else float(exact)
        exact = exact.fill_(ratio) if i == 0 else exact.mul_(0.9).add_((1 - 0.9) * ratio)
        assert torch.equal(model.nu, exact)  # to the bit
        assert state.report() == {"nu": float(exact)}
        assert float(exact) == pytest.approx(expected, rel=1e-6)


def test_nu_starts_at_1_where_there_is_nothing_to_contrast():
    state = CMSBertCLRForSequenceClassification(config()).training_state(100)
    state.start(torch.zeros(100))
    state.validated(losses((2.0, 0.0)))
    assert state.report() == {"nu": 1.0}


def test_without_average_nu_stays_1():
    model = CMSBertCLRForSequenceClassification(config())
    model.nu.fill_(7.0)
    state = model.training_state(100, momentum=None)
    assert not state.starts_with_validation
    state.start(torch.zeros(100))
    for values in PASSES:
        state.validated(losses(values))
    assert model.nu == 1


@pytest.mark.parametrize("passes", [0, 1, 2])
def test_a_checkpoint_continues(passes):
    model = CMSBertCLRForSequenceClassification(config())
    state = model.training_state(100)
    state.start(torch.zeros(100))
    for values in PASSES[:passes]:
        state.validated(losses(values))
    other = CMSBertCLRForSequenceClassification(config())
    other.load_state_dict(model.state_dict())
    resumed = other.training_state(100)
    resumed.load_state_dict(state.state_dict())
    for values in PASSES[passes:]:
        state.validated(losses(values))
        resumed.validated(losses(values))
        assert torch.equal(other.nu, model.nu)


def test_the_state_asks_for_nothing_else():
    state = CMSBertCLRForSequenceClassification(config()).training_state(100, other_option=3)
    assert state.targets(torch.arange(3).numpy()) is None
    assert not state.row_names
    state.step(1, torch.arange(3).numpy(), {})
    assert state.report() == {"nu": 1.0}
    assert CMSBertForSequenceClassification(config()).training_state(100) is None
