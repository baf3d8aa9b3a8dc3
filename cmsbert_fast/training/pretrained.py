"""A stranger's checkpoint: what its folder may hold and its configuration may say, before anything is made of it."""

import functools
import json
import stat
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from cmsbert_fast.data.text import printable
from cmsbert_fast.data.untrusted.files import read_text, unpacked_size
from cmsbert_fast.models.configuration import declared_fields, harmless_fields
from cmsbert_fast.training import distributed
from cmsbert_fast.training.errors import UsageError, impossible_architecture, os_reason
from cmsbert_fast.training.hub import config_file

_CONFIG = 4 << 20  # bytes of config.json
_TEXT = 64 << 20  # bytes of a vocabulary; the largest in use have 17 MB
_LAYERS, _LABELS, _SIZE, _ROWS = 200, 10_000, 1 << 17, 1 << 23  # of any model of this kind, with room
_NEW = 25_000_000  # numbers of a model that its weights need not hold: those of new modules
_WEIGHTS = (".safetensors", ".bin")
# What a model returns is for its caller to say, and the commands rely on it.
_OUTPUTS = ("output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "torchscript")
# Kinds of the fields that are looked at before a class of configurations checks its own.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "model_type": str,
    "architectures": list,
    "id2label": dict,
    "label2id": dict,
    "num_labels": int,
    "problem_type": str,
    "visual_size": int,
    "acoustic_size": int,
    "cms_layers": list,
}


def saved_config(name: str, config_class: type[PreTrainedConfig] | None = None) -> dict[str, Any]:
    """The fields of a checkpoint's ``config.json``, but for those that do more than describe the model.

    Args:
        name: A folder, or a name on the Hugging Face hub.
        config_class: What the fields are for; None: only what every class has is looked at.

    Raises:
        UsageError: There is no such checkpoint, it is damaged or quantised, or its folder holds what no checkpoint has.
    """
    check_folder(name)
    path = config_file(name)
    damaged = f"The config.json of {name} cannot be read; give an undamaged checkpoint"
    try:
        saved = json.loads(read_text(path, _CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{damaged} ({os_reason(error):.100}).") from None
    if not isinstance(saved, dict):
        raise UsageError(f"{damaged}: it holds a {type(saved).__name__}, not fields.")
    for field, kind in _KINDS.items():
        value = saved.get(field)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise UsageError(f"{damaged}: {field} is {value!r:.100}.")
    if not all(isinstance(one, str) for one in saved.get("architectures") or ()):
        raise UsageError(f"{damaged}: architectures is {saved['architectures']!r:.100}.")
    if saved.get("quantization_config") is not None:
        raise UsageError(f"The weights of {name} are quantised; give the checkpoint that they were made of.")
    saved.pop("quantization_config", None)
    # Now: Hugging Face's tokenizers read the file too, and make what it asks for.
    known = declared_fields(config_class or PreTrainedConfig)
    check_sizes({field: value for field, value in saved.items() if field in known})
    fields, ignored = harmless_fields(saved, config_class or PreTrainedConfig)
    for field in _OUTPUTS:
        if fields.pop(field, None) and field not in ("return_dict", "use_return_dict"):
            ignored.append(field)
    if ignored:
        _warn(f"the config.json of {name} sets {', '.join(ignored):.200}, which is ignored.")
    return fields


@functools.cache
def _warn(sentence: str) -> None:
    """Says it once, on one rank."""
    if distributed.environment_rank() == 0:
        print(printable(f"warning: {sentence}"), file=sys.stderr, flush=True)


def _shown(value: float) -> str:
    """A number, however long."""
    return f"{value:g}" if isinstance(value, float) or abs(value) < 1 << 63 else "a number of more than 64 bits"


def check_folder(name: str | Path) -> None:
    """Finds what no checkpoint's folder has; names on the hub pass.

    Raises:
        UsageError: A file is a pipe, a device or a broken link, a text is far too long, packed weights are larger than
            their file, or it is an adapter, which would load another checkpoint.
    """
    folder = Path(name)
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in paths:
            found = path.stat()
            if stat.S_ISDIR(found.st_mode):
                continue
            if not stat.S_ISREG(found.st_mode):
                raise UsageError(f"{path} is no regular file; remove it, or give an undamaged checkpoint.")
            if path.suffix in (".json", ".txt", ".jinja") and found.st_size > _TEXT:
                raise UsageError(f"{path} is longer than any vocabulary; give an undamaged checkpoint.")
            if path.suffix == ".bin" and unpacked_size(path) > found.st_size:
                raise UsageError(f"{path} holds more than its size; give an undamaged checkpoint.")
            if path.name == "adapter_config.json":
                raise UsageError(f"{folder} holds an adapter; merge it into its model, and give that one's folder.")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The folder {str(name)!r:.300} cannot be read ({os_reason(error)}); make it readable."
        ) from None


def check_sizes(fields: dict[str, Any]) -> None:
    """Finds sizes that no model has: to make even the configuration would take memory without end.

    Raises:
        UsageError: There is one.
    """
    most = {"num_labels": _LABELS, "vocab_size": _ROWS, "max_position_embeddings": _ROWS, "type_vocab_size": _ROWS}
    for name, value in fields.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            limit = most.get(name, _LAYERS if name.endswith("layers") else _ROWS if name.endswith("_id") else _SIZE)
            if not abs(value) <= limit or (name == "num_labels" and value < 1):
                raise impossible_architecture(f"{name} is {_shown(value)} but may be {limit:,} at most")
        elif isinstance(value, list | dict) and len(value) > _LABELS:
            raise impossible_architecture(f"{name} has {len(value):,} entries")


def check_weights(name: str | Path, model_class: Any, config: PreTrainedConfig) -> None:
    """Finds a configuration that describes a far larger model than the weights in the folder hold.

    Before any of it takes memory: the model is made without storage. Names on the hub pass.

    Raises:
        UsageError: It does.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    held = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in _WEIGHTS)
    with torch.random.fork_rng(devices=()), torch.device("meta"):
        try:
            model = model_class(config)
        except Exception as error:  # sizes that do not fit one another fail anywhere
            raise impossible_architecture(error) from None
        needed = sum(parameter.numel() for parameter in model.parameters())
    if held and needed > held + _NEW:  # a number has at least one byte
        raise UsageError(
            f"The config.json of {name} describes a model of {needed:,} numbers, but its weights have {held:,} bytes; "
            "give a checkpoint whose files belong together."
        )


def check_tokenizer(name: str | Path, tokenizer: Any, config: PreTrainedConfig | None) -> None:
    """Finds a tokenizer that a model cannot use.

    Raises:
        UsageError: It lacks a special token, or has ids beyond the model's vocabulary.
    """
    lacking = [token for token in ("cls", "sep", "pad", "unk") if getattr(tokenizer, f"{token}_token_id", None) is None]
    if lacking:
        names = ", ".join(f"[{token.upper()}]" for token in lacking)
        raise UsageError(f"The tokenizer of {name} has no {names}; give a checkpoint with BERT's tokenizer.")
    last = max(max(tokenizer.get_vocab().values(), default=0), len(tokenizer) - 1)
    size = None if config is None else getattr(config, "vocab_size", None)
    if size is not None and last >= size:
        raise UsageError(
            f"The tokenizer of {name} has {last + 1} pieces, its model {size}; give "
            "a checkpoint whose files belong together."
        )


def reason(error: BaseException) -> str:
    """What went wrong, in one short line."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0][:300] or type(error).__name__
