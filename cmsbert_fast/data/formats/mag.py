"""MAG-BERT's pickles: ``{"train", "dev", "test": [((words, visual, acoustic), label, segment), ...]}``.

There is one frame a word.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmsbert_fast.data.example import Example
from cmsbert_fast.data.folds import split_name
from cmsbert_fast.data.pickled import Parts, example_of, score_of, splits_of, unpack
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.source import Source
from cmsbert_fast.data.untrusted.content import Reading
from cmsbert_fast.data.untrusted.records import Array


def recognise(root: Any) -> bool:
    """Whether a pickle's content is MAG-BERT's."""
    if not isinstance(root, dict) or not root:
        return False
    firsts = [part[0] for part in root.values() if isinstance(part, list) and part]
    return (
        all(isinstance(part, list) for part in root.values())
        and bool(firsts)
        and all(
            isinstance(first, tuple | list)
            and len(first) == 3
            and isinstance(first[0], tuple | list)
            and len(first[0]) == 3
            and isinstance(first[0][0], list | tuple | Array)
            for first in firsts
        )
    )


def mag_source(path: Path, root: Mapping[str, Any], request: DataRequest) -> Source:
    """The examples of a MAG-BERT file."""
    labels = request.labels
    request.check_one_label(path.name)

    def read(split: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        reading = Reading(path)
        for number, item in enumerate(root[split]):
            where = f"{split}[{number}] of {path.name}"
            (words, visual, acoustic), value, segment = unpack(item, (3,), where)
            score = score_of(value, where) if labels else None
            parts = Parts(where, segment, words, visual, acoustic)
            example = example_of(parts, score, labels, reading, report)
            if example is not None:
                yield split_name(split), example

    return Source(name=path.stem, format="MAG-BERT", path=path, files=[path], groups=splits_of(root, path), read=read)
