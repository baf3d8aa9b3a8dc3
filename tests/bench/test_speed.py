"""The picture of speed: its bars are the committed figures, and nothing that was not measured is in it."""

import re
from pathlib import Path

import pytest

from bench import names, report, speed

ROOT = Path(__file__).resolve().parents[2]
STEMS = ("-speed", "-speed-dark")


def lengths(svg: str) -> dict[tuple[int, int], float]:
    """Lengths of the bars by panel and row, in points."""
    found = {}
    for panel, row, path in re.findall(r'<g id="bar-(\d+)-(\d+)">\s*<path d="([^"]+)"', svg):
        numbers = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", path)]
        found[int(panel), int(row)] = max(numbers) - min(numbers)
    return found


def told(svg: str) -> str:
    return re.search(r"<dc:description>(.*?)</dc:description>", svg, re.DOTALL)[1]


@pytest.fixture(scope="module")
def machines() -> dict[str, dict]:
    return report.load()


def test_the_committed_pictures_are_those_of_the_committed_figures(machines) -> None:
    expected = {report.slug_of(name): name for name, machine in machines.items() if speed.panels(machine["results"])}
    assert expected
    files = {path.name for path in report.PLOTS.glob("*speed*")}
    assert files == {f"{slug}{stem}.svg" for slug in expected for stem in STEMS}
    for slug, name in expected.items():
        found = speed.panels(machines[name]["results"])
        ratios = {(p, r): row.ratio[0] for p, rows in enumerate(found.values()) for r, row in enumerate(rows)}
        for stem in STEMS:
            svg = (report.PLOTS / f"{slug}{stem}.svg").read_text(encoding="utf-8")
            assert told(svg) == speed.description(name, found)
            drawn = lengths(svg)
            assert drawn.keys() == ratios.keys()
            unit = drawn[0, 0] / ratios[0, 0]
            assert drawn == pytest.approx({place: unit * ratio for place, ratio in ratios.items()}, rel=1e-3)


def test_losses_are_in_the_picture(machines) -> None:
    rows = [
        row for machine in machines.values() for found in speed.panels(machine["results"]).values() for row in found
    ]
    assert any(row.ratio[0] < 1 for row in rows)


def test_pages_show_the_picture() -> None:
    """In light and dark, and with a text for those who do not see it."""
    for page in (ROOT / "README.md", ROOT / "docs" / "performance.md"):
        text = page.read_text(encoding="utf-8")
        for stem in STEMS:
            addresses = re.findall(rf'"([^"]+{stem}\.svg)"', text)
            assert addresses
            assert all((page.parent / address).is_file() for address in addresses)
        assert len(re.findall(r'<img alt="[^"]{40,}"[^>]*-speed\.svg"', text)) == len(addresses)


def race(suite: str, case: str, date: str = "2026-01-02", **seconds: float) -> dict:
    by_name = {getattr(names, name): [value] * 5 for name, value in seconds.items()}
    return {"kind": "race", "suite": suite, "case": case, "datetime": date, "seconds": by_name}


def test_the_last_race_counts_and_our_own_forms_are_no_rivals() -> None:
    results = [
        race(names.STEP, names.VARIANTS, "2026-01-03", CLR=1.0, CMS=0.9, BERT=0.5, TEXT_BERT=4.0),
        race(names.STEP, names.STEP_CASE, OURS_CLR=2.0, TEXT_BERT=3.0, MAG_BERT=5.0, OURS_BFLOAT16=1.0),
        race(names.STEP, names.STEP_GROWTH, OURS_CLR=2.0, TEXT_BERT=9.0),
    ]
    ((title, rows),) = speed.panels(results).items()
    assert title.startswith("Training step")
    assert [(row.label, row.ratio[0], row.date[-2:]) for row in rows] == [
        ("Hugging Face BERT, text only, padded", 4.0, "03"),
        ("MAG-BERT as published, padded to 50", 2.5, "02"),
        ("text-only BERT, packed by this code", 0.5, "03"),
    ]


def test_a_rival_that_is_measured_some_day_appears_by_itself() -> None:
    result = race(names.INFERENCE, names.inference_case(1), OURS_CLR=1.0)
    result["seconds"]["another runtime"] = [2.0] * 5
    assert [str(row) for row in speed.panels([result])["Inference, 1 utterance"]] == [
        "another runtime: 2.00 (2 s / 1 s)"
    ]


def test_no_picture_where_nothing_of_it_was_measured(tmp_path) -> None:
    speed.plot_speed("a machine", [race(names.ATTENTION, "any", OURS=1.0, TORCH=2.0)], tmp_path / "speed")
    assert not list(tmp_path.iterdir())
