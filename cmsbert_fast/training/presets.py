"""The published settings: files of ``configs/``, which a wheel has inside the package."""

import difflib
from pathlib import Path

from cmsbert_fast.training.errors import UsageError

_PACKAGE = Path(__file__).resolve().parents[1]
FOLDER = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
EMBEDDED = FOLDER / "embedded.yaml"
_TABLES = "tables"  # what the tables are: no settings of runs


def presets() -> dict[str, Path]:
    """The published settings by name: ``mosi`` is ``configs/mosi.yaml``, ``tfn-mosi`` a file of its ``baselines``."""
    files = sorted(FOLDER.rglob("*.yaml"), key=lambda path: (len(path.parts), path.stem))
    return {path.stem: path for path in files if path.parent.name != _TABLES}


def find(text: str) -> Path:
    """The file that ``--config`` names: a path, or the name of published settings.

    A file of exactly that path wins. ``mosi``, ``mosi.yaml`` and ``configs/mosi.yaml`` are otherwise the published
    file, so that commands written for a checkout work anywhere.

    Args:
        text: As the user gave it. What is neither is returned as a path, which nothing can read.

    Raises:
        UsageError: The name of published settings, and a ``.yaml`` file of that name with other content is here too; or
            no such name, but one like it.
    """
    path = Path(text)
    try:
        if path.exists() and not path.is_dir():
            return path
        known = presets()
        name = path.name.removesuffix(".yaml")
        published = known.get(name)
        if published is None or not _is_name_of(path, published):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
            if near and path.parent == Path() and path.suffix in ("", ".yaml"):
                raise UsageError(
                    f"There are no settings {text!r:.200}, neither a file nor published; did you mean {near[0]}?"
                )
            return path
        own = Path(f"{text}.yaml")
        if path.suffix != ".yaml" and own.is_file() and own.read_bytes() != published.read_bytes():
            raise UsageError(
                f"{text} names published settings ({published}) and {own} is here too; give the path of one."
            )
        return published
    except (OSError, ValueError):  # no name of a file; reading it says so
        return path


def _is_name_of(path: Path, published: Path) -> bool:
    """Whether a path is the end of a published file's, with or without its suffix."""
    wanted, parts = published.with_suffix("").parts, path.with_name(path.name.removesuffix(".yaml")).parts
    depth = len(published.relative_to(FOLDER.parent).parts)
    return len(parts) <= depth and wanted[-len(parts) :] == parts
