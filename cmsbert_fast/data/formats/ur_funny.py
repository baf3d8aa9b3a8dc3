"""UR-FUNNY as HKT has it: ``((punchline, visual, acoustic, hcf), (context ...), ..., label)``, visual 91, acoustic 81.

The punchline is the utterance; label 1 is humour. Context sentences and HKT's own features (hcf) are not used.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmsbert_fast.data.example import DataError, Example
from cmsbert_fast.data.folds import split_name
from cmsbert_fast.data.pickled import HUMOUR, Parts, example_of, humour_of, splits_of
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.source import Source
from cmsbert_fast.data.untrusted.content import Reading, text_of
from cmsbert_fast.data.untrusted.records import LongText


def recognise(root: Any) -> bool:
    """Whether a pickle's content is HKT's UR-FUNNY."""
    if not isinstance(root, dict) or not root or not all(isinstance(part, list) for part in root.values()):
        return False
    firsts = [part[0] for part in root.values() if part]
    return bool(firsts) and all(
        isinstance(first, tuple | list)
        and len(first) >= 3
        and all(isinstance(first[k], tuple | list) and len(first[k]) == 4 for k in (0, 1))
        for first in firsts
    )


def ur_funny_source(path: Path, root: Mapping[str, Any], request: DataRequest) -> Source:
    """The punchlines of a UR-FUNNY file."""
    labels = request.labels
    request.check_one_label(path.name)

    def read(split: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        reading = Reading(path)
        for number, item in enumerate(root[split]):
            where = f"{split}[{number}] of {path.name}"
            if not isinstance(item, tuple | list) or len(item) < 3 or not isinstance(item[0], tuple | list):
                raise DataError(f"Repair {where}: it does not hold a punchline, a context, an id and a label.")
            if len(item[0]) != 4:
                raise DataError(f"Repair {where}: its punchline does not have 4 parts.")
            words, visual, acoustic, _ = item[0]
            value = humour_of(item[-1], where) if labels else None
            if isinstance(words, str | bytes | memoryview | LongText) and (value is not None or not labels):
                words = reading.text_of(words).split()
            name = _name(item[2]) if len(item) > 3 else f"{split}[{number}]"
            parts = Parts(where, name, words, visual, acoustic)
            example = example_of(parts, value, labels, reading, report)
            if example is not None:
                yield split_name(split), example

    return Source(
        name=path.stem,
        format="UR-FUNNY",
        path=path,
        files=[path],
        groups=splits_of(root, path),
        read=read,
        notes=["the punchline is the utterance; contexts are not used"],
        classes=HUMOUR,
    )


def _name(value: Any) -> str:
    return str(value) if isinstance(value, int | float) else text_of(value)
