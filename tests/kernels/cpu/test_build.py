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
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def calls(note):
    return len(note.read_text().splitlines()) if note.exists() else 0


def wait_for(condition, seconds=300):
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
    assert [process.wait(300) for process in processes] == [0, 0, 0]
    assert calls(quick) == 1


def test_a_killed_build_leaves_nothing_that_blocks(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "PATIENCE", 1000.0)
    process = start_builder(tmp_path / "cache", COMPILER_SLEEPS="1000")
    try:
        wait_for(lambda: calls(quick) == 1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list((tmp_path / "cache").glob("*.lock"))
        start = time.monotonic()
        assert build.build_and_load(tmp_path / "cache").answer() == 42
        assert time.monotonic() - start < 500  # waits neither for the dead process nor for its compiler
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the compiler, too


def test_a_build_that_hangs_is_not_waited_for_for_ever(quick, tmp_path, monkeypatch):
    process = start_builder(tmp_path / "cache", COMPILER_SLEEPS="1000")
    try:
        wait_for(lambda: calls(quick) == 1)
        monkeypatch.setattr(build, "PATIENCE", 0.2)
        assert build.build_and_load(tmp_path / "cache").answer() == 42
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def plant(folder):
    """A foreign library with the key of ours: its own content gives the rest of its name."""
    own, key = build.SOURCES[0].read_text(), build._native_flag_and_key()[1]
    folder.mkdir(exist_ok=True, mode=0o700)
    build.SOURCES[0].write_text('extern "C" int answer() { return 666; }')
    try:
        return build._build(folder, key, [])
    finally:
        build.SOURCES[0].write_text(own)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder, file: file.chmod(0o722),
        lambda folder, file: folder.chmod(0o770),
        lambda folder, file: folder.chmod(0o777),
        lambda folder, file: folder.parent.chmod(0o777),
        lambda folder, file: file.symlink_to(file.rename(folder.parent / "elsewhere.so")),
        lambda folder, file: folder.symlink_to(folder.rename(folder.parent / "elsewhere")),
    ],
    ids=["file of all", "folder of the group", "folder of all", "parent of all", "link", "linked folder"],
)
@pytest.mark.filterwarnings("ignore:The compiled C.. cannot be kept")
def test_what_others_can_have_planted_is_not_loaded(quick, tmp_path, spoil):
    folder = tmp_path / "home" / "cache"
    folder.parent.mkdir()
    file = plant(folder)
    spoil(folder, file)
    try:
        assert build.build_and_load(folder).answer() == 42
    finally:
        folder.parent.chmod(0o700)


def test_a_folder_of_another_user_is_not_used(quick, tmp_path, monkeypatch):
    plant(tmp_path / "cache")
    monkeypatch.setattr(build.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.warns(UserWarning, match="cannot be kept in .*another user.*XDG_CACHE_HOME"):
        assert build.build_and_load(tmp_path / "cache").answer() == 42


def test_the_cache_is_an_absolute_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    for base in ("", "cache", "./cache", "~/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", base)
        assert str(build.cache_folder()) == "/home/of/mine/.cache/cmsbert_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(build.cache_folder()) == "/cache/cmsbert_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setattr(build.os.path, "expanduser", lambda path: path)  # neither HOME nor an entry in passwd
    assert build.cache_folder() is None


@pytest.mark.filterwarnings("ignore:The compiled C.. cannot be kept")
def test_a_lock_that_is_a_link_or_a_pipe_is_not_opened(quick, tmp_path):
    folder, precious = tmp_path / "cache", tmp_path / "precious"
    folder.mkdir(mode=0o700)
    precious.write_text("of value")
    lock = folder / f"{build._native_flag_and_key()[1]}.lock"
    lock.symlink_to(precious)
    assert build.build_and_load(folder).answer() == 42
    assert precious.read_text() == "of value"
    lock.unlink()
    lock.write_text("stays")
    assert build.build_and_load(folder).answer() == 42
    assert lock.read_text() == "stays"
    lock.unlink()
    for path in folder.glob("*.so"):
        path.unlink()
    os.mkfifo(lock)
    assert build.build_and_load(folder).answer() == 42


@pytest.mark.filterwarnings("ignore:The compiled C.. cannot be kept")
@pytest.mark.parametrize("kind", ["folder", "huge", "pipe"])
def test_what_is_no_binary_but_has_its_name(quick, tmp_path, kind):
    folder = tmp_path / "cache"
    path = plant(folder)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    assert build.build_and_load(folder).answer() == 42


def test_a_cache_from_which_nothing_may_run_compiles_once(quick, tmp_path, monkeypatch):
    load = build.ctypes.CDLL

    def noexec(name):
        if "cache" in name:
            raise OSError("failed to map segment from shared object")
        return load(name)

    monkeypatch.setattr(build.ctypes, "CDLL", noexec)
    for _ in range(2):
        assert build.build_and_load(tmp_path / "cache").answer() == 42
    assert calls(quick) == 1


def test_a_compiler_command_with_an_open_quotation_mark_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "g++ '-O2")
    with pytest.raises(build.BuildError, match="CXX cannot be read"):
        build.build_and_load(tmp_path / "cache")


@pytest.mark.filterwarnings("ignore:The compiled C.. cannot be kept")
def test_a_folder_that_cannot_be_written(quick, tmp_path):
    (tmp_path / "file").touch()
    assert build.build_and_load(tmp_path / "file" / "cache").answer() == 42


@pytest.mark.filterwarnings("ignore:The compiled C.. cannot be kept")
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
        monkeypatch.setattr(build, "cpu_features", lambda f=features: f)
        keys.add(build._native_flag_and_key()[1])
    assert len(keys) == 2
    monkeypatch.setattr(build, "cpu_features", lambda: "")
    assert build._native_flag_and_key()[0] == []  # unknown CPU: the compiler's portable default
