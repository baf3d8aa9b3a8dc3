"""The parser of every command: groups, defaults and examples in ``--help``, and errors in one sentence."""

import argparse
import difflib
import os
import re
import sys
import textwrap
from collections.abc import Mapping
from typing import Any, NoReturn

_INVALID = re.compile(r"invalid choice: '(.*?)'")


class _Formatter(argparse.HelpFormatter):
    """Wraps paragraphs, but keeps the lines of examples, and names with hyphens whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "\n".join(f"{indent}{line}".rstrip() for line in text.splitlines())
        return super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Raises ``failure`` instead of printing and exiting, so that all errors of a command reach the user the same way.

    Attributes:
        failure: The exception, raised with one sentence that says what to do.
        commands: The parsers of its commands, by name, if it has any.
    """

    failure: type[Exception] = ValueError

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*arguments, **options)
        self.commands: Mapping[str, Parser] = {}

    def add_subparsers(self, **options: Any) -> Any:
        """As of argparse; the parsers can then be found in ``commands``."""
        action = super().add_subparsers(**options)
        self.commands = action.choices
        return action

    def error(self, message: str) -> NoReturn:
        """Raises ``failure``; a misspelt option or choice is told what it may have been."""
        actions = [action for parser in (self, *self.commands.values()) for action in parser._actions]
        known = [flag for action in actions for flag in action.option_strings]
        wrong = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        wrong = wrong if "unrecognized" in message else []
        if found := _INVALID.search(message):
            wrong = [found[1]]
            known = [str(choice) for action in actions for choice in action.choices or ()]
        near = [match for word in wrong for match in difflib.get_close_matches(word, known, n=1)]
        advice = f"did you mean {near[0]}?" if near else "see --help."
        raise self.failure(f"{message[0].upper()}{message[1:]}; {advice}")


def nobody_reads() -> int:
    """What is left to do where nobody reads standard output any more; returns the exit status, as in shells."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more when it ends
    return 141


def examples(*lines: str) -> str:
    """The end of a ``--help``: command lines to copy; ``%(prog)s`` stands for the program."""
    return "\n".join(["examples:", *(f"  {line}" for line in lines)])


def shown(value: Any) -> str:
    """A default as it is given on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
