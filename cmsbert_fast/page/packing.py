"""The content of a page as JSON: short numbers, and long rows as base64 of small integers."""

import base64
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from cmsbert_fast.data.text import printable
from cmsbert_fast.page.content import Frames, Page, Segment

POINTS = 240  # of a curve: more frames than that are averaged
_DIGITS = 4  # significant ones of a number that is shown
# They change the direction or the place of what stands beside them.
_INVISIBLE = re.compile("[\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")


def shown(text: str) -> str:
    """Untrusted text as it is shown: without control characters, and without those that turn the direction of text."""
    return _INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", printable(text))


def packed(page: Page) -> dict[str, Any]:
    """The content of a page, for JSON."""
    return {
        "media": [{"name": shown(m.name), "url": m.url} for m in page.media],
        "features": {
            modality: {"columns": list(map(shown, known.columns)), "units": list(map(shown, known.units))}
            for modality, known in page.features.items()
        },
        "layers": list(page.layers),
        "depth": page.depth,
        "signed": page.activation == "tanh",
        "classes": list(map(shown, page.classes)),
        "several": page.several,
        "segments": [_segment(segment) for segment in page.segments],
    }


def _segment(segment: Segment) -> dict[str, Any]:
    times = segment.word_times
    return {
        "id": shown(segment.id),
        "media": segment.media,
        "span": None if segment.span is None else [round(float(t), 3) for t in segment.span],
        "words": list(map(shown, segment.words)),
        "times": None if times is None else np.round(np.asarray(times, np.float64), 3).tolist(),
        "scores": [short(score) for score in segment.scores],
        "read": segment.read,
        "frames": {modality: _frames(found) for modality, found in segment.frames.items() if len(found.values)},
    }


def _frames(frames: Frames) -> dict[str, Any]:
    """The curves of a modality: at most `POINTS` of each, every one the mean of as many frames."""
    count = len(frames.values)
    bounds = np.linspace(0, count, min(count, POINTS) + 1).round().astype(int)
    found: dict[str, Any] = {"count": count, "points": len(bounds) - 1}
    if frames.times is not None:
        found["times"] = np.round(_means(frames.times[:, None], bounds)[:, 0], 3).tolist()
    values = _means(frames.values, bounds).T
    found["values"] = _integers(values, np.uint16)
    if frames.gates is None:
        return found
    gates = frames.gates
    # Of all frames, whether or not points are means.
    found["gates"] = [[short(gate) for gate in row] for row in _row_means(gates)]
    known = bounds[bounds < gates.shape[2]]
    bounds = np.append(known, gates.shape[2])
    layers, words, count = gates.shape
    maps = _means(np.moveaxis(gates, 2, 0).reshape(count, layers * words), bounds)
    points = len(bounds) - 1
    found["map"] = _integers(maps.T.reshape(layers, words * points), np.uint8) | {"points": points}
    return found


def _row_means(gates: np.ndarray) -> np.ndarray:
    """The mean gate of each word over all frames, (layers, words); 0 where there is no frame."""
    return gates.mean(axis=2, dtype=np.float64) if gates.shape[2] else np.zeros(gates.shape[:2])


def _means(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The mean of the rows between neighbouring bounds, float64 (len(bounds) - 1, d)."""
    if len(bounds) < 2:
        return np.zeros((0, values.shape[1]))
    sums = np.add.reduceat(values.astype(np.float64), bounds[:-1], axis=0)
    return sums / np.diff(bounds)[:, None]


def _integers(rows: np.ndarray, kind: type) -> dict[str, Any]:
    """Rows as integers between the lowest and the highest value of each, little-endian, in base64."""
    low, high = (rows.min(axis=1), rows.max(axis=1)) if rows.shape[1] else (np.zeros(len(rows)),) * 2
    most = np.iinfo(kind).max
    scale = np.where(high > low, high - low, 1.0)
    whole = np.round((rows - low[:, None]) / scale[:, None] * most).astype(np.dtype(kind).newbyteorder("<"))
    data = base64.b64encode(whole.tobytes()).decode("ascii")
    return {"low": [float(v) for v in low], "high": [float(v) for v in high], "data": data}


def size(words: int, layers: int, frames: Mapping[str, tuple[int, int]]) -> int:
    """About how many bytes of a page a segment takes, without what is said in it.

    Args:
        words: How many it has.
        layers: How many of the model have gates.
        frames: By modality, how many frames it has, and their features.
    """
    total = 0
    for count, width in frames.values():
        points = min(count, POINTS)
        curves, times = 2 * width * points, 8 * points
        gates = layers * words * (points + (_DIGITS + 4) * 3 / 4)  # the map, and a number for each word
        total += int((curves + gates) * 4 / 3) + times + 45 * width  # base64; lowest and highest values
    return total


def short(value: float) -> float:
    """A number with the digits that are shown."""
    return float(f"{value:.{_DIGITS}g}")
