"""Reading converted data: folds, left-out modalities, damaged and altered files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cmsbert_fast import CMSBertProcessor
from cmsbert_fast.data import DataError, convert, open_source, read_corpus
from cmsbert_fast.data.__main__ import main
from cmsbert_fast.data.embedded import embedded_tokenizer
from cmsbert_fast.data.example import outlines
from cmsbert_fast.data.folds import NO_FOLD
from cmsbert_fast.data.formats import converted
from cmsbert_fast.training import resume
from cmsbert_fast.training.preflight import check_data
from tests.data.sources import altered, assert_same, write


def test_frames_stay_on_disk(files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    corpus = read_corpus(tmp_path / "c")
    example = corpus.splits["train"][1]
    assert not example.visual.flags.owndata
    assert not example.visual.flags.writeable
    assert [e.id for e in corpus.splits["train"][1:]] == [e.id for e in list(corpus.splits["train"])[1:]]
    assert corpus.splits["train"][-1].id == list(corpus.splits["train"])[-1].id
    with pytest.raises(IndexError):
        corpus.splits["train"][99]


def test_a_flipped_bit_of_a_frame_is_noticed(files: Any, tmp_path: Path) -> None:
    """A finite value stays finite: only the checksum tells."""
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    path = tmp_path / "c" / "acoustic.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1  # the lowest bit of the last number
    path.write_bytes(content)
    corpus = read_corpus(tmp_path / "c")
    *others, last = (e.id for split in corpus.splits.values() for e in outlines(split))
    with pytest.raises(DataError, match=f"the acoustic frames of '{last}' are damaged".replace("[", r"\[")):
        corpus.splits["test"][-1]
    assert corpus.splits["test"][0].id in others
    assert read_corpus(tmp_path / "c", acoustic="none").splits["test"][-1].id == last
    # What was converted before there were checksums has none.
    lines = (tmp_path / "c" / "examples.jsonl").read_text().splitlines()
    bare = [json.dumps({k: v for k, v in json.loads(line).items() if k != "crc32"}) for line in lines]
    (tmp_path / "c" / "examples.jsonl").write_text("\n".join(bare) + "\n")
    assert read_corpus(tmp_path / "c").splits["test"][-1].id == last


def test_a_start_of_training_reads_no_more_frames_than_it_must(
    files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels and the rest of an outline come from the index; the fingerprint is that of the source all the same."""
    path = write("mag", files)
    convert.convert(open_source(path), tmp_path / "c")
    monkeypatch.setattr(resume, "FINGERPRINT_BYTES", 300)
    for left_out in ({}, {"visual": "none"}, {"acoustic": "none"}):
        meant, found = read_corpus(path, **left_out), read_corpus(tmp_path / "c", **left_out)
        for split, examples in meant.splits.items():
            assert list(outlines(found.splits[split])) == list(outlines(examples))
        assert resume.fingerprint(found) == resume.fingerprint(meant)
    read: list[int] = []
    original = converted.Mapped.__getitem__
    monkeypatch.setattr(converted.Mapped, "__getitem__", lambda self, k: read.append(k) or original(self, k))
    found = read_corpus(tmp_path / "c")
    check_data(found)
    assert read == []
    resume.fingerprint(found)
    assert read == [0, 1, 2]  # one a split: of 27 words of 36 bytes, every fourth example of the nine


@pytest.mark.parametrize("kind", ["mag", "mmsa"])
def test_what_version_2_wrote_is_read(kind: str, files: Any, tmp_path: Path) -> None:
    """Its lines say whether frames are aligned to words."""
    path = write(kind, files)
    convert.convert(open_source(path), tmp_path / "c")

    def older(line: dict[str, Any]) -> None:
        line["aligned"] = line.pop("alignment") == "words"

    altered(tmp_path / "c", "examples.jsonl", older)
    altered(tmp_path / "c", "manifest.json", lambda manifest: manifest.update(version=2))
    assert_same(read_corpus(tmp_path / "c"), read_corpus(path))
    altered(tmp_path / "c", "manifest.json", lambda manifest: manifest.update(version=1))
    with pytest.raises(DataError, match=r"Convert .* again: it has version 1, this is version 3\."):
        read_corpus(tmp_path / "c")


def test_choices_for_converted_data(files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    folds = tmp_path / "folds.json"
    folds.write_text('{"train": ["vidtest"], "test": ["vidtrain[0]"]}')
    corpus = read_corpus(tmp_path / "c", folds=folds, visual="none")
    assert corpus.report.counts == {"train": 3, "test": 1}
    assert (corpus.visual_size, corpus.splits["train"][0].visual.shape) == (0, (0, 0))
    for wrong in ({"words": "x"}, {"label": "x"}, {"visual": "x"}, {"fold": 1}):
        with pytest.raises(DataError):
            read_corpus(tmp_path / "c", **wrong)


@pytest.mark.parametrize("file", ["manifest.json", "examples.jsonl", "visual.safetensors"])
def test_damaged_converted_data(file: str, files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    path = tmp_path / "c" / file
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"", b"[]", data.replace(b'"version": 1', b'"version": 9')):
        if broken == data:
            continue
        path.write_bytes(broken)
        with pytest.raises(DataError, match="Convert"):
            read_corpus(tmp_path / "c")
    path.unlink()
    with pytest.raises(DataError):
        read_corpus(tmp_path / "c")


def test_training_takes_the_statistics_without_reading_frames(mosi_folder: Path, tmp_path: Path) -> None:
    convert.convert(open_source(mosi_folder), tmp_path / "c")
    corpus = read_corpus(tmp_path / "c")
    assert corpus.statistics is not None
    fitted = CMSBertProcessor(embedded_tokenizer()).fit(corpus.splits["train"])
    known = CMSBertProcessor(embedded_tokenizer()).set_statistics(corpus.statistics)
    assert known.visual_mean is fitted.visual_mean is None
    assert known.acoustic_mean == fitted.acoustic_mean
    assert known.acoustic_std == fitted.acoustic_std


def test_folds_by_video_on_converted_data(files: Any, tmp_path: Path) -> None:
    """As on the source itself: videos, frames, altered values and other counts of what the folds name."""
    rows = [["aa", "v1", 1, "so good"], ["bb", "v2", 1, "so bad"], ["cc", "v1", 1, "so"], ["dd", "v2", 1, "no"]]
    files.table([*rows, ["ee", "v2", 1, "yes"]], "id\tvideo\tlabel\ttext")
    (files.folder / "audio").mkdir()
    for name, value in (("aa", 1.0), ("bb", np.nan)):
        np.save(files.folder / "audio" / f"{name}.npy", np.full((5, 2), value))
    folds = tmp_path / "folds.json"
    convert.convert(open_source(files.folder), tmp_path / "c")
    for content in ({"train": ["v1"], "test": ["v2"]}, {"train": ["v1"]}, {"test": ["v2"]}):
        folds.write_text(json.dumps(content))
        found, meant = (read_corpus(path, folds=folds).report for path in (tmp_path / "c", files.folder))
        assert (found.counts, found.frames, found.non_finite) == (meant.counts, meant.frames, meant.non_finite)
        assert found.frames == {"acoustic": 5 * len(content)}
        assert found.tallies == meant.tallies
        assert sum(found.tallies.values()) == ("train" in content) + 2 * ("test" in content)  # cc, dd, ee have no frame
    folds.write_text('{"train": ["nothing"]}')
    with pytest.raises(DataError, match="none of the examples"):
        read_corpus(tmp_path / "c", folds=folds)
    assert read_corpus(tmp_path / "c", acoustic="none").report.tallies == {}


@pytest.mark.parametrize("converted_with", [{}, {"fold": 3}, {"folds": "random", "fold": 2}])
def test_iemocaps_folds_on_converted_data(converted_with: dict[str, Any], files: Any, tmp_path: Path) -> None:
    """Every fold is the source's, in its order, whichever was chosen in conversion."""
    emotions = ["ang", "hap", "exc", "sad", "neu", "fru"]
    rows = [
        # Dialogues are interleaved, and one line in seven has no text: lines are neither in the table's order nor all.
        [f"Ses0{1 + k % 5}F_x_{'FM'[k // 5 % 2]}{k}", f"d{k % 4}", emotions[k * 5 // 3 % 6], "so" if k % 7 else ""]
        for k in range(40)
    ]
    files.table(rows, "id\tvideo\temotion\ttext")
    (files.folder / "audio").mkdir()
    for k, (name, *_) in enumerate(rows):
        np.save(files.folder / "audio" / f"{name}.npy", np.full((1 + k % 3, 2), np.nan if k == 8 else k))
    convert.convert(open_source(files.folder, **converted_with), tmp_path / "c")
    assert_same(read_corpus(tmp_path / "c"), read_corpus(files.folder, **converted_with))
    for folds in (None, "speaker", "random"):
        for fold in range(1, 11):
            meant = read_corpus(files.folder, folds=folds, fold=fold)
            found = read_corpus(tmp_path / "c", folds=folds, fold=fold)
            assert_same(found, meant)
            assert found.statistics is None  # those that are stored are of another training split
    for wrong in ({"fold": 0}, {"fold": 11}, {"folds": "random"}):
        with pytest.raises(DataError, match="fold from 1 to 10"):
            read_corpus(tmp_path / "c", **wrong)


@pytest.mark.parametrize("converted_with", [{}, {"fold": 2}])
def test_a_column_of_folds_on_converted_data(converted_with: dict[str, Any], files: Any, tmp_path: Path) -> None:
    rows = [[f"v{k % 3}_{k}", ["train", "test"][k % 2], ["9", "10", "2", "2", ""][k % 5], k, "so"] for k in range(15)]
    files.table(rows, "id\tsplit\tfold\tlabel\ttext")
    convert.convert(open_source(files.folder, **converted_with), tmp_path / "c")
    for fold in (1, 2, 3):
        meant = read_corpus(files.folder, fold=fold)
        assert meant.report.dropped == {NO_FOLD: 3}
        assert_same(read_corpus(tmp_path / "c", fold=fold), meant)
    with pytest.raises(DataError, match="fold from 1 to 3"):
        read_corpus(tmp_path / "c", fold=4)


def test_folds_that_converted_data_do_not_have(files: Any, tmp_path: Path) -> None:
    path, folds = write("iemocap", files), tmp_path / "folds.json"
    whole = read_corpus(path)
    folds.write_text(json.dumps({"train": [e.id for e in whole.splits["all"]][:9]}))
    convert.convert(open_source(path, folds=folds), tmp_path / "file")  # less than all: its tenths are not the source's
    convert.convert(open_source(path), tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    del manifest["folds"]  # as earlier versions of this program wrote it
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    for folder in ("file", "old"):
        for asked in ({"fold": 3}, {"folds": "speaker", "fold": 3}):
            with pytest.raises(DataError, match="JSON file of folds"):
                read_corpus(tmp_path / folder, **asked)
    assert_same(read_corpus(tmp_path / "file"), read_corpus(path, folds=folds))


def test_converted_data_without_labels(files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("funny", files)), tmp_path / "c")
    corpus = read_corpus(tmp_path / "c", labels=False)
    assert corpus.classes is None
    assert {e.label for e in corpus.splits["train"]} == {None}


MANIFESTS: list[tuple[tuple[str, ...], Any]] = [
    (("report", "widths"), [1]),
    (("report", "widths", "visual"), float("inf")),
    (("report", "widths", "visual"), -4),
    (("report", "widths", "smell"), 4),
    (("report", "counts"), 3),
    (("report", "notes"), [1]),
    (("report", "source"), None),
    (("report", "tallies"), {"x": "y"}),
    (("report", "non_finite"), None),
    (("report", "surprise"), 1),
    (("statistics",), [1]),
    (("statistics", "visual"), 1),
    (("statistics", "visual", "mean"), [1.0]),
    (("statistics", "visual", "mean"), [float("nan")] * 4),
    (("statistics", "visual", "std"), [-1.0] * 4),
    (("statistics", "visual", "std"), ["1"] * 4),
    (("classes",), 3),
    (("classes",), [1]),
    (("name",), None),
    (("folds",), [1]),
    (("folds",), {"speaker": 1}),
    (("folds",), {"speaker": [1, -1]}),
    (("standardise",), "yes"),
    (("version",), [1]),
]


@pytest.mark.parametrize(("keys", "value"), MANIFESTS)
def test_an_altered_manifest(keys: tuple[str, ...], value: Any, files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    path = tmp_path / "c" / "manifest.json"
    manifest = json.loads(path.read_text())
    part = manifest
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="Convert"):
        read_corpus(tmp_path / "c")


LINES = [
    {"words": "hi"},
    {"words": [1, {}]},
    {"label": "x"},
    {"label": True},
    {"label": [1]},
    {"id": [1]},
    {"visual": 1.0},
    {"split": ["train"]},
    {"video": 3},
    {"parts": [1]},
    {"parts": {"speaker": "1"}},
    {"non_finite": {"visual": "many"}},
    {"label": float("nan")},
    {"label": 10**400},
    {"words": []},
    {"words": ["one"]},  # with frames of two
    {"aligned": 1},
    {"alignment": True},
    {"timed": True},  # but there is no file of words
    {"timed": "yes"},
    {"alignment": "letters"},
    {"alignment": "pieces", "visual": 3},
    {"id": "vidtrain[1]"},  # the next one's
]


@pytest.mark.parametrize("line", [*LINES, None, [1], 5])
def test_altered_lines(line: Any, files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    path = tmp_path / "c" / "examples.jsonl"
    entries = [json.loads(text) for text in path.read_text().splitlines()]
    entries[0] = entries[0] | line if isinstance(line, dict) else line
    path.write_text("\n".join(map(json.dumps, entries)) + "\n")
    with pytest.raises(DataError, match="Convert"):
        read_corpus(tmp_path / "c")


def test_a_split_without_examples_is_none(files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    altered(tmp_path / "c", "manifest.json", lambda m: m["report"]["counts"].update(more=0))
    assert main(["inspect", str(tmp_path / "c")]) == 0
    assert "more" not in capsys.readouterr().out


def test_frames_that_are_not_finite_are_refused_where_they_are_read(files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    path = tmp_path / "c" / "visual.safetensors"
    frames = load_file(path)["frames"].copy()
    frames[-1, 0] = np.nan
    save_file({"frames": frames}, path)
    assert main(["inspect", str(tmp_path / "c")]) == 0  # frames are not looked at
    test = read_corpus(tmp_path / "c").splits["test"]
    assert np.isfinite(test[0].visual).all()
    with pytest.raises(DataError, match="visual values"):
        test[len(test) - 1]


def test_altered_numbers_of_frames_and_classes(files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("funny", files)), tmp_path / "c")
    path = tmp_path / "c" / "examples.jsonl"
    entries = [json.loads(text) for text in path.read_text().splitlines()]
    for changes in (({"label": 2}, {}), ({"label": 0.0}, {}), ({"visual": -5}, {"visual": 13})):
        altered = [a | b for a, b in zip(entries, changes, strict=False)] + entries[2:]
        path.write_text("\n".join(map(json.dumps, altered)) + "\n")
        with pytest.raises(DataError, match="Convert"):
            read_corpus(tmp_path / "c")


@pytest.mark.parametrize("kind", ["type", "another"])
def test_altered_tensors(kind: str, files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    path = tmp_path / "c" / "visual.safetensors"
    frames = load_file(path)["frames"]
    others = {"a": np.ones((3, 3), dtype=np.float32)} if kind == "another" else {}
    save_file({"frames": frames.astype(np.float64 if kind == "type" else np.float32), **others}, path)
    with pytest.raises(DataError, match="F32" if kind == "type" else "alone"):
        read_corpus(tmp_path / "c")


@pytest.mark.parametrize("words", [[0, 1, 2, 4], [0, 1, -2, 3], [1, 0, 2, 3]])
def test_words_that_frames_cannot_belong_to(words: list[int], files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("csd of words", files), average_words=False), tmp_path / "c")
    path = tmp_path / "c" / "visual_words.safetensors"
    altered_words = load_file(path)["words"].copy()
    last = len(altered_words) - 20
    altered_words[last : last + 4] = words  # of two words
    save_file({"words": altered_words}, path)
    corpus = read_corpus(tmp_path / "c")
    examples = corpus.splits["all"]
    assert examples[0].frame_words is not None
    with pytest.raises(DataError, match="belong to words that it does not have"):
        examples[len(examples) - 1]
    assert read_corpus(tmp_path / "c", visual="none").splits["all"][-1].frame_words.visual.shape == (0,)
