"""What ``extraction.json`` says of features, from the folder to the corpus, and when everything is in the recording."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, DataRequest, convert, open_source, read_corpus
from cmsbert_fast.data.example import Alignment, Extraction
from cmsbert_fast.data.extraction import recordings
from cmsbert_fast.data.open import clock_of
from tests.data.extracted import COLUMNS, FINGERPRINT, write_extracted

VISUAL = Extraction(FINGERPRINT, ("roll", "smile", "brow"), ("degrees", "", ""))


def altered(folder: Path, **changes: Any) -> Path:
    path = folder / "extraction.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_a_corpus_knows_its_extraction(tmp_path: Path) -> None:
    folder = write_extracted(tmp_path / "data")
    corpus = read_corpus(folder, labels=False)
    assert corpus.extraction == {"visual": VISUAL, "acoustic": Extraction(FINGERPRINT, ("f0", "voicing"), ("Hz", ""))}
    assert "extracted from video: visual, acoustic (fingerprint 5eed5eed5eed)" in str(corpus.report)
    assert list(read_corpus(folder, labels=False, visual="none").extraction) == ["acoustic"]
    assert read_corpus(write_extracted(tmp_path / "other", fingerprint=None), labels=False).extraction == {}


def test_streams_of_other_origin_in_the_same_folder_have_none(tmp_path: Path) -> None:
    folder = write_extracted(tmp_path / "data")
    (folder / "voice").rename(folder / "covarep")
    assert list(read_corpus(folder, labels=False).extraction) == ["visual"]


def test_the_converted_form_keeps_it(tmp_path: Path) -> None:
    folder = write_extracted(tmp_path / "data", labels=True)
    convert.convert(open_source(folder), tmp_path / "converted")
    assert read_corpus(tmp_path / "converted").extraction == read_corpus(folder).extraction
    assert list(read_corpus(tmp_path / "converted", visual="none").extraction) == ["acoustic"]
    assert folder / "extraction.json" in open_source(folder).files  # another one is another source
    manifest = json.loads((tmp_path / "converted" / "manifest.json").read_text())
    manifest["extraction"]["visual"]["fingerprint"] = 5
    (tmp_path / "converted" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="damaged"):
        read_corpus(tmp_path / "converted")


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "no hexadecimal"},
        {"fingerprint": None},
        {"columns": ["f0"]},
        {"columns": {"visual": ["a", 1, "b"], "acoustic": COLUMNS["acoustic"]}},
        {"units": {"visual": {"roll": 3}, "acoustic": {}}},
        {"units": {}},
        {"units": None},
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = altered(write_extracted(tmp_path / "data"), **changes)
    with pytest.raises(DataError, match=r"extraction\.json is damaged"):
        read_corpus(folder, labels=False)


def test_recordings_are_found_from_the_folder_wherever_the_command_runs(tmp_path: Path, monkeypatch) -> None:
    folder = write_extracted(tmp_path / "one" / "data")
    for place in ("videos", "one", "elsewhere/videos"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "clip.mp4").touch()
    altered(folder, videos={"clip": {"file": "../../videos/clip.mp4"}})
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert recordings(folder)["clip"].samefile(tmp_path / "videos" / "clip.mp4")
    (tmp_path / "videos" / "clip.mp4").unlink()
    assert recordings(folder)["clip"].samefile(tmp_path / "one" / "clip.mp4")


def test_features_that_are_not_those_of_the_file_are_an_error(tmp_path: Path) -> None:
    folder = altered(write_extracted(tmp_path / "data"), columns={**COLUMNS, "visual": ["roll"]})
    with pytest.raises(DataError, match=r"face has a feature 'smile', which extraction\.json does not name"):
        read_corpus(folder, labels=False)


def test_the_fingerprint_is_of_the_columns_that_are_read(tmp_path: Path) -> None:
    folder = write_extracted(tmp_path / "data")
    every, some, others = (read_corpus(folder, labels=False, columns=c).extraction for c in (None, "r*,brow", "smile"))
    assert some["visual"][1:] == (("roll", "brow"), ("degrees", ""))
    assert some["acoustic"] == every["acoustic"]  # no column of the voice was chosen: all of them are read
    prints = [found["visual"].fingerprint for found in (every, some, others)]
    assert len(set(prints)) == 3
    assert prints[1] == read_corpus(folder, labels=False, columns="roll,brow").extraction["visual"].fingerprint


def test_a_file_that_is_no_file_or_endless_is_an_error(tmp_path: Path) -> None:
    folder = write_extracted(tmp_path / "data")
    (folder / "extraction.json").unlink()
    (folder / "extraction.json").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="not a regular file"):
        read_corpus(folder, labels=False)


def test_examples_keep_their_times_where_they_are_wanted(tmp_path: Path) -> None:
    folder = write_extracted(tmp_path / "data")
    plain, timed = (read_corpus(folder, labels=False, clocks=clocks).splits["all"] for clocks in (False, True))
    for one, other in zip(plain, timed, strict=True):
        assert one.clock is None
        assert other.clock is not None
        assert other.alignment is Alignment.NONE
        for modality in ("visual", "acoustic"):  # the same frames: times alone average nothing
            np.testing.assert_array_equal(getattr(one, modality), getattr(other, modality))
            assert getattr(other.clock, modality).shape == (len(getattr(other, modality)), 2)
        assert replace(other, clock=None, visual=one.visual, acoustic=one.acoustic).words == one.words
    second = timed[1].clock
    assert (second.video, second.span) == ("clip", (2.2, 5.0))
    np.testing.assert_allclose(second.words[:, 0], 2.2 + 0.4 * np.arange(7))
    np.testing.assert_allclose(second.visual[[0, -1]], [[2.2, 2.3], [4.9, 5.0]], atol=1e-6)


def test_times_of_frames_that_are_averaged_are_those_of_their_words(tmp_path: Path) -> None:
    folder = write_extracted(tmp_path / "data")
    (example, _) = read_corpus(folder, labels=False, clocks=True, words="words").splits["all"]
    assert example.alignment is Alignment.WORDS
    np.testing.assert_array_equal(example.clock.visual, example.clock.words)


def test_times_of_one_example_are_read_later(tmp_path: Path) -> None:
    """Those that reading all with times gives; none where the data are gone, changed, converted or without times."""
    folder = write_extracted(tmp_path / "data", splits=("train", "test"))
    request = DataRequest.of(folder, labels=False)
    example = read_corpus(request).splits["test"][0]
    (timed,) = read_corpus(request, clocks=True).splits["test"]
    found = clock_of(request, example)
    assert found[:2] == timed.clock[:2]
    for one, other in zip(found[2:], timed.clock[2:], strict=True):
        np.testing.assert_array_equal(one, other)
    assert clock_of(request, replace(example, visual=example.visual[1:])) is None
    assert clock_of(request, replace(example, id="clip_7")) is None
    assert clock_of(DataRequest(), example) is None
    convert.convert(open_source(folder, labels=False), tmp_path / "converted")
    assert clock_of(DataRequest.of(tmp_path / "converted", labels=False), example) is None
    shutil.rmtree(folder)
    assert clock_of(request, example) is None


def test_times_of_one_example_need_no_other_video(tmp_path: Path) -> None:
    folder = write_extracted(tmp_path / "data")
    table = folder / "segments.tsv"
    table.write_text(table.read_text() + "a_0\ta\tall\t0\t1\tgood\n")
    for stream in ("face", "voice"):
        shutil.copy(folder / stream / "clip.csv", folder / stream / "a.csv")  # names are those of the first file
    request = DataRequest.of(folder, labels=False)
    *_, example = read_corpus(request).splits["all"]
    for stream in ("face", "voice"):
        with (folder / stream / "clip.csv").open("a") as file:
            file.write("damaged\n")
    with pytest.raises(DataError):
        read_corpus(request)
    assert clock_of(request, example).span == (0.0, 1.0)


def test_a_video_without_word_times_keeps_its_segments(tmp_path: Path) -> None:
    folder = write_extracted(tmp_path / "data")
    table = folder / "segments.tsv"
    table.write_text(table.read_text().replace("\tclip\t", "\tother\t"))
    for stream in ("face", "voice"):
        (folder / stream / "clip.csv").rename(folder / stream / "other.csv")
    examples = read_corpus(folder, labels=False, clocks=True).splits["all"]
    assert [example.clock.words for example in examples] == [None, None]
    assert examples[0].clock.video == "other"
