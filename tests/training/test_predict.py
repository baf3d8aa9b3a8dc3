"""Prediction from the command line."""

import csv
import io
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from transformers import BertConfig

from cmsbert_fast import evaluate
from cmsbert_fast.data import SPLITS, convert, open_source, read_corpus
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.predict import _write, main, read_for


def rows(text: str) -> dict[str, float]:
    return {row["id"]: float(row["prediction"]) for row in csv.DictReader(io.StringIO(text))}


@pytest.fixture
def predict(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def evaluate_command(capsys):
    def run(checkpoint: object, data: object, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = evaluate.main([str(a) for a in (checkpoint, "--data", data, *arguments)])
        return status, *capsys.readouterr()

    return run


def test_scores_are_those_of_the_run(predict, run_folder, corpus_folder, tmp_path):
    expected = rows((run_folder / "predictions.csv").read_text())
    status, out, err = predict(run_folder, corpus_folder, "--split", "test", "--batch-size", 1)
    assert status == 0
    assert list(rows(out)) == list(expected)
    assert rows(out) == pytest.approx(expected, abs=1e-5)
    assert "9 test" in err
    file = tmp_path / "scores.csv"
    status, out, err = predict(run_folder / "best", corpus_folder, "--output", file)
    assert (status, out) == (0, "")
    assert f"41 predictions are in {file}" in err
    assert f"metrics: python -m cmsbert_fast.evaluate {run_folder / 'best'} --data {corpus_folder}" in err
    assert predict(run_folder, corpus_folder, "--output", file)[0] == 2  # what is there is kept
    every = rows(file.read_text())
    assert len(every) == 25 + 7 + 9
    assert {k: every[k] for k in expected} == pytest.approx(expected, abs=1e-5)


def test_precision(predict, evaluate_command, run_folder, corpus_folder, monkeypatch):
    """bf16 gives other digits of the same scores, and a warning where the CPU is slow at it."""
    monkeypatch.setattr("cmsbert_fast.training.precision.why_slow_bfloat16", lambda device: None)
    expected = rows(predict(run_folder, corpus_folder, "--split", "test")[1])
    status, out, err = predict(run_folder, corpus_folder, "--split", "test", "--precision", "bf16")
    assert status == 0
    assert rows(out) == pytest.approx(expected, abs=0.03)
    assert rows(out) != expected
    assert "warning" not in err
    monkeypatch.setattr("cmsbert_fast.training.precision.why_slow_bfloat16", lambda device: "this CPU cannot")
    for command in (predict, evaluate_command):
        status, _, err = command(run_folder, corpus_folder, "--split", "test", "--precision", "bf16")
        assert status == 0
        assert err.startswith("warning: this CPU cannot; use --precision fp32.")
    assert predict(run_folder, corpus_folder, "--precision", "fp16")[0] == 2


def test_labels_and_a_modality_may_be_absent(predict, run_folder, corpus_folder, tmp_path):
    (tmp_path / "segments.csv").write_text("id,text\na,the film was good\nb,dull\n")
    (tmp_path / "acoustic").mkdir()
    (tmp_path / "acoustic" / "a.npy").symlink_to(corpus_folder / "acoustic" / "train0.npy")
    status, out, _ = predict(run_folder, tmp_path, "--acoustic", "acoustic")
    assert status == 0
    assert list(rows(out)) == ["a", "b"]


def test_a_csd_set_without_labels(predict, run_folder, tmp_path):
    def write(name: str, entries: dict[str, np.ndarray]) -> None:
        with h5py.File(tmp_path / f"{name}.csd", "w") as file:
            for key, values in entries.items():
                file[f"{name}/data/{key}/features"] = values
                file[f"{name}/data/{key}/intervals"] = np.arange(len(values))[:, None] + [0.0, 1.0]

    random = np.random.default_rng(0)
    write("words", {"a": np.array([[b"the"], [b"film"], [b"was"], [b"good"]]), "b": np.array([[b"dull"]])})
    for name, width in (("FACET", 3), ("COVAREP", 2)):
        write(name, {key: random.normal(size=(4, width)) for key in "ab"})
    status, out, _ = predict(run_folder, tmp_path)
    assert status == 0
    assert list(rows(out)) == ["a", "b"]
    # Where several streams of labels would do, --label says which one cuts the segments.
    for name, count in (("sentiment labels", 2), ("emotion labels", 3)):
        write(name, {"a": np.full((count, 1), np.nan)})
    status, _, err = predict(run_folder, tmp_path)
    assert status == 2
    assert "--label NAME" in err
    for name, count in (("sentiment labels", 2), ("emotion labels", 3)):
        status, out, _ = predict(run_folder, tmp_path, "--label", name)
        assert status == 0
        assert list(rows(out)) == [f"a[{k}]" for k in range(count)]
    for name in ("happy", "emotion labels.0"):  # what of it is a column would not apply
        assert "Leave out --label" in predict(run_folder, tmp_path, "--label", name)[2]


@pytest.mark.parametrize("kind", ["pickle", "converted"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_other_forms_of_the_same_data_have_the_same_scores(predict, run_folder, corpus_folder, tmp_path, kind, device):
    corpus = read_corpus(corpus_folder)
    if kind == "converted":
        convert.convert(open_source(corpus_folder), tmp_path / "data")
    else:
        (tmp_path / "data").write_bytes(
            pickle.dumps(
                {s: [((list(e.words), e.visual, e.acoustic), np.nan, e.id) for e in corpus.splits[s]] for s in SPLITS}
            )
        )
    expected = rows((run_folder / "predictions.csv").read_text())
    status, out, _ = predict(run_folder, tmp_path / "data", "--split", "test", "--device", device, "--batch-size", 1)
    assert status == 0
    assert rows(out) == pytest.approx(expected, abs=1e-5 if device == "cpu" else 1e-3)


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_score_that_is_not_finite_is_an_error(predict, run_folder, tmp_path):
    frames = [np.full((1, 3), 3e38), np.full((1, 2), -3e38)]
    items = [((["the"], *frames), 0.0, "huge"), ((["the"], *(0 * f for f in frames)), 0.0, "fine")]
    (tmp_path / "data.pkl").write_bytes(pickle.dumps({"test": items}))
    status, out, err = predict(run_folder, tmp_path / "data.pkl")
    assert (status, out) == (2, "")
    assert "1 of 2 examples have no finite score (huge)" in err


def test_the_checkpoint_is_looked_at_before_the_data(predict, tmp_path, corpus_folder, monkeypatch):
    monkeypatch.setattr("cmsbert_fast.predict.read_corpus", lambda *_, **__: pytest.fail("data were read"))
    status, _, err = predict(tmp_path / "missing", corpus_folder)
    assert status == 2
    assert "There is no checkpoint" in err


def test_as_a_module(run_folder, corpus_folder):
    command = [sys.executable, "-m", "cmsbert_fast.predict", str(run_folder), str(corpus_folder), "--split", "nope"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no split 'nope'; choose one of train, valid, test" in done.stderr.splitlines()[-1]


def test_ctrl_c_is_no_traceback(predict, run_folder, corpus_folder, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cmsbert_fast.predict.predict_corpus", interrupt)
    status, out, err = predict(run_folder, corpus_folder)
    assert (status, out) == (130, "")
    assert "Traceback" not in err


def test_a_closed_pipe_is_no_traceback(run_folder, corpus_folder):
    command = [sys.executable, "-m", "cmsbert_fast.predict", str(run_folder), str(corpus_folder)]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # as "| head" does
        err = process.stderr.read()
        assert process.wait(timeout=300) == 141
    assert "test" in err.splitlines()[0]  # the report
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_users_errors(predict, run_folder, corpus_folder, make_corpus, tmp_path):
    BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path / "bert")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_bytes((run_folder / "best" / "config.json").read_bytes())
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"nothing")
    wide = make_corpus(tmp_path / "wide")
    for path in (wide / "visual").iterdir():
        path.unlink()
    for path in (wide / "acoustic").iterdir():
        (wide / "visual" / path.name).write_bytes(path.read_bytes())
    for arguments, message in [
        ([tmp_path / "missing", corpus_folder], "There is no checkpoint"),
        ([tmp_path / "bert", corpus_folder], "checkpoint of BertModel"),
        ([tmp_path / "damaged", corpus_folder], "undamaged"),
        ([run_folder, tmp_path / "missing"], "missing"),
        ([run_folder, wide], "visual stream of wide has 2 features a frame but the model was trained with 3"),
        ([run_folder, corpus_folder, "--batch-size", 0], "at least 1"),
        ([run_folder, corpus_folder, "--output", tmp_path / "no" / "where.csv"], "cannot be written"),
        ([run_folder], "arguments are required: data"),
        ([run_folder, corpus_folder, "--label", "emotion"], "Leave out --label: no labels are read"),
    ]:
        status, out, err = predict(*arguments)
        assert (status, out) == (2, "")
        assert err.splitlines()[-1].startswith("error: ")
        assert message in err


def test_absent_streams_are_told_unless_meant(predict, run_folder, corpus_folder, tmp_path):
    (tmp_path / "segments.csv").write_text("id,text\na,the film was good\nb,dull\n")
    status, out, err = predict(run_folder, tmp_path)
    assert status == 0
    for modality in ("visual", "acoustic"):
        assert f"warning: the model was trained with {modality} frames, but" in err
    meant = predict(run_folder, tmp_path, "--visual", "none", "--acoustic", "none")
    assert meant[:2] == (0, out)
    assert "warning" not in meant[2]
    told = predict(run_folder, corpus_folder)[2]
    assert "warning" not in told
    assert "not used" not in told


def test_frames_that_the_model_does_not_read_are_told(capsys, corpus_folder):
    model = SimpleNamespace(config=SimpleNamespace(visual_size=0, acoustic_size=2))
    read_for(model, DataRequest.of(corpus_folder))
    assert "  the model reads no visual frames: those of the data are not used" in capsys.readouterr().err


def test_ids_do_not_reach_a_terminal_as_they_are(capsys, monkeypatch):
    rows = [["id", "prediction"], ["\x1b[2Jv", "0.5"]]
    for terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda t=terminal: t)
        _write(rows, None)
        assert ("\x1b" in capsys.readouterr().out) is not terminal
