"""Runs whose folder is damaged: one sentence, and no work lost."""

import json
import os
import shutil
import zipfile

import pytest
import torch

from cmsbert_fast.training import checkpoint, figures, report
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.lock import locked
from cmsbert_fast.training.log import RunLog
from cmsbert_fast.training.runs import main
from tests.data.untrusted.limited import seconds
from tests.training.conftest import CONFIGS


@pytest.fixture(scope="session")
def stopped(tmp_path_factory, corpus_folder, bert):
    """The folder of a run that has a checkpoint and no results, and its command."""
    output = tmp_path_factory.mktemp("stopped")
    command = ["--data", str(corpus_folder), "--model", str(bert), "--max-length", "20", "--batch-size", "13"]
    command += ["--epochs", "1", "--device", "cpu", "--output", str(output)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "write_figures", lambda *arguments: None)
        assert main(command, CONFIGS / "embedded.yaml") == 0
    (results,) = output.glob("*/*/results.json")
    results.unlink()
    return results.parent, command


@pytest.fixture
def run(stopped, tmp_path, train):
    """A copy of it, and how it is resumed: status and errors."""
    folder, command = stopped
    shutil.copytree(folder.parents[1], tmp_path / "out")

    def resume():
        with seconds(60):
            status, said = train(*command[:-1], tmp_path / "out", "--resume")
        return status, [line for line in said.splitlines() if line.startswith("error:")]

    return tmp_path / "out" / folder.parent.name / folder.name, resume


def alter(folder, change):
    """Changes the entries of a checkpoint, and leaves no other to fall back to."""
    path = folder / checkpoint.FILE_NAME
    state = torch.load(path, weights_only=True)
    found = change(state)
    torch.save(state if found is None else found, path)
    (folder / checkpoint.BEFORE).unlink(missing_ok=True)


def put(*places, value):
    """A function that sets an entry."""

    def change(state):
        for place in places[:-1]:
            state = state[place]
        state[places[-1]] = value

    return change


ENTRIES = ["settings", "fingerprint", "progress", "model", "state", "reported", "optimizer", "random", "log_length"]
WRONG = {
    **{f"no {name}": lambda state, name=name: state.pop(name) and None for name in ENTRIES},
    **{f"{name} is text": put(name, value="text" if name != "fingerprint" else 5) for name in ENTRIES},
    **{f"{name} is a list": put(name, value=["a"]) for name in ENTRIES},
    **{f"progress {name}": put("progress", name, value="x") for name in ("epoch", "batch", "step", "best", "seconds")},
    "progress negative": put("progress", "epoch", value=-1),
    "progress more": put("progress", "more", value=1),
    "log_length negative": put("log_length", value=-1),
    "model of numbers": put("model", "nu", value=5),
    "model of other sizes": put("model", "nu", value=torch.zeros(7)),
    "model expanded": put("model", "nu", value=torch.zeros(1).expand(1 << 40)),
    "model lacks one": lambda state: state["model"].popitem() and None,
    "model more": put("model", "more", value=torch.zeros(1)),
    "optimizer groups": put("optimizer", "param_groups", value=[]),
    "optimizer group lacks": lambda state: state["optimizer"]["param_groups"][0].pop("params") and None,
    "optimizer betas": put("optimizer", "param_groups", 0, "betas", value="x"),
    "optimizer rate": put("optimizer", "param_groups", 0, "lr", value="x"),
    "optimizer moment": put("optimizer", "state", 0, "exp_avg", value=torch.zeros(3)),
    "optimizer step": put("optimizer", "state", 0, "step", value=torch.zeros(3)),
    "optimizer moment is text": put("optimizer", "state", 0, "exp_avg", value="x"),
    "random torch": put("random", 0, "torch", value=torch.zeros(3)),
    "random python": put("random", 0, "python", value=(1, 2)),
    "random numpy": put("random", 0, "numpy", value={}),
    "random numpy keys": put("random", 0, "numpy", "keys", value=torch.zeros(3)),
    "reported": put("reported", "nu", value="x"),
    "format is a tensor": put("format", value=torch.zeros(3)),
    "a list": lambda state: [1, 2],
    "a number": lambda state: 5,
    "nothing": lambda state: {"format": checkpoint.FORMAT},
    "nothing of the first format": lambda state: {"format": 1, "model": 7},
}


# These have the right types and fail when they are restored.
FITTING = [
    "progress more",
    "model of other sizes",
    "model lacks one",
    "model more",
    "optimizer groups",
    "random python",
]
FITTING += ["optimizer group lacks", "optimizer betas", "optimizer rate", "optimizer moment", "optimizer step"]
FITTING += ["optimizer moment is text", "random torch", "random numpy keys"]


@pytest.mark.parametrize("name", sorted(WRONG.keys() - set(FITTING)))
def test_entries_that_are_missing_or_of_another_type(run, name):
    folder, _ = run
    alter(folder, WRONG[name])
    with pytest.raises(UsageError, match=r"checkpoint\.pt is not a readable checkpoint") as caught:
        checkpoint.load_whole(folder)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", [*FITTING, "no model", "progress epoch"])
def test_entries_that_do_not_fit_the_run(run, name):
    folder, resume = run
    alter(folder, WRONG[name])
    status, errors = resume()
    assert status == 2, name
    assert len(errors) == 1
    assert "checkpoint.pt" in errors[0]
    assert len(errors[0]) < 1000


def test_an_unaltered_checkpoint_continues(run):
    folder, resume = run
    alter(folder, lambda state: None)
    assert resume() == (0, [])
    assert report.read_results(folder)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
@pytest.mark.parametrize("name", ["checkpoint.pt", "results.json", "log.jsonl", ".lock"])
def test_files_that_are_none(run, name, kind):
    folder, resume = run
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    status, errors = resume()
    assert status == 2
    assert name in errors[0]


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_log_and_lock_say_so_themselves(tmp_path, kind):
    for name, use in (("log.jsonl", RunLog), (".lock", lambda folder: locked(folder).__enter__())):
        path = tmp_path / name
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
        with seconds(5), pytest.raises(UsageError, match=name):
            use(tmp_path)


RESULTS = ["[" * 100_000, "null", "5", '{"settings": [], "data": {}, "valid": {}}']
RESULTS += ['{"settings": {"variant": "bert"}, "data": {"fingerprint": "x"}, "valid": {}}']
RESULTS += ['{"settings": {"variant": 1, "seed": 1, "fold": 1}, "data": {"fingerprint": "x"}, "valid": {"mae": [1]}}']
RESULTS += ['{"settings": {"variant": 1, "seed": 1, "fold": 1}, "data": {"fingerprint": 5}, "valid": {}}']


@pytest.mark.parametrize("text", RESULTS)
def test_results_that_are_none(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UsageError, match=r"results\.json is damaged"):
        report.read_results(tmp_path)


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path):
    path = tmp_path / checkpoint.FILE_NAME
    torch.save({"format": checkpoint.FORMAT, "model": torch.zeros(10)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        archive.writestr("more", bytes(10 << 20))
    with pytest.raises(UsageError, match="holds more than its size"):
        checkpoint.load(tmp_path)


def test_checksums_that_are_nested_deep(run):
    folder, resume = run
    (folder / "best" / "CHECKSUMS.json").write_text(json.dumps({"sha256": []}) + "[" * 100_000)
    assert resume()[0] == 0
