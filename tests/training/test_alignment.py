"""Alignment in numbers, against loops, and where it must be perfect, by chance or undefined."""

import numpy as np
import pytest

from cmsbert_fast.data.embedded import embedded_utterances
from cmsbert_fast.training.alignment import alignment


def random_embeddings(n: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(n, 6))
    return {name: shared + noise * rng.normal(size=(n, 6)) for name, noise in (("linguistic", 0.5), ("visual", 1.0))}


def test_against_loops() -> None:
    embeddings = random_embeddings()
    labels = np.random.default_rng(1).normal(size=40)
    found = alignment(embeddings, labels)
    for first, second in (("linguistic", "visual"), ("visual", "linguistic"), ("visual", "visual")):
        hits, scores = {1: 0, 5: 0}, []
        for i, query in enumerate(embeddings[first]):
            cosines = [float(query @ key) / np.linalg.norm(query) / np.linalg.norm(key) for key in embeddings[second]]
            order = np.argsort(cosines)[::-1].tolist()
            hits = {k: count + (i in order[:k]) for k, count in hits.items()}
            scores.append(labels[next(j for j in order if j != i)])
        name = f"{first}_to_{second}"
        if first != second:
            assert found["recall_at_1"][name] == pytest.approx(100 * hits[1] / 40)
            assert found["recall_at_5"][name] == pytest.approx(100 * hits[5] / 40)
        assert found["neighbour_correlation"][name] == pytest.approx(np.corrcoef(labels, scores)[0, 1])
    assert "visual_to_visual" not in found["recall_at_1"]
    assert found["recall_by_chance"] == {"at_1": 2.5, "at_5": 12.5}
    assert 5 < found["recall_at_1"]["linguistic_to_visual"] < 95


def test_the_same_directions_are_perfectly_aligned_whatever_their_length() -> None:
    z = np.random.default_rng(0).normal(size=(30, 8))
    found = alignment({"linguistic": z, "visual": 3 * z}, None)
    assert set(found["recall_at_1"].values()) == {100.0}
    assert found["modality_gap"] == {"linguistic_visual": pytest.approx(0, abs=1e-6)}
    assert "neighbour_correlation" not in found
    apart = alignment({"linguistic": np.ones((3, 2)), "visual": -np.ones((3, 2))}, None)
    assert apart["modality_gap"] == {"linguistic_visual": pytest.approx(2)}


def test_equal_embeddings_are_found_by_chance() -> None:
    found = alignment({"linguistic": np.random.default_rng(0).normal(size=(20, 4)), "visual": np.ones((20, 4))}, None)
    assert found["recall_at_1"]["linguistic_to_visual"] == pytest.approx(5)
    assert found["recall_at_5"]["linguistic_to_visual"] == pytest.approx(25)


def test_more_examples_than_are_compared_at_once(monkeypatch) -> None:
    embeddings, labels = random_embeddings(), np.arange(40.0)
    whole = alignment(embeddings, labels)
    monkeypatch.setattr("cmsbert_fast.training.alignment._ROWS", 7)
    assert alignment(embeddings, labels)["recall_at_5"] == whole["recall_at_5"]


def test_classes_agree_or_not() -> None:
    labels = np.repeat([0, 1], 10)
    z = np.eye(2)[labels] + 0.01 * np.random.default_rng(0).normal(size=(20, 2))
    found = alignment({"linguistic": z}, labels, classes=True)
    assert found["neighbour_agreement"] == {"linguistic_to_linguistic": 100.0}
    assert found["agreement_by_chance"] == pytest.approx(50)


def test_constant_scores_have_no_correlation() -> None:
    found = alignment(random_embeddings(), np.ones(40))
    assert set(found["neighbour_correlation"].values()) == {0.0}


def test_face_and_voice_of_the_embedded_corpus_hardly_tell_the_sentiment_alone() -> None:
    """Why their embeddings have no order of sentiment (docs/results.md)."""
    utterances = embedded_utterances()["test"]
    labels = np.array([u.example.label for u in utterances])
    gaze, pitch = (np.array([u.directions[m] for u in utterances]) for m in ("visual", "acoustic"))
    assert np.corrcoef(labels, gaze)[0, 1] == pytest.approx(0.30, abs=0.01)
    assert np.corrcoef(labels, pitch)[0, 1] == pytest.approx(0.20, abs=0.01)
    assert abs(np.corrcoef(gaze, pitch)[0, 1]) < 0.05
