"""Folders of ``.csd`` files: labels, words and streams of frames."""

import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cmsbert_fast.data import DataError, convert, open_source, read_corpus
from cmsbert_fast.data.example import Alignment
from cmsbert_fast.data.untrusted import limits


def words_entry(words: list[str], start: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Words of one second each."""
    times = start + np.arange(len(words) + 1.0)
    return np.array([[w.encode()] for w in words], dtype="S12"), np.stack([times[:-1], times[1:]], axis=1)


def frames_entry(random: Any, seconds: float, rate: float, width: int) -> tuple[np.ndarray, np.ndarray]:
    n = int(seconds * rate)
    begin = np.arange(n) / rate
    return random.normal(size=(n, width)).astype(np.float32), np.stack([begin, begin + 1 / rate], axis=1)


@pytest.fixture
def mosei(files: Any) -> Any:
    """Two videos in the layout of CMU-MOSEI: every stream at its own rate, labels of seven columns."""
    random = files.random
    spoken = {"vid_A": ["so", "sp", "this", "is", "really", "bad"], "-vid3": ["not", "bad", "at", "all", "folks"]}
    files.csd("CMU_MOSEI_TimestampedWords", "words", {k: words_entry(w) for k, w in spoken.items()})
    files.csd("CMU_MOSEI_COVAREP", "COVAREP", {k: frames_entry(random, 6, 100, 74) for k in spoken})
    files.csd("CMU_MOSEI_VisualFacet42", "FACET 4.2", {k: frames_entry(random, 6, 30, 35) for k in spoken})
    files.csd("CMU_MOSEI_TimestampedWordVectors", "glove_vectors", {k: frames_entry(random, 6, 1, 300) for k in spoken})
    scores = {
        "vid_A": (np.arange(14, dtype=np.float32).reshape(2, 7), [[0, 3], [3, 6.0]]),
        "-vid3": (np.full((2, 7), -1.0, dtype=np.float32), [[0, 5], [8, 9.0]]),
    }
    files.csd("CMU_MOSEI_Labels", "All Labels", scores, compression="gzip")
    return files


def test_a_set_is_aligned_to_words(mosei: Any) -> None:
    folds = mosei.folder.parent / "folds.json"
    folds.write_text('{"train": ["vid_A"], "valid": ["-vid3"], "test": []}')
    corpus = read_corpus(mosei.folder, folds=folds)
    assert corpus.report.counts == {"train": 2, "valid": 1}
    assert corpus.report.dropped == {"no word is spoken in it": 1}
    assert (corpus.visual_size, corpus.acoustic_size) == (35, 74)
    first, second = corpus.splits["train"]
    assert (first.id, first.words, first.label, first.alignment) == (
        "vid_A[0]",
        ("so", "this"),
        0.0,
        Alignment.WORDS,
    )
    assert (second.words, second.label) == (("is", "really", "bad"), 7.0)
    with h5py.File(mosei.folder / "CMU_MOSEI_COVAREP.csd") as file:
        sound = file["COVAREP/data/vid_A/features"][...]
    np.testing.assert_allclose(first.acoustic[1], sound[200:300].mean(axis=0, dtype=float), atol=1e-6)
    np.testing.assert_allclose(second.acoustic[0], sound[300:400].mean(axis=0, dtype=float), atol=1e-6)
    assert read_corpus(mosei.folder, label="anger").splits["all"][1].label == 3.0
    assert read_corpus(mosei.folder, label="3").splits["all"][1].label == 3.0
    with pytest.raises(DataError, match="--label 0 to 6"):
        read_corpus(mosei.folder, label="7")
    assert "CMU_MOSEI_TimestampedWordVectors.csd" in str(corpus.report)


def test_a_column_of_one_of_two_label_streams(mosei: Any) -> None:
    columns = (10 + np.arange(12, dtype=np.float32).reshape(2, 6), [[0, 3], [3, 6.0]])
    mosei.csd("Emotion.v2", "All Labels", {"vid_A": columns, "-vid3": (np.zeros((1, 6)), [[0, 5]])})
    with pytest.raises(DataError, match=r"--label NAME \(or NAME.COLUMN\)"):
        read_corpus(mosei.folder)
    for label, expected in {
        "CMU_MOSEI_Labels": 0.0,
        "CMU_MOSEI_Labels.anger": 3.0,
        "cmu_mosei_labels.csd.3": 3.0,
        "Emotion.v2.anger": 12.0,
        "Emotion.v2.0": 10.0,
    }.items():
        found = {e.id: e.label for e in read_corpus(mosei.folder, label=label).splits["all"]}
        assert found["vid_A[0]"] == expected, label
    with pytest.raises(DataError, match=r"--label Emotion.v2.0 to 5 \(or happy, .*has no label 'sentiment'"):
        read_corpus(mosei.folder, label="Emotion.v2.sentiment")
    with pytest.raises(DataError, match=r"--label Emotion.v2.0 to 5 \(or happy"):
        read_corpus(mosei.folder, label="Emotion.v2")
    several = read_corpus(mosei.folder, label="Emotion.v2.sad,fear")
    assert several.classes == ("sad", "fear")
    found = {e.id: e.label for e in several.splits["all"]}
    assert (found["vid_A[0]"], found["-vid3[0]"]) == ((1, 1), (0, 0))


def test_folds_may_name_utterances(mosei: Any) -> None:
    folds = mosei.folder.parent / "folds.json"
    folds.write_text('{"train": ["vid_A[0]"], "test": ["vid_A[1]"]}')
    corpus = read_corpus(mosei.folder, folds=folds)
    assert {split: [e.id for e in part] for split, part in corpus.splits.items()} == {
        "train": ["vid_A[0]"],
        "test": ["vid_A[1]"],
    }
    assert corpus.report.dropped == {"the folds name neither it nor its video": 2}


def test_a_set_that_the_sdk_aligned(files: Any) -> None:
    random = files.random
    keys = ["vid[0]", "vid[1]"]
    words = {k: words_entry(["really", "good"], 10.0 * n) for n, k in enumerate(keys)}
    files.csd("words", "words", words)
    frames = {k: (random.normal(size=(2, 4)).astype(np.float32), words[k][1]) for k in keys}
    files.csd("COVAREP", "COVAREP", frames)
    files.csd("Opinion Segment Labels", "Opinion Segment Labels", {
        k: (np.array([[1.5 - n]]), [[words[k][1][0, 0], words[k][1][-1, 1]]]) for n, k in enumerate(keys)
    })  # fmt: skip
    examples = read_corpus(files.folder).splits["all"]
    assert [(e.id, e.words, e.label) for e in examples] == [
        ("vid[0]", ("really", "good"), 1.5),
        ("vid[1]", ("really", "good"), 0.5),
    ]
    for example, key in zip(examples, keys, strict=True):
        np.testing.assert_array_equal(example.acoustic, frames[key][0])


def test_ambiguous_and_unknown_streams_ask_for_an_assignment(mosei: Any) -> None:
    shape = {k: frames_entry(mosei.random, 6, 10, 2) for k in ("vid_A", "-vid3")}
    mosei.csd("CMU_MOSEI_VisualOpenFace2", "OpenFace_2", shape)
    with pytest.raises(DataError, match="--visual"):
        read_corpus(mosei.folder)
    both = read_corpus(mosei.folder, visual=["Facet42", "OpenFace2"])
    assert both.visual_size == 37
    assert read_corpus(mosei.folder, visual="OpenFace2").visual_size == 2
    assert read_corpus(mosei.folder, visual="none").visual_size == 0
    with pytest.raises(DataError, match="Facet42"):
        read_corpus(mosei.folder, visual="resnet")
    with pytest.raises(DataError, match="several"):
        read_corpus(mosei.folder, visual="visual")
    mosei.csd("features", "features", shape)
    with pytest.raises(DataError, match=r"features\.csd"):
        read_corpus(mosei.folder, visual="OpenFace2")
    assert read_corpus(mosei.folder, visual="OpenFace2", acoustic="features").acoustic_size == 2


def test_sets_without_words_or_labels_say_so(files: Any) -> None:
    files.csd("COVAREP", "COVAREP", {"v": frames_entry(files.random, 2, 10, 2)})
    with pytest.raises(DataError, match="--words"):
        read_corpus(files.folder)
    files.csd("words", "words", {"v": words_entry(["a"])})
    with pytest.raises(DataError, match="label"):
        read_corpus(files.folder)


def test_prediction_needs_no_label_stream(files: Any) -> None:
    """Every entry of the words is an utterance then, whether the SDK aligned the set or it is one's own."""
    spoken = {"vid[0]": words_entry(["sp", "really", "good"], 10.0), "talk": words_entry(["not", "bad"]),
              "mute": words_entry(["sp"])}  # fmt: skip
    files.csd("words", "words", spoken)
    files.csd("COVAREP", "COVAREP", {"talk": frames_entry(files.random, 2, 10, 3)})
    with pytest.raises(DataError, match="Add the label stream"):
        read_corpus(files.folder)
    corpus = read_corpus(files.folder, labels=False)
    found = {e.id: e for e in corpus.splits["all"]}
    assert {k: (e.words, e.label) for k, e in found.items()} == {
        "talk": (("not", "bad"), None),
        "vid[0]": (("really", "good"), None),
    }
    with h5py.File(files.folder / "COVAREP.csd") as file:
        sound = file["COVAREP/data/talk/features"][...]
    np.testing.assert_allclose(found["talk"].acoustic, sound.reshape(2, 10, 3).mean(axis=1), atol=1e-6)
    assert "every entry of words is one utterance" in str(corpus.report)
    assert corpus.report.dropped == {"no word is spoken in it": 1}


def test_prediction_reads_segments_but_no_values_from_a_label_stream(mosei: Any) -> None:
    mosei.csd("CMU_MOSEI_Labels", "All Labels", {"vid_A": (np.full((2, 3), np.nan), [[0, 3], [3, 6.0]])})
    corpus = read_corpus(mosei.folder, labels=False)
    assert [(e.id, e.words, e.label) for e in corpus.splits["all"]] == [
        ("vid_A[0]", ("so", "this"), None),
        ("vid_A[1]", ("is", "really", "bad"), None),
    ]
    assert not corpus.report.dropped
    assert "1 entries of CMU_MOSEI_TimestampedWords are left out" in str(corpus.report)


def test_prediction_reads_aligned_segments_that_have_no_label(files: Any) -> None:
    files.csd("words", "words", {f"vid[{n}]": words_entry(["really", "good"]) for n in range(3)})
    files.csd("labels", "labels", {"vid[1]": (np.ones((1, 1)), [[0, 2.0]])})
    assert {e.id for e in read_corpus(files.folder, labels=False).splits["all"]} == {"vid[0]", "vid[1]", "vid[2]"}


def test_aligned_segments_without_label_are_counted_where_labels_are_needed(files: Any) -> None:
    files.csd("words", "words", {f"vid[{n}]": words_entry(["really", "good"]) for n in range(4)})
    files.csd("labels", "labels", {"vid[1]": (np.ones((1, 1)), [[0, 2.0]])})
    corpus = read_corpus(files.folder)
    assert [e.id for e in corpus.splits["all"]] == ["vid[1]"]
    assert corpus.report.dropped == {"it has no label in labels": 3}


def test_frames_that_the_sdk_aligned_are_taken_as_they_are(files: Any) -> None:
    """Word times overlap by their rounding, and words may have no duration."""
    times = np.array([[0, 0.52], [0.5, 0.7], [0.7, 1.0], [1.0, 1.0]])
    files.csd("words", "words", {"v[0]": (np.array([[b"a"], [b"sp"], [b"b"], [b"c"]]), times)})
    files.csd("COVAREP", "COVAREP", {"v[0]": (np.array([[1.0], [9], [2], [3]]), times)})
    files.csd("labels", "labels", {"v[0]": (np.ones((1, 1)), [[0, 1.0]])})
    corpus = read_corpus(files.folder)
    assert corpus.splits["all"][0].acoustic.ravel().tolist() == [1, 2, 3]
    assert not corpus.report.tallies


@pytest.mark.parametrize("converted", [False, True])
def test_aligned_words_with_frames_of_whole_videos(files: Any, converted: bool, tmp_path: Path) -> None:
    words = {f"{v}[{k}]": words_entry(["really", "good"], 2.0 * k) for v in ("v", "w_1") for k in range(3)}
    files.csd("words", "words", words)
    files.csd("labels", "labels", {key: (np.ones((1, 1)), times[:1]) for key, (_, times) in words.items()})
    frames = np.arange(12.0).reshape(6, 2)
    frames[0, 0] = -np.inf
    seconds = np.arange(6)[:, None] + [0.0, 1.0]
    files.csd("COVAREP", "COVAREP", dict.fromkeys(("v", "w_1"), (frames, seconds)))
    folds, data = tmp_path / "folds.json", files.folder
    if converted:
        convert.convert(open_source(data), tmp_path / "c")
        data = tmp_path / "c"
    report = read_corpus(data).report
    assert report.counts == {"all": 6}
    assert report.non_finite == {"acoustic": 2}  # once a video, not once a segment
    folds.write_text('{"train": ["v"], "test": ["w_1"]}')
    assert read_corpus(data, folds=folds).report.counts == {"train": 3, "test": 3}


@pytest.mark.parametrize("kind", ["square", "labels", "silence", "wide", "frames"])
def test_small_files_of_many_segments_are_no_bombs(
    files: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FLOOR", floor := 5 << 18)
    words, labels, width = {
        "square": (2000, 2000, 1),
        "labels": (1, 200_000, 1),
        "silence": (5000, 5000, 1),
        "wide": (2000, 1, 50_000),
        "frames": (1, 1000, 1),  # each segment looks through all of them
    }[kind]
    deflated = dict(compression="gzip", compression_opts=9)

    def write(name: str, values: np.ndarray, times: list[int]) -> None:
        with h5py.File(files.folder / f"{name}.csd", "w") as file:
            file.create_dataset(f"{name}/data/v/features", data=values, **deflated)
            file.create_dataset(f"{name}/data/v/intervals", data=np.full((len(values), 2), times, "i1"), **deflated)

    write("words", np.full((words, 1), b"ab"), [0, 1])
    write("labels", np.ones((labels, 1), dtype="i1"), [5, 6] if kind == "silence" else [0, 1])
    if kind in ("wide", "frames"):
        write("COVAREP", np.ones((4 if kind == "wide" else 50_000, width), dtype="i1"), [0, 1])
    size = sum(path.stat().st_size for path in files.folder.iterdir())
    tracemalloc.start()
    with pytest.raises(DataError, match="many times larger"):
        read_corpus(files.folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * (limits.RATIO * size + floor)


def test_a_stream_without_frames_is_told_although_the_last_entry_is_left_out(mosei: Any) -> None:
    mosei.csd("CMU_MOSEI_COVAREP", "COVAREP", {"other": frames_entry(mosei.random, 6, 100, 74)})
    folds = mosei.folder.parent / "folds.json"
    for video in ("vid_A", "-vid3"):
        folds.write_text(f'{{"train": ["{video}"]}}')
        with pytest.raises(DataError, match="no example has a frame"):
            read_corpus(mosei.folder, folds=folds)


@pytest.mark.parametrize("shape", [(0,), (0, 0), (0, 3)])
def test_videos_without_frames_or_words(files: Any, shape: tuple[int, ...]) -> None:
    """What is made of an empty list has the shape (0,)."""
    nothing, spoken = (np.zeros(shape), np.zeros(shape[:1])), words_entry(["so", "good"])
    files.csd("words", "words", {"a": nothing, "b": spoken, "c": spoken})
    files.csd("labels", "labels", {v: (np.ones((1, 1)), [[0, 2]]) for v in "abc"} | {"d": nothing})
    files.csd("COVAREP", "COVAREP", {"a": nothing, "b": frames_entry(files.random, 2, 10, 3), "c": nothing})
    corpus = read_corpus(files.folder)
    assert [(e.id, e.acoustic.shape) for e in corpus.splits["all"]] == [("b[0]", (2, 3)), ("c[0]", (2, 3))]
    assert corpus.report.dropped == {"no word is spoken in it": 1}
    assert corpus.report.tallies == {"words have no acoustic frame; theirs are zeros": 2}
    files.csd("COVAREP", "COVAREP", {"b": nothing})
    with pytest.raises(DataError, match="no example has a frame"):
        read_corpus(files.folder)
