"""Features of frozen text: computed once for each example, then kept in memory or in one memory-mapped file.

The runs of a command or of a table share the files: their names say what they hold.

Frozen BERT gives an example the same rows in every epoch. It reads one utterance at a time here, without autocast,
since a product over another number of rows may round differently: so the rows kept are those computed anew, to the bit,
whatever the batch, the split, the number of ranks and the precision of training.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError

from cmsbert_fast import __version__, atomic
from cmsbert_fast.data.mapped import MappedRows
from cmsbert_fast.models.baselines.base import Baseline
from cmsbert_fast.models.configuration import BERT_FIELDS
from cmsbert_fast.progress import tracked
from cmsbert_fast.training import checksums, distributed
from cmsbert_fast.training.distributed import Ranks
from cmsbert_fast.training.errors import Interrupted, UsageError, os_reason
from cmsbert_fast.training.lock import turn
from cmsbert_fast.training.signals import StopRequest

NAME = "text_features"  # the input of the models, and the tensor in a file
FOLDER = "features"  # of a command, while it trains
KEPT = 8  # files in such a folder; the one that was used least recently goes
_HEADER = 256  # bytes of a file's safetensors header; JSON may be padded with spaces


class _Kept(NamedTuple):
    """Features of all examples in a file, and where those of each begin and end."""

    rows: MappedRows
    ends: list[int]  # from 0


class TextFeatures:
    """The features of the examples of a split.

    Args:
        model: With frozen text, on its device. Its BERT must not change.
        pieces_of: The word pieces of the k-th example, [CLS] and [SEP] included.
        limit: Bytes to keep in memory.
    """

    def __init__(self, model: Baseline, pieces_of: Callable[[int], Sequence[int]], limit: int):
        self._model, self._pieces_of, self._limit = model, pieces_of, limit
        self._in_memory: dict[int, np.ndarray] = {}
        self._bytes = 0
        self._in_file: _Kept | None = None

    def of(self, indices: Sequence[int]) -> torch.Tensor:
        """The features of some examples, packed, on the CPU, (1, T, D)."""
        return torch.from_numpy(np.concatenate([self._known(index) for index in indices]))[None]

    def _known(self, index: int) -> np.ndarray:
        if self._in_file is not None:
            begin, end = self._in_file.ends[index : index + 2]
            return self._in_file.rows.rows(begin, end - begin)
        if index in self._in_memory:
            return self._in_memory[index]
        rows = self.compute(index)
        if self._bytes < self._limit:
            self._in_memory[index] = rows
            self._bytes += rows.nbytes
        return rows

    @torch.no_grad()
    def compute(self, index: int) -> np.ndarray:
        """The features of an example, (N, D)."""
        device = self._model.device
        pieces = torch.tensor([self._pieces_of(index)], device=device)
        with torch.autocast(device.type, enabled=False):
            return self._model.text_features(input_ids=pieces)[0].cpu().numpy()

    def keep(self, count: int, longest: int, least: int, folder: Path, ranks: Ranks, stop: StopRequest) -> None:
        """Keeps the features of all examples in a file, unless they are few. All ranks must call.

        Each rank computes its share. The file's name is a hash of all that its content depends on: a run takes the
        features that it finds, of an earlier seed or of its own part before it was resumed. The file gets that name
        once it is whole and on disk. Other processes that need a file of the folder wait meanwhile.

        Args:
            count: Number of examples.
            longest: The most word pieces of an example.
            least: Bytes of features that are worth a file.
            folder: Where the file goes.
            ranks: This process.
            stop: Whether to stop early.

        Raises:
            UsageError: The file cannot be written.
            Interrupted: A stop was requested.
        """
        width = self._model.config.hidden_size
        if 4 * width * count * longest <= least:
            return
        texts = [self._pieces_of(index) for index in range(count)]
        ends = list(itertools.accumulate(map(len, texts), initial=0))
        if 4 * width * ends[-1] <= least:
            return
        key = distributed.from_main(lambda: self._key(texts), ranks)
        path, shape = folder / f"{key}.safetensors", (ends[-1], width)
        with ExitStack() as turns:
            if distributed.from_main(lambda: _taking_turn(path, turns, stop), ranks):
                raise Interrupted("Stopped before the next step; add --resume to the same command to continue.")
            if not distributed.from_main(lambda: _is_whole(path, shape), ranks):
                distributed.from_main(lambda: _writing(path, lambda: _create(path, shape)), ranks)
                self._fill(path, ends, ranks, stop)
            self._in_file = _Kept(MappedRows(path, NAME, "F32", shape), ends)
            distributed.wait_for_all(ranks)  # a file is not removed before all have it

    def _key(self, texts: Sequence[Sequence[int]]) -> str:
        """A hash of BERT, of the word pieces and of what else may change the last bit."""
        config, bert = self._model.config, self._model.bert
        assert bert is not None
        versions = (__version__, torch.__version__)
        machine = (*versions, self._model.device.type, config.backend, torch.get_num_threads())
        found = hashlib.sha256(json.dumps([machine, [getattr(config, name) for name in BERT_FIELDS], texts]).encode())
        for name, values in bert.state_dict().items():
            found.update(name.encode())
            found.update(np.ascontiguousarray(values.cpu().numpy()).data)
        return found.hexdigest()[:16]

    def _fill(self, path: Path, ends: Sequence[int], ranks: Ranks, stop: StopRequest) -> None:
        """Writes this rank's share into the draft of a file, and gives it its name once all have."""
        mine = range(len(ends) - 1)[distributed.share(len(ends) - 1, ranks)]
        problem = ""
        try:
            with atomic.draft_of(path).open("r+b") as file:
                file.seek(8 + _HEADER + 4 * self._model.config.hidden_size * ends[mine.start])
                for index in tracked(mine, "features of text", "examples", show=ranks.is_main, delay=5):
                    if stop.signal:
                        break
                    file.write(self.compute(index).data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            problem = _not_written(path, error)
        found = distributed.gather_objects((problem, stop.signal != 0), ranks)
        if problem := next((each for each, _ in found if each), ""):
            raise UsageError(problem)
        if any(stopped for _, stopped in found):
            raise Interrupted("Stopped before the next step; add --resume to the same command to continue.")
        distributed.from_main(lambda: _writing(path, lambda: _finish(path)), ranks)


def remove(folder: Path) -> None:
    """Removes the files of features that no run needs any more, once no process writes one."""
    if folder.is_dir():
        with turn(folder.parent):
            shutil.rmtree(folder, ignore_errors=True)


def _taking_turn(path: Path, turns: ExitStack, stop: StopRequest) -> bool:
    """Waits until no other process writes features there; returns whether a stop was requested instead."""
    try:
        turns.enter_context(turn(path.parent.parent, lambda: stop.signal != 0))
    except Interrupted:
        return True
    except OSError as error:
        raise UsageError(_not_written(path, error)) from None
    return False


def _is_whole(path: Path, shape: tuple[int, int]) -> bool:
    """Whether there is a file as it was written; then it is the last one to go."""
    try:
        MappedRows(path, NAME, "F32", shape)
        if not checksums.known(_sums(path)) or checksums.is_damaged(path, _sums(path)):
            return False
        os.utime(path)
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def _sums(path: Path) -> Path:
    """The file of checksums of a file of features."""
    return path.with_suffix(".json")


def _create(path: Path, shape: tuple[int, int]) -> None:
    """The draft of a safetensors file: its header, and zeros that take no room on the disk yet."""
    path.parent.mkdir(exist_ok=True)
    others = sorted((p for p in path.parent.glob("*.safetensors") if p != path), key=lambda p: p.stat().st_mtime)
    for old in others[: max(0, len(others) - KEPT + 1)]:
        _sums(old).unlink(missing_ok=True)
        old.unlink()
    size = 4 * shape[0] * shape[1]
    header = {NAME: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    with atomic.draft_of(path).open("wb") as file:
        file.write(_HEADER.to_bytes(8, "little") + json.dumps(header).encode().ljust(_HEADER))
        file.truncate(8 + _HEADER + size)


def _finish(path: Path) -> None:
    found = checksums.text(atomic.draft_of(path))
    atomic.replace_file(_sums(path), lambda draft: draft.write_text(found, encoding="utf-8"))
    os.replace(atomic.draft_of(path), path)
    atomic.sync(path.parent)


def _writing(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise UsageError(_not_written(path, error)) from None


def _not_written(path: Path, error: OSError) -> str:
    return f"{path} cannot be written ({os_reason(error)}); free space for it, or choose another --output."
