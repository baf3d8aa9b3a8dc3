"""Whether a run can resume an earlier one: same settings, same examples."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.data.embedded import frame_times
from cmsbert_fast.data.example import SPLITS, Alignment, Corpus, outlines
from cmsbert_fast.training import checkpoint, report
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.settings import TrainingSettings

# As they were hashed when there were two of them.
_ALIGNMENTS = {Alignment.NONE: False, Alignment.WORDS: True, Alignment.PIECES: "pieces"}
FINGERPRINT_BYTES = 2**22  # takes at most half a second at the start of a run, even from disk
# Settings that a resumed run may change: where and how fast it computes, not what. The data may move; their examples
# are checked. The number of threads may not change: it affects rounding.
_FREE = ("data", "device", "backend", "cuda_graphs", "checkpoint_every_epochs", "checkpoint_every_steps", "track")


def fingerprint(corpus: Corpus) -> str:
    """A hash of the examples of all splits, in order: ids, labels, words, numbers of frames, frames and their words.

    Beyond ``FINGERPRINT_BYTES`` of frames, only evenly spaced examples are read, about that many bytes.
    """
    widths, total = (corpus.visual_size, corpus.acoustic_size), 0
    digest = hashlib.sha256(json.dumps(widths).encode())
    for split in SPLITS:
        for o in outlines(corpus.splits[split]):  # one at a time: a list of all takes memory and time
            line = (split, o.id, str(o.label), o.words, o.visual, o.acoustic, _ALIGNMENTS[o.alignment])
            digest.update(json.dumps(line).encode())
            total += 4 * (o.visual * widths[0] + o.acoustic * widths[1])
    stride = max(1, math.ceil(total / FINGERPRINT_BYTES))
    before = 0
    for split in SPLITS:
        examples = corpus.splits[split]
        for k in range(-before % stride, len(examples), stride):
            example = examples[k]
            digest.update(np.ascontiguousarray(example.visual, np.float32).data)
            digest.update(np.ascontiguousarray(example.acoustic, np.float32).data)
            for words in example.frame_words or ():
                if (words != frame_times(len(words), len(example.words))).any():  # else they follow from the counts
                    digest.update(np.ascontiguousarray(words, np.int32).data)
        before += len(examples)
    return digest.hexdigest()[:16]


def finished_results(
    settings: TrainingSettings, examples: str, folder: Path, testing: bool = True
) -> dict[str, Any] | None:
    """The contents of ``results.json`` in ``folder``, if a run with these settings has finished there.

    Args:
        settings: Settings of the run to resume.
        examples: The :func:`fingerprint` of its data.
        folder: Folder of the run.
        testing: Whether a run that was not tested is unfinished.

    Raises:
        UsageError: The file is damaged or belongs to another run.
    """
    found = report.read_results(folder)
    if found is not None:
        _check_unchanged(found["settings"], found["data"]["fingerprint"], settings, examples, folder)
        if testing and "test" not in found:
            return None
    return found


def last_checkpoint(settings: TrainingSettings, examples: str, folder: Path) -> dict[str, Any] | None:
    """The checkpoint in ``folder``, if there is one. Arguments and errors as in :func:`finished_results`."""
    found = checkpoint.load_whole(folder)
    if found is not None:
        _check_unchanged(found["settings"], found["fingerprint"], settings, examples, folder)
    return found


def check_resumable(settings: TrainingSettings, examples: str, folder: Path) -> None:
    """Finds what would make resuming a run fail. Arguments and errors as in :func:`finished_results`."""
    if finished_results(settings, examples, folder) is None:
        last_checkpoint(settings, examples, folder)


def identity(settings: TrainingSettings) -> dict[str, Any]:
    """What a resumed run may not change, as plain values; settings at their defaults are left out."""
    values, defaults = (
        json.loads(json.dumps(dataclasses.asdict(s))) for s in (settings, TrainingSettings(variant=settings.variant))
    )
    found = {name: value for name, value in values.items() if name not in _FREE and value != defaults[name]}
    return {**found, "variant": settings.variant}


def _check_unchanged(saved: dict, saved_examples: str, settings: TrainingSettings, examples: str, folder: Path) -> None:
    saved, now, defaults = (
        json.loads(json.dumps(values))  # lists, not tuples
        for values in (saved, dataclasses.asdict(settings), dataclasses.asdict(TrainingSettings()))
    )
    saved = {**defaults, **saved}  # settings added since the run have their defaults
    changed = [name for name in now if name not in _FREE and saved[name] != now[name]]
    if changed == ["epochs"]:
        raise UsageError(
            f"The run in {folder} has epochs = {saved['epochs']}, over which its learning rate rises and falls, and "
            f"cannot be extended to {now['epochs']}; train on from its best model, with a new schedule, by --model "
            f"{folder / 'best'} and another --output."
        )
    if changed:
        name = changed[0]
        raise UsageError(
            f"The run in {folder} has {name} = {saved[name]!r}, not {now[name]!r}; resume it with its own settings, by "
            "--resume FOLDER alone."
        )
    if saved_examples != examples:
        raise UsageError(
            f"The run in {folder} was trained on examples other than those in {settings.data}; resume it with its own."
        )
