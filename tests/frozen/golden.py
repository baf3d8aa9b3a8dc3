"""Golden files, the environment they were recorded in, and how they are compared with what is found now.

Golden files lie in ``golden/``. ``python -m tests.frozen.record`` rewrites them.
"""

import json
import math
import os
import platform
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).with_name("golden")

# How far numbers may differ where the environment is not the recorded one. On the machine that recorded them, other
# rounding (ATEN_CPU_CAPABILITY=default, MKL_CBWR=COMPATIBLE, CXX="c++ -mno-avx512f -mno-fma" with an empty cache, all
# at once) moved no prediction by more than 2.2e-5, no loss by more than 1.6e-6 of it, no gradient's norm by more than
# 2.7e-5 of it, no prediction of a rebuilt checkpoint by more than 1e-6, and no accuracy at all. The C++ alone moved
# predictions by at most 8e-7, ATEN_CPU_CAPABILITY=avx2 alone moved nothing. Ten times the largest:
RELATIVE = 3e-4
ABSOLUTE = 2e-4
# Accuracies and F1 jump where a prediction crosses a border. In percent: 3 of the 300 validation examples.
PERCENT = 1.0


def load(name: str) -> Any:
    """Reads ``golden/NAME.json``."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))


def save(name: str, value: Any) -> None:
    """Writes ``golden/NAME.json``: a line for each entry of a mapping, so that a change shows in the diff."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(_text(value) + "\n", encoding="utf-8")


def _text(value: Any, indent: str = "") -> str:
    inner = indent + " "
    if isinstance(value, dict) and value:
        lines = [f"{inner}{json.dumps(str(key))}: {_text(entry, inner)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and not all(re.fullmatch(r"[\w.+-]+", str(entry)) for entry in value):
        return "[\n" + ",\n".join(inner + _text(entry, inner) for entry in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)


def environment() -> dict[str, Any]:
    """What decides the last bit of a result on a CPU, beside the project itself.

    Threads are not in it: every run has one, and says so in its results. Nor is the compiled code that lies in the
    user's cache, where it may come from an earlier compiler.
    """
    built = torch.__config__.show().splitlines()
    libraries = [line.strip(" -") for line in built if "Math Kernel Library" in line or "MKL-DNN" in line]
    return {
        "torch": torch.__version__,
        "libraries": libraries,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": _cpu(),
        "numpy": np.__version__,
        "transformers": transformers.__version__,
        "compiler": _compiler(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("MKL_CBWR", "MKL_EN", "ONEDNN_"))},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    values = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)  # of the first CPU
    found = {key.strip(): value.strip() for key, value in values.items()}
    parts = (found.get(key, "?") for key in ("model name", "cpu family", "model", "stepping"))
    return "{}, family {}, model {}, stepping {}".format(*parts)


def _compiler() -> str | None:
    command = os.environ.get("CXX", "").split() or ["c++"]
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=False)
    return " ".join((*command, "is", *done.stdout.splitlines()[:1]))


def to_the_bit(recorded: dict[str, Any]) -> bool:
    """Whether numbers recorded in an environment are to be found to the bit in this one; warns where they are not."""
    now = environment()
    changed = [f"{k}: {recorded.get(k)!r} then, {now[k]!r} now" for k in now if recorded.get(k) != now[k]]
    if changed:
        warnings.warn(f"compared with a tolerance, not to the bit ({'; '.join(changed)})", stacklevel=2)
    return not changed


def differences(golden: Any, found: Any, exact: bool = True, path: str = "") -> Iterator[str]:
    """Where ``found`` is not what ``golden`` says. Mappings may have got new keys; lists must be as long.

    Args:
        golden, found: What JSON can hold.
        exact: Floating-point numbers to the bit; else within the tolerances above.
        path: Where in the whole these are.
    """
    if isinstance(golden, dict) and isinstance(found, dict):
        for key, value in golden.items():
            if key not in found:
                yield f"{path}/{key} is missing"
            else:
                yield from differences(value, found[key], exact, f"{path}/{key}")
    elif isinstance(golden, list) and isinstance(found, list):
        if len(golden) != len(found):
            yield f"{path} has {len(found)} entries, not {len(golden)}"
        for k, (ours, theirs) in enumerate(zip(golden, found, strict=False)):
            yield from differences(ours, theirs, exact, f"{path}/{k}")
    elif not exact and isinstance(golden, float) and isinstance(found, float):
        percent = path.rsplit("/", 1)[-1].startswith(("acc", "f1"))
        absolute = PERCENT + 1e-9 if percent else ABSOLUTE
        if not math.isclose(golden, found, rel_tol=0.0 if percent else RELATIVE, abs_tol=absolute):
            yield f"{path} is {found!r}, not about {golden!r}"
    elif type(golden) is not type(found) or golden != found:
        yield f"{path} is {found!r}, not {golden!r}"


def assert_unchanged(golden: Any, found: Any, exact: bool = True) -> None:
    """Fails with the first of the :func:`differences`, and how many there are."""
    wrong = list(differences(golden, found, exact))
    listed = "\n".join(wrong[:20])
    assert not wrong, f"{len(wrong)} differences; if they are meant, see tests/frozen/record.py:\n{listed}"
