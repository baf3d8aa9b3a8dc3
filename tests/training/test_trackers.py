"""Trackers: what they get, that a resumed run doubles no point, and what happens without or with a broken one.

Each without its server: TensorBoard's files, W&B offline, MLflow's local database.
"""

import json
import struct
from pathlib import Path

import pytest

from cmsbert_fast.training import trackers
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.log import RunLog
from cmsbert_fast.training.settings import TrainingSettings
from tests.training.helpers import stop_and_resume

RECORDS = [("train", 1), ("train", 2), ("valid", 2), ("train", 3), ("train", 4), ("valid", 4)]


def write(log: RunLog, records: list[tuple[str, int]]) -> None:
    for event, step in records:
        log.write(event, {"step": step, "epoch": 1, "loss": step / 4, "nu": None, "name": "no number"})


def interrupted(folder: Path, name: str) -> None:
    """A run that was killed after step 4 without its validation, and resumed from its checkpoint of step 2."""
    settings = TrainingSettings(track=(name,))
    log = RunLog(folder, settings=settings)
    write(log, RECORDS[:3])
    kept = log.length()
    write(log, RECORDS[3:5])
    log.close(finished=False)
    log = RunLog(folder, kept, 2, settings)
    write(log, RECORDS[3:])
    log.close()


def tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    module = "tensorboard.backend.event_processing.event_accumulator"
    events = pytest.importorskip(module).EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def wandb(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of all parts of a run as "wandb sync" would send them; LevelDB's log format, one protobuf a record."""
    from wandb.proto import wandb_internal_pb2

    curves: dict[str, list[tuple[int, float]]] = {}
    runs = set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content, record, position = path.read_bytes(), b"", 7
        while position + 7 <= len(content):
            left = 32768 - position % 32768
            if left < 7:
                position += left
                continue
            size, kind = struct.unpack("<HB", content[position + 4 : position + 7])
            record += content[position + 7 : position + 7 + size]
            position += 7 + size
            if kind in (1, 4):  # whole, or its last part
                found, record = wandb_internal_pb2.Record.FromString(record), b""
                runs |= {found.run.run_id} - {""}
                items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in found.history.item}
                step = items.pop("step", None)
                for key, value in items.items():
                    if not key.startswith("_"):
                        curves.setdefault(key, []).append((step, value))
    assert len(runs) == 1
    return curves


def mlflow(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("cmsbert").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "cmsbert-clr seed 0"
    assert run.data.params["temperature"] == "0.1"
    return {
        key: sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics
    }


READ = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow}


@pytest.mark.parametrize("name", READ)
def test_a_resumed_run_goes_on_in_its_tracker(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    if name == "mlflow":
        pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for variable in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    interrupted(tmp_path, name)
    assert READ[name](tmp_path) == {
        "train/loss": [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)],
        "valid/loss": [(2, 0.5), (4, 1.0)],
    }


def test_a_run_that_starts_over_hides_the_attempt_before(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for loss in (1.0, 2.0):  # the first was killed before a checkpoint
        log = RunLog(tmp_path, settings=TrainingSettings(track=("tensorboard",)))
        for step in range(3):
            log.write("train", {"step": step, "loss": loss})
        log.close()
    assert tensorboard(tmp_path) == {"train/loss": [(0, 2.0), (1, 2.0), (2, 2.0)]}


class Recorded:
    """A tracker that fails if it is told to."""

    id = "one"

    def __init__(self, failing: bool = False) -> None:
        self.failing, self.points, self.closed = failing, [], []

    def log(self, values, step):
        if self.failing:
            raise ConnectionError("no route to host")
        self.points.append((step, values))

    def close(self, finished):
        self.closed.append(finished)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorded]:
    """In the place of all trackers; that of W&B fails."""
    found = {name: Recorded(failing=name == "wandb") for name in trackers.TRACKERS}
    monkeypatch.setattr(trackers, "_start", lambda name, *arguments: found[name])
    return found


def test_a_tracker_that_fails_does_not_end_the_run(recorded, tmp_path, capsys) -> None:
    log = RunLog(tmp_path, settings=TrainingSettings(track=("wandb", "mlflow")))
    write(log, RECORDS[:3])
    log.close(finished=False)
    log.close()
    assert [step for step, _ in recorded["mlflow"].points] == [1, 2, 2]
    assert recorded["mlflow"].points[0][1] == {"train/loss": 0.25}
    assert recorded["mlflow"].closed == [False]
    told = capsys.readouterr().err
    assert told == "warning: wandb failed (no route to host); the run goes on without it.\n"
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


def test_a_run_that_is_stopped_while_it_repeats_records_doubles_no_point(recorded, tmp_path) -> None:
    settings = TrainingSettings(track=("mlflow",))
    log = RunLog(tmp_path, settings=settings)
    write(log, RECORDS[:3])
    kept = log.length()
    for records in (RECORDS[3:5], RECORDS[3:4], RECORDS[3:]):
        write(log, records)
        log.close()
        log = RunLog(tmp_path, kept, 2, settings)
    log.close()
    assert [step for step, _ in recorded["mlflow"].points] == [1, 2, 2, 3, 4, 4]


def test_a_tracker_that_cannot_start_leaves_the_log(recorded, tmp_path, monkeypatch) -> None:
    """Its length tells what the trackers have."""
    settings = TrainingSettings(track=("mlflow",))
    log = RunLog(tmp_path, settings=settings)
    write(log, RECORDS[:3])
    kept = log.length()
    write(log, RECORDS[3:])
    log.close()
    with monkeypatch.context() as patched:
        patched.delattr(trackers, "_start")
        with pytest.raises(UsageError, match="mlflow failed"):
            RunLog(tmp_path, kept, 2, settings)
    log = RunLog(tmp_path, kept, 2, settings)
    write(log, RECORDS[3:])
    log.close()
    assert [step for step, _ in recorded["mlflow"].points] == [1, 2, 2, 3, 4, 4]


def test_a_tracker_that_cannot_start_is_told(tmp_path, monkeypatch) -> None:
    first = Recorded()

    def start(name, *arguments):
        if name == "wandb":
            raise RuntimeError("api_key not configured")
        return first

    monkeypatch.setattr(trackers, "_start", start)
    with pytest.raises(UsageError, match=r"wandb failed \(api_key not configured\); log in with 'wandb login', or set"):
        RunLog(tmp_path, settings=TrainingSettings(track=("mlflow", "wandb")))
    assert first.closed == [False]


def test_a_missing_package_is_told_before_any_work(train, short, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    status, errors = train(*short, "--track", "wandb", "--output", tmp_path / "out")
    assert status == 2
    assert "install it with: pip install 'cmsbert-fast[wandb]'" in errors
    assert not (tmp_path / "out").exists()
    status, errors = train(*short, "--track", "wanddb")
    assert status == 2
    assert "track is 'wanddb' but must be one of tensorboard, wandb, mlflow" in errors


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch) -> None:
    """W&B leaves one in the current folder, which is on Python's path."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.setattr("sys.path_importer_cache", {})
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(trackers.sys.modules, name, raising=False)
        with pytest.raises(UsageError, match=f"--track {name} needs a package"):
            trackers.check_trackers([name])
    trackers.check_trackers(["none"])


def test_a_stopped_run_and_its_rest_give_every_point_once(train, short, tmp_path, monkeypatch) -> None:
    whole, again = Recorded(), Recorded()
    monkeypatch.setattr(trackers, "find_spec", lambda name: json.__spec__)
    monkeypatch.setattr(
        trackers, "_start", lambda name, settings, folder, *rest: again if "again" in str(folder) else whole
    )
    arguments = [*short, "--track", "mlflow", "--checkpoint-every-steps", "2"]
    stop_and_resume(train, arguments, tmp_path, monkeypatch, 3)
    assert again.points == whole.points
    assert len(whole.points) > 6
    assert (again.closed, whole.closed) == ([False, True], [True])
    # What is tracked is not part of what a run is: resumed, it may change.
    assert train(*short, "--checkpoint-every-steps", "2", "--output", tmp_path / "again", "--resume")[0] == 0


BEFORE = """
import json
from cmsbert_fast.training import trackers
class Told:
    id = "one"
    def log(self, values, step): pass
    def close(self, finished): print("closed", finished)
trackers._start = lambda *arguments: Told()
trackers.find_spec = lambda name: json.__spec__
"""


def test_only_rank_0_tracks(start_run, short, tmp_path) -> None:
    run = start_run(tmp_path, [*short, "--variant", "bert", "--epochs", 1, "--track", "wandb"], 2, BEFORE)
    assert run.wait() == [0, 0], run.errors()
    assert [run.output(rank).count("closed True") for rank in (0, 1)] == [1, 0]
    assert json.loads(next(tmp_path.glob("out/*/*/trackers.json")).read_text()) == {"wandb": {"id": "one", "sent": 0}}


@pytest.mark.parametrize("content", ["{", "[]", '{"wandb": {"id": 3, "sent": 0}}', '{"wandb": {"id": "a"}}', "\x00"])
def test_a_damaged_file_is_told(tmp_path, capsys, content):
    assert trackers._read_known(tmp_path) == {}
    assert capsys.readouterr().err == ""
    (tmp_path / trackers.FILE_NAME).write_text(content)
    assert trackers._read_known(tmp_path) == {}
    assert (
        "trackers.json cannot be read in full; trackers that it does not name get new runs" in capsys.readouterr().err
    )
