"""A request for data: which source, which of its streams, labels and folds.

The fields are spelled here only. Training settings inherit them, the command lines of ``predict`` and ``data`` are made
from them, and every reader takes the request itself.
"""

import argparse
import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmsbert_fast.commandline import shown
from cmsbert_fast.data.example import MODALITIES, DataError

_STREAMS = tuple[str, ...]


def option(default: Any, help: str, metavar: str = "NAME") -> Any:
    """A field of options, with the help text and the placeholder that a command line shows."""
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar})


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The options that describe data; ``metadata["help"]`` of each field explains it."""

    data: str = option("embedded", "the data: a file or folder in a known format, or 'embedded'", "PATH")
    visual: tuple[str, ...] = option((), "visual streams of the data; none given: recognised by name; 'none': left out")
    acoustic: tuple[str, ...] = option((), "acoustic streams of the data; as for visual")
    columns: str | None = option(
        None, "features of streams by name, with * and ?: 'AU*,gaze*,pose*' of OpenFace; none: all", "NAMES"
    )
    words: str | None = option(
        None, "stream of words with times; with it frames are averaged per word (MulT: a table of words)"
    )
    average_words: bool = option(
        True, "true or false: with --words, average the frames of each word; false: keep all of them", "VALUE"
    )
    label: str | None = option(
        None, "column or stream of the labels, if there are several: NAME, NAME.COLUMN; several at once: happy,sad"
    )
    folds: str | None = option(
        None, "JSON file of ids by split, instead of the data's own splits (IEMOCAP: also speaker or random)", "FILE"
    )
    fold: int | None = option(None, "which fold, counted from 1, if there are several", "K")
    task: str | None = option(None, "classification or regression; none: what the labels are, names or numbers", "TASK")

    @property
    def embedded(self) -> bool:
        """Whether the data are the embedded corpus; a folder of that name is given as the text ``./embedded``."""
        return self.data == "embedded"

    def request(self, labels: bool = True) -> "DataRequest":
        """The request that these options make."""
        return DataRequest(**{name: getattr(self, name) for name in ("data", "task", *CHOICES)}, labels=labels)


# What a reader or a conversion chooses by; the task is chosen for what was read.
CHOICES = tuple(field.name for field in dataclasses.fields(DataOptions) if field.name not in ("data", "task"))


@dataclass(frozen=True, kw_only=True)
class DataRequest(DataOptions):
    """What to read.

    Attributes:
        labels: False for prediction: labels are None, need not be there, and no example is dropped for lack of one.
        clocks: Whether examples keep their times (`Example.clock`).
    """

    labels: bool = True
    clocks: bool = False

    @classmethod
    def of(cls, source: "str | Path | DataRequest", **options: Any) -> "DataRequest":
        """A request for a source, from options as `cmsbert_fast.data.read_corpus` takes them.

        Raises:
            TypeError: There is no such option.
        """
        for modality in set(MODALITIES) & options.keys():
            names = options[modality] or ()
            options[modality] = (names,) if isinstance(names, str) else tuple(names)
        if options.get("folds") is not None:
            options["folds"] = str(options["folds"])
        if isinstance(source, DataRequest):
            return dataclasses.replace(source, **options)
        return cls(data=str(source), **options)

    @property
    def path(self) -> Path:
        """Where the data are."""
        return Path(self.data)

    def choices(self) -> dict[str, Any]:
        """Everything but where the data are, by name."""
        return {name: getattr(self, name) for name in CHOICES}

    def check_one_label(self, name: str) -> None:
        """Checks that no label is chosen in a file, of this name, that has one an example.

        Raises:
            DataError: One is.
        """
        if self.label is not None:
            raise DataError(f"Leave out --label: {name} has one label an example.")

    def left_out(self, format: str, takes_words: bool = False) -> list[str]:
        """The modalities to leave out of a format that has one stream of each.

        Raises:
            DataError: A stream is named, although there is nothing to choose, or words, and they are not taken.
        """
        if self.words is not None and not takes_words:
            raise DataError(f"Leave out --words: {format} data have words of their own.")
        if not self.average_words:
            raise DataError(f"Leave out --average-words: {format} data have no stream of words with times.")
        if self.columns is not None:
            raise DataError(f"Leave out --columns: {format} data have no names of features to choose by.")
        for modality in MODALITIES:
            if getattr(self, modality) not in ((), ("none",)):
                raise DataError(f"Leave out --{modality}: {format} data have one stream of each modality.")
        return [modality for modality in MODALITIES if getattr(self, modality)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds an option for every choice; what to read, and for which task, each command takes in its own way."""
    kinds = typing.get_type_hints(DataOptions)
    group = parser.add_argument_group("data")
    for field in dataclasses.fields(DataOptions):
        if field.name not in CHOICES:
            continue
        how: dict[str, Any] = {"default": field.default, "help": field.metadata["help"]}
        if field.default != ():
            how["help"] += f" (default: {shown(field.default)})"
        if kinds[field.name] == _STREAMS:
            how["nargs"] = "+"
        elif kinds[field.name] == int | None:
            how["type"] = int
        elif kinds[field.name] is bool:
            how["type"] = _truth
        group.add_argument(f"--{field.name.replace('_', '-')}", metavar=field.metadata["metavar"], **how)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def options_in(arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of the options that `add_options` added, as `DataRequest.of` takes them."""
    return {name: getattr(arguments, name) for name in CHOICES}
