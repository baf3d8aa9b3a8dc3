"""The names of features, and which of them ``--columns`` chooses."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from cmsbert_fast.data.example import DataError

_PATTERNS, _LENGTH = 200, 200  # patterns, and characters of each, at most
_NEAR, _SHOWN = 5, 60
_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)")


class Named(Protocol):
    """A stream whose features may have names."""

    name: str

    @property
    def names(self) -> tuple[str, ...]: ...

    def choose(self, places: list[int]) -> None: ...


def choose_columns(streams: Iterable[Named], wanted: str) -> list[str]:
    """Lets streams read only the features whose names match a pattern; * and ? are wild, case counts.

    A stream without a match keeps all of its features.

    Args:
        streams: Those of both modalities.
        wanted: Patterns with commas between.

    Returns:
        What is read of each stream, a sentence each.

    Raises:
        DataError: A pattern matches no name, or no stream has names.
    """
    patterns = list(dict.fromkeys(pattern for part in wanted.split(",") if (pattern := part.strip())))
    if not patterns or len(patterns) > _PATTERNS or max(map(len, patterns)) > _LENGTH:
        raise DataError(
            f"Give --columns up to {_PATTERNS} names or patterns with commas between, as in --columns 'AU*,gaze*'."
        )
    streams = list(streams)
    if not any(stream.names for stream in streams):
        have = ", ".join(stream.name for stream in streams) or "none"
        raise DataError(f"Leave out --columns: no stream has names of its features (streams: {have}).")
    matched: set[str] = set()
    notes = []
    for stream in streams:
        places = []
        for place, name in enumerate(stream.names):
            found = [pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)]
            matched.update(found)
            if found:
                places.append(place)
        if places:
            stream.choose(places)
            notes.append(f"{stream.name}: {len(places)} of {len(stream.names)} features (--columns)")
        else:
            notes.append(f"{stream.name}: all features, no name of which --columns matches")
    for pattern in patterns:
        if pattern not in matched:
            names = list(dict.fromkeys(name for stream in streams for name in stream.names))
            near = ", ".join(near_names(pattern, names))
            raise DataError(f"Choose --columns that there are: no feature is called {pattern!r}; near are {near}.")
    return notes


def near_names(wanted: str, names: Sequence[str]) -> list[str]:
    """The names most like a pattern; the first names where none is like it."""
    folded: dict[str, str] = {}
    for name in names:
        folded.setdefault(name.lower(), name)
    bare = wanted.lower().replace("*", "").replace("?", "")
    inside = [name for low, name in folded.items() if bare and bare in low]
    like = [folded[low] for low in difflib.get_close_matches(bare, list(folded)[:2000], n=_NEAR, cutoff=0.5)]
    found = list(dict.fromkeys([*inside[:_NEAR], *like])) or list(names)
    return [name[:_SHOWN] for name in found[:_NEAR]]


def short_list(names: Sequence[str]) -> str:
    """Names in a line; a run of numbers, x_0 to x_67, as its ends."""
    runs: list[list[str]] = []
    last: tuple[str, int, str] | None = None
    for name in (name[:_SHOWN] for name in names):
        match = _NUMBERED.fullmatch(name)
        here = (match[1], int(match[2]), match[3]) if match and len(match[2]) < 10 else None
        follows = here is not None and last is not None and here == (last[0], last[1] + 1, last[2])
        if follows:
            runs[-1].append(name)
        else:
            runs.append([name])
        last = here
    shown = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs]
    return ", ".join(shown)
