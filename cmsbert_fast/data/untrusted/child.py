"""Another process that opens untrusted files first.

Altered files can lead the HDF5 library itself to exhaust memory, to hang or to crash. `examine` lets that happen in a
process with little memory and time; what passes there is safe to open here.

That process is isolated: Python's ``-I`` keeps the current folder, which may be the one of the data, and the
environment out of its path. A ``json.py`` beside the data would otherwise be imported.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cmsbert_fast.data.example import DataError

_PACKAGE = Path(__file__).absolute().parents[2] / "__init__.py"
_MEMORY, _FACTOR = 96 << 20, 8  # bytes that looking at files may take, and for each byte of the largest,
_MOST = 512 << 20  # up to this
_SECONDS = 60.0
_REFUSED = 3  # exit status of the other process for a file that it refuses
# Python's own path comes first: nothing that lies in another folder can take the name of a standard module. The package
# is the one of this process, wherever it lies.
_SCRIPT = """
import importlib.util, json, sys
folders, package, module, function, *rest = sys.argv[1:]
sys.path += json.loads(folders)
spec = importlib.util.spec_from_file_location("cmsbert_fast", package)
sys.modules["cmsbert_fast"] = root = importlib.util.module_from_spec(spec)
spec.loader.exec_module(root)
getattr(importlib.import_module(module), function)(*rest)
"""
_examined: set[tuple[str, int, int]] = set()


def examine(paths: Sequence[Path], check: Callable[[Path], None]) -> None:
    """Lets another process check files. One that was checked before and has not changed is not checked again.

    Args:
        paths: The files.
        check: A function of a module: opens a file and all that reading it will open; raises `DataError` to refuse it.

    Raises:
        DataError: A file was refused, ran out of memory or time, or crashed the process.
    """
    marks = {path: (str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths}
    paths = [path for path in paths if marks[path] not in _examined]
    if not paths:
        return
    names = [check.__module__, check.__name__, *(str(path.absolute()) for path in paths)]
    seconds = _SECONDS + sum(path.stat().st_size for path in paths) / 10e6
    command = isolated(walk, *names)
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=environment(), check=False
        )
        status, said = result.returncode, result.stdout
    except subprocess.TimeoutExpired as error:
        status, said = -1, str(error.stdout or b"", "utf-8", "replace") if isinstance(error.stdout, bytes) else ""
    if status:
        lines = said.splitlines() or [paths[0].name]
        if status == _REFUSED:
            raise DataError(lines[-1])
        raise DataError(f"Get {lines[-1]} again, it is damaged: opening it exhausts memory or time, or crashes HDF5.")
    _examined.update(marks.values())


def environment() -> dict[str, str]:
    """The variables of a process that does one thing on few threads."""
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def isolated(function: Callable[..., None], *arguments: str) -> list[str]:
    """The command that runs a module's function, with texts as arguments, in an isolated process."""
    names = [json.dumps(_folders()), str(_PACKAGE), function.__module__, function.__name__]
    return [sys.executable, "-I", "-c", _SCRIPT, *names, *arguments]


def _folders() -> list[str]:
    """Where this process finds modules, without the current folder, whatever it is called."""
    here = os.path.realpath(os.curdir)
    return [folder for folder in sys.path if os.path.isabs(folder) and os.path.realpath(folder) != here]


def walk(module: str, function: str, *paths: str) -> None:
    """The other process: names each file, checks it, and exits with `_REFUSED` where it is refused."""
    check = getattr(importlib.import_module(module), function)
    limit_memory(min(_MOST, _MEMORY + _FACTOR * max(Path(path).stat().st_size for path in paths)))
    for path in paths:
        print(Path(path).name, flush=True)
        try:
            check(Path(path))
        except DataError as error:
            print(" ".join(str(error).split()), flush=True)
            sys.exit(_REFUSED)


def limit_memory(size: int) -> None:
    """Limits the bytes that this process may take beside what it has, where the system can.

    A lower limit that the process was given stays.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + size
        _, given = resource.getrlimit(resource.RLIMIT_AS)
        if given != resource.RLIM_INFINITY:
            limit = min(limit, given)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (ImportError, OSError):
        pass
