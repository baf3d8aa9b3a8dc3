"""Which room may import which: the arrows of ``docs/architecture.md``, held by reading the sources.

Imports inside functions and under TYPE_CHECKING count like any other, and so do objects named by a string
``"cmsbert_fast.module:Name"``; code inside strings does not.
"""

import ast
import graphlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A room, or one module of it, and what it may import besides its own modules. The longest name that fits counts.
MAY_IMPORT = {
    "reference": set(),
    "packing": set(),
    "atomic": set(),
    "threads": set(),
    "commandline": set(),
    "progress": set(),
    "plots": {"atomic"},
    "kernels": set(),
    "ops": {"kernels", "packing"},
    "data.example": {"data.report", "data.text"},
    "data.report": {"data.text"},
    "data.text": set(),
    "data.statistics": set(),
    "data.untrusted.files": set(),
    "data.word_vectors": {"atomic", "data.example", "data.mapped", "data.untrusted.files"},
    "data": {"atomic", "commandline", "progress"},
    "extract": {"atomic", "data", "commandline", "progress"},
    "models": {"ops", "packing", "atomic", "data.example", "data.statistics", "data.word_vectors"},
    "training": {"models", "ops", "packing", "data", "plots", "atomic", "commandline", "progress"},
    "page": {"atomic", "data"},
    "predict_page": {"page", "training", "models", "data"},
    "predict_videos": {"extract", "training", "models", "data"},
    "predict": {
        *("predict_page", "predict_videos", "extract", "training", "models", "packing", "data", "atomic", "threads"),
        "commandline",
    },
    "evaluate": {"predict", "training", "models", "packing", "data", "atomic", "threads", "commandline"},
    "experiments": {"training", "models", "packing", "data", "plots", "atomic", "commandline"},
    "cli": {"experiments", "export", "evaluate", "predict", "training", "data", "extract", "threads", "commandline"},
    "__main__": {"cli"},
    "": {"models", "ops", "training"},  # the public names, for type checkers
    # Loads trained models; standardises frames in the program.
    "export": {"training", "models", "atomic", "data.example", "threads", "commandline"},
    # Reads sources only; the folder appears whole, and errors are told as elsewhere.
    "hub_kernels": {"training", "atomic"},
    "train": {"training", "threads"},
}
# Folders whose parts never import each other, and what these share.
APART = {"ops": {"dispatch", "capability", "autograd", "autocast"}, "data.formats": set()}
REFERENCE_IS_FOR = re.compile(r"ops\.\w+\.api")
OBJECT = re.compile(r"cmsbert_fast(\.\w+)+:\w+")
IMPORTERS = {"import_module", "__import__", "resolve_name"}
# Who may import by a computed name: the public names, the programs, the check that another process runs, the systems.
COMPUTES_NAMES = {"", "cli", "data.untrusted.child", "models.registry"}
# Libraries: all that a room may import, or some that it may not.
LIBRARIES = {
    "kernels": {"torch", "triton"},
    "reference": {"torch"},
    "packing": {"torch"},
    "atomic": set(),
    "threads": set(),
    "commandline": set(),
    "progress": {"rich"},
}
FORBIDDEN_LIBRARIES = {
    "plots": {"torch", "triton", "transformers"},
    "data": {"torch", "triton"},
    "extract": {"torch", "triton", "transformers"},
    "page": {"torch", "triton", "transformers"},
}
NEVER = {"kernels", "bench", "tests"}  # as top-level packages


def read_tree() -> dict[str, str]:
    """Sources by module, named as within the package: ``ops.lstm.cpu``, ``kernels.cpu.build``; its root is ``""``."""
    tree = {"train": (ROOT / "train.py").read_text(encoding="utf-8")}
    for above, folder in ((ROOT / "cmsbert_fast", "."), (ROOT, "kernels")):
        for path in (above / folder).rglob("*.py"):
            parts = path.relative_to(above).with_suffix("").parts
            tree[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return tree


def imported(source: str) -> Iterator[str]:
    """Full names of all that a source imports: ``a.b`` of ``from a import b``; ``?`` where it computes the name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and OBJECT.fullmatch(node.value):
            yield node.value.split(":")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in IMPORTERS:
            yield node.args[0].value if isinstance(node.args[0], ast.Constant) else "?"


def longest(module: str, names: Mapping[str, object]) -> str | None:
    """The longest of the names that is the module's or that of a package around it."""
    around = [name for name in names if f"{module}.".startswith(f"{name}.")]
    return max(around, key=len, default=None)


def why_not(importer: str, target: str) -> str | None:
    """Why a module of the project may not import another one; None if it may."""
    if target == "reference" or target.startswith("reference."):
        allowed = not importer or REFERENCE_IS_FOR.fullmatch(importer) or importer.startswith("reference")
        return None if allowed else "the reference is for the operators' api files and tests"
    for folder, shared in APART.items():
        own, other = (name.removeprefix(f"{folder}.").split(".")[0] for name in (importer, target))
        inside = all(name.startswith(f"{folder}.") for name in (importer, target))
        if inside and own != other and other not in shared:
            return f"the parts of {folder} do not know each other"
    room = longest(importer, MAY_IMPORT)
    if room is None:
        return "the room of the importer is not in MAY_IMPORT"
    allowed = MAY_IMPORT[room] | {room}
    return None if longest(target, dict.fromkeys(allowed)) else f"{room} may import {', '.join(sorted(allowed))}"


def why_not_library(importer: str, name: str) -> str | None:
    """The same of a module from elsewhere."""
    library = name.split(".")[0]
    if not library:
        return "imports are absolute"
    if name == "?":
        return None if importer in COMPUTES_NAMES else "the name is computed"
    if library in NEVER:
        return "it is no package of its own"
    allowed = LIBRARIES.get(longest(importer, LIBRARIES))
    forbidden = FORBIDDEN_LIBRARIES.get(longest(importer, FORBIDDEN_LIBRARIES), set())
    if library in forbidden or (allowed is not None and library not in allowed | set(sys.stdlib_module_names)):
        return "not a library of this room"
    return None


def problems(tree: Mapping[str, str]) -> list[str]:
    """A line for each import that the rules forbid, and one for a circle of imports."""
    found, graph = [], {}
    for module, source in tree.items():
        graph[module] = set()
        for name in sorted(set(imported(source))):
            if name.split(".")[0] != "cmsbert_fast":
                reason, target = why_not_library(module, name), name
            elif name == "cmsbert_fast.__version__":
                continue
            else:
                target = longest(name.removeprefix("cmsbert_fast").removeprefix("."), tree) or ""
                reason = why_not(module, target) if target else "the package's public names are for others"
                if target != module:
                    graph[module].add(target)
            line = f"{module} imports {target or 'cmsbert_fast'}: {reason}"
            if reason and line not in found:
                found.append(line)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"circle: {' <- '.join(error.args[1])}")
    return found


def test_every_import_keeps_the_rules() -> None:
    assert problems(read_tree()) == []


def test_the_picture_shows_the_rules() -> None:
    """Every arrow between the rooms that there are, but those to what imports nothing itself."""
    picture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    drawn = re.findall(r"^ *(\w+)(?:\[.*?\])? --.*> (\w+)$", picture, re.MULTILINE)
    rooms = {module.split(".")[0] for module in read_tree()} - {"", "__main__"}  # names for others, and for Python
    rules = {(room, other.split(".")[0]) for room in MAY_IMPORT.keys() & rooms for other in MAY_IMPORT[room]}
    arrows = {
        (room, other)
        for room, other in rules
        if other not in ("packing", "atomic", "threads", "commandline", "progress")
    } | {("ops", "reference")}
    assert sorted(drawn) == sorted(arrows)


def test_the_page_names_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([\w/]+(?:/|\.py))`", page):
        assert (ROOT / name).exists() or (ROOT / "cmsbert_fast" / name).exists(), name


ALLOWED = {
    "downwards": {"training.trainer": "import cmsbert_fast.models.losses", "models.losses": ""},
    "the data contract": {"models.processing": "from cmsbert_fast.data.example import Example", "data.example": ""},
    "the reference": {"ops.lstm.api": "from cmsbert_fast import reference", "reference": "import torch"},
    "kernels, as ours": {"ops.lstm.cpu": "from cmsbert_fast.kernels.cpu import library", "kernels.cpu.library": ""},
    "what operators share": {"ops.lstm.api": "from cmsbert_fast.ops import dispatch", "ops.dispatch": "import torch"},
    "the own operator": {"ops.lstm.api": "from cmsbert_fast.ops.lstm import cpu", "ops.lstm.cpu": ""},
    "the version": {"training.report": "from cmsbert_fast import __version__"},
    "what strings hold": {"data.open": "CODE = 'import torch'"},
}
FORBIDDEN = {
    "upwards": {"models.losses": "import cmsbert_fast.training.trainer", "training.trainer": ""},
    "data's readers by models": {"models.base": "from cmsbert_fast.data import open", "data.open": ""},
    "above training": {"training.trainer": "from cmsbert_fast.predict import main", "predict": ""},
    "inside a function": {
        "kernels.tiles": "def f():\n    from cmsbert_fast.ops import dispatch",
        "ops.dispatch": "",
    },
    "for types": {
        "ops.dispatch": "if TYPE_CHECKING:\n    from cmsbert_fast.models.base import Model",
        "models.base": "",
    },
    "an object by name": {"models.registry": "A = 'cmsbert_fast.training.trainer:Trainer'", "training.trainer": ""},
    "by name": {"data.open": "import importlib\nimportlib.import_module('torch.nn')"},
    "by a computed name": {"data.open": "from importlib import import_module\nimport_module(name)"},
    "relative": {"ops.lstm.api": "from . import cpu", "ops.lstm.cpu": ""},
    "another operator": {"ops.lstm.api": "from cmsbert_fast.ops.linear.types import Lengths", "ops.linear.types": ""},
    "an operator by what all share": {"ops.dispatch": "import cmsbert_fast.ops.linear.api", "ops.linear.api": ""},
    "another format": {"data.formats.misa": "from cmsbert_fast.data.formats import mag", "data.formats.mag": ""},
    "the reference by a backend": {"ops.lstm.torch": "from cmsbert_fast.reference import lstm", "reference": ""},
    "the reference by a model": {"models.base": "from cmsbert_fast.reference import cms", "reference.cms": ""},
    "anything by the reference": {"reference.cms": "from cmsbert_fast.packing import pad", "packing": ""},
    "the root by its parts": {"training.trainer": "from cmsbert_fast import cms_attention", "": ""},
    "a room of no name": {"misc": "from cmsbert_fast.packing import pad", "packing": ""},
    "kernels at the top level": {"ops.lstm.cpu": "from kernels.cpu import library", "kernels.cpu.library": ""},
    "a test": {"training.trainer": "from tests.conftest import Disk"},
    "torch by data": {"data.align": "import torch"},
    "torch by the page": {"page.build": "import torch"},
    "the model by the page": {"page.build": "from cmsbert_fast.models.base import Classifier", "models.base": ""},
    "torch by extract": {"extract.__main__": "from torch import nn"},
    "numpy by kernels": {"kernels.tiles": "import numpy as np"},
    "in a circle": {
        "models.a": "def f():\n    from cmsbert_fast.models import b",
        "models.b": "from cmsbert_fast.models.c import x",
        "models.c": "import cmsbert_fast.models.a",
    },
}


@pytest.mark.parametrize("tree", ALLOWED.values(), ids=ALLOWED)
def test_what_is_allowed(tree: dict[str, str]) -> None:
    assert problems(tree) == []


@pytest.mark.parametrize("tree", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_is_forbidden(tree: dict[str, str]) -> None:
    assert len(problems(tree)) == 1
