"""The operators as a kernel of Hugging Face's ``kernels``: ``python -m cmsbert_fast.hub_kernels FOLDER``.

The folder has that package's layout for kernels that are compiled where they run (its "noarch" variants)::

    FOLDER/build/torch-{cpu,cuda,rocm}/
        __init__.py     cms_attention, ModalityShift, pairwise_contrastive_loss
        _ops.py         the namespace of the registered operators, one of its own
        metadata.json   name, id, version, licence, backend, digest of every file
        ops/ kernels/ reference/ packing.py

A kernel must not import the package that it was made of. So the sources that the two operators need are copied with
relative imports, and their operators are registered under a name that no other version has.
"""

import ast
import base64
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cmsbert_fast import atomic
from cmsbert_fast.training.command import Parser
from cmsbert_fast.training.errors import UsageError, os_reason
from cmsbert_fast.training.exits import exit_status

NAME = "cmsbert"
VERSION = 1  # of the interface, as the hub counts it
BACKENDS = ("cpu", "cuda", "rocm")
PACKAGE = "cmsbert_fast"
ROOTS = ("ops.attention.api", "ops.contrastive.api")
DATA = (".json", ".cpp", ".h")  # what lies beside the modules of ``kernels`` and is read by them
_INIT = '''\
"""CMS attention (Eq. 1-7) and the pairwise contrastive loss (Eq. 17-19, 23) of CMSBERT-CLR (arXiv:2209.07424)."""

from .ops.attention.api import cms_attention
from .ops.attention.types import ModalityShift
from .ops.contrastive.api import pairwise_contrastive_loss

__all__ = ["ModalityShift", "cms_attention", "pairwise_contrastive_loss"]
'''
_OPS = '''\
import torch

ops = torch.ops.{namespace}


def add_op_namespace_prefix(op_name: str) -> str:
    """The full name of a registered operator."""
    return f"{namespace}::{{op_name}}"
'''


def sources() -> dict[str, str]:
    """The sources of all modules that the operators import, by path within the package, and the data beside them."""
    found: dict[str, str] = {}
    waiting = list(ROOTS)
    while waiting:
        module = waiting.pop()
        try:
            spec = importlib.util.find_spec(f"{PACKAGE}.{module}")
        except (ModuleNotFoundError, ValueError):
            continue  # it names an object, or the folder of the kernels, which is no module
        if spec is None:
            continue
        around = [module.rpartition(".")[0]] if "." in module else []
        if spec.origin is None or not Path(spec.origin).is_file():  # a folder without __init__.py
            waiting += around
            continue
        path = Path(spec.origin)
        parts = Path(*module.split("."))
        name = (parts / "__init__.py" if path.name == "__init__.py" else parts.with_suffix(".py")).as_posix()
        if name in found:
            continue
        found[name] = path.read_text(encoding="utf-8")
        for other in path.parent.iterdir() if module.startswith("kernels.") else ():
            if other.suffix in DATA:
                found[(Path(name).parent / other.name).as_posix()] = other.read_text(encoding="utf-8")
        waiting += [*around, *_imported(found[name])]
    return dict(sorted(found.items()))


def _imported(source: str) -> Iterator[str]:
    """The modules of the package that a source may import, and names in them, without the package's own name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            inside = (node.module or "")[len(PACKAGE) + 1 :]
            yield from ([inside] if inside else [])
            yield from (f"{inside}.{alias.name}" if inside else alias.name for alias in node.names)


def relative(name: str, source: str) -> str:
    """A source with relative imports in place of those of the package.

    Args:
        name: Path of the source within the package.
        source: Its text.

    Raises:
        ValueError: It imports the package in another form.
    """
    lines = source.splitlines(keepends=True)
    dots = "." * len(Path(name).parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == PACKAGE for alias in node.names):
            raise ValueError(f"{name}:{node.lineno}: import names of {PACKAGE} with from.")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            old, inside = f"from {node.module} import", (node.module or "")[len(PACKAGE) + 1 :]
            row = node.lineno - 1
            if old not in lines[row]:
                raise ValueError(f"{name}:{node.lineno}: write {old} on one line.")
            lines[row] = lines[row].replace(old, f"from {dots}{inside} import", 1)
    return "".join(lines)


def variant(backend: str) -> dict[str, str]:
    """The files of one build variant, by path in its folder; the same sources give the same files."""
    files = sources()
    content = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    namespace = f"_{NAME}_{backend}_{content}"
    files = {n: relative(n, text) if n.endswith(".py") else text for n, text in files.items()}
    for old, new in (
        (f"torch.ops.{PACKAGE}", f"torch.ops.{namespace}"),
        (f"{PACKAGE}::", f"{namespace}::"),
        (f'Library("{PACKAGE}"', f'Library("{namespace}"'),
    ):
        files = {n: text.replace(old, new) if n.endswith(".py") else text for n, text in files.items()}
    files |= {"__init__.py": _INIT, "_ops.py": _OPS.format(namespace=namespace)}
    digests = {n: base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for n, t in sorted(files.items())}
    metadata = {
        "name": NAME,
        "id": namespace,
        "version": VERSION,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digests},
    }
    return {**files, "metadata.json": json.dumps(metadata, indent=2) + "\n"}


def write_layout(folder: Path) -> None:
    """Writes a new folder with every variant, whole or not at all."""

    def write(draft: Path) -> None:
        for backend in BACKENDS:
            for name, text in variant(backend).items():
                path = draft / "build" / f"torch-{backend}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text.encode())

    folder.parent.mkdir(parents=True, exist_ok=True)
    atomic.replace_folder(folder, write)


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; the exit status is that of :func:`~cmsbert_fast.training.exits.exit_status`."""
    return exit_status(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog="python -m cmsbert_fast.hub_kernels",
        description="Writes the operators as a kernel that Hugging Face's package 'kernels' loads: "
        "kernels.get_local_kernel(Path(FOLDER)).",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the new folder")
    folder = parser.parse_args(arguments).folder
    if folder.exists():
        raise UsageError(f"{folder} exists; remove it or choose another folder.")
    # The modules of its kernels are found by importing the packages around them.
    if importlib.util.find_spec("triton") is None:
        raise UsageError("Install triton first: without it the kernels for GPUs would be missing in the folder.")
    try:
        write_layout(folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({os_reason(error)}); choose another folder.") from None
    print(f"{folder} has the variants {', '.join(f'torch-{backend}' for backend in BACKENDS)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
