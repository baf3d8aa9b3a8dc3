"""Every command line of the pages is read by the parser of the program that it names.

A block is run by bash as it stands, in an empty folder, with a ``PATH`` of stand-ins: each notes its arguments and does
nothing. So variables, loops and continued lines mean what they mean to a reader.
"""

import importlib
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cmsbert_fast import cli
from cmsbert_fast.training.command import parse_command
from cmsbert_fast.training.errors import UsageError
from tests.docs.blocks import BLOCKS, ROOT

if shutil.which("bash") is None:
    pytest.skip("there is no bash", allow_module_level=True)

COMMANDS = [block for block in BLOCKS if not block.language and not block.code.lstrip().startswith("id\tsplit\t")]
STAND_IN = '#!/bin/bash\n{ printf "%s\\0" "$NAME" "$@"; echo; } >>"$NOTES"\n[ "$1" != -c ] || echo OUTPUT\n'
NOT_OURS = ("head", "mypy", "python3.11", "ruff")
PROGRAMS = ("...", "cmsbert", "face/bin/pip", "mkdocs", "pip", "pytest", "python", "torchrun", *NOT_OURS)


def shell(code: str) -> str:
    """What a reader types of a block: all of it, or the lines after a prompt."""
    lines = code.splitlines()
    prompts = [line[2:] for line in lines if line.startswith("$ ")]
    return "\n".join(prompts or lines)


def commands(code: str, folder: Path) -> list[list[str]]:
    """The command lines that bash makes of a block."""
    notes = folder / "notes"
    for name in PROGRAMS:
        path = folder / (name if "/" in name else f"bin/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STAND_IN.replace("$NAME", name))
        path.chmod(0o755)
    environment = {"PATH": str(folder / "bin"), "NOTES": str(notes)}
    bash = shutil.which("bash")
    subprocess.run([bash, "-euc", shell(code)], cwd=folder, env=environment, check=True, timeout=60)
    return [line.split("\0")[:-1] for line in notes.read_text().splitlines()]


def check(program: str, *arguments: str) -> None:
    """Fails if the program does not take these arguments."""
    given = list(arguments)
    if program in ("pip", "face/bin/pip"):
        install(given)
    elif program == "pytest":
        paths = [word for word in given if "/" in word and not word.endswith(".json")]
        assert all((ROOT / path).exists() for path in paths)
    elif program == "mkdocs":
        assert (ROOT / given[given.index("-f") + 1]).is_file()
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        launch = get_args_parser().parse_args(given)
        check("python", launch.training_script, *launch.training_script_args)
    elif program == "cmsbert":
        module, name = cli.PROGRAMS[given[0]].main.split(":")[0], given[0]
        if name == "train":
            train(given[1:])
        else:
            parser = importlib.import_module(module).command_parser()
            parser.parse_args(given if cli.PROGRAMS[name].nested else given[1:])
    elif program == "...":
        check("cmsbert", "tables", "1", "--data", "mosi=DIR", *given)
    elif program == "python":
        python(given)
    else:
        assert program in NOT_OURS


def python(given: list[str]) -> None:
    if given[0] == "train.py":
        train(given[1:])
    elif given[0] == "-m":
        module = given[1]
        spec = importlib.util.find_spec(module)
        assert spec is not None
        entry = f"{module}.__main__" if spec.submodule_search_locations is not None else module
        assert importlib.util.find_spec(entry) is not None
        ours = [
            program.main.split(":")[0]
            for program in cli.PROGRAMS.values()
            if program.main.startswith((f"{module}.", f"{module}:"))
        ]
        if ours:
            importlib.import_module(ours[0]).command_parser().parse_args(given[2:])
        elif module == "bench.gpu":
            importlib.import_module(entry).arguments(given[2:])
        else:
            assert not any(word.startswith("-") for word in given[2:])
    else:
        assert given[0] == "-c"
        compile(given[1], "-c", "exec")


def train(given: list[str]) -> None:
    resuming = given[:1] == ["--resume"]
    if not resuming:  # whose settings are those of a folder
        assert parse_command([*given], ROOT / "configs" / "embedded.yaml").runs


def install(given: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    known = re.findall(
        r"^([\w-]+) = \[", project.split("[project.optional-dependencies]\n")[1].split("\n[")[0], re.MULTILINE
    )
    assert given.pop(0) == "install"
    extras: set[str] = set()
    for word, before in zip(given, ["", *given], strict=False):
        if before == "-c":
            assert (ROOT / word).is_file()
        elif word.startswith("."):
            extras |= set(re.findall(r"[\w-]+", word))
        elif not word.startswith("-"):
            wanted = Requirement(word)
            extras |= wanted.extras if wanted.name == "cmsbert-fast" else set()
    assert extras <= set(known)


@pytest.mark.parametrize("block", COMMANDS, ids=[f"{block.page}:{block.line}" for block in COMMANDS])
def test_its_programs_take_these_arguments(block, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = commands(block.code, tmp_path)
    assert found
    for line in found:
        check(*line)


@pytest.mark.parametrize(
    "line",
    [
        "python train.py --epoch 3",
        "python train.py --config configs/nothing.yaml",
        "python -m cmsbert_fast.nothing",
        "torchrun --nodes 2 train.py",
        "cmsbert predict --page out.html",
        'pip install -e ".[nothing]"',
        "pytest tests/nothing",
        "for NAME in mfm; do python train.py --repeat-frame $NAME; done",
        "unheard --of",
    ],
)
def test_a_wrong_line_is_found(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)

    def check_all():
        for found in commands(line, tmp_path):
            check(*found)

    # What a program says of its arguments, and what the check itself finds.
    with pytest.raises(
        (UsageError, SystemExit, AssertionError, ImportError, LookupError, subprocess.CalledProcessError)
    ):
        check_all()
