"""YAML of settings: plain values only, and no more of them than were written down."""

import re
from collections import Counter
from typing import Any

import yaml

_VALUES = 10_000  # in all, with each alias counted as what it stands for
_NUMBER = 64  # characters
# YAML 1.1 reads 010 as 8 and 1:30 as 90.
_MISLEADING = re.compile(r"[-+]?(0_*[0-7][0-7_]*|[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?)")
_KINDS = {"set": "a set", "date": "a date", "datetime": "a date", "bytes": "bytes", "tuple": "pairs"}


def loads(text: str) -> Any:
    """What a YAML text holds: None, truth values, numbers, text, and lists and mappings of these.

    Raises:
        yaml.YAMLError: It is not YAML.
        ValueError: It holds something else, or aliases make it grow; the message says what.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > _VALUES:
            raise ValueError(f"it holds more than {_VALUES:,} values")
        value = loader.construct_document(node)
    except (RecursionError, OverflowError) as error:
        raise ValueError("it is nested too deeply, or holds a number that is too large") from error
    finally:
        loader.dispose()
    _check(value)
    return value


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values of a node, aliases expanded; what contains itself has no size.

    Raises:
        ValueError: It contains itself, a name twice, or a number that is far too long or would be read as another.
    """
    if isinstance(node, yaml.ScalarNode):
        if node.tag.endswith((":int", ":float")) and _MISLEADING.fullmatch(node.value):
            raise ValueError(f"it holds {node.value:.20}, which YAML reads as another number; write it in another form")
        if node.tag != "tag:yaml.org,2002:str" and len(node.value) > _NUMBER:
            raise ValueError(f"it holds a number of {len(node.value):,} characters")
        return 1
    if id(node) not in known:
        known[id(node)] = _VALUES + 1  # found again while it is counted: it contains itself
        if isinstance(node, yaml.MappingNode):
            _check_names([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _check_names(names: list[str]) -> None:
    """Raises ValueError where a name occurs twice: YAML keeps its last value in silence."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"it holds {twice!r:.80} twice")


def _check(value: Any) -> None:
    """Raises ValueError where a value is not plain."""
    if isinstance(value, list | dict):
        for part in value:
            _check(part)
            if isinstance(value, dict):
                _check(value[part])
    elif isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError("it holds a number of more than 64 bits")
    elif value is not None and not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise ValueError(f"it holds {_KINDS.get(kind, kind)}; write text in quotation marks")
