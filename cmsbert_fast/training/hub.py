"""Where a checkpoint is: in a folder, in Hugging Face's cache, or on its hub, in this order."""

import difflib
from functools import lru_cache
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from transformers.utils import cached_file

from cmsbert_fast.training.errors import UsageError

_SECONDS = 5.0  # to wait for the hub's first answer; its own library tries for half a minute, file after file


def config_file(name: str) -> Path:
    """The ``config.json`` of a checkpoint: of a folder, or of a name on the hub.

    Where the hub does not answer, this process asks it no more: what is in the cache is loaded from there.

    Raises:
        UsageError: There is no such checkpoint.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(f"There is no checkpoint in {folder}: it has no config.json; name the folder that has.")
        return folder / "config.json"
    if folder.exists():
        raise UsageError(f"{name} is a file; give the checkpoint's folder, with config.json and weights.")
    missing = f"There is no checkpoint {name!r:.300}: there is no such folder{_similar(folder)}"
    if not _may_be_on_hub(name):
        raise UsageError(f"{missing}; give a folder with config.json and weights.")
    if not _hub_answers():
        constants.HF_HUB_OFFLINE = True
        missing += ", and the Hugging Face hub cannot be reached"
    else:
        missing += ", nor a model of this name on the Hugging Face hub that may be read"
    try:
        path = cached_file(name, "config.json")
    except Exception:  # unknown, forbidden, not in the cache: the hub's errors have no common class
        path = None
    if path is None:
        raise UsageError(f"{missing}; give a folder with config.json and weights, or the name of a model on the hub.")
    return Path(path)


def _similar(folder: Path) -> str:
    """A folder beside, of nearly the same name, as a hint."""
    try:
        names = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(folder.name, names, n=1)
    return f" (did you mean {folder.parent / near[0]}?)" if near else ""


def _may_be_on_hub(name: str) -> bool:
    try:
        huggingface_hub.utils.validate_repo_id(name)
    except huggingface_hub.errors.HFValidationError:
        return False
    return True


@lru_cache(maxsize=1)
def _hub_answers() -> bool:
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # of the library below, which has changed
        return False
    return True
