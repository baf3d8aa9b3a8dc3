"""The model card beside a trained model: it goes where the weights go that it describes, and with no others."""

import functools
import hashlib
import os
import re
import shutil
from pathlib import Path

from huggingface_hub import ModelCard

from cmsbert_fast import atomic

CARD = "README.md"
PICTURE = "shift_maps.png"  # the CMS map that a card may show
WEIGHTS = "model.safetensors"
DIGEST = "weights_sha256"  # the field of the card's metadata
_LONGEST = 1 << 20  # bytes of a card
_GENERATED = "This model card has been automatically generated."  # in Hugging Face's empty card


def weights_digest(folder: Path) -> str | None:
    """SHA-256 of the weights in a folder, in hexadecimal; None where they are not one file."""
    path = folder / WEIGHTS
    if not path.is_file():
        return None
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def described_weights(folder: Path) -> str | None:
    """The digest of the weights that the card in a folder describes; None: there is no card, or not one of ours."""
    found = re.search(rf"^{DIGEST}: '?([0-9a-f]{{64}})'?$", _read(folder), re.MULTILINE)
    return found and found[1]


def _read(folder: Path) -> str:
    """The card in a folder; "" where there is none, or one too long to be ours."""
    path = folder / CARD
    if not path.is_file() or path.stat().st_size > _LONGEST:
        return ""
    return path.read_text("utf-8", "replace")


def carry_card(source: str | os.PathLike | None, target: str | os.PathLike) -> bool:
    """Copies the card and its picture from the folder that a model was loaded from, if the weights are the same.

    Replaces Hugging Face's empty card and one of ours about other weights. Any other is somebody's work and is kept.

    Args:
        source: That folder, or a name of another kind.
        target: A folder with the model's weights.

    Returns:
        Whether it did.
    """
    there, here = Path(source or ""), Path(target)
    described = described_weights(there) if source and there.is_dir() else None
    if described is None or described != weights_digest(here):
        return False
    if (here / CARD).exists() and _GENERATED not in _read(here) and described_weights(here) in (None, described):
        return False
    for name in (PICTURE, CARD):
        if (there / name).is_file():
            atomic.replace_file(here / name, functools.partial(shutil.copyfile, there / name))
    return True


def tags_of(folder: str | os.PathLike) -> list[str]:
    """The tags of the card in a folder."""
    path = Path(folder) / CARD
    return list(ModelCard.load(path, ignore_metadata_errors=True).data.tags or ()) if path.is_file() else []


def add_tags(folder: str | os.PathLike, tags: list[str]) -> None:
    """Adds to the tags of the card in a folder."""
    card = ModelCard.load(Path(folder) / CARD)
    own = list(card.data.tags or ())
    new = [tag for tag in tags if tag not in own]
    if new:
        card.data.tags = own + new
        card.save(Path(folder) / CARD)
