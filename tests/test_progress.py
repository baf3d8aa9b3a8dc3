"""Progress: plain lines where there is no terminal, one live line on one, and a last line that stands."""

import io
import re

import pytest
from rich.console import Console

from cmsbert_fast import progress
from cmsbert_fast.progress import Progress, tracked


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test moves on."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_are_seldom_and_the_last_is_final(clock, capsys):
    with Progress("bert", 40, done=10) as bar:
        for step in range(30):
            clock[0] += 2
            bar.advance(1, f"loss {step}")
    assert capsys.readouterr().err.splitlines() == [
        "bert: 25/40 steps, 0:00:30 left, loss 14",
        "bert: 40/40 steps, 0:00:00 left, loss 29",
        "bert: 40/40 steps in 0:01:00, loss 29",
    ]


def test_what_is_told_after_the_last_step_is_in_the_last_line(clock, capsys):
    with Progress("bert", 2) as bar:
        bar.advance(2)
        bar.advance(0, "best valid mae 0.7")
    assert capsys.readouterr().err == "bert: 2/2 steps in 0:00:00, best valid mae 0.7\n"


def test_silence(clock, capsys):
    for options in ({"show": False}, {"plain": False}, {"delay": 5.0}):
        assert list(tracked([1, 2], "work", "items", **options)) == [1, 2]
    with pytest.raises(ZeroDivisionError), Progress("work", 2):
        raise ZeroDivisionError
    for wanted in (True, False):
        with progress.hidden(), progress.hidden(wanted):
            assert list(tracked([1, 2], "work", "items")) == [1, 2]
    assert capsys.readouterr().err == ""
    with progress.hidden(False):
        assert list(tracked([1], "work", "items")) == [1]
    assert capsys.readouterr().err == "work: 1/1 items in 0:00:00\n"


def test_a_terminal_has_one_live_line(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=200, color_system=None)
    )
    with Progress("cmsbert-clr", 3, done=1) as bar:
        bar.advance(1, "loss [red]0.5")
        bar.advance(1, "best valid mae 0.7 in epoch 2")
    last = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", screen.getvalue()).rstrip().splitlines()[-1].rpartition("\r")[2]
    assert last.startswith("cmsbert-clr")
    assert "3/3" in last
    assert "best valid mae 0.7 in epoch 2" in last


def test_in_a_narrow_terminal_the_figures_stay(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=70, color_system=None)
    )
    with Progress("cmsbert-clr", 40) as bar:
        bar.advance(40, "epoch 2, loss 0.025, best valid mae 0.812 in epoch 1")
    last = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", screen.getvalue()).rstrip().splitlines()[-1].rpartition("\r")[2]
    assert "40/40" in last
    assert len(last) <= 70
    assert last.endswith("…")


def test_short_work_shows_nothing_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=200))
    assert list(tracked(iter([1, 2]), "work", "items", total=2, delay=60.0)) == [1, 2]
    assert screen.getvalue() == ""
