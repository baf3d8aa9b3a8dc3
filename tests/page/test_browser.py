"""The page in Debian's headless Chromium, with a made recording: what a user sees, hears and types."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cmsbert_fast.page.build import write_page
from tests.page import content
from tests.page.browser import browser, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


@dataclass
class View:
    """An open page, with what it asked for and complained of."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def time(self) -> float:
        return self.page.evaluate("document.querySelector('video').currentTime")

    def seek(self, time: float) -> None:
        """As a user does with the player's own controls."""
        self.page.evaluate(
            "time => new Promise(done => { const player = document.querySelector('video');"
            "player.addEventListener('seeked', () => done(), { once: true }); player.currentTime = time; })",
            time,
        )

    def word(self, segment: int, k: int) -> Any:
        return self.page.locator("article").nth(segment).locator(".word").nth(k)

    def until(self, condition: str) -> None:
        """Waits, from outside: the page's policy forbids to evaluate text inside."""
        for _ in range(1200):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"not within a minute: {condition}")

    def current(self) -> list[str]:
        return self.page.locator(".word.current .text").all_inner_texts()

    def focused(self) -> str:
        return self.page.evaluate("document.activeElement.id || document.activeElement.innerText.trim()")

    def heights(self, modality: str) -> list[float]:
        """Of the bars, in shares of the full height."""
        return self.page.evaluate(
            "name => [...document.querySelectorAll(`.bar.${name}`)].map(bar => parseFloat(bar.style.height) / 100)",
            modality,
        )


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return content.write_all(tmp_path_factory.mktemp("page"))


@pytest.fixture
def show(chromium: Any) -> Iterator[Any]:
    """Opens a page; at the end, it must have asked for nothing but itself and its recording, without a complaint."""
    views: list[tuple[View, Path]] = []

    def open_page(path: Path, **options: Any) -> View:
        options = {"viewport": {"width": 1100, "height": 760}, "reduced_motion": "reduce", **options}
        view = View(chromium.new_page(**options))
        views.append((view, path))
        view.page.on("request", lambda request: view.requests.append(request.url))
        view.page.on("pageerror", lambda error: view.complaints.append(str(error)))
        view.page.on("console", lambda message: view.complaints.append(message.text))
        view.page.goto(path.as_uri())
        if view.page.locator("video").count() and (path.parent / "clip.webm").exists():
            view.until("document.querySelector('video').readyState >= 2")
        view.until("[...document.querySelectorAll('details[open]')].every(opened => opened.querySelector('.plot'))")
        return view

    yield open_page
    for view, path in views:
        beside = {path.as_uri(), (path.parent / "clip.webm").as_uri()}
        assert set(view.requests) <= beside
        assert view.complaints == []
        view.page.close()


def test_words_follow_the_time(show, file) -> None:
    view = show(file)
    for time, word in (
        (0.1, []),
        (0.7, ["so"]),
        (1.2, ["good"]),
        (1.7, ["</script><b>film"]),
        (2.2, []),
        (2.6, ["not"]),
    ):
        view.seek(time)
        assert view.current() == word
        inside = [start <= time <= stop for start, stop in content.SPANS]
        assert view.page.locator("article").evaluate_all("all => all.map(a => a.matches('.current'))") == inside
    assert view.page.locator("[aria-current=true]").count() == 1
    view.seek(0.4)
    view.page.evaluate("document.querySelector('video').play()")  # and while it plays, without a touch
    view.until("document.querySelector('.word.current .text')?.innerText === 'good'")
    view.page.evaluate("document.querySelector('video').pause()")


def test_a_click_seeks(show, file) -> None:
    view = show(file)
    view.word(0, 1).click()
    assert view.time() == pytest.approx(1.0, abs=0.01)
    assert view.current() == ["good"]
    view.page.locator("article").nth(0).locator(".plot svg").first.click(position={"x": 2, "y": 20})
    assert view.time() == pytest.approx(0.5, abs=0.05)
    view.page.locator("#overview .block").nth(1).click()
    assert view.time() == pytest.approx(2.5, abs=0.01)


def test_the_layer_slider_changes_bars_and_gates(show, file) -> None:
    view = show(file)
    assert view.page.locator("#layer-text").inner_text() == "1 of 3"
    assert view.page.locator("#scale-visual").inner_text() == "full bar: 1.35"  # of 10 frames 9 have 3 * 0.5
    assert view.heights("visual") == pytest.approx([1 / 3, 2 / 3, 1, 1 / 3, 2 / 3], abs=1e-3)
    assert view.word(0, 2).get_attribute("aria-label").endswith("face gate 1.35, voice gate 0.749")
    view.word(0, 0).focus()
    gate = view.page.locator(".trace.visual .range").first
    assert gate.inner_text().endswith("degrees; gate 0 to 0.5")
    view.page.locator("#layer").focus()
    view.page.keyboard.press("ArrowRight")
    assert view.page.locator("#layer-text").inner_text() == "3 of 3"
    assert view.page.locator("#layer").get_attribute("aria-valuetext") == "layer 3 of 3"
    assert view.page.locator("#scale-visual").inner_text() == "full bar: 2.7"
    assert view.word(0, 2).get_attribute("aria-label").endswith("face gate 2.7, voice gate 1.5")
    assert gate.inner_text().endswith("degrees; gate 0 to 1")


def test_bars_of_one_segment_are_drawn_to_the_scale_of_all(show, tmp_path) -> None:
    page = content.page(url=None)
    louder = page.segments[1]
    frames = {m: f._replace(gates=f.gates * 3) for m, f in louder.frames.items()}
    write_page(tmp_path / "p.html", replace(page, segments=[page.segments[0], replace(louder, frames=frames)]))
    view = show(tmp_path / "p.html")
    assert view.heights("acoustic") == pytest.approx([1 / 6, 2 / 6, 3 / 6, 3 / 6, 1], abs=1e-3)


def test_the_keyboard_is_enough(show, file) -> None:
    view = show(file)
    keys, seen = view.page.keyboard, []
    for _ in range(14):
        keys.press("Tab")
        seen.append(view.focused())
    assert seen[0] == "Skip to the transcript"
    assert seen.index("layer") < seen.index("so")  # settings before the transcript; a segment's words are one stop
    assert "good" not in seen
    assert seen.index("so") < seen.index("Features and gates over time") < seen.index("feature-0-visual")
    assert seen.index("feature-0-acoustic") < seen.index("not") if "not" in seen else True
    view.word(0, 0).focus()
    keys.press("ArrowRight")
    assert view.focused() == "good"
    assert view.page.locator(".word.selected .text").all_inner_texts() == ["good"]
    assert view.time() == 0  # to look is not to go
    keys.press("Enter")
    assert view.time() == pytest.approx(1.0, abs=0.01)
    keys.press("End")
    keys.press("Space")
    assert view.time() == pytest.approx(1.5, abs=0.01)
    keys.press("ArrowDown")
    assert view.focused() == "not"
    keys.press("Enter")
    assert view.current() == ["not"]
    keys.press("Tab")
    keys.press("Enter")  # opens the features of the second segment
    view.until("document.querySelectorAll('article:nth-of-type(2) .plot').length === 2")
    assert view.focused() == "Features and gates over time"


def test_a_feature_is_chosen_and_keeps_the_focus(show, file) -> None:
    view = show(file)
    choice = view.page.locator("#feature-0-acoustic")
    assert choice.locator("option").all_inner_texts() == ["f0", "<energy>"]
    before = view.page.locator(".trace.acoustic .curve").first.get_attribute("d")
    choice.focus()
    view.page.keyboard.press("ArrowDown")
    assert view.page.locator(".trace.acoustic .curve").first.get_attribute("d") != before
    assert view.focused() == "feature-0-acoustic"
    assert view.page.locator(".trace.acoustic .range").first.inner_text().startswith("50.3 to 200;")
    assert "A point is the mean of 2.5 frames." in view.page.locator(".explained").first.inner_text()


def test_names_and_roles_for_screen_readers(show, file) -> None:
    view = show(file)
    page = view.page
    assert page.get_by_role("slider", name="Layer").count() == 1
    assert page.get_by_role("group", name="Words of segment 1").count() == 1
    assert page.get_by_role("button", name="good, 0:01.0 to 0:01.5, face gate 0.9").count() == 1
    assert page.get_by_role("main").count() == page.get_by_role("complementary").count() == 1
    assert page.get_by_role("heading", level=1).inner_text() == "clip <i>one</i>"
    assert page.get_by_role("article").nth(1).inner_text().count("\u22120.75") == 1
    assert page.get_by_role("combobox", name="Face").count() == 1
    assert page.get_by_role("img", name="Voice, f0:").count() == 1
    # Nothing speaks up while the recording plays: the only live region is empty.
    view.seek(1.2)
    assert page.get_by_role("status").inner_text() == ""
    assert page.locator("[aria-live]").count() == 0
    unnamed = "all => all.filter(e => !e.labels?.length && !e.ariaLabel && !e.textContent.trim()).map(e => e.outerHTML)"
    assert page.locator("button, input, select, video, summary").evaluate_all(unnamed) == []


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2) of ``rgb(r, g, b)``."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes_can_be_read(show, file, scheme) -> None:
    view = show(file, color_scheme=scheme)

    def colour(selector: str, name: str) -> str:
        return view.page.eval_on_selector(selector, f"e => getComputedStyle(e).{name}")

    back, card = colour("body", "backgroundColor"), colour("article", "backgroundColor")
    assert (luminance(back) < 0.1) is (scheme == "dark")
    assert contrast(colour("body", "color"), back) > 7
    assert contrast(colour(".model", "color"), back) > 4.5
    assert contrast(colour("article h3", "color"), card) > 4.5
    assert contrast(colour(".word", "color"), card) > 7
    view.seek(0.7)
    assert contrast(colour(".word.current", "color"), colour(".word.current", "backgroundColor")) > 7
    for modality in ("visual", "acoustic"):
        assert contrast(colour(f".bar.{modality}", "backgroundColor"), card) > 3


def test_motion_is_for_those_who_want_it(show, file) -> None:
    for motion, seconds in (("reduce", "0s"), ("no-preference", "0.12s")):
        view = show(file, reduced_motion=motion)
        assert view.page.eval_on_selector(".bar", "e => getComputedStyle(e).transitionDuration") == seconds


def test_small_windows_and_paper(show, file) -> None:
    view = show(file, viewport={"width": 360, "height": 700})
    assert view.page.evaluate("document.documentElement.scrollWidth") <= 360
    view.page.emulate_media(media="print")
    assert not view.page.locator("#player").is_visible()
    assert view.page.locator(".legend").is_visible()
    assert view.page.eval_on_selector(".bar", "e => getComputedStyle(e).printColorAdjust") == "exact"


def test_without_a_recording_a_slider_is_the_clock(show, tmp_path) -> None:
    write_page(tmp_path / "p.html", content.page(url=None))
    view = show(tmp_path / "p.html")
    assert view.page.locator("video").count() == 0
    assert "Without a recording" in view.page.get_by_role("status").inner_text()
    view.word(0, 1).click()
    assert view.current() == ["good"]
    assert view.page.locator("#time").input_value() == "1"
    view.page.locator("#time").focus()
    for _ in range(12):
        view.page.keyboard.press("ArrowRight")
    assert view.current() == ["</script><b>film"]
    assert view.page.locator("#time").get_attribute("aria-valuetext") == "0:01.6"


def test_without_times_there_is_no_clock_and_without_gates_no_slider(show, tmp_path) -> None:
    write_page(tmp_path / "p.html", content.page(url=None, timed=False, layers=()))
    view = show(tmp_path / "p.html")
    assert not view.page.locator("#clock").is_visible()
    assert not view.page.locator("#settings").is_visible()
    assert view.page.locator(".bar").count() == 0
    view.word(0, 1).click()
    assert view.current() == []
    assert view.page.locator("article").first.locator(".axis").inner_text().split("\n") == ["first frame", "last frame"]


def test_a_recording_that_cannot_be_played_is_said(show, tmp_path) -> None:
    (tmp_path / "clip.txt").write_text("no video")
    write_page(tmp_path / "p.html", content.page(url="./clip.txt"))
    view = show(tmp_path / "p.html")
    view.until("Boolean(document.querySelector('#media-note').textContent)")
    assert "clip.webm cannot be played here; the page looks for it at ./clip.txt." in view.page.inner_text(
        "#media-note"
    )
    assert view.page.locator("#time").is_visible()
    view.word(0, 1).click()
    assert view.current() == ["good"]
    view.requests = [request for request in view.requests if not request.endswith("clip.txt")]


def test_words_of_another_recording_are_played_from_it(show, file, tmp_path) -> None:
    for name in ("clip", "other"):
        (tmp_path / f"{name}.webm").write_bytes((file.parent / "clip.webm").read_bytes())
    page = content.page()
    second = replace(page.segments[1], media=1)
    media = [*page.media, content.Media("other.webm", "./other.webm"), content.Media("gone")]
    third = replace(page.segments[1], media=2)
    write_page(tmp_path / "p.html", replace(page, media=media, segments=[page.segments[0], second, third]))
    view = show(tmp_path / "p.html")
    source = "document.querySelector('video').currentSrc.split('/').pop()"
    view.seek(2.6)
    assert view.current() == []  # a word of another recording at the same time
    assert view.page.get_by_role("heading", level=2).all_inner_texts() == ["clip.webm", "other.webm", "gone"]
    view.word(1, 0).click()
    view.until(f"{source} === 'other.webm' && document.querySelector('video').readyState >= 2")
    assert view.time() == pytest.approx(2.5, abs=0.01)
    assert view.current() == ["not"]
    view.word(2, 1).click()
    assert "There is no recording of gone" in view.page.get_by_role("status").inner_text()
    assert view.page.locator("#time").is_visible()
    assert view.page.locator(".word.current").count() == 1
    view.word(0, 0).click()
    view.until(f"{source} === 'clip.webm' && document.querySelector('video').readyState >= 2")
    assert view.current() == ["so"]
    assert not view.page.locator("#time").is_visible()
    view.requests = [request for request in view.requests if not request.endswith("other.webm")]


def test_what_turns_text_is_shown_as_a_mark(show, file) -> None:
    view = show(file)
    assert view.word(1, 1).locator(".text").inner_text() == "\ufffdbad\ufffd"
    assert view.word(0, 2).locator(".text").inner_text() == "</script><b>film"


def test_a_modality_that_the_model_does_not_read_has_no_bars(show, tmp_path) -> None:
    page = content.page(url=None)
    segments = [
        replace(s, frames={**s.frames, "visual": s.frames["visual"]._replace(gates=None)}) for s in page.segments
    ]
    write_page(tmp_path / "p.html", replace(page, segments=segments))
    view = show(tmp_path / "p.html")
    assert (view.page.locator(".bar.visual").count(), view.page.locator(".bar.acoustic").count()) == (0, 5)
    assert not view.page.locator("#scale-visual").is_visible()
    assert view.page.locator(".trace.visual").count() == 1


def test_classes_and_signed_gates(show, tmp_path) -> None:
    page = content.page(url=None)
    segments = [replace(segment, scores=[0.2, 0.7, 0.1]) for segment in page.segments]
    frames = {m: f._replace(gates=-f.gates) for m, f in segments[0].frames.items()}
    segments[0] = replace(segments[0], frames=frames)
    page = replace(page, segments=segments, classes=("sad", "happy", "<angry>"), activation="tanh")
    write_page(tmp_path / "p.html", page)
    view = show(tmp_path / "p.html")
    found = view.page.locator("article").first.locator(".chances")
    assert found.inner_text().split("\n") == ["happy 70 %", "sad 20 %", "<angry> 10 %"]
    assert found.locator("b").inner_text() == "happy 70 %"
    tops = view.page.locator(".bar.visual").evaluate_all("all => all.map(bar => parseFloat(bar.style.top))")
    assert tops == pytest.approx([50, 50, 50, 50 - 50 / 3, 50 - 100 / 3], abs=0.1)  # below the line; above it
    assert view.page.locator("#scale-visual").inner_text() == "full bar: \u00b11.35"
    assert not view.page.locator("#overview").is_visible()


def test_the_policy_stops_requests_and_strange_scripts(chromium, file) -> None:
    """That nothing leaves is not for lack of trying."""
    tried = """async (url) => {
      const image = new Image(); image.src = url + 'image.png';
      const script = document.createElement('script'); script.textContent = 'window.strange = true';
      const player = document.createElement('video'); player.src = url + 'video.webm';
      document.body.append(image, script, player);
      const answer = await fetch(url, { signal: AbortSignal.timeout(3000) }).then(() => 'answered', () => 'refused');
      return [answer, Boolean(window.strange)];
    }"""
    page = chromium.new_page()
    page.goto(file.as_uri())
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(1)
        assert page.evaluate(tried, f"http://127.0.0.1:{server.getsockname()[1]}/") == ["refused", False]
        with pytest.raises(TimeoutError):
            server.accept()
    page.close()
