"""Builds the C++ of ``kernels/cpu`` at first use and loads it.

One run of the machine's C++ compiler, a few seconds, into the user's cache folder; no build system, no headers but the
compiler's own. Processes and machines share the cache, and builds may be killed:

* A binary's name holds the hash of its sources, its flags and the CPU's features (one home may serve many machines),
  and the hash of its own content: a damaged file does not match its name and is built again.
* ``os.replace`` puts it in place: no process ever sees half a file. (``cmsbert_fast.atomic`` will not do: kernels
  import nothing of the project, and several processes may build at once.)
* What is loaded runs with the user's rights. So the folder is absolute, it and every binary belong to the user and can
  be written by nobody else, the folders above it belong to the user or to root, and no link is followed.
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
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

SOURCES = tuple(sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in (".cpp", ".h")))
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions",
         "-fno-rtti", "-shared", "-fPIC")  # fmt: skip
PATIENCE = 60.0  # seconds to wait for another process's build
_LARGEST = 64 << 20  # bytes of a binary; ours have less than one MiB
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class BuildError(Exception):
    """The library cannot be built or loaded here; the message says why, in half a sentence."""


@functools.cache
def load() -> ctypes.CDLL | str:
    """The library, built if needed; or the reason why there is none. Done once a process."""
    try:
        return build_and_load(cache_folder())
    except BuildError as error:
        return str(error)


def cache_folder() -> Path | None:
    """Where binaries are kept: ``cmsbert_fast`` below ``XDG_CACHE_HOME``, by default ``~/.cache``; None: nowhere.

    A relative path is no path, as the XDG specification has it.
    """
    for base in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(base):
            return Path(base) / "cmsbert_fast"
    return None


def build_and_load(folder: Path | None) -> ctypes.CDLL:
    """The library from ``folder``, built there if needed; for this process alone where it cannot be kept there.

    Raises:
        BuildError: there is no compiler, it fails, or what it built cannot be loaded.
    """
    if sys.platform == "win32":
        raise BuildError("its C++ is built on Linux and macOS only")
    native, key = _native_flag_and_key()
    try:
        folder = _own_folder(folder)
        library = _load_sound(folder, key)
        if library is not None:
            return library
        _require_compiler()
        with _lock(folder / f"{key}.lock"):
            library = _load_sound(folder, key)  # another process may have built it meanwhile
            return library or _load(_build(folder, key, native))
    except OSError as error:  # no folder to write to, one of somebody else's, a full disk
        reason = error.strerror or str(error)
    except BuildError as error:
        reason = str(error)
    with _private_folder() as own:
        library = _load(_build(own, key, native))
    warnings.warn(
        f"The compiled C++ cannot be kept in {folder or 'a cache folder'} ({reason}): it is compiled at every start. "
        "Name a folder of your own in XDG_CACHE_HOME.",
        stacklevel=2,
    )
    return library


def _own_folder(folder: Path | None) -> Path:
    """Creates a folder where it is absent.

    Returns:
        Its path without links.

    Raises:
        OSError: it or a binary in it could be another user's work.
    """
    if folder is None:
        raise OSError("neither XDG_CACHE_HOME nor HOME is an absolute path")
    above = Path(os.path.realpath(folder.parent))
    folder = above / folder.name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or not _is_own(found):
        raise OSError("it is a link, belongs to another user, or can be written by others")
    for parent in (above, *above.parents):
        found = os.stat(parent)
        shared = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX  # sticky: only owners rename
        if shared or found.st_uid not in (0, os.geteuid()):
            raise OSError(f"{parent} belongs to another user or can be written by everybody")
    return folder


def _is_own(found: os.stat_result) -> bool:
    """Whether a file or folder is this user's and nobody else can write it."""
    return found.st_uid == os.geteuid() and not found.st_mode & _OTHERS_WRITE


def _native_flag_and_key() -> tuple[list[str], str]:
    """The flag for the CPU's own instructions, where its features are known, and a hash of what a binary depends on."""
    features = cpu_features()
    native = ["-march=native"] if features else []
    sources = (path.read_text() for path in SOURCES)
    parts = [*sources, *FLAGS, *native, features, platform.machine(), sys.platform, *platform.libc_ver()]
    return native, hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def cpu_features() -> str:
    """The CPU's features as the system lists them; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _load_sound(folder: Path, key: str) -> ctypes.CDLL | None:
    """A binary of this user's whose content matches its name; others are removed where that is possible."""
    for path in folder.glob(f"{key}-*.so"):
        content = _content(path)
        if content is not None and path.stem == f"{key}-{_digest(content)}":
            with contextlib.suppress(OSError, BuildError):
                return _load(path)
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def _content(path: Path) -> bytes | None:
    """The bytes of a file that is this user's alone; None for any other, for links, and for what is no file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        sound = stat.S_ISREG(found.st_mode) and _is_own(found) and found.st_size <= _LARGEST
        return file.read(_LARGEST) if sound else None


def _load(path: Path) -> ctypes.CDLL:
    """Loads a binary; from a copy where its file system does not let anything run (noexec).

    Raises:
        BuildError: it cannot be loaded from anywhere.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        with _private_folder() as own:
            return ctypes.CDLL(shutil.copy(path, own))


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder for the moment. What was loaded stays loaded without its file.

    Raises:
        BuildError: there is no room for it, or nothing can be loaded from it.
    """
    try:
        with tempfile.TemporaryDirectory() as own:
            yield Path(own)
    except OSError as error:
        raise BuildError(f"the C++ cannot be built or loaded ({error})") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _require_compiler() -> list[str]:
    """The command of the C++ compiler: ``CXX``, or the first that is installed."""
    try:
        command = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BuildError(f"CXX cannot be read ({error}); write the command of your C++ compiler in it") from error
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
                os.chmod(name, 0o700)  # compilers recreate the file with the umask's permissions
                path = folder / f"{key}-{_digest(Path(name).read_bytes())}.so"
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

    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        if not _is_own(os.fstat(handle)):
            raise OSError(f"{path.name} belongs to another user")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(handle)
