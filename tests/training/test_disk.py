"""A disk that is full: a limit on the size of files stands for it."""

import errno

import pytest
from safetensors import SafetensorError

from cmsbert_fast.training.disk import explained
from cmsbert_fast.training.errors import UsageError

_LIMIT = """
import resource
from cmsbert_fast.training import {module}
write = {module}.{name}
def limited(*arguments, **options):
    resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, resource.RLIM_INFINITY))
    try:
        return write(*arguments, **options)
    finally:  # what is printed goes to files, too
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
{module}.{name} = limited
"""


@pytest.mark.parametrize(
    ("module", "name", "size"),
    [("checkpoint", "save", 20_000), ("trainer", "Trainer.save_best", 20_000), ("report", "write_predictions", 10)],
)
def test_one_sentence_says_what_is_kept(start_run, short, train, tmp_path, module, name, size):
    run = start_run(tmp_path, short, before=_LIMIT.format(module=module, name=name, bytes=size))
    assert run.wait() == [2]
    last = run.errors().splitlines()[-1]
    root = tmp_path / "out"
    assert last.startswith(f"error: {root} cannot be written: ")
    assert last.endswith(f"Make room, then continue with --resume {root}.")
    saved = (root / "cmsbert-clr" / "seed-0" / "checkpoint.pt").exists()
    assert ("the last checkpoint and the best model are kept whole" in last) == saved == (name == "write_predictions")
    assert "Traceback" not in run.errors()
    assert train("--resume", root)[0] == 0


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (OSError(errno.ENOENT, "gone"), RuntimeError("shape")):
        with pytest.raises(type(error)), explained(tmp_path):
            raise error
    for full in (
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:862] . PytorchStreamWriter failed writing file data/1"),
    ):
        with pytest.raises(UsageError, match="there is no checkpoint yet"), explained(tmp_path):
            raise full
