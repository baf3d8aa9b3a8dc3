"""What `python -m tests.kills` notices: work that was done twice, and work that failed."""

import random
import time

import pytest

from tests.kills.__main__ import Job, finish, killed
from tests.training.processes import prepare, start_code

TWICE = "import time\nopen({path!r}, 'a').write('done ')\ntime.sleep(2)"
ONCE = "import os, time\nos.path.exists({path!r}) or open({path!r}, 'a').write('done ')\ntime.sleep(2)"


def job(code):
    prepare()
    return Job(
        lambda folder: start_code(folder, code.format(path=str(folder / "work"))),
        lambda folder: {"work": (folder / "work").read_bytes()},
    )


@pytest.mark.parametrize(("code", "expected"), [(TWICE, ["work"]), (ONCE, [])])
def test_a_difference_is_noticed(tmp_path, code, expected):
    whole = finish(job(code), tmp_path / "whole")
    assert whole.left == {"work": b"done "}

    class Dice(random.Random):
        def uniform(self, low, high):  # after the work, before the end
            while not (tmp_path / "killed" / "work").exists():
                time.sleep(0.01)
            return 0.05

    kills, differing = killed(job(code), tmp_path / "killed", whole, Dice(0))
    assert kills >= 1
    assert differing == expected


def test_a_failure_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="no way"):
        finish(job("raise SystemExit('no way')"), tmp_path)
