"""Tables of segments with streams."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, read_corpus
from cmsbert_fast.data.example import Alignment
from cmsbert_fast.data.streams import segment_reader
from cmsbert_fast.data.untrusted import limits
from tests.data.sources import ROWS

WORDS = "ModifiedTimestampedWords"


def test_real_mosi(mosi_folder: Path) -> None:
    corpus = read_corpus(mosi_folder)
    assert corpus.report.counts == {"train": 1284, "valid": 229, "test": 686}
    assert (corpus.visual_size, corpus.acoustic_size, corpus.classes) == (0, 73, None)
    assert all(len(e.acoustic) == 1 and len(e.visual) == 0 for part in corpus.splits.values() for e in part)
    first = corpus.splits["train"][0]
    assert (first.id, first.label, first.alignment) == ("03bSnISJMiM_11", -0.5, Alignment.NONE)
    assert first.words == ("A", "LOT", "OF", "SAD", "PARTS")


def test_real_mosi_averaged_per_word(mosi_folder: Path) -> None:
    corpus = read_corpus(mosi_folder, words=WORDS)
    assert corpus.report.counts == {"train": 1284, "valid": 229, "test": 686}
    for examples in corpus.splits.values():
        for example in examples:
            assert example.alignment is Alignment.WORDS
            assert example.acoustic.shape == (len(example.words), 73)
    missing = corpus.report.tallies["words are not in the word stream; their times were interpolated"]
    assert missing < 100  # of 27,540 words; the README says that 245 segments are not cut to the word


def test_the_standard_folds_are_the_tables_splits(mosi_folder: Path, folds_folder: Path) -> None:
    own, standard = read_corpus(mosi_folder), read_corpus(mosi_folder, folds=folds_folder / "mosi.json")
    for split in own.splits:
        assert {e.id for e in own.splits[split]} == {e.id for e in standard.splits[split]}


def test_real_mosi_from_its_streams_alone(mosi_folder: Path, folds_folder: Path, tmp_path: Path) -> None:
    for file in mosi_folder.glob("*.csd"):
        (tmp_path / file.name).symlink_to(file)
    corpus = read_corpus(tmp_path, folds=folds_folder / "mosi.json")
    assert corpus.report.counts == {"train": 1284, "valid": 229, "test": 686}
    assert corpus.acoustic_size == 73
    assert all(
        e.alignment is Alignment.WORDS and len(e.acoustic) == len(e.words)
        for part in corpus.splits.values()
        for e in part
    )


@pytest.mark.parametrize("name", ["mosei.json", "pom.json"])
def test_the_other_standard_folds_are_read(folds_folder: Path, name: str, files: Any) -> None:
    splits = json.loads((folds_folder / name).read_text())
    files.table([[f"{ids[0]}_1", "x", 0, 1, 0.5, "hello"] for ids in splits.values()])
    corpus = read_corpus(files.folder, folds=folds_folder / name)
    assert corpus.report.counts == dict.fromkeys(("train", "valid", "test"), 1)


def test_streams_of_one_modality_are_joined_on_the_first_ones_frames(files: Any) -> None:
    files.table(ROWS[:1])
    times = np.array([[0, 1], [1, 2], [2, 3.0]])
    fine = np.stack([np.arange(30) / 10, np.arange(1, 31) / 10], axis=1)
    files.csd("COVAREP", "COVAREP", {"v1": (np.array([[1], [2], [3.0]]), times)})
    files.csd("openSMILE", "openSMILE", {"v1": (np.arange(30.0)[:, None], fine)})
    (example,) = read_corpus(files.folder, acoustic=["COVAREP", "openSMILE"]).splits["train"]
    np.testing.assert_allclose(example.acoustic, [[1, 4.5], [2, 14.5]])


def test_a_stream_serves_once(files: Any) -> None:
    """Else its features would be there twice."""
    files.table(ROWS[:1])
    files.csd("COVAREP", "COVAREP", {"v1": (np.array([[1.0]]), np.array([[0.0, 3.0]]))})
    for chosen in ({"acoustic": ["COVAREP", "covarep"]}, {"visual": "COVAREP", "acoustic": "COVAREP"}):
        with pytest.raises(
            DataError, match=r"Name the stream COVAREP\.csd once: it is one of (acoustic|visual) already"
        ):
            read_corpus(files.folder, **chosen)


def test_a_joined_stream_without_a_frame_at_a_time_is_counted(files: Any) -> None:
    """Its features are 0 there, as those of words without a frame are."""
    files.table(ROWS[:1])
    times = np.array([[0, 1], [1, 2], [2, 3.0]])
    files.csd("COVAREP", "COVAREP", {"v1": (np.array([[1], [2], [3.0]]), times)})
    files.csd("openSMILE", "openSMILE", {"v1": (np.array([[7.0]]), times[:1])})
    corpus = read_corpus(files.folder, acoustic=["COVAREP", "openSMILE"])
    np.testing.assert_allclose(corpus.splits["train"][0].acoustic, [[1, 7], [2, 0]])
    assert "1 frames of COVAREP have none of openSMILE at their time; its features are 0 there" in str(corpus.report)


def test_of_columns_that_could_be_the_same_the_report_names_the_one_that_is_read(files: Any) -> None:
    table = files.folder / "segments.csv"
    table.write_text("id,split,text,transcript,emotion,sentiment\na,train,so good,x y,happy,1.5\n")
    corpus = read_corpus(files.folder)
    assert (corpus.splits["train"][0].label, corpus.splits["train"][0].words) == (1.5, ("so", "good"))
    report = str(corpus.report)
    assert "each label is read from the column sentiment, not from emotion; --label chooses another" in report
    assert "each text is read from the column text, not from transcript" in report
    report = str(read_corpus(files.folder, label="emotion").report)
    assert "not from emotion" not in report
    assert "each text is read" in report
    report = str(read_corpus(files.folder, labels=False).report)
    assert "not from emotion" not in report
    assert "each text is read" in report


def test_a_file_of_folds_that_names_a_split_twice_is_refused(files: Any) -> None:
    """Python would keep the second and drop the ids of the first."""
    files.table(ROWS[:1])
    folds = files.folder / "folds.json"
    folds.write_text('{"train": ["v1"], "test": [], "train": ["v2"]}')
    with pytest.raises(DataError, match="a split is named twice"):
        read_corpus(files.folder, folds=folds)


def test_words_of_a_stream_align_the_tables_text(files: Any) -> None:
    files.table([["v1_0", "train", 0.0, 4.0, 1.5, "SO GOOD Yeah"]])
    times = np.array([[0, 1], [1, 2], [2, 3], [3, 4.0]])
    words = np.array([[b"so"], [b"sp"], [b"good"], [b"yeah"]])
    files.csd("TimestampedWords", "words", {"v1": (words, times)})
    files.csd(
        "COVAREP", "COVAREP", {"v1": (np.arange(8.0)[:, None], np.stack([np.arange(8) / 2, np.arange(1, 9) / 2], 1))}
    )
    cut = read_corpus(files.folder).splits["train"][0]
    assert (cut.alignment, len(cut.acoustic)) == (Alignment.NONE, 8)
    averaged = read_corpus(files.folder, words="TimestampedWords").splits["train"][0]
    assert (averaged.alignment, averaged.words) == (Alignment.WORDS, ("SO", "GOOD", "Yeah"))
    np.testing.assert_array_equal(averaged.acoustic, [[0.5], [4.5], [6.5]])


def test_more_words_than_can_be_paired(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files.table([["v_1", "train", 0, 9, 1, "so good"]])
    words = np.array([[b"so"], [b"good"], [b"so"]]), [[0, 1], [1, 2], [2, 3]]
    files.csd("words", "words", {"v": words})
    monkeypatch.setattr(segment_reader, "MOST_PAIRS", 5)
    with pytest.raises(DataError, match=r"Cut 'v_1' into shorter segments: it has 2 words, .* 3 of words\."):
        read_corpus(files.folder, words="words")


@pytest.mark.parametrize("words", [None, "words"])
def test_a_small_table_of_a_long_video_is_no_bomb(
    files: Any, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FLOOR", 1 << 20)
    files.table([[f"v_{k}", "all", 0, 200_000, 1, "a"] for k in range(1000)])
    frames = np.zeros((200_000, 1), dtype="i1"), np.arange(200_000)[:, None] + [0.0, 1.0]
    files.csd("COVAREP", "COVAREP", {"v": frames}, compression="gzip", compression_opts=9, shuffle=True)
    files.csd("words", "words", {"v": (np.array([[b"a"]]), [[0, 200_000]])})
    assert sum(path.stat().st_size for path in files.folder.iterdir()) < 130_000
    with pytest.raises(DataError, match="many times larger"):
        read_corpus(files.folder, words=words)


def test_tables_of_every_kind(files: Any) -> None:
    path = files.folder / "my data.csv"
    path.write_text('\ufeffID;Mode;Label;Text\na;train;1;"semi; colon"\nb;test;-1;two words\n', encoding="utf-8")
    corpus = read_corpus(path)
    assert corpus.splits["train"][0].words == ("semi;", "colon")
    assert corpus.report.counts == {"train": 1, "test": 1}
    assert read_corpus(files.folder).report.counts == corpus.report.counts
    path.write_text("id,text,mood,score\na,hello,glad,0.5\nb,hi,sad,1\nc,ho,glad,\n")
    named = read_corpus(path, label="mood")
    assert named.classes == ("glad", "sad")
    assert [e.label for e in named.splits["all"]] == [0, 1, 0]
    assert [e.label for e in read_corpus(path, label="score").splits["all"]] == [0.5, 1.0, None]
    assert [e.label for e in read_corpus(path).splits["all"]] == [None] * 3
    path.write_text('id\ttext\na\tsay "hi\n'.replace("\t", "\t"))
    path.rename(path.with_suffix(".tsv"))
    assert read_corpus(files.folder).splits["all"][0].words == ("say", '"hi')


def test_several_columns_are_several_labels_at_once(files: Any) -> None:
    path = files.folder / "emotions.csv"
    path.write_text("id,text,happy,sad,note\na,hello,0.5,0,x\nb,hi,0,3,x\nc,ho,,0,x\nd,hm,0,0,x\n")
    corpus = read_corpus(path, label="sad,happy")
    assert (corpus.classes, corpus.several) == (("sad", "happy"), True)
    assert [e.label for e in corpus.splits["all"]] == [(0, 1), (1, 0), None, (0, 0)]
    bare = read_corpus(path, label="sad,happy", labels=False)
    assert (bare.classes, bare.several, bare.splits["all"][0].label) == (None, False, None)
    assert [e.label for e in read_corpus(path, label="sad").splits["all"]] == [0.0, 3.0, 0.0, 0.0]
    for label, message in (("sad,angry", "'angry' is not among"), ("sad,note", "0 where absent: line 2")):
        with pytest.raises(DataError, match=message):
            read_corpus(path, label=label)


def test_mmsas_own_table(files: Any) -> None:
    (files.folder / "label.csv").write_text(
        "video_id,clip_id,text,label,annotation,mode\nabc,3,HI YOU,-1.0,Negative,train\n"
    )
    (example,) = read_corpus(files.folder).splits["train"]
    assert (example.id, example.words, example.label) == ("abc$_$3", ("HI", "YOU"), -1.0)


def test_transcripts_may_be_files(files: Any) -> None:
    (files.folder / "segments.csv").write_text("id,split,label\na,train,1\nb,train,2\n")
    with pytest.raises(DataError, match="text"):
        read_corpus(files.folder)
    (files.folder / "transcripts").mkdir()
    (files.folder / "transcripts" / "a.txt").write_text("it was\ngood", encoding="utf-8")
    with pytest.raises(DataError, match=r"b\.txt"):
        read_corpus(files.folder)
    (files.folder / "transcripts" / "b.txt").write_text("bad", encoding="utf-8")
    assert read_corpus(files.folder).splits["train"][0].words == ("it", "was", "good")
    (files.folder / "secret.txt").write_text("not yours")
    (files.folder / "segments.csv").write_text("id,split,label\n../secret,train,1\n")
    with pytest.raises(DataError, match="secret"):
        read_corpus(files.folder)


def test_a_column_of_folds(files: Any) -> None:
    rows = [[f"u{k}", k % 10, 0.5 * k, "word"] for k in range(40)]
    files.table(rows, "id\tfold\tlabel\ttext")
    corpus = read_corpus(files.folder, fold=10)
    parts = {split: {int(e.id[1:]) % 10 for e in examples} for split, examples in corpus.splits.items()}
    assert parts == {"train": set(range(1, 9)), "valid": {0}, "test": {9}}
    with pytest.raises(DataError, match="1 to 10"):
        read_corpus(files.folder, fold=11)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "header"),
        ("id,text\n", "only"),
        ("name_of_it,words\na,b\n", "columns id and text"),
        ("id,text\na,b,c\n", "line 2 has 3"),
        ("id,text\n,b\n", "line 2"),
        ("id,text,label\na,b,1\nc,d,good\n", "all numbers or all names"),
        ("id,text,start,stop\na,b,soon,later\n", "seconds"),
        ("id,text\na,b\na,c\n", "twice"),
        ("id,text\na,\n", "no text"),
        ("id,text,label\na,b,1\nc,d,inf\n", "line 3"),
        ("id,text,label\na,b,NaN\n", "line 2"),
        ("id;text;label\na;b;-1,5\n", "decimal point: line 2"),
        ("id,split,split,text\na,train,test,b\n", "'split' occurs twice"),
        ("id,text,start,end\na,b,5,2\n", "line 2 of segments.csv has 5 to 2"),
        ('id,text\na,b\nc,"d\ne,f\n', "beyond line"),
    ],
)
def test_errors_in_tables_say_what_to_do(files: Any, content: str, message: str) -> None:
    path = files.folder / "segments.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_corpus(path)
    path.write_bytes(b"id,text\na,\xff\xfe\n")
    with pytest.raises(DataError, match="segments"):
        read_corpus(path)


def test_the_label_column_must_exist(files: Any) -> None:
    files.table(ROWS)
    with pytest.raises(DataError, match="'mood' is not among id, split"):
        read_corpus(files.folder, label="mood")


def test_a_segment_without_frames_is_counted(files: Any) -> None:
    files.table(ROWS[:2])
    (files.folder / "audio").mkdir()
    np.save(files.folder / "audio" / "v1_0.npy", np.ones((2, 3)))
    corpus = read_corpus(files.folder)
    assert corpus.splits["valid"][0].acoustic.shape == (0, 3)
    assert "1 examples have no acoustic frame" in str(corpus.report)


def test_words_without_a_frame_are_counted(files: Any) -> None:
    files.table([["t_0", "train", 0, 4, 1, "a b c d"]])
    files.csd("words", "words", {"t": (np.array([[b"a"], [b"b"], [b"c"], [b"d"]]), [[k, k + 1] for k in range(4)])})
    times = np.arange(10)[:, None] / 10 + [0, 0.1]
    files.csd("COVAREP", "COVAREP", {"t": (np.ones((10, 2)), times)})
    corpus = read_corpus(files.folder, words="words")
    np.testing.assert_array_equal(corpus.splits["train"][0].acoustic[:, 0], [1, 0, 0, 0])
    assert "3 words have no acoustic frame; theirs are zeros" in str(corpus.report)
    files.csd("COVAREP", "COVAREP", {"t": (np.ones((10, 2)), times + 100)})
    with pytest.raises(DataError, match="COVAREP"):
        read_corpus(files.folder, words="words")


@pytest.mark.parametrize("start", [0, 1000])
def test_a_stream_that_no_example_meets_is_refused(files: Any, start: int) -> None:
    files.table([["t_0", "train", start, start + 2, 1, "so good"]])
    (files.folder / "audio").mkdir()
    np.save(files.folder / "audio" / f"{'t' if start else 'another'}.npy", np.ones((20, 2)))
    with pytest.raises(DataError, match="audio by ids"):
        read_corpus(files.folder, acoustic="audio@10")
    assert read_corpus(files.folder, acoustic="none").acoustic_size == 0


def test_a_table_that_has_all_words_of_a_video_looked_through_is_no_bomb(
    files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FLOOR", 1 << 23)
    files.table([[f"v_{k}", "all", 0, 1, 1, "a"] for k in range(8000)])
    times = np.arange(20_000)[:, None] * [0.0, 0.0] + [5.0, 6.0]
    files.csd("words", "words", {"v": (np.full((20_000, 1), b"a"), times)}, compression="gzip", compression_opts=9)
    with pytest.raises(DataError, match="many times larger"):
        read_corpus(files.folder, words="words", acoustic="none")
    files.table([["v_0", "all", 0, 1, 1, "a"]])
    assert len(read_corpus(files.folder, words="words", acoustic="none").splits["all"]) == 1


def test_frames_that_are_not_averaged_tell_their_words(files: Any) -> None:
    """A frame of half a second each; "so" is said from 0 to 1, "good" from 2 to 3.2, and "yeah" from 3.2 on."""
    files.table([["v1_0", "train", 0.0, 4.0, 1.5, "SO GOOD Yeah"]])
    words = np.array([[b"so"], [b"sp"], [b"good"], [b"yeah"]])
    files.csd("TimestampedWords", "words", {"v1": (words, np.array([[0, 1], [1, 2], [2, 3.2], [3.2, 4.0]]))})
    steps = np.stack([np.arange(9) / 2, np.arange(1, 10) / 2], 1)
    files.csd("COVAREP", "COVAREP", {"v1": (np.arange(9.0)[:, None], steps)})
    corpus = read_corpus(files.folder, words="TimestampedWords", average_words=False)
    (example,) = corpus.splits["train"]
    assert (example.alignment, example.words) == (Alignment.NONE, ("SO", "GOOD", "Yeah"))
    np.testing.assert_array_equal(example.acoustic, np.arange(8.0)[:, None])  # as without words
    assert example.frame_words is not None
    assert example.frame_words.acoustic.tolist() == [0, 0, -1, -1, 1, 1, 2, 2]
    assert example.frame_words.visual.tolist() == []
    what = "of the acoustic frames lie between words; word-level systems leave them out"
    assert corpus.report.tallies == {what: 2}
    alone = read_corpus(files.folder, words="TimestampedWords", average_words=False, acoustic="none")
    assert alone.splits["train"][0].frame_words.acoustic.tolist() == []


def test_frames_tell_no_words_without_times(files: Any) -> None:
    files.table([["v1_0", "train", 0.0, 4.0, 1.5, "SO GOOD Yeah"]])
    (files.folder / "audio").mkdir()
    np.save(files.folder / "audio" / "v1_0.npy", np.ones((4, 2)))
    with pytest.raises(DataError, match="Name a stream of words with --words"):
        read_corpus(files.folder, average_words=False)
    files.csd("TimestampedWords", "words", {"v1": (np.array([[b"so"]]), np.array([[0, 1]]))})
    with pytest.raises(DataError, match="Give the acoustic frames of v1_0 times"):
        read_corpus(files.folder, average_words=False, words="TimestampedWords")
    found = read_corpus(files.folder, average_words=False, words="TimestampedWords", acoustic="audio@1")
    assert found.splits["train"][0].frame_words.acoustic.tolist() == [0, 1, 2, 2]  # from 1, 2.5
