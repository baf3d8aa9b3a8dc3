"""Checkpoints written by commit 2931ebd load, and predict what they predicted then."""

import numpy as np
import pytest

from tests.frozen import checkpoints, golden


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list]]:
    """What each rebuilt checkpoint predicts."""
    return checkpoints.predictions(tmp_path_factory.mktemp("checkpoints"), golden.load("state_dicts"))


@pytest.mark.parametrize("case", checkpoints.CASES)
def test_predictions(found, case):
    recorded = golden.load("predictions")
    golden.assert_unchanged(recorded["predictions"][case], found[case], golden.to_the_bit(recorded["environment"]))


@pytest.mark.parametrize("case", checkpoints.CASES)
def test_predictions_tell_the_utterances_apart(found, case):
    scores = found[case].get("prediction", []) if "classes" not in case else found[case]["probability_happy"]
    assert np.ptp(scores) > 20 * golden.ABSOLUTE
