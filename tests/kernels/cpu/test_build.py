"""How the compiled C++ is built, kept and loaded."""

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from cmsbert_fast.kernels.cpu import build, library

MISSING = library.why_not()
needs_compiler = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A compiler that notes each call and does not optimise; returns the note."""
    if MISSING is not None:
        pytest.skip(MISSING)
    note, script = tmp_path / "calls", tmp_path / "compiler"
    source = tmp_path / "small.cpp"
    source.write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(build, "SOURCES", (source,))
    real = shlex.join(build._require_compiler())
    script.write_text(f'#!/bin/sh\necho called >> "{note}"\nsleep "${{COMPILER_SLEEPS:-0}}"\nexec {real} "$@" -O0\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return note


BUILDER = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("build", sys.argv[1])
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
build.SOURCES = (Path(sys.argv[2]),)
print("ready", flush=True)
assert build.build_and_load(Path(sys.argv[3])).answer() == 42
"""


def start_builder(folder, **environment):
    """A process that builds into ``folder``, without importing torch."""
    command = [sys.executable, "-c", BUILDER, importlib.util.find_spec("cmsbert_fast.kernels.cpu.build").origin]
    command += [str(build.SOURCES[0]), str(folder)]
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def calls(note):
    return len(note.read_text().splitlines()) if note.exists() else 0


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_built_once_then_loaded(quick, tmp_path):
    folder = tmp_path / "new" / "cache"
    for _ in range(2):
        assert build.build_and_load(folder).answer() == 42
    assert calls(quick) == 1
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-1] + b"?"])
def test_a_damaged_binary_is_built_again(quick, tmp_path, damage):
    folder = tmp_path / "cache"
    folder.mkdir()
    path = build._build(folder, build._native_flag_and_key()[1], [])
    path.write_bytes(damage(path.read_bytes()))
    assert build.build_and_load(folder).answer() == 42
    assert calls(quick) == 2


def test_processes_that_start_together_compile_once(quick, tmp_path):
    processes = [start_builder(tmp_path / "cache", COMPILER_SLEEPS="1") for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert calls(quick) == 1


def test_a_killed_build_leaves_nothing_that_blocks(quick, tmp_path):
    process = start_builder(tmp_path / "cache", COMPILER_SLEEPS="5")
    wait_for(lambda: calls(quick) == 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "cache").glob("*.lock"))
    start = time.monotonic()
    assert build.build_and_load(tmp_path / "cache").answer() == 42
    assert time.monotonic() - start < 5  # waits neither for the dead process nor for its compiler


def test_a_build_that_hangs_is_not_waited_for_for_ever(quick, tmp_path, monkeypatch):
    process = start_builder(tmp_path / "cache", COMPILER_SLEEPS="30")
    try:
        wait_for(lambda: calls(quick) == 1)
        monkeypatch.setattr(build, "PATIENCE", 0.2)
        assert build.build_and_load(tmp_path / "cache").answer() == 42
    finally:
        process.kill()
        process.wait()


def test_a_folder_that_cannot_be_written(quick, tmp_path):
    (tmp_path / "file").touch()
    assert build.build_and_load(tmp_path / "file" / "cache").answer() == 42


def test_a_full_disk(quick, tmp_path):
    real = (tmp_path / "compiler").read_text()
    full = real.replace("exec", 'case "$*" in */cache/*) echo "error: no space left" >&2; exit 1;; esac\nexec')
    (tmp_path / "compiler").write_text(full)
    assert build.build_and_load(tmp_path / "cache").answer() == 42


def test_no_folder_at_all_is_a_reason_not_a_traceback(quick, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path / "file" / "cache")
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path / "nowhere"))
    build.load.cache_clear()
    try:
        assert "cannot be built" in build.load()
    finally:
        build.load.cache_clear()


def test_a_failing_compiler_is_quoted(quick, tmp_path):
    build.SOURCES[0].write_text("int answer() { return forty_two; }")
    with pytest.raises(build.BuildError, match=r"failed.*forty_two"):
        build.build_and_load(tmp_path / "cache")


def test_each_cpu_has_its_own_binary(monkeypatch):
    keys = set()
    for features in ("flags : sse2", "flags : sse2 avx512f"):
        monkeypatch.setattr(build, "_cpu_features", lambda f=features: f)
        keys.add(build._native_flag_and_key()[1])
    assert len(keys) == 2
    monkeypatch.setattr(build, "_cpu_features", lambda: "")
    assert build._native_flag_and_key()[0] == []  # unknown CPU: the compiler's portable default
