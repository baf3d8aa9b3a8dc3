"""What a run can continue from, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoProcessor

from cmsbert_fast.data.example import Corpus, FrameWords
from cmsbert_fast.training import figures, resume
from cmsbert_fast.training.trainer import Trainer
from tests.training.helpers import tiny_corpus


def test_figures_of_a_finished_run_are_drawn_when_it_is_resumed(train, short, tmp_path, monkeypatch):
    write = figures.write_figures

    def killed(folder, *arguments):
        write(folder, *arguments)
        (folder / "shift_maps.png").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "write_figures", killed)
    arguments = [*short, "--epochs", 1, "--output", tmp_path]
    assert train(*arguments, figures=True)[0] == 130
    (folder,) = (path.parent for path in tmp_path.glob("*/*/results.json"))
    monkeypatch.setattr(figures, "write_figures", write)
    before = (folder / "results.json").read_bytes()
    assert train(*arguments, "--resume", figures=True)[0] == 0
    assert {path.name for path in (folder / "figures").iterdir()} >= {"shift_maps.svg", "embeddings.svg"}
    assert (folder / "results.json").read_bytes() == before
    card = (folder / "best" / "README.md").read_text()
    assert "](shift_maps.png)" in card
    (folder / "best" / "README.md").unlink()
    assert train(*arguments, "--resume", figures=True)[0] == 0
    assert (folder / "best" / "README.md").read_text() == card


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"settings": {}, "data": {}, "test": {}}'])
def test_damaged_results(train, short, tmp_path, text):
    folder = tmp_path / "cmsbert-clr" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(text)
    status, errors = train(*short, "--output", tmp_path, "--resume")
    assert status == 2
    damaged = folder / "results.json"
    assert errors == f"error: {damaged} is damaged; remove it to test the run again from its checkpoint.\n"


def test_frames_as_they_are(train, short, tmp_path):
    arguments = [*short, "--epochs", 1, "--standardise", "false", "--output", tmp_path]
    assert train(*arguments)[0] == 0
    (best,) = tmp_path.glob("*/*/best")
    assert AutoProcessor.from_pretrained(best).visual_mean is None
    # A run from before there was this setting is one that standardises.
    path = best.parent / "results.json"
    path.write_text(path.read_text().replace('"standardise": false', '"unknown": false'))
    assert train(*arguments, "--resume")[0] == 2
    assert train(*arguments, "--resume", "--standardise", "true")[0] == 0


def test_resuming_with_other_settings_or_data(train, short, tmp_path, make_corpus):
    assert train(*short, "--output", tmp_path / "out")[0] == 0
    status, errors = train(*short, "--output", tmp_path / "out", "--resume", "--learning-rate", 1)
    assert status == 2
    assert "learning_rate = 0.0001, not 1.0" in errors
    other = make_corpus(tmp_path / "other", label=lambda i: str(i / 20))
    status, errors = train("--data", other, *short[2:], "--output", tmp_path / "out", "--resume")
    assert status == 2
    assert "on examples other than" in errors
    # All runs are checked before the first continues.
    arguments = [*short, "--output", tmp_path / "out", "--resume", "--seeds", 1, 0, "--learning-rate", 1]
    status, errors = train(*arguments)
    assert status == 2
    assert not (tmp_path / "out" / "cmsbert-clr" / "seed-1").exists()


def test_a_folder_alone_brings_its_settings(train, short, tmp_path, monkeypatch):
    """That of the command or of one run, of this version or of one without settings.json."""
    out = tmp_path / "out"
    arguments = [*short, "--learning-rate", "3e-4", "--variant", "bert", "cmsbert/1", "--visual", "visual"]
    assert train(*arguments, "--output", tmp_path / "whole")[0] == 0

    def stopped(trainer):
        trainer.save()
        raise KeyboardInterrupt

    validate = Trainer.validate
    monkeypatch.setattr(Trainer, "validate", stopped)
    assert train(*arguments, "--output", out)[0] == 130  # in the first run
    monkeypatch.setattr(Trainer, "validate", validate)
    assert train("--resume", out / "bert" / "seed-0")[0] == 0
    assert not (out / "cmsbert-1" / "seed-0" / "results.json").exists()
    assert train("--resume", out)[0] == 0
    for run in ("bert/seed-0", "cmsbert-1/seed-0"):
        ours, theirs = ((folder / run / "predictions.csv").read_text() for folder in (out, tmp_path / "whole"))
        assert ours == theirs
    for kept in ("results.json", "checkpoint.pt"):
        (out / "bert" / "seed-0" / "settings.json").unlink(missing_ok=True)
        assert train("--resume", out)[0] == 0
        (out / "bert" / "seed-0" / kept).unlink()


def test_what_a_resumed_folder_refuses(train, short, tmp_path):
    out = tmp_path / "out"
    assert train(*short, "--epochs", 1, "--output", out)[0] == 0
    run = out / "cmsbert-clr" / "seed-0"
    for arguments, message in [
        (["--resume", tmp_path / "none"], "There is no folder"),
        (["--resume", tmp_path], "There is no run in"),
        (["--resume", out, "--seed", 1], "Leave out --seed"),
        (["--resume", out, "--output", tmp_path / "other"], "Leave out --output"),
        (["--resume", out, "--learning-rate", 1], "resume it with its own settings, by --resume FOLDER alone"),
        (
            ["--resume", out, "--epochs", 2],
            f"train on from its best model, with a new schedule, by --model {run}",
        ),
    ]:
        status, errors = train(*arguments)
        assert status == 2
        assert message in errors
    (status, _) = train(*short, "--epochs", 2, "--output", tmp_path / "on", "--model", run / "best")
    assert status == 0
    (run / "settings.json").write_text("[")
    assert "settings.json is damaged" in train("--resume", out)[1]
    (run / "settings.json").unlink()
    moved = tmp_path / "moved"
    run.rename(moved)
    assert "was moved" in train("--resume", moved)[1]


def changed(corpus: Corpus, split: str, **fields) -> Corpus:
    first, *others = corpus.splits[split]
    return replace(corpus, splits={**corpus.splits, split: [replace(first, **fields), *others]})


@pytest.mark.parametrize("limit", [2**28, 100])
def test_fingerprint_covers_what_is_trained_on(monkeypatch, limit):
    monkeypatch.setattr(resume, "FINGERPRINT_BYTES", limit)  # with 100 bytes: of every fourth example
    corpus = tiny_corpus(5)
    assert resume.fingerprint(corpus) == resume.fingerprint(tiny_corpus(5))
    others = [
        changed(corpus, split, **fields)
        for split in ("train", "test")
        for fields in ({"words": ("bad",)}, {"label": 0.25}, {"id": "x"}, {"visual": np.zeros((0, 3), np.float32)})
    ]
    others += [changed(corpus, "train", acoustic=np.full((1, 3), 2, np.float32)), replace(corpus, visual_size=4)]
    words = [FrameWords(*(np.array(own, np.int32) for own in ([0], row))) for row in ([-1], [0])]
    others.append(changed(corpus, "train", frame_words=words[0]))
    assert len({resume.fingerprint(c) for c in (corpus, *others)}) == 1 + len(others)
    assert resume.fingerprint(changed(corpus, "train", frame_words=words[1])) == resume.fingerprint(corpus)  # follows
