"""Hostile and damaged pickles: nothing in them runs, and each is one error."""

import gc
import pickle
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, read_corpus
from cmsbert_fast.data.formats import mag
from cmsbert_fast.data.untrusted import limits, pickles, records
from tests.data.untrusted.hostile import BOMBS, CALLS, FORMS, array_with
from tests.data.untrusted.plain import PROTOCOLS, plain


def test_there_are_at_least_forty_hostile_files() -> None:
    assert len(CALLS) + len(FORMS) + len(BOMBS) >= 100


def test_the_attack_would_work_on_pythons_own_unpickler(tmp_path: Path) -> None:
    file = tmp_path / "pwned"
    pickle.loads(CALLS["os.system"](str(file)))
    assert file.exists()


@pytest.mark.parametrize("name", CALLS)
def test_nothing_in_a_file_runs(name: str, tmp_path: Path) -> None:
    file = tmp_path / "pwned"
    data = CALLS[name](str(file))
    with pytest.raises(records.UnsafePickleError):
        pickles.loads(data)
    with pytest.raises(records.UnsafePickleError):  # and not within a structure either
        pickles.loads(b"\x80\x04](" + data[2:-1] + b"e.")
    assert not file.exists()


@pytest.mark.parametrize("name", FORMS)
def test_a_damaged_or_strange_file_is_one_error(name: str, tmp_path: Path) -> None:
    data = FORMS[name]
    begin = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(records.UnsafePickleError):
            pickles.loads(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(data) + 1_000_000
    assert time.process_time() - begin < 2
    path = tmp_path / "file.pkl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"file\.pkl"):
        read_corpus(path)


@pytest.mark.parametrize("name", BOMBS)
def test_memory_stays_in_proportion_to_the_file(name: str) -> None:
    data = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(records.UnsafePickleError):
            pickles.loads(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limits.MEMORY_FACTOR * len(data) + limits.MEMORY_FLOOR


def test_a_huge_memo_place_costs_nothing() -> None:
    # The C unpickler allocates a table up to the place.
    tracemalloc.start()
    assert pickles.loads(b"\x80\x04]r\xff\xff\xff\xff.") == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("opening", [b"]", b"(", b"}K\x01"])
def test_deep_nesting_neither_crashes_nor_recurses(opening: bytes) -> None:
    closing = {b"]": b"a", b"(": b"t", b"}K\x01": b"s"}[opening]
    depth = 200_000
    value = pickles.loads(b"\x80\x04" + opening * depth + b"N" + closing * depth + b".")
    del value  # freeing it does not recurse in C either


def test_deeply_nested_object_arrays() -> None:
    head = array_with(b"K\x01\x85", kind=b"O8", order=b"|", data=b"](")[:-3]
    depth = 10_000
    value = pickles.loads(b"\x80\x04" + head[2:] * depth + b"N" + b"etb" * depth + b".")
    del value


def test_an_exponential_tower_of_references_is_not_walked(tmp_path: Path) -> None:
    path = tmp_path / "tower.pkl"
    path.write_bytes(b"\x80\x04)q\x00" + b"h\x00h\x00\x86q\x000" * 200 + b"h\x00.")
    with pytest.raises(DataError):
        read_corpus(path)


def test_a_list_that_holds_itself(tmp_path: Path) -> None:
    path = tmp_path / "cycle.pkl"
    path.write_bytes(b"\x80\x04}q\x00X\x05\x00\x00\x00train]q\x01h\x01as.")
    with pytest.raises(DataError):
        read_corpus(path)


def test_a_label_that_is_an_object_is_refused_without_showing_it(tmp_path: Path) -> None:
    tower: Any = ()
    for _ in range(40):
        tower = (tower, tower)
    for label in (tower, [[]], {}, b"1"):
        path = tmp_path / "mmsa.pkl"
        part = {"raw_text": ["a"], "id": ["v"], "classification_labels": [label], "regression_labels": [label]}
        path.write_bytes(pickle.dumps({"train": part}, 4))
        for name in ("classification_labels", "regression_labels"):
            with pytest.raises(DataError, match=f"holds a {type(label).__name__}"):
                read_corpus(path, label=name)


def test_keys_that_are_numbers_are_an_error_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mmsa.pkl"
    path.write_bytes(pickle.dumps({"train": {"raw_text": ["a"], "id": ["v"], 5: 1}}, 4))
    with pytest.raises(DataError, match="regression_labels"):
        read_corpus(path)


@pytest.mark.parametrize("error", [RecursionError, MemoryError, TypeError, KeyError])
def test_what_recognition_and_readers_raise_is_an_error_of_the_file(
    error: type, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    path = files.pickle("mag.pkl", files.mag())
    for name in ("recognise", "mag_source", "example_of"):
        with monkeypatch.context() as patch:
            patch.setattr(mag, name, fail)
            with pytest.raises(DataError, match="Do not use"):
                read_corpus(path)


@pytest.mark.parametrize("order", "<>")
def test_characters_beyond_unicode_are_refused(order: str) -> None:
    array = np.array([0x10FFFF, 0x110000], dtype=f"{order}u4").view(f"{order}U1")
    assert pickles.loads(pickle.dumps(array[:1], 4)).load().tolist() == ["\U0010ffff"]
    with pytest.raises(records.UnsafePickleError, match="an invalid character"):
        pickles.loads(pickle.dumps(array, 4)).load()


@pytest.mark.parametrize("place", [b"-1", b"-9"])
def test_negative_references_are_refused(place: bytes) -> None:
    with pytest.raises(records.UnsafePickleError, match="negative"):
        pickles.loads(b"K\x01p0\n0K\x02p" + place + b"\n.")


def test_a_nested_pickle_in_an_object_array_stays_bytes(tmp_path: Path) -> None:
    file = tmp_path / "pwned"
    inner = CALLS["os.system"](str(file))
    found = pickles.loads(pickle.dumps(np.array([inner, "x"], dtype=object), 4))
    assert plain(found) == [inner, "x"]
    assert not file.exists()


def test_refused_files_leave_nothing_behind() -> None:
    files = [data for data in FORMS.values() if len(data) < 10_000]

    def read_all() -> None:
        for data in files:
            with pytest.raises(records.UnsafePickleError):
                pickles.loads(data)

    read_all()
    gc.collect()
    tracemalloc.start()
    read_all()
    gc.collect()
    begin = tracemalloc.get_traced_memory()[0]
    for _ in range(20):
        read_all()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - begin
    tracemalloc.stop()
    assert grown < 50_000  # 2,000 readings: a leak of one object each would show


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_is_one_error(protocol: int, files: Any) -> None:
    data = pickle.dumps({"train": [((["a"], np.ones((1, 2)), np.ones((1, 2))), np.ones((1, 1)), "v[0]")]}, protocol)
    assert len(data) > 200
    for end in range(len(data)):
        with pytest.raises(records.UnsafePickleError):
            pickles.loads(data[:end])
