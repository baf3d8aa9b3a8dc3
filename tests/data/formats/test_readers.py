"""Every format is recognised from content and read to what the file means."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import Corpus, DataError, Example, convert, open_source, read_corpus


def find(corpus: Corpus, name: str) -> Example:
    return next(e for examples in corpus.splits.values() for e in examples if e.id == name)


def clean(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.asarray(values, dtype=np.float32), nan=0, posinf=0, neginf=0)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("aligned", [True, False])
def test_mmsa(files: Any, aligned: bool, protocol: int) -> None:
    root = files.mmsa(aligned)
    corpus = read_corpus(files.pickle("data.pkl", root, protocol))
    assert corpus.report.counts == {"train": 4, "valid": 4, "test": 4}
    assert (corpus.visual_size, corpus.acoustic_size, corpus.classes) == (3, 2, None)
    for split, examples in corpus.splits.items():
        part = root[split]
        for k, example in enumerate(examples):
            assert example.id == part["id"][k]
            assert example.words == tuple(part["raw_text"][k].split())
            assert example.label == part["regression_labels"][k]
            n = len(example.words)
            v = slice(1, n + 1) if aligned else slice(0, part["vision_lengths"][k])
            a = slice(1, n + 1) if aligned else slice(0, part["audio_lengths"][k])
            np.testing.assert_array_equal(example.visual, clean(part["vision"][k, v]))
            np.testing.assert_array_equal(example.acoustic, clean(part["audio"][k, a]))
            assert example.visual.dtype == example.acoustic.dtype == np.float32
            assert example.aligned == aligned
    inside = sum(0 < 1 < (2 if aligned else root[s]["audio_lengths"][0]) for s in root)
    assert corpus.report.non_finite.get("acoustic", 0) == inside
    assert "acoustic: " in str(corpus.report)


def test_mmsa_labels_of_every_kind(files: Any) -> None:
    root = files.mmsa(False)
    path = files.pickle(
        "sims.pkl", root | {s: p | {"regression_labels_T": p["regression_labels"] / 2} for s, p in root.items()}
    )
    half = read_corpus(path, label="regression_labels_T")
    assert half.splits["train"][1].label == root["train"]["regression_labels"][1] / 2
    sentiment = read_corpus(path, label="classification_labels")
    assert sentiment.classes == ("negative", "zero", "positive")
    assert sentiment.splits["test"][2].label == int(root["test"]["classification_labels"][2])
    assert isinstance(sentiment.splits["test"][2].label, int)
    named = read_corpus(path, label="annotations")
    assert named.classes == ("Negative", "Neutral", "Positive")
    assert [e.label for e in named.splits["train"]] == [0, 1, 2, 2]
    with pytest.raises(DataError, match="regression_labels_T"):
        read_corpus(path, label="happiness")


def test_mmsa_labels_in_a_column(files: Any) -> None:
    root = files.mmsa(False)
    meant = [float(value) for value in root["train"]["regression_labels"]]
    for part in root.values():
        part["regression_labels"] = part["regression_labels"][:, None]
    assert [e.label for e in read_corpus(files.pickle("data.pkl", root)).splits["train"]] == meant


def test_mmsa_labels_that_are_no_number_are_dropped(files: Any) -> None:
    root = files.mmsa(False)
    root["test"]["regression_labels"][2] = np.nan
    report = read_corpus(files.pickle("data.pkl", root)).report
    assert report.counts["test"] == 3
    assert report.dropped == {"its label is not a number": 1}


def test_mmsa_frames_beyond_the_length_are_padding_whatever_they_hold(files: Any) -> None:
    root = files.mmsa(False)
    root["train"]["vision"][0, 4:] = np.nan
    root["train"]["vision_lengths"][0] = 4
    corpus = read_corpus(files.pickle("data.pkl", root))
    assert len(corpus.splits["train"][0].visual) == 4
    assert "visual" not in corpus.report.non_finite


def test_mmsa_aligned_to_word_pieces_is_not_called_aligned_to_words(files: Any) -> None:
    root = files.mmsa(True)
    root["train"]["text_bert"][0, 1, :] = 1
    root["train"]["vision"][0, 4:8] = 1.5
    corpus = read_corpus(files.pickle("data.pkl", root))
    assert not corpus.splits["train"][0].aligned
    assert len(corpus.splits["train"][0].visual) == 8  # all between [CLS] and [SEP], the last one of zeros too
    assert corpus.splits["train"][1].aligned


def test_chinese_text_is_words_of_one_character(files: Any) -> None:
    root = files.mmsa(False)
    root["train"]["raw_text"] = np.array(["我不想去 OK", "好", "a b", "c"])
    corpus = read_corpus(files.pickle("sims.pkl", root))
    assert corpus.splits["train"][0].words == ("我", "不", "想", "去", "OK")


def test_mmsa_with_parts_that_do_not_fit(files: Any) -> None:
    for key, value in (
        ("vision", np.ones((3, 9, 3))),
        ("vision_lengths", [99, 1, 1, 1]),
        ("vision_lengths", [1, 1]),
        ("vision", np.ones((4, 9))),
        ("id", np.array(["x"] * 4)),
    ):
        root = files.mmsa(False)
        root["valid"][key] = value
        with pytest.raises(DataError):
            read_corpus(files.pickle("data.pkl", root))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_mag(files: Any, protocol: int) -> None:
    root = files.mag()
    root["train"][0][0][2][0, 0] = np.nan
    corpus = read_corpus(files.pickle("mosi.pkl", root, protocol))
    assert corpus.report.counts == {"train": 3, "valid": 3, "test": 3}
    assert corpus.report.non_finite == {"acoustic": 1}
    for split, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
        for example, ((words, visual, acoustic), label, segment) in zip(corpus.splits[split], root[name], strict=True):
            assert (example.id, example.words, example.aligned) == (segment, tuple(words), True)
            assert example.label == float(label[0, 0])
            np.testing.assert_array_equal(example.visual, clean(visual))
            np.testing.assert_array_equal(example.acoustic, clean(acoustic))


@pytest.mark.parametrize("lengths", [False, True])
def test_misa_and_mmim(files: Any, lengths: bool) -> None:
    root = files.misa(lengths)
    for split, content in root.items():
        files.pickle(f"{split}.pkl", content)
    for path, counts in (
        (files.folder, {"train": 3, "valid": 3, "test": 3}),
        (files.folder / "dev.pkl", {"valid": 3}),
    ):
        corpus = read_corpus(path)
        assert corpus.report.counts == counts
        for example, (inner, label, segment) in zip(corpus.splits["valid"], root["dev"], strict=True):
            words = inner[3]
            assert (example.id, example.words, example.aligned) == (segment, tuple(words), not lengths)
            assert example.label == float(label[0, 0])
            n = (len(words) + 1, len(words) + 2) if lengths else (len(words), len(words))
            np.testing.assert_array_equal(example.visual, clean(inner[1][: n[0]]))
            np.testing.assert_array_equal(example.acoustic, clean(inner[2][: n[1]]))


def test_misa_emotions_are_columns(files: Any) -> None:
    root = files.misa(columns=7)
    for split, content in root.items():
        files.pickle(f"{split}.pkl", content)
    assert read_corpus(files.folder, label="sad").splits["train"][0].label == float(root["train"][0][1][0, 2])
    assert read_corpus(files.folder, label="2").splits["train"][0].label == float(root["train"][0][1][0, 2])
    with pytest.raises(DataError, match="anger"):
        read_corpus(files.folder, label="envy")


@pytest.mark.parametrize("aligned", [True, False])
def test_mult_needs_words_from_elsewhere(files: Any, aligned: bool) -> None:
    root = files.mult(aligned)
    path = files.pickle("mosi_data.pkl", root)
    with pytest.raises(DataError, match=r"--words.*no words"):
        read_corpus(path)
    rows = [
        [f"vid{v}_{k}", "x", 2.0 * k + 0.001, 2.0 * k + 1.499, 0, "hello there" if k else "hi"]
        for v in range(3)
        for k in range(2)
    ]
    table = files.table(rows)
    corpus = read_corpus(path, words=str(table))
    assert corpus.report.counts == {"train": 2, "valid": 2, "test": 2}
    assert sum(corpus.report.dropped.values()) == 3
    example = corpus.splits["valid"][1]
    assert (example.id, example.words) == ("vid1_1", ("hello", "there"))
    assert example.label == float(root["valid"]["labels"][1, 0, 0])
    np.testing.assert_array_equal(example.visual, clean(root["valid"]["vision"][1, -3:]))  # the padding is in front
    np.testing.assert_array_equal(example.acoustic, clean(root["valid"]["audio"][1, -3:]))


def test_mult_unaligned_arrays_of_one_length_lose_their_padding_each_by_itself(files: Any) -> None:
    root = files.mult(aligned=False)
    for part in root.values():  # as in MOSEI: 500 steps each, the text has 50
        part["vision"] = files.random.normal(size=(3, 9, 4))
        part["audio"] = files.random.normal(size=(3, 9, 5))
        part["vision"][:, :-3] = part["audio"][:, :-7] = 0
        part["id"] = np.array([f"v_{k}" for k in range(3)])
    table = files.table([["v_0", "train", 0, 1, 0, "yes"]])
    path = files.pickle("mosei_data_noalign.pkl", {"train": root["train"]})
    example = read_corpus(path, words=str(table)).splits["train"][0]
    assert (len(example.visual), len(example.acoustic)) == (3, 7)


def test_mult_ids_may_be_names(files: Any) -> None:
    root = files.mult()
    for split, part in root.items():
        part["id"] = np.array([f"{split}_{k}" for k in range(3)])
    table = files.table([["train_0", "train", 0, 1, 0, "yes"]])
    corpus = read_corpus(files.pickle("mosei_data.pkl", root), words=str(table))
    assert corpus.report.counts == {"train": 1}


def test_the_table_of_mult_may_name_video_and_clip(files: Any) -> None:
    """As docs/data.md says: id, or video and clip_id; start and stop where the file's ids are times; and text."""
    path = files.pickle("mosi_data.pkl", files.mult())
    rows = [[f"vid{v}", k, 2.0 * k, 2.0 * k + 1.5, "hello"] for v in range(3) for k in range(2)]
    corpus = read_corpus(path, words=str(files.table(rows, "video\tclip_id\tstart\tstop\ttext")))
    assert corpus.report.counts == {"train": 2, "valid": 2, "test": 2}
    assert corpus.splits["valid"][1].id == "vid1$_$1"
    with pytest.raises(DataError, match=r"columns id and text"):
        read_corpus(path, words=str(files.table([row[:1] + row[2:] for row in rows], "video\tstart\tstop\ttext")))


def test_paths_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(DataError, match=r"Check the path of the data"):
            read_corpus(path)

    def closed(self: Path, **_: Any) -> bool:  # root may look everywhere
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", closed)
    with pytest.raises(DataError, match=r"Check the path of the data.*Permission denied"):
        read_corpus(tmp_path)


def test_ur_funny(files: Any) -> None:
    root = files.funny()
    corpus = read_corpus(files.pickle("ur_funny.pkl", root))
    assert corpus.report.counts == {"train": 3, "valid": 3, "test": 3}
    assert corpus.classes == ("no humour", "humour")
    assert (corpus.visual_size, corpus.acoustic_size) == (91, 81)
    example = corpus.splits["train"][1]
    assert (example.id, example.words, example.label, example.aligned) == ("1", ("that", "is", "the", "joke"), 1, True)
    assert isinstance(example.label, int)
    np.testing.assert_array_equal(example.visual, clean(root["train"][1][0][1]))


def iemocap_rows(count: int = 60) -> list[list[Any]]:
    emotions = ["ang", "hap", "exc", "sad", "neu", "fru", "xxx"]
    rows = []
    for k in range(count):
        session, sex = 1 + k % 5, "FM"[k // 5 % 2]
        rows.append([f"Ses0{session}F_impro01_{sex}{k:03d}", emotions[k % 7], "some words"])
    return rows


def test_iemocap_has_four_classes_and_ten_folds(files: Any) -> None:
    rows = iemocap_rows()
    files.table(rows, "id\temotion\ttext")
    whole = read_corpus(files.folder)
    assert "IEMOCAP" in whole.report.source
    assert whole.classes == ("angry", "happy", "sad", "neutral")
    assert list(whole.splits) == ["all"]
    kept = [row for row in rows if row[1] not in ("fru", "xxx")]
    assert whole.report.counts["all"] == len(kept)
    assert sum(whole.report.dropped.values()) == len(rows) - len(kept)
    assert find(whole, rows[1][0]).label == find(whole, rows[2][0]).label == 1  # happy and excited are one class
    for folds in (None, "speaker", "random"):
        tested: list[str] = []
        for fold in range(1, 11):
            corpus = read_corpus(files.folder, folds=folds, fold=fold)
            parts = {split: {e.id for e in examples} for split, examples in corpus.splits.items()}
            assert set(parts) == {"train", "valid", "test"}
            assert sum(map(len, parts.values())) == len(kept)
            tested += parts["test"]
            if folds != "random":
                speakers = {split: {(i[:5], i.rsplit("_", 1)[1][0]) for i in ids} for split, ids in parts.items()}
                assert len(speakers["test"]) == len(speakers["valid"]) == 1
                assert len(speakers["train"]) == 8
                assert not speakers["train"] & (speakers["test"] | speakers["valid"])
        assert sorted(tested) == sorted(row[0] for row in kept)
    with pytest.raises(DataError, match="1 to 10"):
        read_corpus(files.folder, fold=11)


def test_folds_replace_the_splits_of_any_source(files: Any) -> None:
    path = files.pickle("mosi.pkl", files.mag())
    folds = files.folder.parent / "folds.json"
    folds.write_text(json.dumps({"train": ["vidtest"], "dev": ["viddev[0]"], "test": ["vidtrain"]}))
    corpus = read_corpus(path, folds=folds)
    assert corpus.report.counts == {"train": 3, "valid": 1, "test": 3}
    assert sum(corpus.report.dropped.values()) == 2
    assert {e.id for e in corpus.splits["train"]} == {f"vidtest[{k}]" for k in range(3)}
    folds.write_text(json.dumps([{"train": ["vidtest"]}, {"train": ["vidtrain"], "test": ["vidtest"]}]))
    assert read_corpus(path, folds=folds, fold=2).report.counts == {"train": 3, "test": 3}
    for content, fold in (("{", None), ("[]", 1), ('{"train": 3}', None), ('{"train": ["a"], "test": ["a"]}', None)):
        folds.write_text(content)
        with pytest.raises(DataError):
            read_corpus(path, folds=folds, fold=fold)


def test_a_modality_can_be_left_out(files: Any) -> None:
    corpus = read_corpus(files.pickle("mosi.pkl", files.mag()), visual="none")
    assert (corpus.visual_size, corpus.acoustic_size) == (0, 5)
    assert all(e.visual.shape == (0, 0) for e in corpus.splits["train"])


def test_what_is_unknown_is_refused_with_a_list_of_what_is_known(files: Any, tmp_path: Path) -> None:
    cases = [files.pickle("a.pkl", {"some": "thing"}), tmp_path / "nothing.bin", tmp_path / "empty"]
    cases[1].write_bytes(b"\0\1\2")
    cases[2].mkdir()
    for path in cases:
        with pytest.raises(DataError) as error:
            read_corpus(path)
        for known in ("MMSA", "MAG-BERT", "MISA", "MulT", "UR-FUNNY", "csd", "IEMOCAP", "table of segments"):
            assert known in str(error.value)
    with pytest.raises(DataError, match="does not exist"):
        read_corpus(tmp_path / "missing")


def test_files_of_another_shape_than_their_format(files: Any) -> None:
    rows = np.ones((2, 3))
    good = ((["a", "b"], rows, rows), 0.5, "v[0]")
    for bad in (
        ((["a", "b"], rows), 0.5, "v[1]"),
        ((["a", "b"], rows, "text"), 0.5, "v[1]"),
        ((["a", "b"], rows, rows), "positive", "v[1]"),
        ((["a", "b"], rows, np.ones((2, 9))), 0.5, "v[1]"),
        ((["a", {}], rows, rows), 0.5, "v[1]"),
        ((["a", "b"], rows, np.array([None, None])), 0.5, "v[1]"),
        ((["a", "b"], rows, rows), 0.5, "v[0]"),
        (7, 0.5, "v[1]"),
        None,
    ):
        with pytest.raises(DataError):
            read_corpus(files.pickle("mag.pkl", {"train": [good, bad]}))


def test_examples_without_text_or_label_are_dropped_and_counted(files: Any) -> None:
    rows = np.ones((2, 3))
    items = [
        ((["a", "b"], rows, rows), 0.5, "v[0]"),
        (([], rows, rows), 0.5, "v[1]"),
        ((["a", "b"], rows, rows), np.array([[np.nan]]), "v[2]"),
    ]
    report = read_corpus(files.pickle("mag.pkl", {"train": items})).report
    assert report.counts == {"train": 1}
    assert sorted(report.dropped.values()) == [1, 1]
    assert "dropped 1: it has no text" in str(report)


def test_mmsa_trailing_frames_of_zeros_are_frames_where_a_mask_tells_the_length(files: Any) -> None:
    root = files.mmsa(True)
    for key in ("vision", "audio"):
        root["train"][key][0, 3] = 0  # "it was good": the face was not found during the last word
    corpus = read_corpus(files.pickle("data.pkl", root))
    example = corpus.splits["train"][0]
    assert (example.aligned, len(example.visual), len(example.acoustic)) == (True, 3, 3)
    assert not example.visual[2].any()


def test_several_columns_of_labels_need_a_choice(files: Any) -> None:
    rows = np.ones((1, 2))
    path = files.pickle("mag.pkl", {"train": [((["a"], rows, rows), np.arange(7.0)[None], "v[0]")]})
    with pytest.raises(DataError, match="7 columns"):
        read_corpus(path)
    for split, content in files.misa(columns=7).items():
        files.pickle(f"{split}.pkl", content)
    with pytest.raises(DataError, match="7 columns"):
        read_corpus(files.folder)


def test_ids_of_mult_have_three_parts_at_most(files: Any) -> None:
    table = files.table([["train_0", "train", 0, 1, 0, "yes"]])
    for wrong in (np.array([["v", "0", "1", "2"]] * 3), [["v", "0", "1", "2"]] * 3):
        root = files.mult()
        root["train"]["id"] = wrong
        with pytest.raises(DataError, match="more parts"):
            read_corpus(files.pickle("data.pkl", root), words=str(table))


def test_two_files_for_one_split_of_misa_are_refused(files: Any) -> None:
    for split, content in files.misa().items():
        files.pickle(f"{split}.pkl", content)
    files.pickle("valid.pkl", files.misa()["dev"])
    with pytest.raises(DataError, match=r"dev\.pkl, valid\.pkl"):
        read_corpus(files.folder)


@pytest.mark.parametrize("kind", ["mmsa", "mag", "misa", "mult", "funny", "table"])
def test_data_without_labels_can_be_read_for_prediction(kind: str, files: Any) -> None:
    """What has no label, or NaN, is refused or dropped for training, and all there for prediction."""
    rows, words, count = np.ones((2, 3)), None, 1
    path = files.folder / "data.pkl"
    if kind == "mmsa":
        files.pickle("data.pkl", {"test": {"raw_text": ["a b"], "id": ["v_0"], "vision": rows[None]}})
    elif kind == "mag":
        files.pickle("data.pkl", {"test": [((["a", "b"], rows, rows), np.nan, "v_0")]})
    elif kind == "misa":
        for name in ("train", "test"):
            files.pickle(f"{name}.pkl", [(([0, 1], rows, rows, ["a", "b"]), None, f"{name}_0")])
        path, count = files.folder, 2
    elif kind == "mult":
        root = files.mult()
        for part in root.values():
            del part["labels"]
        files.pickle("data.pkl", root)
        words = str(files.table([["vid0_0", "train", 0, 1.5, 0, "yes"]]))
    elif kind == "funny":
        part = ("a joke", np.ones((2, 91)), np.ones((2, 81)), np.ones((2, 4)))
        files.pickle("data.pkl", {"test": [(part, part, 1, None)]})
    else:
        path = files.table([["v_0", "test", 0, 1, 0.5, "a b"]])
    if kind != "table":
        with pytest.raises(DataError):
            read_corpus(path, words=words)
    corpus = read_corpus(path, words=words, labels=False)
    assert sum(corpus.report.counts.values()) == count
    assert [e.label for examples in corpus.splits.values() for e in examples] == [None] * count
    assert not corpus.report.dropped or kind == "mult"
    assert corpus.classes is None


def test_the_embedded_corpus_without_labels() -> None:
    corpus = read_corpus("embedded", labels=False)
    assert {e.label for examples in corpus.splits.values() for e in examples} == {None}


def test_values_of_examples_that_the_folds_leave_out_are_not_counted(files: Any) -> None:
    path, folds = files.pickle("data.pkl", files.mmsa(False)), files.folder.parent / "folds.json"
    folds.write_text(json.dumps({"train": ["vidtrain$_$1", "vidtrain$_$2"]}))
    assert read_corpus(path).report.non_finite
    assert read_corpus(path, folds=folds).report.non_finite == {}
    rows = np.ones((3, 2))
    items = [((["a"], rows, rows), 0.5, f"v[{k}]") for k in range(3)]
    folds.write_text(json.dumps({"train": ["v[1]"]}))
    report = read_corpus(files.pickle("mag.pkl", {"train": items}), folds=folds).report
    assert list(report.tallies.values()) == [1]


@pytest.mark.parametrize("whole", [True, False])
def test_any_file_of_misa_is_the_split_of_its_name(files: Any, whole: bool) -> None:
    root = files.misa()
    path = files.pickle("test.pkl", root["test"])
    if not whole:
        files.pickle("train.pkl", root["train"])
    assert read_corpus(files.folder if whole else path).report.counts == {"test": 3}


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        ("id\tlabel\ttext", ["a\tnan\thi", "b\t1\tyo"]),
        ("id\tlabel\ttext", ["a\tunknown\thi", "b\t1\tyo"]),
        ("id\temotion\ttext", ["Ses01F_impro01_F000\tfru\thi", "Ses01F_impro01_F001\tang\tyo"]),
    ],
)
def test_prediction_does_not_depend_on_the_labels_of_a_table(files: Any, header: str, lines: list[str]) -> None:
    path = files.folder / "segments.tsv"
    path.write_text("\n".join([header, *lines]) + "\n")
    for label in (None, "another"):
        corpus = read_corpus(path, labels=False, label=label)
        assert [(e.words, e.label) for e in corpus.splits["all"]] == [(("hi",), None), (("yo",), None)]
        assert corpus.classes is None


def test_iemocaps_folds_are_those_of_training_in_prediction(files: Any) -> None:
    files.table(iemocap_rows(), "id\temotion\ttext")
    for folds in ("speaker", "random"):
        trained, predicted = (read_corpus(files.folder, folds=folds, fold=2, labels=known) for known in (True, False))
        for split, examples in trained.splits.items():
            assert {e.id for e in predicted.splits[split]} == {e.id for e in examples}


def test_one_csd_file_and_converted_data_are_told_what_to_do(files: Any) -> None:
    path = files.csd("COVAREP", "COVAREP", {"a": (np.ones((2, 2)), [[0, 1], [1, 2]])})
    with pytest.raises(DataError, match="Give the folder"):
        read_corpus(path)
    convert.convert(open_source(files.pickle("mag.pkl", files.mag())), files.folder / "c")
    with pytest.raises(DataError, match="already converted"):
        open_source(files.folder / "c")
