"""The plan: settings of every row, each run once, folders named by content, estimated times."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from cmsbert_fast.experiments import plan
from cmsbert_fast.experiments.plan import Corpora, DataSet, Estimates, Run
from cmsbert_fast.experiments.pool import longest_first
from cmsbert_fast.experiments.tables import read_table
from cmsbert_fast.training import unread
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.settings import TrainingSettings
from tests.experiments.conftest import CONFIGS

MOSI = plan.read_data_sets({"mosi": "my/mosi"}, {}, CONFIGS)["mosi"]
TABLES = {name: read_table(name, CONFIGS) for name in "1234"}


def row(table, label):
    return next(row for row in TABLES[table].rows if row.label == label)


def settings(table, label, data=MOSI, overrides=None, only=()):
    return plan.cell_of(row(table, label), data, overrides or {}, CONFIGS, only).settings


def test_rows_without_a_preset_have_the_settings_of_the_data_set():
    found = settings("2", "CMSBERT")
    assert (found.data, found.variant, found.epochs, found.batch_size) == ("my/mosi", "cmsbert", 500, 128)
    assert found.checkpoint_every_epochs == 10


def test_presets_keep_their_own_training_but_not_their_own_data():
    own = DataSet("mosi", "my/mosi", {"model": "mini", "visual": "none", "epochs": 3, "batch_size": 9})
    found = settings("1", "TFN (B)", own)
    assert (found.model, found.visual, found.text) == ("mini", ("none",), "bert-frozen")
    assert (found.epochs, found.batch_size, found.learning_rate) == (500, 32, 5e-4)
    assert settings("1", "TFN (B)", own, {"epochs": 7}).epochs == 7


def test_without_a_preset_for_the_data_a_note_says_so():
    cell = plan.cell_of(row("1", "TFN (B)"), DataSet("embedded", "embedded", {"epochs": 4}), {}, CONFIGS, ())
    assert cell.settings.epochs == 4
    assert "no preset for embedded" in cell.notes[0]


def test_why_a_row_has_no_runs():
    reasons = [
        plan.cell_of(row("4", "MHA-3"), MOSI, {}, CONFIGS, ()).reason,
        plan.cell_of(row("2", "BERT"), None, {}, CONFIGS, ()).reason,
        plan.cell_of(row("2", "BERT"), MOSI, {}, CONFIGS, ("cmsbert",)).reason,
        plan.cell_of(dataclasses.replace(row("2", "BERT"), variant="gpt"), MOSI, {}, CONFIGS, ()).reason,
    ]
    assert reasons == ["cited", "not run: no data", "not run: left out", "not run: there is no variant gpt"]


def test_data_sets_and_their_settings(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({"epochs": 2}))
    found = plan.read_data_sets({"mosi": "p", "new": "q"}, {"mosi": file}, CONFIGS)
    assert found == {"mosi": DataSet("mosi", "p", {"epochs": 2}), "new": DataSet("new", "q", {})}
    with pytest.raises(UsageError, match="give its data"):
        plan.read_data_sets({"new": "q"}, {"mosi": file}, CONFIGS)
    assert plan.sections_of(TABLES["1"], found) == ["mosi", "mosei", "new"]
    assert plan.sections_of(TABLES["4"], found) == ["iemocap"]


def test_the_same_run_of_two_tables_has_one_folder():
    assert settings("1", "CMSBERT-CLR (B)") == settings("3", "CMSBERT-CLR")
    assert settings("1", "CMSBERT (B)") == settings("2", "CMSBERT") == settings("3", "CMSBERT")


def test_the_key_is_the_content():
    base = TrainingSettings(data="a", threads=1)
    key = plan.content_key(base, "f")
    for same in ({"data": "elsewhere"}, {"seed": 3}, {"fold": 2}, {"threads": 8}, {"device": "cpu"}):
        assert plan.content_key(dataclasses.replace(base, **same), "f") == key, same
    others = [{"temperature": 0.2}, {"variant": "cmsbert"}, {"visual": ("none",)}, {"folds": "random"}]
    assert len({key, *(plan.content_key(dataclasses.replace(base, **other), "f") for other in others)}) == 5
    assert plan.content_key(base, "g") != key
    assert len(key) == 12


def test_what_a_system_does_not_read_makes_no_other_run():
    """As of two commands, one of which has word-level systems."""
    more = {"word_vectors": "bert", "repeat_frames": True, "temperature": 0.2}

    def read(variant, **others):
        base = TrainingSettings(data="a", variant=variant, **others)
        given = dataclasses.replace(base, **more)
        found = unread.removed(given)
        assert unread.removed(base) == base
        return {name for name in more if getattr(found, name) == getattr(given, name)}

    assert read("bert") == set()
    assert read("cmsbert-clr") == {"temperature"}
    assert read("mag-bert") == {"repeat_frames"}
    assert read("mfn") == {"word_vectors", "repeat_frames"}
    assert read("tfn", text="vectors") == {"word_vectors"}


def test_seeds_and_folds():
    found = plan.expanded(TrainingSettings(data="a"), [3, 5], 2)
    assert [(s.seed, s.fold) for s in found] == [(3, 1), (3, 2), (5, 1), (5, 2)]
    assert [s.fold for s in plan.expanded(TrainingSettings(data="a"), [3], None)] == [None]


def run(variant="bert", seed=0, epochs=10, data="mosi", key="k"):
    folder = Path("runs") / data / variant / key / f"seed-{seed}"
    return Run(data, TrainingSettings(data="d", variant=variant, seed=seed, epochs=epochs), folder, "f", 100)


def finish(root, run, seconds, test=True):
    settings = {"variant": run.settings.variant, "seed": run.settings.seed, "fold": run.settings.fold}
    content = {"settings": settings, "data": {"fingerprint": "f"}, "valid": {}, "seconds": seconds}
    (root / run.folder).mkdir(parents=True)
    (root / run.folder / "results.json").write_text(json.dumps({**content, **({"test": {}} if test else {})}))


def test_estimates_come_from_the_nearest_finished_runs(tmp_path):
    runs = [run(seed=0), run(seed=1), run("cmsbert"), run("cmsbert", data="mosei", epochs=20)]
    assert Estimates(tmp_path, runs).seconds(runs[0]) is None
    finish(tmp_path, runs[0], 40.0)
    finish(tmp_path, runs[2], 100.0)
    estimates = Estimates(tmp_path, runs)
    assert estimates.seconds(runs[1]) == 40
    assert estimates.seconds(runs[3]) == 200  # the same system on other data, twice as long
    assert estimates.seconds(run("tfn")) == 70  # any
    lines = plan.describe(tmp_path, runs, workers=2)
    assert lines[0].startswith("bert on mosi: 2 runs, 1 finished, about 40 s")
    assert lines[-1] == "4 runs, about 2 min left with 2 workers"


def test_longest_first(tmp_path):
    runs = [run(seed=1), run("cmsbert", seed=1), run("bert", seed=2, epochs=90, key="l")]
    assert longest_first(runs, Estimates(tmp_path, runs))[0] is runs[2]  # the most work where no time is known
    finish(tmp_path, done := run(seed=0), 1.0)
    finish(tmp_path, slow := run("cmsbert", seed=0), 99.0)
    assert longest_first(runs, Estimates(tmp_path, [*runs, done, slow]))[0] is runs[1]


def test_a_run_without_its_test_has_finished_only_for_tuning(tmp_path):
    finish(tmp_path, run(), 1.0, test=False)
    assert plan.finished(tmp_path, run()) is None
    assert plan.finished(tmp_path, dataclasses.replace(run(), testing=False)) is not None
    (tmp_path / run().folder / "results.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        plan.finished(tmp_path, run())


def test_durations():
    assert [plan.duration(s) for s in (45, 120, 7200)] == ["45 s", "2 min", "2.0 h"]


def test_data_of_another_table_are_not_this_ones():
    """``tables 1 4 --data mosi=... iemocap=...``: IEMOCAP has no scores for Table I."""
    given = plan.read_data_sets({"mosi": "x", "iemocap": "y", "mine": "z"}, {}, CONFIGS)
    assert plan.sections_of(TABLES["1"], given, TABLES.values()) == ["mosi", "mosei", "mine"]
    assert plan.sections_of(TABLES["1"], given, [TABLES["1"]]) == ["mosi", "mosei", "iemocap", "mine"]
    assert plan.sections_of(TABLES["4"], given, TABLES.values()) == ["iemocap"]


def test_several_labels_at_once_are_refused_before_any_run(monkeypatch):
    data = SimpleNamespace(corpus=SimpleNamespace(several=True, name="moods"))
    monkeypatch.setattr("cmsbert_fast.training.preflight.read_data", lambda settings, say: data)
    with pytest.raises(UsageError, match="moods has several labels at once; choose one of them"):
        Corpora(None, print).check([TrainingSettings(data="x", variant="bert")])
