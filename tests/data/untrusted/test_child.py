"""The process that opens untrusted files first."""

import os
import time
from pathlib import Path

import pytest

from cmsbert_fast.data import DataError, read_corpus
from cmsbert_fast.data.streams.csd import verify
from cmsbert_fast.data.untrusted import child
from tests.data.streams.csd_files import GOOD, TIMES, stream


def endless(path: Path) -> None:
    """A good file made to exhaust memory: the list of free blocks of a local heap leads back to its first block."""
    stream(path, GOOD, TIMES).close()
    data = bytearray(path.read_bytes())
    heap = data.index(b"HEAP\0")  # signature, version, size, offset of the first free block, address of the blocks
    first, address = (int.from_bytes(data[heap + k : heap + k + 8], "little") for k in (16, 24))
    data[address + first : address + first + 8] = first.to_bytes(8, "little")
    path.write_bytes(bytes(data))


def test_a_file_that_exhausts_the_librarys_memory_is_met_by_another_process_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_SECONDS", 600.0)
    path = tmp_path / "COVAREP.csd"
    endless(path)
    begin = time.perf_counter()
    with pytest.raises(DataError, match="COVAREP"):
        verify([path])
    assert time.perf_counter() - begin < 300  # memory ends it, not time
    with pytest.raises(DataError, match="COVAREP"):
        read_corpus(tmp_path)


def test_modules_beside_the_data_are_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream(tmp_path / "COVAREP.csd", GOOD, TIMES).close()
    trap = tmp_path / "trapped"
    for name in ("json", "importlib", "subprocess", "numpy", "h5py", "cmsbert_fast", "sitecustomize", "usercustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(trap)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for first in ("", ".", str(tmp_path)):  # as Python's -c, -m and scripts put it there
        monkeypatch.setattr(child, "_examined", set())
        monkeypatch.syspath_prepend(first)
        verify([tmp_path / "COVAREP.csd"])
        assert not trap.exists(), first
    assert child._examined


def test_a_lower_limit_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of ``ulimit -v``, which a process may not raise."""
    resource = pytest.importorskip("resource")
    taken: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: taken.append(limits))
    for given, expected in ((1 << 20, 1 << 20), (resource.RLIM_INFINITY, None)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, given=given: (given, given))
        child.limit_memory(64 << 20)
        soft, hard = taken.pop()
        assert soft == hard
        assert soft == expected or (expected is None and soft > 64 << 20)


def test_files_that_crash_or_hang_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "COVAREP.csd"
    stream(path, GOOD, TIMES).close()
    monkeypatch.setattr(child, "_SCRIPT", "import os, sys; print('COVAREP.csd', flush=True); os.abort()")
    with pytest.raises(DataError, match=r"COVAREP\.csd again.*crashes"):
        verify([path])
    monkeypatch.setattr(child, "_SCRIPT", "import time; print('COVAREP.csd', flush=True); time.sleep(60)")
    monkeypatch.setattr(child, "_SECONDS", 1.0)
    with pytest.raises(DataError, match=r"COVAREP\.csd again.*time"):
        verify([path])
    monkeypatch.undo()
    verify([path])
    monkeypatch.setattr(child, "_SCRIPT", "raise SystemExit(1)")
    verify([path])  # once is enough while the file stays as it is
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError):
        verify([path])
