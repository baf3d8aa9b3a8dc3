"""Metrics of a trained model from the command line."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cmsbert_fast.data import read_corpus
from cmsbert_fast.data.embedded import embedded_utterances
from cmsbert_fast.data.example import Clock
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.task import LabelKind, Labels
from cmsbert_fast.evaluate import command_parser, main
from cmsbert_fast.training import map_figures
from cmsbert_fast.training.build import load_trained
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.evaluate import Predictions
from cmsbert_fast.training.gates import shift_maps


@pytest.fixture
def evaluate(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return run


def table(folder):
    return list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))


def trained(train, out, *arguments):
    assert train(*arguments, "--batch-size", 9, "--epochs", 1, "--output", out)[0] == 0
    (results,) = out.glob("*/*/results.json")
    return results.parent, json.loads(results.read_text())


def test_metrics_of_scores_are_those_of_the_run(train, evaluate, short, corpus_folder, tmp_path):
    run, results = trained(train, tmp_path / "run", *short)
    out = tmp_path / "new" / "metrics"
    status, printed, errors = evaluate(run, "--data", corpus_folder, "--output", out)
    assert status == 0
    found = json.loads((out / "metrics.json").read_text())["metrics"]
    assert found == pytest.approx(results["test"], abs=1e-4)
    assert printed.startswith("reviews, the test split, 9 examples: scores from")
    assert f"mae                {results['test']['mae']:.3f}" in printed
    assert (out / "scatter.png").stat().st_size > 1000
    assert [row["id"] for row in table(out)] == [f"test{k}" for k in range(32, 41)]
    assert f"are in {out}" in errors
    status, _, errors = evaluate(run, "--data", corpus_folder, "--output", out)
    assert status == 2
    assert f"{out} exists" in errors
    assert "all splits, 41 examples" in evaluate(run, "--data", corpus_folder, "--split", "all")[1]
    assert "the valid split, 7 examples" in evaluate(run, "--data", corpus_folder, "--split", "valid")[1]


def test_classes_are_told_by_their_names(train, evaluate, bert, make_corpus, tmp_path):
    """Data that lack a class, and number the others otherwise, are measured as the model numbers them."""
    moods = ("angry", "calm", "happy")
    data = make_corpus(tmp_path / "data", label=lambda k: moods[k % 3])
    run, results = trained(train, tmp_path / "run", "--data", data, "--model", bert, "--variant", "bert")
    assert evaluate(run, "--data", data, "--output", tmp_path / "all")[0] == 0
    found = json.loads((tmp_path / "all" / "metrics.json").read_text())["metrics"]
    assert found == pytest.approx(results["test"], abs=1e-4)
    assert (tmp_path / "all" / "confusion.png").stat().st_size > 1000

    few = make_corpus(tmp_path / "few", label=lambda k: moods[1 + k % 2])
    assert evaluate(run, "--data", few, "--output", tmp_path / "two")[0] == 0
    rows = table(tmp_path / "two")
    assert [row["label"] for row in rows] == [moods[1 + k % 2] for k in range(32, 41)]
    right = sum(row["label"] == row["prediction"] for row in rows)
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())["metrics"]
    assert metrics["wa"] == pytest.approx(100 * right / 9)

    other = make_corpus(tmp_path / "other", label=lambda k: ("calm", "sad")[k % 2])
    status, _, errors = evaluate(run, "--data", other)
    assert status == 2
    assert "The data have the class 'sad', which the model does not know" in errors


def test_doubtful_labels_are_told(run_folder, evaluate, corpus_folder, tmp_path):
    data = shutil.copytree(corpus_folder, tmp_path / "data")
    table = data / "segments.tsv"
    first, *rows = table.read_text().splitlines()
    rows[-1] = rows[-1].replace(rows[-1].split("\t")[2], "570", 1)
    table.write_text("\n".join([first, *rows]) + "\n")
    status, _, errors = evaluate(run_folder, "--data", data)
    assert status == 0
    assert "warning: 1 of 9 labels are far from all others, such as 570 of 'test40'" in errors
    assert "warning" not in evaluate(run_folder, "--data", data, "--split", "valid")[2]  # which has it not
    assert "warning" not in evaluate(run_folder, "--data", corpus_folder)[2]


def test_users_errors(train, evaluate, short, make_corpus, corpus_folder, tmp_path):
    run, _ = trained(train, tmp_path / "run", *short)
    named = make_corpus(tmp_path / "named", label=lambda k: "ab"[k % 2])
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "segments.csv").write_text("id,text\na,the film was good\n")
    for arguments, message in [
        ([run], "arguments are required: --data"),
        ([run, "--data", named], "labels of named are names of classes"),
        ([run, "--data", bare], "label"),
        ([run, "--data", corpus_folder, "--split", "tset"], "no split 'tset'"),
        ([run, "--data", corpus_folder, "--batch-size", 0], "at least 1"),
        ([tmp_path / "none", "--data", corpus_folder], "There is no checkpoint"),
    ]:
        status, out, errors = evaluate(*arguments)
        assert (status, out) == (2, ""), arguments
        assert errors.splitlines()[-1].startswith("error: ")
        assert message in errors


def test_maps_of_chosen_utterances_and_layers(run_folder, evaluate, corpus_folder, tmp_path, monkeypatch):
    """The gates of these layers for these words; all figures have one scale."""
    from cmsbert_fast.plots import shift_maps as plots

    drawn = []
    plot = plots.plot_shift_maps
    monkeypatch.setattr(plots, "plot_shift_maps", lambda *a, **k: drawn.append((a, k)) or plot(*a, **k))
    out = tmp_path / "maps"
    chosen = ("--utterances", "test40", "test33", "test40", "--layers", 2)
    assert evaluate(run_folder, "--data", corpus_folder, "--output", out, *chosen)[0] == 0
    made = {path.name for path in out.glob("shift_maps*")}
    assert made == {f"shift_maps-{name}.{end}" for name in ("test40", "test33") for end in ("png", "svg")}
    captions = json.loads((out / "captions.json").read_text())
    rows = {row["id"]: row for row in table(out)}

    model, processor = load_trained(run_folder)
    examples = {e.id: e for e in read_corpus(corpus_folder).splits["test"]}
    gates = []
    for name, ((maps, pieces), options) in zip(("test40", "test33"), drawn, strict=True):
        expected = shift_maps(model, processor, examples[name])[1]
        for found, wanted in zip(maps[0], expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert [len(maps), options["layers"], options["depth"]] == [1, [1], 2]
        assert [*pieces] == ["[CLS]", *examples[name].words, "[SEP]"]
        caption = captions[f"shift_maps-{name}"]
        assert (caption["words"], caption["layers"]) == ([*examples[name].words], [2])
        assert float(caption["prediction"]) == pytest.approx(float(rows[name]["prediction"]), abs=0.006)
        assert float(caption["label"]) == pytest.approx(float(rows[name]["label"]), abs=0.006)
        gates += [m.ravel() for m in expected]
    everything = np.concatenate(gates)
    assert {options["limits"] for _, options in drawn} == {(everything.min(), everything.max())}


def test_maps_of_all_splits_find_each_utterance_in_its_own(tmp_path, monkeypatch):
    """With its events and times, and what was predicted for it."""
    corpus, request = read_corpus("embedded"), DataRequest.of("embedded")
    config = SimpleNamespace(visual_size=8, acoustic_size=6, cms_layers=[0], num_hidden_layers=1)
    utterance = embedded_utterances()["valid"][3]
    place = len(corpus.splits["train"]) + 3
    chosen = map_figures.choose(corpus, None, config, [utterance.example.id], [0])
    assert chosen == map_figures.Chosen([("valid", 3)], [place], [0])

    drawn = []
    monkeypatch.setattr(map_figures, "shift_maps", lambda *_: [(np.ones((3, 2)), None)])
    monkeypatch.setattr(map_figures, "maps_figure", lambda config, processor, one, lines, **_: drawn.append(one))
    monkeypatch.setattr("cmsbert_fast.plots.style.save", lambda figure, stem: None)
    clock = Clock("video", (2.0, 5.0), None, None, None)
    monkeypatch.setattr(
        map_figures, "clock_of", lambda asked, e: clock if (asked, e.id) == (request, utterance.example.id) else None
    )
    logits = torch.arange(float(place + 9))[:, None]
    predictions = Predictions([], {"logits": logits}, torch.zeros(len(logits)))
    about = (corpus, chosen, predictions, Labels(LabelKind.SENTIMENT), "title")
    map_figures.write_chosen(tmp_path, SimpleNamespace(config=config), None, *about, request)
    assert drawn[0].example.clock == clock
    assert drawn[0].events == utterance.events
    assert drawn[0].told == {"label": "0.00", "prediction": f"{place:.2f}"}


def test_maps_that_cannot_be_drawn(run_folder, evaluate, corpus_folder, tmp_path):
    """Said in a sentence before anything is predicted or written."""
    out = tmp_path / "out"
    without = shutil.copytree(corpus_folder, tmp_path / "without")
    for stream in ("visual", "acoustic"):
        (without / stream / "test33.npy").unlink()
    given = ("--output", out, "--utterances")
    for arguments, message in [
        (("--utterances", "test33"), "name a new one with --output"),
        (("--output", out, "--layers", 1), "name what to draw with --utterances"),
        ((*given, "test333"), "there is no 'test333' in the test split of reviews; did you mean 'test33'?"),
        ((*given, "qqq"), "there is no 'qqq' in the test split of reviews; predictions.csv of --output lists the ids."),
        ((*given, "train3"), "'train3' is in the train split; give --split train (or --split all)."),
        ((*given, "test33", "--layers", 3), "are in layers 1 to 2 of 2; choose among these."),
        ((*given, "test33", "--layers", 0), "--layers is 0, but"),
    ]:
        status, printed, errors = evaluate(run_folder, "--data", corpus_folder, *arguments)
        assert (status, printed) == (2, ""), arguments
        assert message in errors
    status, printed, errors = evaluate(run_folder, "--data", without, *given, "test33")
    assert (status, printed) == (2, "")
    assert "Leave 'test33' out of --utterances: it has no visual or acoustic frames" in errors
    assert not out.exists()


def test_ids_that_begin_with_a_hyphen():
    """As many of YouTube do."""
    given = command_parser("evaluate").parse_args(
        ["run", "--data", "x", "--utterances=-a_1", "--utterances=-b_2", "--utterances", "c"]
    )
    assert given.utterances == ["-a_1", "-b_2", "c"]


def test_layers_with_gates():
    config = SimpleNamespace(visual_size=3, acoustic_size=0, cms_layers=[0, 2, 3, 4], num_hidden_layers=6)
    assert map_figures.check_layers(config, "run", [5, 1, 5]) == [0, 4]
    assert map_figures.check_layers(config, "run", None) is None
    with pytest.raises(UsageError, match=r"--layers is 2, but the gates of run are in layers 1, 3 to 5 of 6"):
        map_figures.check_layers(config, "run", [1, 2])
    config.cms_layers = [0]
    with pytest.raises(UsageError, match="are in layer 1 of 6"):
        map_figures.check_layers(config, "run", [2])
    config.cms_layers = []
    with pytest.raises(UsageError, match=r"Leave out --utterances: the model of run has no gates"):
        map_figures.check_layers(config, "run", None)


def test_every_id_has_a_file_of_its_own():
    taken = {}
    for id, name in [("a/b", "a-b"), ("a b", "a-b-2"), ("A b", "A-b-3"), ("../x", "..-x"), ("é" * 99, "-")]:
        assert map_figures._file_name(id, taken) == f"shift_maps-{name}"
        taken[f"shift_maps-{name}"] = None
