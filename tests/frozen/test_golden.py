"""The comparison that the other tests of this folder rely on."""

import math

import pytest

from tests.frozen import golden

KEPT = {"results": {"mae": 1.5, "acc7": 20.0, "steps": 38, "name": "bert"}, "log": [{"loss": 2.0}, {"loss": 1.0}]}


def changed(part: str, key: object, value: object) -> dict:
    found = golden.plain(KEPT)
    place = found[part] if part == "results" else found[part][0]
    place[key] = value
    return found


@pytest.mark.parametrize("exact", [True, False])
def test_the_same_and_more_is_unchanged(exact):
    assert not list(golden.differences(KEPT, KEPT, exact))
    assert not list(golden.differences(KEPT, changed("results", "new", 1), exact))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("results", "mae", 1.51),
        ("results", "acc7", 21.5),
        ("results", "steps", 39),
        ("results", "steps", 38.0),
        ("results", "name", "cmsbert"),
        ("results", "mae", None),
        ("results", "mae", math.nan),
        ("log", "loss", -2.0),
    ],
)
def test_a_change_is_found(exact, part, key, value):
    found = changed(part, key, value)
    assert [line.split(" is ")[0] for line in golden.differences(KEPT, found, exact)] in (
        [f"/{part}/{key}"],
        [f"/{part}/0/{key}"],
    )
    with pytest.raises(AssertionError, match=key):
        golden.assert_unchanged(KEPT, found, exact)


@pytest.mark.parametrize("exact", [True, False])
def test_a_loss_of_keys_or_entries_is_found(exact):
    found = golden.plain(KEPT)
    del found["results"]["mae"], found["log"][1]
    lines = list(golden.differences(KEPT, found, exact))
    assert lines == ["/results/mae is missing", "/log has 1 entries, not 2"]


def test_the_last_bit_counts_in_the_recorded_environment_only():
    found = changed("results", "mae", math.nextafter(1.5, 2))
    assert list(golden.differences(KEPT, found))
    assert not list(golden.differences(KEPT, found, exact=False))
    assert golden.to_the_bit(golden.environment())
    with pytest.warns(UserWarning, match="torch: '0.0' then"):
        assert not golden.to_the_bit({**golden.environment(), "torch": "0.0"})


def test_what_is_written_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    value = {"a": [1.1, None, True], "b": {"c": ["x y", "z"], "d": {}}, "e": [], "f": ["x", "y"], "g": [{"h": 1e-30}]}
    golden.save("value", value)
    assert golden.load("value") == value
