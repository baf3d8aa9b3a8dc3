"""What a system remembers, as the trainer keeps it: the loop knows nothing of the system but rows, losses and state."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cmsbert_fast.training.batches import epoch_batches
from cmsbert_fast.training.trainer import Trainer
from tests.training import remembering
from tests.training.helpers import records, stop_and_resume

REGISTER = "from tests.training import remembering\nremembering.register()\n"


# Kills every rank in its fifth step.
KILLED = """
import os, signal
from cmsbert_fast.training.trainer import Trainer
step, count = Trainer.step, []
def dying(self, indices):
    count.append(1)
    if len(count) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, indices)
Trainer.step = dying
"""


@pytest.fixture(params=remembering.SYSTEMS)
def arguments(request, short):
    remembering.register()
    yield [*short, "--variant", request.param, "--learning-rate", 1e-3]
    remembering.unregister()


comparing = pytest.mark.parametrize("arguments", ["comparing"], indirect=True)


def assert_near(out: Path, other: Path) -> None:
    for event in ("train", "valid", "test"):
        for ours, theirs in zip(records(out, event), records(other, event), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


def test_one_way_for_micro_batches_and_ranks(train, start_run, arguments, tmp_path):
    assert train(*arguments, "--output", tmp_path / "whole")[0] == 0
    steps = records(tmp_path / "whole", "train")
    for step in steps:
        total = step["task_loss"] + 0.25 * step["memory_loss"] + 0.5 * step.get("spread_loss", 0)
        assert step["loss"] == pytest.approx(total, rel=1e-12)
    assert steps[0]["memory_loss"] > 0
    assert ("spread_loss" in steps[0]) == ("comparing" in arguments)
    assert steps[0]["remembered"] == records(tmp_path / "whole", "start")[0]["remembered"]
    assert train(*arguments, "--accumulation", 3, "--output", tmp_path / "parts")[0] == 0
    assert_near(tmp_path / "parts", tmp_path / "whole")
    run = start_run(tmp_path / "ranks", [*arguments, "--accumulation", 2], ranks=2, before=REGISTER)
    assert run.wait() == [0, 0], run.errors()
    assert_near(tmp_path / "ranks" / "out", tmp_path / "whole")


@comparing
def test_every_step_is_told(train, arguments, tmp_path, monkeypatch):
    states = []
    begin = Trainer.begin
    monkeypatch.setattr(Trainer, "begin", lambda self: (states.append(self.state), begin(self))[1])
    assert train(*arguments, "--output", tmp_path)[0] == 0
    expected = [(epoch + 1, b.tolist()) for epoch in (0, 1) for b in epoch_batches(25, 9, 0, epoch)]
    assert states[0].seen == expected
    predicted = torch.load(next(tmp_path.glob("*/*/checkpoint.pt")), weights_only=True)["state"]["predictions"]
    assert torch.equal(predicted, states[0].predictions)


@comparing
def test_resumed_to_the_bit_on_two_ranks(start_run, arguments, tmp_path):
    arguments = [*arguments, "--checkpoint-every-steps", 1, "--accumulation", 2]
    whole = start_run(tmp_path / "whole", arguments, ranks=2, before=REGISTER)
    killed = start_run(tmp_path / "again", arguments, ranks=2, before=REGISTER + KILLED)
    assert whole.wait() == [0, 0], whole.errors()
    assert 0 not in killed.wait()
    saved = torch.load(next(tmp_path.glob("again/out/*/*/checkpoint.pt")), weights_only=True)
    assert saved["progress"]["step"] == 4
    resumed = start_run(tmp_path / "again", [*arguments, "--resume"], ranks=2, before=REGISTER)
    assert resumed.wait() == [0, 0], resumed.errors()
    for name in ("log.jsonl", "predictions.csv"):
        ours, theirs = (next(run.folder.glob(f"out/*/*/{name}")).read_text() for run in (resumed, whole))
        assert ours == theirs


@comparing
@pytest.mark.parametrize("batch", [1, 4])
def test_resumed_to_the_bit(train, arguments, tmp_path, monkeypatch, batch):
    arguments = [*arguments, "--checkpoint-every-steps", 1]
    stop_and_resume(train, arguments, tmp_path, monkeypatch, batch)


@comparing
def test_the_best_model_holds_no_state(train, arguments, tmp_path):
    assert train(*arguments, "--output", tmp_path)[0] == 0
    with safe_open(next(tmp_path.glob("*/*/best/model.safetensors")), "pt") as file:
        assert not any("predictions" in key for key in file.keys())  # noqa: SIM118
    assert json.loads(next(tmp_path.glob("*/*/best/config.json")).read_text())["architectures"] == ["Comparing"]


@pytest.mark.parametrize("variant", ["cmsbert", "cmsbert-clr"])
def test_a_checkpoint_without_state_continues(train, short, tmp_path, monkeypatch, variant):
    """As 2931ebd wrote them: nu was in the model alone."""
    short = [*short, "--variant", variant]
    assert train(*short, "--output", tmp_path / "whole")[0] == 0
    step, count = Trainer.step, []

    def stopped(self, indices):
        count.append(1)
        if len(count) == 5:
            raise KeyboardInterrupt
        return step(self, indices)

    monkeypatch.setattr(Trainer, "step", stopped)
    assert train(*short, "--output", tmp_path / "again")[0] == 130
    monkeypatch.setattr(Trainer, "step", step)
    (path,) = (tmp_path / "again").glob("*/*/checkpoint.pt")
    saved = torch.load(path, weights_only=True)
    del saved["state"], saved["reported"]
    torch.save({**saved, "format": 1}, path)
    assert train(*short, "--output", tmp_path / "again", "--resume")[0] == 0
    ours, theirs = (next((tmp_path / out).glob("*/*/log.jsonl")).read_text() for out in ("again", "whole"))
    assert ours == theirs
