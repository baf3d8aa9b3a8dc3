"""The file of a page: what is packed into it, and that nothing in it can be taken for markup."""

import base64
import hashlib
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cmsbert_fast.data.example import Corpus, Example
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.page.build import html, media_url, write_page
from cmsbert_fast.page.collect import Model, Scored, page_of
from cmsbert_fast.page.content import Frames, Media
from cmsbert_fast.page.packing import POINTS, packed, shown, size
from tests.page import content


class Elements(HTMLParser):
    """The elements of a page, and the text in each kind of script."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append(dict(attributes))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1] if self.tags else "", data))


def numbers(entry: dict, kind: str, width: int) -> np.ndarray:
    """Rows of numbers, as the page unpacks them."""
    low, high = (np.array(entry[name])[:, None] for name in ("low", "high"))
    whole = np.frombuffer(base64.b64decode(entry["data"]), kind).reshape(len(low), width)
    return low + (high - low) * whole / np.iinfo(kind).max


@pytest.mark.parametrize("layers", [0, 12])
def test_the_size_is_known_before(layers: int) -> None:
    """Of many features and long utterances, which decide whether a page is too large."""
    rng = np.random.default_rng(0)
    words = tuple(f"word{k}" for k in range(20))
    counts = {"visual": (150, 700), "acoustic": (900, 70)}
    frames = {
        name: Frames(
            rng.normal(size=(count, width)).astype(np.float32),
            np.arange(count) / 25,
            rng.random((layers, len(words), count), np.float32) if layers else None,
        )
        for name, (count, width) in counts.items()
    }
    page = content.page(layers=tuple(range(layers)))
    one = replace(page.segments[0], words=words, word_times=None, frames=frames)
    actual = len(json.dumps(packed(replace(page, segments=[one])), separators=(",", ":")))
    assert size(len(words), layers, counts) == pytest.approx(actual, rel=0.05)


def test_curves_and_gates_are_those_of_the_frames() -> None:
    found = packed(content.page())["segments"][0]["frames"]
    segment = content.segment(0)
    for modality, points in (("visual", 10), ("acoustic", POINTS)):
        frames, entry = segment.frames[modality], found[modality]
        count = len(frames.values)
        assert (entry["count"], entry["points"], len(entry["times"])) == (count, points, points)
        bounds = np.linspace(0, count, points + 1).round().astype(int)
        pairs = list(itertools.pairwise(bounds))
        means = np.stack([frames.values[a:b].mean(axis=0) for a, b in pairs], axis=1)
        values = numbers(entry["values"], "<u2", points)
        np.testing.assert_allclose(values, means, atol=2 * np.ptp(means) / 65535)
        np.testing.assert_allclose(entry["gates"], frames.gates.mean(axis=2), rtol=1e-3)
        maps = numbers(entry["map"], "u1", 3 * entry["map"]["points"]).reshape(2, 3, -1)
        expected = np.stack([frames.gates[:, :, a:b].mean(axis=2) for a, b in pairs], axis=2)
        np.testing.assert_allclose(maps, expected, atol=expected.max() / 255)


def test_gates_may_be_of_fewer_frames_or_of_none() -> None:
    values = np.zeros((5, 2), np.float32)
    for count in (0, 3):
        frames = {"visual": Frames(values, None, content.gates(2, 3, max(count, 1), 1.0)[:, :, :count])}
        entry = packed(replace(content.page(), segments=[replace(content.segment(0), frames=frames)]))
        found = entry["segments"][0]["frames"]["visual"]
        assert found["map"]["points"] == count
        assert np.shape(found["gates"]) == (2, 3)


def test_texts_cannot_become_markup() -> None:
    hostile = "</script><script>alert(1)</script><!--\u2028@@script@@&lt;"
    page = replace(content.page(), title=hostile, model=hostile, notes=[hostile], media=[Media(hostile, "./a.webm")])
    page = replace(page, segments=[replace(s, id=hostile, words=[hostile] * len(s.words)) for s in page.segments])
    plain, found = Elements(html(content.page())), Elements(html(page))
    assert found.tags == plain.tags
    assert html(page).count("alert(1)") == html(page).count("alert(1)\\u003c") + html(page).count("alert(1)&lt;")
    data = next(text for tag, text in found.texts if tag == "script" and text.startswith("{"))
    assert json.loads(data)["segments"][0]["words"][0] == hostile


@pytest.mark.parametrize("mark", ["\u202e", "\u2066", "\u200f", "\u200b", "\ufeff", "\x1b", "\x00"])
def test_characters_that_turn_or_hide_text_are_shown(mark: str) -> None:
    assert mark not in shown(f"a{mark}b")
    assert len(shown(f"a{mark}b")) == 3
    assert mark not in html(replace(content.page(), title=f"a{mark}b"))
    assert shown("שלום עולם été 影") == "שלום עולם été 影"


def test_the_policy_allows_this_script_and_style_and_nothing_else() -> None:
    text = html(content.page())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)", text)


def test_a_recording_is_found_relative_to_the_page(tmp_path: Path) -> None:
    assert media_url(tmp_path / "a b#1.webm", tmp_path / "p.html") == "./a%20b%231.webm"
    assert media_url(tmp_path / "javascript:x.webm", tmp_path / "p.html") == "./javascript%3Ax.webm"
    assert media_url(tmp_path / "a.webm", tmp_path / "out" / "p.html") == "./../a.webm"


def test_a_page_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_page(tmp_path / "p.html", content.page())
    assert (tmp_path / "p.html").read_text(encoding="utf-8") == html(content.page())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cmsbert_fast.atomic.sync", full)
    with pytest.raises(OSError, match="No space"):
        write_page(tmp_path / "q.html", content.page())
    assert [path.name for path in tmp_path.iterdir()] == ["p.html"]


def test_numbers_that_json_does_not_know_are_an_error() -> None:
    with pytest.raises(ValueError, match="JSON"):
        html(replace(content.page(), segments=[replace(content.segment(0), scores=[float("nan")])]))


def test_features_are_called_as_in_their_files() -> None:
    example = Example("a", ("good",), None, np.zeros((2, 2), np.float32), np.zeros((2, 1), np.float32))
    report = ReadReport("a table", features={"visual": ["AU01_r", "gaze_0_x"], "acoustic": ["F0", "energy"]})
    corpus = Corpus("talk", {"all": [example]}, 2, 1, report)
    page = page_of(corpus, [Scored(example, [0.5], 1, {})], Model("m"), {}, Path("p.html"))
    assert page.features["visual"].columns == ["AU01_r", "gaze_0_x"]
    assert page.features["acoustic"].columns == ["feature 1"]  # not those names: there is one feature
