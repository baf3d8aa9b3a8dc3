"""What a run leaves behind: its log; results, predictions and figures at its end; a table of several runs."""

import csv
import dataclasses
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import cmsbert_fast
from cmsbert_fast import atomic
from cmsbert_fast.data.embedded import embedded_utterances
from cmsbert_fast.data.example import Corpus
from cmsbert_fast.models.processing import CMSBertProcessor
from cmsbert_fast.training.build import Classifier
from cmsbert_fast.training.evaluate import Batches, Predictions
from cmsbert_fast.training.settings import TrainingSettings, UsageError

RESULTS = "results.json"
_PACKAGES = ("torch", "triton", "transformers", "numpy", "scikit-learn")
# What a table shows of each metric; percentages with fewer digits.
_DIGITS = {"mae": 3, "corr": 3}


class RunLog:
    """``log.jsonl``, one JSON object a line, and TensorBoard event files where tensorboard is installed.

    The log of a resumed run is cut back to the length it had at the checkpoint, so that no step stands in it twice.

    Args:
        folder: The folder of the run.
        length: Bytes of ``log.jsonl`` to keep (from :meth:`length` at the checkpoint).
        step: The step to continue from; TensorBoard hides what was logged after it. Where nothing is kept, its
            earlier files are removed.
    """

    def __init__(self, folder: Path, length: int = 0, step: int = 0):
        self._file = open(folder / "log.jsonl", "ab")  # noqa: SIM115 - lives as long as the run
        self._file.truncate(min(length, self._file.tell()))
        self._file.seek(0, os.SEEK_END)
        if self._file.tell() == 0:
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self._board = _summary_writer(folder / "tensorboard", step)

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Appends one line; ``values`` must hold "step", and what is a number goes to TensorBoard as ``event/name``."""
        line = json.dumps(_finite({"event": event, **values}), allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if name not in ("step", "epoch") and isinstance(value, (int, float)):
                    self._board.add_scalar(f"{event}/{name}", value, values["step"])

    def length(self) -> int:
        """The length of ``log.jsonl`` in bytes, all of it on the disk."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_results(folder: Path) -> dict[str, Any] | None:
    """What ``results.json`` of a run holds; None where the run is not finished.

    Raises:
        UsageError: The file is damaged.
    """
    path = folder / RESULTS
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(found[part], dict) for part in ("settings", "data", "test")) and found["data"]["fingerprint"]:
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UsageError(f"{path} is damaged; remove it, and the run is tested again from its checkpoint.")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically; numbers that JSON does not know (NaN) become null."""
    text = json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"
    atomic.replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_predictions(path: Path, predictions: Predictions, classes: Sequence[str] | None) -> None:
    """Writes ``predictions.csv``, what :func:`prediction_rows` returns."""
    write_csv(path, prediction_rows(predictions, classes))


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Writes a table atomically."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    atomic.replace_file(path, write)


def prediction_rows(predictions: Predictions, classes: Sequence[str] | None) -> list[list[str]]:
    """Header and lines of a table of predictions: id, label where labels are known, prediction.

    Predictions are scores; with ``classes`` the most probable class, followed by the probability of each.
    """
    labels, logits = predictions.labels, predictions.logits
    columns: dict[str, Sequence[str]] = {"id": predictions.ids}
    if classes is None:
        # As float32 writes itself: 0.2, not 0.20000000298023224.
        if labels is not None:
            columns["label"] = [str(label) for label in labels.numpy().astype(np.float32)]
        columns["prediction"] = [str(score) for score in logits[:, 0].numpy().astype(np.float32)]
    else:
        if labels is not None:
            columns["label"] = [classes[label] for label in labels.tolist()]
        columns["prediction"] = [classes[best] for best in logits.argmax(dim=1).tolist()]
        for name, chances in zip(classes, logits.softmax(dim=1).T.tolist(), strict=True):
            columns[f"probability_{name}"] = [f"{chance:.6f}" for chance in chances]
    return [list(columns), *(list(row) for row in zip(*columns.values(), strict=True))]


def write_figures(
    folder: Path,
    model: Classifier,
    processor: CMSBertProcessor,
    corpus: Corpus,
    predictions: Predictions,
    embedded: bool = False,
) -> None:
    """Writes ``shift_maps.png`` (Fig. 1) and ``embeddings.png`` (Fig. 3), where the model has maps and embeddings.

    The maps are those of the test example that is predicted best among the clearly positive and negative ones; with
    ``embedded``, which says that ``corpus`` is the embedded one, the events that it was made from are marked.
    """
    from cmsbert_fast.training.figures import plot_embeddings, plot_shift_maps  # slow to import, needed at the end only

    folder.mkdir(exist_ok=True)
    if predictions.embeddings:
        figure = plot_embeddings(
            {name: z.numpy() for name, z in predictions.embeddings.items()},
            predictions.labels.numpy() if predictions.labels is not None else np.zeros(len(predictions.ids)),
            classes=corpus.classes,
            title=f"{corpus.name}, test set",
        )
        figure.savefig(folder / "embeddings.png", dpi=150)
    if not (model.config.cms_layers and (model.config.visual_size or model.config.acoustic_size)):
        return
    index = _telling_example(predictions)
    example = corpus.splits["test"][index]
    batches = Batches([example], processor, model.config, model.device)
    model.eval()
    with torch.no_grad():
        output = model(**batches.load([0], labels=False), output_shift_maps=True)
    maps = [(_first(visual), _first(acoustic)) for visual, acoustic in output.shift_maps]
    if not any(m is not None and m.size for layer in maps for m in layer):
        return  # this example has no frame
    pieces = processor.tokenizer.convert_ids_to_tokens(batches.load([0])["input_ids"][0].tolist())
    events = embedded_utterances()["test"][index].events if embedded else ()
    title = f"{example.id}: {' '.join(example.words)}"
    if corpus.classes is None:
        title += f"\nlabel {example.label:.1f}, predicted {predictions.logits[index, 0]:.1f}"
    figure = plot_shift_maps(maps, pieces, layers=model.config.cms_layers, events=events, title=title)
    figure.savefig(folder / "shift_maps.png", dpi=150)


def _first(batch: Tensor | None) -> np.ndarray | None:
    return None if batch is None else batch[0].float().cpu().numpy()


def _telling_example(predictions: Predictions) -> int:
    assert predictions.labels is not None
    if predictions.logits.shape[1] > 1:
        chances = predictions.logits.softmax(dim=1)
        return int(chances.gather(1, predictions.labels[:, None]).argmax())
    error = (predictions.logits[:, 0] - predictions.labels).abs()
    clear = predictions.labels.abs() >= 1
    return int(error.masked_fill(~clear, torch.inf).argmin()) if clear.any() else int(error.argmin())


def provenance(settings: TrainingSettings, world_size: int, device: str, backend: str) -> dict[str, Any]:
    """What has to be known to repeat a run: settings, the backend of CMS attention that they came to, versions,
    machine, and the commit where this is a checkout.
    """
    versions = {"python": platform.python_version(), "cmsbert_fast": cmsbert_fast.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "settings": dataclasses.asdict(settings),
        "backend": backend,
        "versions": versions,
        "commit": _commit(),
        "machine": {
            "world_size": world_size,
            "device": device,
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
        },
    }


def table(results: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Test metrics of several runs: a line for each variant, mean and standard deviation over its seeds and folds.

    Args:
        results: What ``results.json`` of each run holds.

    Returns:
        A Markdown table, and the same as rows ``{"variant", "runs", "mean": {...}, "std": {...}}``. ``std`` is the
        sample standard deviation (n - 1), None with one run.
    """
    rows = []
    for variant in dict.fromkeys(r["settings"]["variant"] for r in results):
        runs = [r for r in results if r["settings"]["variant"] == variant]
        values = {name: [_number(r["test"][name]) for r in runs] for name in runs[0]["test"]}
        rows.append(
            {
                "variant": variant,
                "runs": [{"seed": r["settings"]["seed"], "fold": r["settings"]["fold"]} for r in runs],
                "mean": {name: float(np.mean(v)) for name, v in values.items()},
                "std": {name: float(np.std(v, ddof=1)) if len(v) > 1 else None for name, v in values.items()},
            }
        )
    names = list(rows[0]["mean"])
    lines = [["variant", "runs", *names], ["---"] * (len(names) + 2)]
    for row in rows:
        cells = []
        for name in names:
            digits, std = _DIGITS.get(name, 1), row["std"][name]
            cells.append(f"{row['mean'][name]:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else ""))
        lines.append([row["variant"], str(len(row["runs"])), *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = "\n".join(
        "| " + " | ".join(c.ljust(w, "-" if c == "---" else " ") for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
    return text, rows


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an optional extra
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _commit() -> str | None:
    checkout = Path(cmsbert_fast.__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return None
    try:

        def git(*arguments: str) -> str:
            command = ["git", "-C", str(checkout), *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
