"""The command ``cmsbert``: every program of the project by one name; ``python -m cmsbert_fast`` is the same.

A program is imported when it is asked for: ``--help`` and ``--version`` load no PyTorch. Completion is a script that
shtab writes once for a shell, so that a completion starts no Python at all.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from cmsbert_fast import __version__
from cmsbert_fast.commandline import Parser, examples, nobody_reads
from cmsbert_fast.threads import wait_without_spinning


class Program(NamedTuple):
    """What a command of ``cmsbert`` runs.

    Attributes:
        main: Module and function, ``main(arguments, prog=...)`` -> exit status. The module also has
            ``command_parser(prog)``, the parser of its command line.
        help: What it does.
        nested: Whether its command line begins with the name of the command.
    """

    main: str
    help: str
    nested: bool = False


PROGRAMS = {
    "train": Program("cmsbert_fast.training.runs:main", "train CMSBERT-CLR, its variants and the other systems"),
    "predict": Program("cmsbert_fast.predict:main", "write a trained model's score for every example"),
    "evaluate": Program("cmsbert_fast.evaluate:main", "measure a trained model on labelled data"),
    "export": Program("cmsbert_fast.export:main", "write a trained model as an ONNX file"),
    "inspect": Program("cmsbert_fast.data.__main__:main", "say what data hold, and draw an example", nested=True),
    "convert": Program(
        "cmsbert_fast.data.__main__:main", "write data in the form that is fastest to read", nested=True
    ),
    "extract": Program("cmsbert_fast.extract.__main__:main", "make data of videos: words, face and voice"),
    "tables": Program("cmsbert_fast.experiments.command:main", "train and print the paper's tables", nested=True),
}
_NAME = "cmsbert"


class _WrongError(Exception):
    """A command line that names no program; one sentence."""


class _Parser(Parser):
    failure = _WrongError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line, that of the process by default.

    Returns:
        The exit status of the program; 2 for a command line that names none; 130 after Ctrl-C, 141 where nobody reads
        standard output.
    """
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return nobody_reads()


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in PROGRAMS:
        return _start(name, arguments[1:])
    if not name.startswith("-"):
        near = difflib.get_close_matches(name, PROGRAMS, n=1)
        advice = f"did you mean {_NAME} {near[0]}?" if near else f"choose one of {', '.join(PROGRAMS)}."
        return _fail(f"There is no command {name!r:.100}; {advice}")
    try:
        given = _parser().parse_args(arguments or ["--help"])
    except _WrongError as error:
        return _fail(str(error))
    if given.print_completion is None:
        return _fail(f"Name a command: {', '.join(PROGRAMS)}.")
    print(_completion(given.print_completion), flush=True)
    return 0


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2


def _start(name: str, arguments: list[str]) -> int:
    """Imports a program and runs it."""
    wait_without_spinning()  # before PyTorch is loaded
    program = PROGRAMS[name]
    module, function = _load(program)
    if program.nested:
        return getattr(module, function)([name, *arguments], prog=_NAME)
    return getattr(module, function)(arguments, prog=f"{_NAME} {name}")


def _load(program: Program) -> tuple[Any, str]:
    module, _, function = program.main.partition(":")
    return importlib.import_module(module), function


def _parser() -> Parser:
    width = max(map(len, PROGRAMS)) + 2
    commands = "\n".join(f"  {name:{width}}{program.help}" for name, program in PROGRAMS.items())
    parser = _Parser(
        prog=_NAME,
        usage=f"{_NAME} COMMAND [OPTION ...]",
        description=f"Multimodal sentiment and emotion with CMSBERT-CLR.\n\ncommands:\n{commands}\n\n"
        f"{_NAME} COMMAND --help tells the options of a command.",
        epilog=examples(
            "%(prog)s train",
            "%(prog)s train --config mosi --data DIR",
            "%(prog)s predict runs/embedded/cmsbert-clr/seed-0 embedded --split test",
            "%(prog)s --print-completion bash > ~/.local/share/bash-completion/completions/%(prog)s",
        ),
    )
    parser.add_argument("--version", action="version", version=f"cmsbert-fast {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=("bash", "zsh"),
        metavar="SHELL",
        help="print a script that completes commands and options in bash or zsh",
    )
    return parser


_CONFIG = "_cmsbert_config"  # in the scripts: names of published settings, and files


def _completion(shell: str) -> str:
    """The script that completes everything in a shell."""
    import shtab

    from cmsbert_fast.training.presets import presets

    top = _parser()
    commands = top.add_subparsers()
    for name, program in PROGRAMS.items():
        module, _ = _load(program)
        parser = module.command_parser(_NAME if program.nested else f"{_NAME} {name}")
        commands.add_parser(name, help=program.help, add_help=False)
        commands.choices[name] = parser = parser.commands[name] if program.nested else parser
        for action in parser._actions:
            _complete_values(action, shtab)
    names = " ".join(presets())
    functions = {
        "bash": f'{_CONFIG}() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
        "zsh": f"{_CONFIG}() {{ _alternative 'settings:published settings:({names})' 'files:file:_files' }}",
    }
    return shtab.complete(top, shell, preamble=functions[shell])


def _complete_values(action: Any, shtab: Any) -> None:
    """Says how the values of an option are completed."""
    if action.dest == "config":
        action.complete = {"bash": _CONFIG, "zsh": _CONFIG}
    elif action.metavar in ("FILE", "PATH", "SRC", "DST") or action.dest in ("checkpoint", "data"):
        action.complete = shtab.FILE
    elif action.metavar in ("FOLDER", "DIR"):
        action.complete = shtab.DIRECTORY
    elif values := getattr(action, "suggested", None):
        action.choices = values
