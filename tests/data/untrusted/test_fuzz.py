"""Random and randomly altered pickles."""

import contextlib
import pickle
import pickletools
import signal
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmsbert_fast.data import DataError, read_corpus
from cmsbert_fast.data.untrusted import limits, names, pickles, records

# Fuzzing


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=False)

INERT = (type(None), bool, int, float, str, bytes, memoryview, list, tuple, dict, records.Array, records.LongText)


@contextlib.contextmanager
def bounded(size: int) -> Iterator[None]:
    """A file of ``size`` bytes takes neither much time nor more memory than it warrants."""
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("reading took 5 seconds"))
    signal.setitimer(signal.ITIMER_REAL, 5)
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        assert peak <= limits.MEMORY_FACTOR * size + limits.MEMORY_FLOOR


def check(data: bytes) -> None:
    """A file is read to inert parts, or refused with one error; never anything else."""
    try:
        with bounded(len(data)):
            found = pickles.loads(data)
    except records.UnsafePickleError:
        return
    assert isinstance(found, (*INERT, names.Name, records.NumpyType))


OPCODES = st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes])


def test_what_hangs_or_swells_fails_the_fuzzing() -> None:
    with pytest.raises(AssertionError), bounded(10):
        bytes(limits.MEMORY_FLOOR + 200)

    def hang() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        while True:
            pass

    with pytest.raises(pytest.fail.Exception, match="seconds"), bounded(10):
        hang()


@FUZZ
@given(
    st.lists(st.one_of(OPCODES, st.binary(max_size=6), st.sampled_from([b"numpy\n", b"dtype\n", b"\n"])), max_size=60)
)
def test_fuzz_operations(parts: list[bytes]) -> None:
    check(b"".join(parts) + b".")


@FUZZ
@given(st.binary(max_size=300))
def test_fuzz_bytes(data: bytes) -> None:
    check(data)


def _honest_files() -> list[tuple[str, bytes]]:
    rows = np.arange(6.0).reshape(2, 3)
    mag = {s: [((["a", "b"], rows, rows), np.ones((1, 1)), f"{s}[{k}]") for k in range(2)] for s in ("train", "dev")}
    mmsa = {
        s: {
            "raw_text": np.array(["a b", "c"]),
            "id": np.array([f"{s}$_$0", f"{s}$_$1"]),
            "vision": np.ones((2, 3, 2)),
            "audio": np.ones((2, 4, 2)),
            "vision_lengths": [1, 3],
            "audio_lengths": np.array([2, 2], dtype=np.int32),
            "regression_labels": np.array([0.5, -1.0]),
        }
        for s in ("train", "test")
    }
    part = ("a joke", np.ones((2, 91)), np.ones((2, 81)), np.ones((2, 4)))
    funny = {"train": [(part, part, 1, 0), (part, part, 2, 1)]}
    return [
        (f"{n}{p}", pickle.dumps(c, p))
        for p in (0, 2, 4, 5)
        for n, c in (("mag", mag), ("mmsa", mmsa), ("funny", funny))
    ]


HONEST_FILES = _honest_files()


def test_the_fuzzed_files_are_read_unaltered(tmp_path: Path) -> None:
    for name, data in HONEST_FILES:
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(data)
        assert sum(read_corpus(path).report.counts.values()) >= 2


@FUZZ
@given(
    st.sampled_from(HONEST_FILES),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(max_size=3), st.integers(0, 3)), max_size=4),
)
def test_fuzz_altered_files_through_the_readers(
    tmp_path_factory: Any, chosen: tuple[str, bytes], edits: list[Any]
) -> None:
    data = bytearray(chosen[1])
    for place, new, gone in edits:
        at = place % (len(data) + 1)
        data[at : at + gone] = new
    path = tmp_path_factory.getbasetemp() / "fuzz.pkl"
    path.write_bytes(bytes(data))
    try:
        with bounded(len(data)):
            corpus = read_corpus(path)
    except DataError:
        return
    for examples in corpus.splits.values():
        for example in examples:
            assert np.isfinite(example.visual).all()
            assert example.visual.dtype == np.float32
            assert all(isinstance(word, str) for word in example.words)


KEYS = st.sampled_from(
    ["train", "dev", "raw_text", "id", "vision", "audio", "vision_lengths", "text_bert", "labels", "regression_labels"]
) | st.integers(0, 1)

LEAVES = st.one_of(
    st.none(),
    st.integers(-2, 3),
    st.sampled_from([0.5, float("nan"), "a b", "", "v_0", b"x", 1 << 70]),
    st.sampled_from(
        [np.ones((1, 2)), np.ones((1, 3, 2)), np.ones(1), np.float64(2), np.array(["a"]), np.zeros((0, 2))]
    ),
    st.sampled_from([np.array([None, "x"], dtype=object), np.array(3), np.ones((1, 3, 3), dtype=np.int64)]),
)

TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple), st.dictionaries(KEYS, inner, max_size=6)
    ),
    max_leaves=25,
)

FEATURES = st.tuples(TREES, TREES, TREES) | st.tuples(TREES, TREES, TREES, TREES)

ROOTS = st.one_of(
    st.dictionaries(KEYS, TREES, min_size=1, max_size=3),
    st.fixed_dictionaries({"raw_text": TREES, "id": TREES}, optional={"vision": TREES, "regression_labels": TREES}).map(
        lambda part: {"train": part}
    ),
    st.fixed_dictionaries({"vision": TREES, "audio": TREES, "labels": TREES, "id": TREES}).map(lambda p: {"train": p}),
    st.lists(st.tuples(FEATURES, TREES, TREES), min_size=1, max_size=2).map(lambda items: {"train": items}),
    st.lists(st.tuples(FEATURES, FEATURES, TREES, TREES), min_size=1, max_size=2).map(lambda items: {"dev": items}),
)


@FUZZ
@given(ROOTS, st.sampled_from(["fuzz2.pkl", "train.pkl"]), st.booleans(), st.sampled_from([None, "id", "2", "labels"]))
def test_fuzz_structures_through_the_readers(
    tmp_path_factory: Any, root: Any, name: str, labels: bool, label: str | None
) -> None:
    folder = tmp_path_factory.getbasetemp() / "structures"
    folder.mkdir(exist_ok=True)
    table = folder / "words.tsv"
    table.write_text("id\ttext\nv_0\thello\n")
    path = folder / name
    path.write_bytes(pickle.dumps(root["train"] if name == "train.pkl" and "train" in root else root, 4))
    try:
        with bounded(path.stat().st_size):
            corpus = read_corpus(path, label=label, labels=labels, words=str(table))
    except DataError:
        return
    assert all(labels or e.label is None for examples in corpus.splits.values() for e in examples)
