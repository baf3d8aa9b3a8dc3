"""Converts values from YAML and the command line to those of the settings."""

import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cmsbert_fast.data.untrusted.files import read_text
from cmsbert_fast.training import plain_yaml
from cmsbert_fast.training.errors import UsageError, os_reason

_LONGEST = 1 << 17  # bytes of a file of settings
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d{1,4}")
MAPPINGS = ("architecture", "learning_rates", "weight_decays")  # settings that take FIELD=VALUE pairs


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file of settings.

    Raises:
        UsageError: The file does not exist or is not a YAML mapping.
    """
    try:
        values = plain_yaml.loads(read_text(path, _LONGEST))
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name, or no plain values
        reason = "it is not text" if isinstance(error, UnicodeDecodeError) else os_reason(error)
        name = str(path) if str(path).isprintable() else repr(str(path))
        raise UsageError(
            f"The config file {name:.200} cannot be read ({reason}); give an existing YAML file."
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path} is not valid YAML{where}; write 'name: value' lines.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} has no settings; write 'name: value' lines.")
    return values


def layered(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Both sets of values; ``upper`` wins, in mappings such as ``architecture`` field by field."""
    values = {**lower, **upper}
    for mapping in MAPPINGS:
        layers = [layer[mapping] for layer in (lower, upper) if mapping in layer]
        if layers:
            fields = [converted(mapping, layer, dict[str, Any]) for layer in layers]
            values[mapping] = {name: value for layer in fields for name, value in layer.items()}
    return values


def converted(name: str, value: Any, hint: Any) -> Any:
    """The value of setting ``name``, converted to type ``hint``. Numbers may be text; "none" is None.

    Raises:
        UsageError: The value has another type.
    """
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in kinds and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    kind = kinds[0]
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise UsageError(f"{name} must be a mapping of field names to values.")
        entry = typing.get_args(kind)[1]
        return {key: _numbers(v) if entry is Any else converted(f"{name} {key}", v, entry) for key, v in value.items()}
    if kind == tuple[str, ...]:
        names = [value] if isinstance(value, str) else value
        if isinstance(names, (list, tuple)) and all(isinstance(item, str) for item in names):
            return tuple(names)
        raise UsageError(f"{name} must be a name or a list of names.")
    if kind is bool:
        if str(value).lower() not in ("true", "false"):
            raise UsageError(f"{name} is {value!r} but must be true or false.")
        return str(value).lower() == "true"
    word = {int: "a whole number", float: "a number", str: "text"}[kind]
    if isinstance(value, (dict, list, bool)) or value is None:
        raise UsageError(f"{name} is {value!r} but must be {word}.")
    try:
        # YAML 1.1 reads 1e-4 as text; a float must not be truncated to an int.
        return kind(value) if kind is not int else int(str(value))
    except ValueError:
        raise UsageError(f"{name} is {value!r} but must be {word}.") from None


def _numbers(value: Any) -> Any:
    """1e-12 as a number: YAML 1.1 reads numbers without a point as text."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def assignments(name: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Parses the FIELD=VALUE pairs of option ``name``; values are YAML.

    Raises:
        UsageError: One is not such a pair, or a field is named twice.
    """
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--{name} takes FIELD=VALUE, not {pair!r}.")
        if key in values:
            raise UsageError(f"--{name} names {key} twice; give it one value.")
        try:
            values[key] = plain_yaml.loads(text)
        except (yaml.YAMLError, ValueError):
            raise UsageError(
                f"--{name} takes FIELD=VALUE, and {text!r} is not a value; write a number or a name."
            ) from None
    return values
