"""Builds the C++ of ``kernels/cpu`` at first use and loads it.

One run of the machine's C++ compiler, a few seconds, into the user's cache folder; no build system, no headers but the
compiler's own. Processes and machines share the cache, and builds may be killed:

* A binary's name holds the hash of its sources, its flags and the CPU's features (one home may serve many machines),
  and the hash of its own content: a damaged file does not match its name and is built again.
* ``os.replace`` puts it in place: no process ever sees half a file. (``cmsbert_fast.atomic`` will not do: kernels
  import nothing of the project, and several processes may build at once.)
* Processes that start together wait for the first one's build with ``flock``, which the system releases when its holder
  dies. After a minute of waiting each builds its own copy, which is harmless.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SOURCES = tuple(sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in (".cpp", ".h")))
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions",
         "-fno-rtti", "-shared", "-fPIC")  # fmt: skip
PATIENCE = 60.0  # seconds to wait for another process's build


class BuildError(Exception):
    """The library cannot be built or loaded here; the message says why, in half a sentence."""


@functools.cache
def load() -> ctypes.CDLL | str:
    """The library, built if needed; or the reason why there is none. Done once a process."""
    try:
        return build_and_load(cache_folder())
    except BuildError as error:
        return str(error)


def cache_folder() -> Path:
    """Where binaries are kept: ``cmsbert_fast`` below ``XDG_CACHE_HOME``, by default ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "cmsbert_fast"


def build_and_load(folder: Path) -> ctypes.CDLL:
    """The library from ``folder``, built there if needed; for this process alone where the folder cannot be written.

    Raises:
        BuildError: there is no compiler, it fails, or what it built cannot be loaded.
    """
    if sys.platform == "win32":
        raise BuildError("its C++ is built on Linux and macOS only")
    native, key = _native_flag_and_key()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        library = _load_sound(folder, key)
        if library is not None:
            return library
        _require_compiler()
        with _lock(folder / f"{key}.lock"):
            library = _load_sound(folder, key)  # another process may have built it meanwhile
            return library or ctypes.CDLL(str(_build(folder, key, native)))
    except (OSError, BuildError):
        pass  # no folder to write to, a full disk, or a binary that this system cannot load
    try:
        with tempfile.TemporaryDirectory() as own:
            return ctypes.CDLL(str(_build(Path(own), key, native)))  # stays loaded without its file
    except OSError as error:
        raise BuildError(f"the C++ cannot be built or loaded ({error})") from error


def _native_flag_and_key() -> tuple[list[str], str]:
    """The flag for the CPU's own instructions, where its features are known, and a hash of what a binary depends on."""
    features = _cpu_features()
    native = ["-march=native"] if features else []
    sources = (path.read_text() for path in SOURCES)
    parts = [*sources, *FLAGS, *native, features, platform.machine(), sys.platform, *platform.libc_ver()]
    return native, hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cpu_features() -> str:
    """The CPU's features as the system lists them; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _load_sound(folder: Path, key: str) -> ctypes.CDLL | None:
    for path in folder.glob(f"{key}-*.so"):
        if path.stem == f"{key}-{_digest(path)}":
            with contextlib.suppress(OSError):
                return ctypes.CDLL(str(path))
        path.unlink(missing_ok=True)
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _require_compiler() -> list[str]:
    """The command of the C++ compiler: ``CXX``, or the first that is installed."""
    command = shlex.split(os.environ.get("CXX", ""))
    candidates = [command] if command else [["c++"], ["g++"], ["clang++"]]
    for candidate in candidates:
        if shutil.which(candidate[0]):
            return candidate
    names = ", ".join(candidate[0] for candidate in candidates)
    raise BuildError(f"no C++ compiler found (looked for {names}); install one, or name yours in CXX")


def _build(folder: Path, key: str, native: list[str]) -> Path:
    compiler = _require_compiler()
    for leftover in folder.glob("*.tmp"):  # of a build that was killed
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink()
    handle, name = tempfile.mkstemp(suffix=".tmp", dir=folder)
    os.close(handle)
    try:
        for flags in [native, []] if native else [[]]:
            units = [str(path) for path in SOURCES if path.suffix == ".cpp"]
            command = [*compiler, *FLAGS, *flags, *units, "-o", name]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
            except subprocess.TimeoutExpired as error:
                raise BuildError(f"the C++ compiler {compiler[0]} did not finish in 300 s") from error
            if done.returncode == 0:
                path = folder / f"{key}-{_digest(Path(name))}.so"
                os.replace(name, path)
                return path
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or [""]
        raise BuildError(f"the C++ compiler {compiler[0]} failed ({lines[0].strip()})")
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds the file's lock, or gives up waiting. The file stays: removed, two could be locked under one name."""
    import fcntl  # not on Windows

    with path.open("w") as file:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
