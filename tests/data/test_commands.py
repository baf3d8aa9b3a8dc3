"""``python -m cmsbert_fast.data``."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, convert, open_source, read_corpus
from cmsbert_fast.data.__main__ import main
from tests.data.sources import altered, write


def half_a_picture(_: Any, path: Path, **__: Any) -> None:
    Path(path).write_bytes(b"half")
    raise OSError("the disk is full")


def test_commands(
    files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("segments", files)
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    for part in ("2 train, 1 valid, 1 test", "acoustic: 5 features, 40 frames", "2.0 words an example", "labels"):
        assert part in said
    assert main(["convert", str(path), str(tmp_path / "c")]) == 0
    picture = tmp_path / "one.png"
    assert main(["inspect", str(tmp_path / "c"), "--picture", str(picture), "--id", "v_2"]) == 0
    assert "drew v_2" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    before = sorted(tmp_path.iterdir())
    picture.write_bytes(b"an older picture")
    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", half_a_picture)
        assert main(["inspect", str(tmp_path / "c"), "--picture", str(picture)]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert picture.read_bytes() == b"an older picture"
    assert sorted(tmp_path.iterdir()) == before  # and nothing else is left
    for wrong in (
        ["inspect", str(tmp_path / "missing")],
        ["inspect", str(path), "--visual", "nothing"],
        ["inspect", str(path), "--picture", str(picture), "--id", "nobody"],
        ["inspect", str(path), "--id", "v_2"],
        ["inspect", str(path), "--picture", str(tmp_path / "one.what")],
        ["convert", str(path), str(tmp_path / "c")],
    ):
        code = main(wrong)
        error = capsys.readouterr().err
        assert code == 2
        assert len(error.strip().splitlines()) == 1


def test_pictures_of_ids_and_words_that_look_like_formulas_or_are_long(
    files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "one.png"
    assert main(["inspect", str(files.pickle("mmsa.pkl", files.mmsa(True))), "--picture", str(picture)]) == 0
    assert "drew vidtrain$_$0" in capsys.readouterr().out
    words = ["$5_", "\\frac$", "z" * 5000] * 300
    rows = np.ones((len(words), 2))
    path = files.pickle("mag.pkl", {"train": [((words, rows, rows), 0.5, "x$_$" * 1000)]})
    assert main(["inspect", str(path), "--picture", str(picture)]) == 0
    assert len(picture.read_bytes()) < 1_000_000


def test_what_a_file_says_is_text_and_no_command_of_the_terminal(
    files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")

    def split(entry: dict[str, Any]) -> None:
        entry["split"] = {"train": "x\udc80"}.get(entry["split"], entry["split"])
        entry["words"] = [word + "\ud800" for word in entry["words"]]

    def manifest(entry: dict[str, Any]) -> None:
        entry["report"]["counts"]["x\udc80"] = entry["report"]["counts"].pop("train")
        entry["report"]["notes"] = ["\x1b[31mred\x07"]

    altered(tmp_path / "c", "examples.jsonl", split)
    altered(tmp_path / "c", "manifest.json", manifest)
    assert main(["inspect", str(tmp_path / "c")]) == 0
    said = capsys.readouterr().out
    assert "?[31mred?" in said
    assert "x\ufffd" in said
    assert {e.words[0][-1] for e in read_corpus(tmp_path / "c").splits["x\ufffd"]} == {"\ufffd"}
    assert str(DataError("\x1b]0;title\x07 \udc80")) == "?]0;title? ?"


def test_a_closed_pipe_is_no_traceback(files: Any) -> None:
    command = [sys.executable, "-m", "cmsbert_fast.data", "inspect", str(write("mag", files))]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as "| head" does
        assert process.stderr.read() == ""
        assert process.wait(timeout=300) == 141


def test_inspection_says_what_frames_belong_to(files: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Of a source, and of what was converted from it."""

    def said(path: Path, *options: str) -> list[str]:
        target = tmp_path / f"c{len(list(tmp_path.iterdir()))}"
        assert main(["inspect", str(path), *options]) == 0
        first = capsys.readouterr().out
        assert main(["convert", str(path), str(target), *options]) == 0
        capsys.readouterr()
        assert main(["inspect", str(target)]) == 0
        assert capsys.readouterr().out == first
        return [line.split(": ")[1] for line in first.splitlines() if line.startswith(("  all: ", "  train: "))][1::2]

    root = files.mmsa(True)
    root["train"]["text_bert"][0, 1, :] = 1
    assert said(files.pickle("mmsa.pkl", root)) == ["1 have one frame a word piece, 3 have one frame a word"]
    assert said(files.pickle("un.pkl", files.mmsa(False))) == ["all examples have frames aligned to no word"]
    (files.folder / "mmsa.pkl").unlink()
    (files.folder / "un.pkl").unlink()
    files.table([["v_1", "train", 0, 2, 1, "so good"], ["w_1", "train", 0, 2, 1, "so good"]])
    files.csd("words", "words", {"v": (np.array([[b"so"]]), [[0, 1]]), "w": (np.array([[b"so"]]), [[0, 1]])})
    files.csd("COVAREP", "COVAREP", {"v": (np.ones((2, 1)), [[0, 1], [1, 2]])})
    assert said(files.folder) == ["1 have frames aligned to no word, 1 have no frames"]
    assert said(files.folder, "--words", "words") == ["1 have one frame a word, 1 have no frames"]
    timed = said(files.folder, "--words", "words", "--average-words", "false")
    assert timed == ["1 tell the word of each frame, 1 have no frames"]
    files.csd("COVAREP", "COVAREP", {"v": (np.ones((1, 1)), [[0, 2]]), "w": (np.ones((1, 1)), [[0, 2]])})
    assert said(files.folder) == ["all examples have one frame, aligned to no word"]
