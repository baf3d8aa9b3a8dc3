"""``predict CHECKPOINT VIDEO``: from a video to scores, with the extraction that the model was trained with."""

import csv
import io
import json
from pathlib import Path

import pytest

pytest.importorskip("av")

from cmsbert_fast.extract import ExtractOptions, extract
from cmsbert_fast.predict import main
from cmsbert_fast.predict_videos import videos_among
from cmsbert_fast.training.runs import main as train
from tests.page.content import write_clip
from tests.training.test_predict_page import content

CUES = ("the film was good", "dull and bad", "the plot was not dull", "very good", "bad plot", "the film was dull")
OPTIONS = ["--no-align", "--no-face"]


def write_transcript(path: Path) -> Path:
    """Cues of half a second each."""
    at = [f"00:00:0{k // 2},{500 * (k % 2):03d}" for k in range(len(CUES) + 1)]
    path.write_text("\n".join(f"{k + 1}\n{at[k]} --> {at[k + 1]}\n{cue}\n" for k, cue in enumerate(CUES)))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a video of four seconds and its transcript."""
    folder = tmp_path_factory.mktemp("made")
    write_clip(folder / "clip.webm")
    write_transcript(folder / "clip.srt")
    return folder


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory, bert) -> Path:
    """A model of the voice, trained on the video's own segments."""
    out = tmp_path_factory.mktemp("trained")
    options = ExtractOptions(transcript=made / "clip.srt", align=False, face=False, progress=False)
    assert extract([made / "clip.webm"], out / "data", options).segments == len(CUES)
    table = out / "data" / "segments.tsv"
    header, *rows = table.read_text().splitlines()
    splits = ("train", "valid", "test") * 2
    rows = [f"{row}\t{split}\t{k / 2 - 1}" for k, (row, split) in enumerate(zip(rows, splits, strict=True))]
    table.write_text("\n".join([f"{header}\tsplit\tlabel", *rows]) + "\n")
    arguments = ["--data", out / "data", "--model", bert, "--epochs", 1, "--batch-size", 4, "--output", out / "run"]
    assert train([str(a) for a in arguments], embedded_config=Path("none")) == 0
    return next((out / "run").glob("*/seed-0"))


@pytest.fixture
def predict(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return main([str(a) for a in arguments]), *capsys.readouterr()

    return run


def test_a_video_is_extracted_and_scored(predict, trained, made, tmp_path) -> None:
    renamed = tmp_path / "clip.data"  # by its content, not by its name
    renamed.write_bytes((made / "clip.webm").read_bytes())
    options = ["--transcript", made / "clip.srt", *OPTIONS]
    status, out, err = predict(trained, renamed, *options, "--page", tmp_path / "p.html")
    assert status == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["id", "start", "stop", "prediction"]
    assert [(row["start"], row["stop"]) for row in rows[:2]] == [("0.000", "0.500"), ("0.500", "1.000")]
    folder = tmp_path / "p-features"
    assert f"extracting 1 video into {folder}" in err
    assert "1 videos, 0.1 minutes, 6 segments" in err  # the summary of the extraction
    found = content(tmp_path / "p.html")
    assert found["media"] == [{"name": "clip.data", "url": "./clip.data"}]
    assert found["features"]["acoustic"]["units"][0] == "Hz, 0 where unvoiced"
    assert found["segments"][0]["frames"]["acoustic"]["count"] == 50  # a hundred a second
    # The features alone have the same scores; there, the recording is found by what the folder says.
    status, again, _ = predict(trained, folder, "--page", tmp_path / "q.html")
    assert status == 0
    assert [row["prediction"] for row in csv.DictReader(io.StringIO(again))] == [row["prediction"] for row in rows]
    assert content(tmp_path / "q.html")["media"] == found["media"]
    status, more, err = predict(trained, renamed, *options, "--output", tmp_path / "p.csv")  # extracted before
    assert (status, more) == (0, "")
    assert "1 were extracted before" in err
    other = tmp_path / "other.webm"
    other.write_bytes(renamed.read_bytes())
    status, more, err = predict(trained, other, *options, "--output", tmp_path / "p.tsv")
    assert (status, more) == (2, "")
    assert f"{folder} has features of other videos (clip), which would be scored, too" in err
    assert (tmp_path / "p.csv").read_text() == out


def test_without_an_output_features_go_to_a_folder_that_is_said(predict, trained, made, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, _, err = predict(trained, made / "clip.webm", "--transcript", made / "clip.srt", *OPTIONS)
    assert status == 0
    (folder,) = tmp_path.glob("cmsbert-features-*")
    assert f"extracting 1 video into {folder}" in err


def test_a_table_is_no_stream_of_packets(tmp_path) -> None:
    table, stream = tmp_path / "a.csv", tmp_path / "a.ts"
    table.write_bytes((b"G" + b"," * 187) * 2 + b"1\n" * 500)
    stream.write_bytes((b"G" + b"\0" * 187) * 4)
    assert videos_among([str(table)]) == []
    assert videos_among([str(stream)]) == [stream]


def test_users_errors(predict, trained, made, tmp_path, corpus_folder, bert) -> None:
    clip, table = made / "clip.webm", corpus_folder / "segments.tsv"
    (tmp_path / "empty.srt").write_text("")
    arguments = [
        "--data",
        corpus_folder,
        "--model",
        bert,
        "--epochs",
        1,
        "--batch-size",
        9,
        "--output",
        tmp_path / "run",
    ]
    assert train([str(a) for a in arguments], embedded_config=Path("none")) == 0
    released = next((tmp_path / "run").glob("*/seed-0"))
    for given, message in (
        ([trained, clip], "Say where the words come from: --transcript"),
        ([trained, clip, table], f"only videos: {table} is not a readable video"),
        ([trained, clip, made / "no.mp4"], "no.mp4 is not a readable video"),
        ([trained, made / "no.mp4"], "does not exist"),
        ([trained, corpus_folder, "--no-face"], "Leave out the options of extraction"),
        ([trained, clip, "--transcript", tmp_path / "empty.srt", *OPTIONS], "no video has a segment"),
        ([trained, clip, "--transcript", made / "clip.srt", *OPTIONS, "--split", "test"], "Leave out --split: videos"),
        (
            [trained, clip, "--transcript", made / "clip.srt", "--language", "de"],
            "Leave out --language",
        ),
        ([released, clip, "--transcript", made / "clip.srt", *OPTIONS], "a model of released COVAREP or FACET"),
    ):
        status, out, err = predict(*given)
        assert (status, out) == (2, "")
        assert message in err.splitlines()[-1]


def test_features_of_another_extraction_are_refused(predict, trained, made, tmp_path) -> None:
    options = ["--transcript", made / "clip.srt", *OPTIONS, "--page", tmp_path / "p.html"]
    path = trained / "best" / "processor_config.json"
    processor = json.loads(path.read_text())
    altered = {**processor, "extraction": {"acoustic": "0dd5" * 16}}
    path.write_text(json.dumps(altered))
    status, out, err = predict(trained, made / "clip.webm", *options)
    path.write_text(json.dumps(processor))
    assert (status, out) == (2, "")
    assert "extract the training videos with the same command" in err.splitlines()[-1]
    assert not (tmp_path / "p.html").exists()
