"""How well modalities are aligned in the common space, in numbers: what Fig. 3 shows, measured.

All work on directions, as the contrastive loss does (Eq. 17-18): embeddings are first normalised to length 1.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

_ROWS = 512  # of similarities at a time: memory grows with n, not n²
_SAME = 1e-6  # cosines that differ less are equal: rounding
RANKS = (1, 5)  # retrieval counts a pair that is among so many


def alignment(embeddings: Mapping[str, np.ndarray], labels: np.ndarray | None, classes: bool = False) -> dict[str, Any]:
    """Retrieval, order of sentiment and gap between modalities.

    Args:
        embeddings: z_m by modality, each (n, d); at least one, n >= 2.
        labels: (n,) scores or class indices; None where an example has no single label.
        classes: Whether labels are classes.

    Returns:
        - ``examples``: n.
        - ``recall_at_1``, ``recall_at_5``: by direction ``m_to_m'``, in how many of 100 examples z_m' of the same
          example is among the 1 or 5 of all n that are nearest to z_m. Equally near ones count as in random order. By
          chance: 100/n and 500/n, as ``recall_by_chance``.
        - ``neighbour_correlation``: by ``m_to_m'``, m = m' included: Pearson's correlation of an example's score with
          that of the *other* example whose z_m' is nearest to its z_m; 0 where one side is constant. With classes
          instead ``neighbour_agreement``: in how many of 100 examples both have the same class, and
          ``agreement_by_chance``.
        - ``modality_gap``: by pair, the distance of the mean directions (Liang et al. 2022), 0 to 2.
    """
    directions = {name: _normalised(z) for name, z in embeddings.items()}
    n = len(next(iter(directions.values())))
    found: dict[str, Any] = {"examples": n, "recall_by_chance": {f"at_{k}": 100 * min(1.0, k / n) for k in RANKS}}
    recalls: dict[str, dict[str, float]] = {f"recall_at_{k}": {} for k in RANKS}
    neighbours: dict[str, np.ndarray] = {}
    for first, second in itertools.product(directions, repeat=2):
        shares, nearest = _search(directions[first], directions[second])
        neighbours[f"{first}_to_{second}"] = nearest
        if first != second:
            for k, share in zip(RANKS, shares, strict=True):
                recalls[f"recall_at_{k}"][f"{first}_to_{second}"] = 100 * share
    if len(directions) > 1:
        found |= recalls
        pairs = itertools.combinations(directions, 2)
        found["modality_gap"] = {
            f"{a}_{b}": float(np.linalg.norm(directions[a].mean(axis=0) - directions[b].mean(axis=0))) for a, b in pairs
        }
    if labels is not None and classes:
        found["agreement_by_chance"] = 100 * float(((np.bincount(labels) / n) ** 2).sum())
        found["neighbour_agreement"] = {
            name: 100 * float(np.mean(labels == labels[nearest])) for name, nearest in neighbours.items()
        }
    elif labels is not None:
        found["neighbour_correlation"] = {
            name: _correlation(labels, labels[nearest]) for name, nearest in neighbours.items()
        }
    return found


def _normalised(z: np.ndarray) -> np.ndarray:
    z = np.asarray(z, np.float64)
    return (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _search(queries: np.ndarray, keys: np.ndarray) -> tuple[list[float], np.ndarray]:
    """The share of queries whose own key is among the nearest, for each of RANKS, and the nearest other key of each."""
    n = len(queries)
    shares, nearest = np.zeros(len(RANKS)), np.empty(n, np.int64)
    for start in range(0, n, _ROWS):
        rows = np.arange(start, min(n, start + _ROWS))
        similar = queries[rows] @ keys.T
        own = similar[np.arange(len(rows)), rows][:, None]
        similar[np.arange(len(rows)), rows] = -np.inf
        nearest[rows] = similar.argmax(axis=1)
        before = (similar > own + _SAME).sum(axis=1)
        equal = (np.abs(similar - own) <= _SAME).sum(axis=1)
        for i, k in enumerate(RANKS):
            shares[i] += np.clip((k - before) / (equal + 1), 0, 1).sum()
    return (shares / n).tolist(), nearest


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (np.asarray(values, np.float64) - np.mean(values) for values in (a, b))
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else 0.0
