"""Training, top to bottom: :func:`main` reads the command line, :func:`train` does one run.

What makes a run repeatable: the order of the data depends on the seed and the epoch only, dropout on the seed and the
rank, gradients are added in one order (:class:`~cmsbert_fast.training.distributed.Gradients`), and a checkpoint holds
all state there is.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import signal
import sys
import time
import types
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from cmsbert_fast import atomic
from cmsbert_fast.data import read_corpus
from cmsbert_fast.data.example import SPLITS, Corpus, DataError, outlines
from cmsbert_fast.models.cmsbert.configuration_cmsbert import CMSBertConfig
from cmsbert_fast.models.cmsbert.modeling_cmsbert import CMSBertCLRForSequenceClassification
from cmsbert_fast.models.losses import LossTerm, contrastive_loss, task_loss, total_loss
from cmsbert_fast.models.processing import CMSBertProcessor
from cmsbert_fast.ops import dispatch
from cmsbert_fast.ops.capability import has_fast_bfloat16
from cmsbert_fast.training import checkpoint, distributed
from cmsbert_fast.training import evaluate as evaluation
from cmsbert_fast.training import report as results
from cmsbert_fast.training.build import (
    BEST,
    Classifier,
    Loaded,
    build,
    build_config,
    load,
    load_trained,
    parameter_groups,
)
from cmsbert_fast.training.distributed import Gradients, Ranks
from cmsbert_fast.training.evaluate import Batches, Predictions
from cmsbert_fast.training.gradcache import gradcache_backward
from cmsbert_fast.training.settings import (
    VARIANTS,
    Command,
    TrainingSettings,
    UsageError,
    os_reason,
    parse_command,
)

FIGURES = "figures"
EXIT_USAGE = 2
EXIT_NOT_FINITE = 3
LARGEST_SCORE = 1e6  # the sum of some squares of it is far from what float32 can hold
FINGERPRINT_BYTES = 2**22  # read within half a second, from a disk too; a run starts with it
# Settings that a resumed run may change: they decide where and how fast it computes, not what. The data's place may
# change too; that it holds the same examples is checked. The number of threads is not among them: it changes rounding.
_FREE_ON_RESUME = ("data", "device", "backend", "checkpoint_every_epochs", "checkpoint_every_steps")


class NotFinite(Exception):
    """A loss, a gradient or a prediction is NaN or infinite. The message names step and examples."""


class Interrupted(Exception):
    """The run was asked to stop and has written its checkpoint."""


class StopRequest:
    """While entered, remembers that SIGTERM or SIGINT came, so that the loop can stop between two steps."""

    def __init__(self) -> None:
        self.signal = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt  # Ctrl-C a second time: at once
        self.signal = self.signal or number


@dataclass(slots=True)
class Progress:
    """Where a run is. Part of the checkpoint."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches completed in the current one
    step: int = 0
    best: float | None = None  # lowest selection value on validation so far, and its epoch (1, 2, ...)
    best_epoch: int = 0
    stalled: int = 0  # epochs since then
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Record:
    """Numbers of a step on their way from the device: read one step later, so that a GPU never waits for the host."""

    step: int
    learning_rate: float
    indices: np.ndarray
    values: Tensor  # task loss, contrastive loss, ranks asked to stop, gradient norm
    copied: Any  # CUDA event; None on the CPU

    @classmethod
    def of(
        cls,
        step: int,
        learning_rate: float,
        indices: np.ndarray,
        losses: list[Tensor],
        norm: Tensor,
        stop: bool,
        ranks: Ranks,
    ) -> "_Record":
        """Averages a step's numbers over the ranks and starts their copy to the host."""
        values = torch.stack([*losses, losses[0].new_full((), float(stop))]).double()
        values = distributed.sum_over_ranks(values, ranks) / ranks.world_size
        values = torch.cat([values, norm.double()[None]]).to("cpu", non_blocking=True)
        copied = None
        if ranks.device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record()
        return cls(step, learning_rate, indices, values, copied)


def main(arguments: Sequence[str], embedded_config: Path) -> int:
    """Runs ``train.py``.

    Args:
        arguments: The command line, without the program.
        embedded_config: Settings for the embedded corpus.

    Returns:
        The exit status: 0 done, 2 a user's error, 3 a loss that is not finite, 128 + n stopped by signal n.
    """
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    stop = StopRequest()
    try:
        command = parse_command(arguments, embedded_config)
        if command.runs[0].threads is not None:
            torch.set_num_threads(command.runs[0].threads)
        ranks = distributed.start(command.runs[0].device)
        if ranks.device.type == "cuda":
            distributed.compute_deterministically()
        else:
            distributed.keep_freed_memory()
        with stop:
            run_all(command, ranks, stop)
        return 0
    except (UsageError, DataError) as error:
        distributed.report_once(f"error: {error}")
        return EXIT_USAGE
    except NotFinite as error:
        distributed.report_once(f"stopped: {error}")
        return EXIT_NOT_FINITE
    except Interrupted as error:
        distributed.report_once(str(error))
        return 128 + (stop.signal or signal.SIGTERM)
    except KeyboardInterrupt:  # before StopRequest was entered, or a second time
        distributed.report_once("Stopped at once; runs that have a checkpoint continue with --resume.")
        return 128 + signal.SIGINT
    finally:
        distributed.stop()


def run_all(command: Command, ranks: Ranks, stop: StopRequest) -> None:
    """Does every run of a command, after checking all of them, and prints the table of their test metrics."""
    say = print if ranks.is_main else _silent
    if command.runs[0].precision == "bf16" and not has_fast_bfloat16(ranks.device):
        say(
            "warning: this CPU has no instructions for bfloat16, so --precision bf16 takes many times as long here as "
            "float32; train with --precision fp32.",
            file=sys.stderr,
            flush=True,
        )
    corpora: dict[int | None, Corpus] = {}  # by fold
    fingerprints: dict[int | None, str] = {}
    loaded: Loaded | None = None  # of the first run
    checked = set()
    for settings in command.runs:
        if settings.fold not in corpora:
            corpora[settings.fold] = read(settings)
            say(corpora[settings.fold].report)
            check_data(corpora[settings.fold])
            fingerprints[settings.fold] = fingerprint(corpora[settings.fold])
        # Runs that differ in neither would load the same model to the same end.
        if (settings.variant, settings.fold) not in checked:
            found = check(settings, corpora[settings.fold], ranks)
            loaded = loaded or found
            checked.add((settings.variant, settings.fold))
            del found
    name = corpora[command.runs[0].fold].name
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    root = distributed.from_main(
        lambda: output_folder(command.output, name, resume=command.resume, restarted=restarted), ranks
    )
    resume = command.resume or restarted
    if resume:
        for settings in command.runs:
            folder, examples = root / run_name(settings), fingerprints[settings.fold]
            distributed.from_main(partial(check_resumable, settings, examples, folder), ranks)
    # All of them now: where one cannot be made, the runs before it would be for nothing.
    for settings in command.runs:
        distributed.from_main(partial(make_folder, root / run_name(settings)), ranks)
    say(backend_report(command.runs[0], ranks.device), flush=True)
    done = []
    for settings in command.runs:
        folder = root / run_name(settings)
        say(f"\n{folder}", flush=True)
        corpus, examples = corpora[settings.fold], fingerprints[settings.fold]
        done.append(train(settings, corpus, examples, ranks, folder, stop, loaded=loaded, resume=resume))
        loaded = None
    text, rows = results.table(done)
    say(f"\nTest set of {name}:\n\n{text}\n\nEverything is in {root}")
    if ranks.is_main:
        results.write_json(root / "summary.json", rows)
        atomic.replace_file(root / "summary.md", lambda path: path.write_text(text + "\n", encoding="utf-8"))


def run_name(settings: TrainingSettings) -> Path:
    """The folder of a run below that of its command."""
    number = f"seed-{settings.seed}" if settings.fold is None else f"fold-{settings.fold}-seed-{settings.seed}"
    return Path(settings.variant.replace("/", "-")) / number


def read(settings: TrainingSettings) -> Corpus:
    """The data that settings name.

    Raises:
        DataError: It cannot be used as it is.
    """
    return read_corpus(
        settings.data,
        visual=settings.visual,
        acoustic=settings.acoustic,
        words=settings.words,
        label=settings.label,
        folds=settings.folds,
        fold=settings.fold,
    )


def check_data(corpus: Corpus) -> None:
    """Finds what would make training on a corpus fail.

    Raises:
        UsageError: With what to do about it.
    """
    for split in SPLITS:
        examples = corpus.splits.get(split, ())
        if len(examples) < 2:
            raise UsageError(
                f"{corpus.name} has {len(examples)} examples in its {split} split, but training needs at least 2 in "
                f"each of {', '.join(SPLITS)}; assign more examples to it."
            )
        unlabelled = next((outline.id for outline in outlines(examples) if outline.label is None), None)
        if unlabelled is not None:
            raise UsageError(f"Example {unlabelled!r} of the {split} split has no label; give it one or leave it out.")
        huge = next((o for o in outlines(examples) if o.label is not None and not abs(o.label) <= LARGEST_SCORE), None)
        if huge is not None:
            raise UsageError(
                f"Example {huge.id!r} of the {split} split has the label {huge.label:g}; correct it, or scale all "
                f"labels to lie within ±{LARGEST_SCORE:g}."
            )


def check(settings: TrainingSettings, corpus: Corpus, ranks: Ranks) -> Loaded:
    """Finds what would make a run on a corpus fail: a checkpoint that does not fit must not be found after hours of
    other runs.

    Returns:
        The model and its tokenizer as :func:`train` would load them.

    Raises:
        UsageError: With what to do about it.
    """
    count = len(corpus.splits["train"])
    smallest = count // math.ceil(count / settings.batch_size)
    if smallest < ranks.world_size:
        raise UsageError(
            f"The smallest batch has {smallest} examples for {ranks.world_size} ranks; use fewer ranks or a "
            "larger --batch-size."
        )
    config = build_config(settings, corpus)
    chosen_backend(settings, ranks.device, config)
    checkpoint.seed_everything(settings.seed)
    return load(settings, config)


def chosen_backend(settings: TrainingSettings, device: torch.device, config: CMSBertConfig | None = None) -> str:
    """The backend of CMS attention in a run; without the model's configuration, that of heads as wide as BERT's.

    Raises:
        UsageError: The one asked for cannot run here.
    """
    try:
        return dispatch.choose_backend("attention", _query(settings, device, config), settings.backend)
    except ValueError as error:
        raise UsageError(str(error)) from None


def backend_report(settings: TrainingSettings, device: torch.device) -> str:
    """One line: which backend computes CMS attention, and why no compiled one where "auto" found none."""
    return f"CMS attention: {dispatch.report('attention', _query(settings, device), settings.backend)}"


def _query(settings: TrainingSettings, device: torch.device, config: CMSBertConfig | None = None) -> Tensor:
    head_size = 64 if config is None else config.hidden_size // config.num_attention_heads
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    return torch.empty(0, 1, head_size, dtype=dtype, device=device)


def check_resumable(settings: TrainingSettings, examples: str, folder: Path) -> None:
    """Finds what would make resuming the run in ``folder`` fail; ``examples`` is the data's :func:`fingerprint`.

    Raises:
        UsageError: Its results or its checkpoint are damaged, or it was another run.
    """
    finished = results.read_results(folder)
    if finished is not None:
        _check_unchanged(finished["settings"], finished["data"]["fingerprint"], settings, examples, folder)
    else:
        state = checkpoint.load(folder)
        if state is not None:
            _check_unchanged(state["settings"], state["fingerprint"], settings, examples, folder)


def train(
    settings: TrainingSettings,
    corpus: Corpus,
    examples: str,
    ranks: Ranks,
    folder: Path,
    stop: StopRequest,
    *,
    loaded: Loaded | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """One run: trains, selects on validation, tests, and leaves everything in ``folder``.

    Args:
        settings: What to do.
        corpus: Its splits "train", "valid" and "test" are used.
        examples: Its :func:`fingerprint`.
        ranks: This process.
        folder: Where log, checkpoint, best model, results, predictions and figures go.
        stop: Whether to stop early.
        loaded: What :func:`check` has loaded for these settings, to be trained; None: loaded now.
        resume: Continue from the checkpoint in ``folder``, if there is one. A finished run is not repeated; figures
            that it lacks are drawn.

    Returns:
        What ``results.json`` holds, on every rank.

    Raises:
        UsageError: The settings do not fit data, checkpoint or ``folder``.
        NotFinite: A loss, gradient or prediction is NaN or infinite.
        Interrupted: ``stop`` was requested; the checkpoint is written.
    """
    started = time.monotonic()
    _make_folder(folder, ranks)
    state = None
    if resume:
        finished = distributed.from_main(lambda: results.read_results(folder), ranks)
        if finished is not None:
            _check_unchanged(finished["settings"], finished["data"]["fingerprint"], settings, examples, folder)
            if distributed.from_main(lambda: not (folder / FIGURES).is_dir(), ranks):  # killed while they were drawn
                best, processor = load_trained(folder, settings.backend)
                best.to(ranks.device)  # type: ignore[arg-type]
                batches = Batches(corpus.splits["test"], processor, best.config, ranks.device)
                tested = _predict(best, batches, ranks, settings)
                if ranks.is_main:
                    _draw(folder, best, processor, corpus, tested, settings)
            return finished
        state = checkpoint.load(folder)
        if state is not None:
            _check_unchanged(state["settings"], state["fingerprint"], settings, examples, folder)

    # The model, the same on every rank; what is random after this differs between ranks.
    checkpoint.seed_everything(settings.seed)
    model, processor = build(settings, corpus, loaded)
    model.to(ranks.device)  # type: ignore[arg-type]
    distributed.equalise((*model.parameters(), *model.buffers()), ranks)
    checkpoint.seed_everything(int(np.random.SeedSequence([settings.seed, ranks.rank]).generate_state(1)[0]))
    ema = VARIANTS[settings.variant].ema
    nu = model.nu if isinstance(model, CMSBertCLRForSequenceClassification) else None
    splits = {split: Batches(corpus.splits[split], processor, model.config, ranks.device) for split in SPLITS}
    gradients = Gradients(model.parameters(), ranks)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), lr=settings.learning_rate, fused=True)
    batches_per_epoch = math.ceil(len(splits["train"]) / settings.batch_size)
    total_steps = settings.epochs * batches_per_epoch

    progress = Progress()
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**state["progress"])
        if ranks.rank < len(state["random"]):
            checkpoint.set_random_state(state["random"][ranks.rank], ranks.device)
    elif nu is not None:
        nu.fill_(1.0)
        if ema:  # it starts from a validation pass (Eq. 22)
            first = _predict(model, splits["valid"], ranks, settings)
            nu.fill_(_ratio(*evaluation.losses(first, model.config, settings.batch_size), nu))
    nu_now = None if nu is None else float(nu)
    earlier_seconds = progress.seconds
    log = results.RunLog(folder, state["log_length"] if state else 0, progress.step) if ranks.is_main else None
    if log and state is None:
        log.write("start", {"step": 0, "parameters": model.num_parameters(), "nu": nu_now})
    bar = tqdm(
        total=total_steps,
        initial=progress.step,
        desc=settings.variant,
        unit="step",
        disable=not ranks.is_main,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        dynamic_ncols=True,
    )

    def save() -> None:
        progress.seconds = earlier_seconds + time.monotonic() - started
        random_states = distributed.gather_objects(checkpoint.random_state(ranks.device), ranks)
        if log is not None:
            state = {
                "settings": dataclasses.asdict(settings),
                "fingerprint": examples,
                "progress": dataclasses.asdict(progress),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "random": random_states,
                "log_length": log.length(),
            }
            checkpoint.save(folder, state)

    def settle(record: _Record) -> bool:
        """Logs a step once its numbers are there; stops the run if they are not finite.

        Returns:
            Whether a rank was asked to stop.
        """
        if record.copied is not None:
            record.copied.synchronize()
        task, contrastive, requests, norm = record.values.tolist()
        loss = task if nu_now is None else task + nu_now * contrastive
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "gradient" if math.isfinite(loss) else "loss"
            raise NotFinite(
                f"the {what} of step {record.step} (epoch {progress.epoch + 1}) is not finite; lower --learning-rate, "
                "set --max-grad-norm, or look at the examples of this batch: "
                + ", ".join(splits["train"].ids(record.indices))
            )
        numbers = {"loss": loss, "task_loss": task}
        if nu_now is not None:
            numbers |= {"contrastive_loss": contrastive, "nu": nu_now}
        numbers |= {"gradient_norm": norm, "learning_rate": record.learning_rate}
        if log is not None:
            log.write("train", {"step": record.step, "epoch": progress.epoch + 1, **numbers})
        best = f", best epoch {progress.best_epoch}: {abs(progress.best):.3f}" if progress.best is not None else ""
        bar.set_postfix_str(f"loss {loss:.3f}{best}", refresh=False)
        bar.update()
        return requests > 0

    with bar:
        while progress.epoch < settings.epochs:
            if settings.early_stopping is not None and progress.stalled >= settings.early_stopping:
                break
            order = epoch_batches(len(splits["train"]), settings.batch_size, settings.seed, progress.epoch)
            model.train()
            unread: _Record | None = None
            while progress.batch < len(order):
                indices = order[progress.batch]
                learning_rate = settings.learning_rate * schedule(progress.step, total_steps, settings.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                gradients.zero()
                losses = backward(model, splits["train"], indices, gradients, ranks, settings)
                gradients.finish()
                norm = gradients.norm()
                if settings.max_grad_norm is not None:
                    gradients.clip(norm, settings.max_grad_norm)
                optimizer.step()
                progress.step += 1
                progress.batch += 1

                stopping = unread is not None and settle(unread)
                unread = _Record.of(progress.step, learning_rate, indices, losses, norm, stop.signal != 0, ranks)
                due = settings.checkpoint_every_steps and progress.step % settings.checkpoint_every_steps == 0
                if stopping or due or progress.batch == len(order):
                    stopping |= settle(unread)
                    unread = None
                    if stopping or due:
                        save()
                if stopping:
                    raise Interrupted(f"Stopped after step {progress.step}; the same command with --resume continues.")

            predictions = _predict(model, splits["valid"], ranks, settings)
            measured = evaluation.metrics(predictions)
            task, contrastive = evaluation.losses(predictions, model.config, settings.batch_size)
            losses_of_epoch = {"task_loss": task}
            if nu is not None and contrastive is not None:
                if ema:  # Eq. 21
                    nu.mul_(settings.momentum).add_((1 - settings.momentum) * _ratio(task, contrastive, nu))
                nu_now = float(nu)
                losses_of_epoch |= {"contrastive_loss": contrastive, "nu": nu_now}
            progress.epoch, progress.batch = progress.epoch + 1, 0
            progress.stalled += 1
            score = evaluation.selection(measured)
            if progress.best is None or score < progress.best:
                progress.best, progress.best_epoch, progress.stalled = score, progress.epoch, 0
                if ranks.is_main:
                    atomic.replace_folder(folder / BEST, lambda path: _save_pretrained(model, processor, path))
            if log is not None:
                log.write("valid", {"step": progress.step, "epoch": progress.epoch, **losses_of_epoch, **measured})
            if progress.epoch % settings.checkpoint_every_epochs == 0 or progress.epoch == settings.epochs:
                save()

    # The best model, on the test set.
    distributed.wait_for_all(ranks)
    best, _ = load_trained(folder, settings.backend)
    best.to(ranks.device)  # type: ignore[arg-type]
    tested = _predict(best, splits["test"], ranks, settings)
    outcome = {
        "test": evaluation.metrics(tested),
        "valid": evaluation.metrics(_predict(best, splits["valid"], ranks, settings)),
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "steps": progress.step,
        "parameters": best.num_parameters(),
        "data": {"name": corpus.name, "report": str(corpus.report), "fingerprint": examples},
        **results.provenance(
            settings,
            ranks.world_size,
            _device_name(ranks.device),
            chosen_backend(settings, ranks.device, best.config),
        ),
        "seconds": earlier_seconds + time.monotonic() - started,
    }
    outcome = distributed.from_main(lambda: outcome, ranks)
    if log is not None:
        results.write_predictions(folder / "predictions.csv", tested, corpus.classes)
        log.write("test", {"step": progress.step, "epoch": progress.best_epoch, **outcome["test"]})
        log.close()
        results.write_json(folder / results.RESULTS, outcome)
        # Last: what they fail on must not cost the results.
        _draw(folder, best, processor, corpus, tested, settings)
    return outcome


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The global batches of an epoch: ``count`` indices, shuffled, cut into batches whose sizes differ by at most 1."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return np.array_split(order, math.ceil(count / batch_size))


def schedule(step: int, total_steps: int, warmup: float) -> float:
    """The factor of the learning rate in a step (0, 1, ...): rises linearly to 1 during warm-up, then falls to 0."""
    warm = round(warmup * total_steps)
    return (step + 1) / warm if step < warm else (total_steps - step) / max(1, total_steps - warm)


def fingerprint(corpus: Corpus) -> str:
    """A hash of the examples of all splits, in order: ids, labels, words, numbers of frames, and the frames.

    Of more than ``FINGERPRINT_BYTES`` of frames, those of evenly spaced examples are read, about so many bytes.
    """
    widths, total = (corpus.visual_size, corpus.acoustic_size), 0
    digest = hashlib.sha256(json.dumps(widths).encode())
    for split in SPLITS:
        for o in outlines(corpus.splits[split]):  # one at a time: a list of them all takes memory and longer
            line = (split, o.id, str(o.label), o.words, o.visual, o.acoustic, o.aligned)
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
        before += len(examples)
    return digest.hexdigest()[:16]


def output_folder(given: Path | None, name: str, *, resume: bool, restarted: bool = False) -> Path:
    """The folder for the runs of a command: ``given``, or a new one under ``runs`` named after the data.

    Where runs are resumed, or ``torchrun`` has restarted this program, the newest of those is taken instead.

    Raises:
        UsageError: There is a run already, or none to resume, or the folder cannot be made.
    """
    name = re.sub(r"[^\w.-]+", "-", name)
    if given is None:
        numbers = [1]
        for path in Path("runs").glob(f"{name}*"):
            if match := re.fullmatch(re.escape(name) + r"(?:-(\d+))?", path.name):
                numbers.append(int(match.group(1) or 1) + 1)
        last = max(numbers)
        if resume and last == 1:
            raise UsageError(f"There is no run of {name} under runs to resume; name its folder with --output.")
        if resume or (restarted and last > 1):
            last -= 1
        given = Path("runs") / (name if last == 1 else f"{name}-{last}")
    else:
        try:
            if resume and not restarted and not given.is_dir():
                raise UsageError(f"There is no folder {given} to resume; name that of the run with --output.")
            held = not (resume or restarted) and any(given.glob("*/*/log.jsonl"))
        except (OSError, ValueError) as error:
            raise _unusable(given, error) from None
        if held:
            raise UsageError(f"{given} holds a run already; continue it with --resume, or choose another --output.")
    make_folder(given)
    return given


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it.

    Raises:
        UsageError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise _unusable(folder, error) from None


def _unusable(folder: Path, error: Exception) -> UsageError:
    name = str(folder) if str(folder).isprintable() else repr(str(folder))
    return UsageError(f"The folder {name:.200} cannot be made ({os_reason(error)}); choose another --output.")


def backward(
    model: Classifier,
    batches: Batches,
    indices: np.ndarray,
    gradients: Gradients,
    ranks: Ranks,
    settings: TrainingSettings,
) -> list[Tensor]:
    """Adds a global batch's gradients, so that their average over the ranks is the gradient of the batch's loss.

    Returns:
        Task loss and contrastive loss (0 without one), 0-dim; their averages over the ranks are the batch's losses.
    """
    mine = indices[distributed.share(len(indices), ranks)]
    assert len(mine), "check() lets no batch be smaller than the number of ranks"
    parts = np.array_split(mine, min(settings.accumulation, len(mine)))
    if len(parts) > 1 and isinstance(model, CMSBertCLRForSequenceClassification):
        return _backward_cached(model, batches, parts, len(indices), gradients, ranks, settings)
    task_losses, contrastive = [], None
    for i, part in enumerate(parts):
        inputs = batches.load(part)
        with nullcontext() if i + 1 == len(parts) else gradients.no_sync():
            with evaluation.autocast(settings.precision, ranks.device):
                output = model(**inputs)
            # A mean over a part's own rows; the average over the ranks must be the mean over all rows.
            task = output.task_loss * (len(part) * ranks.world_size / len(indices))
            contrastive = output.contrastive_loss
            nu = getattr(model, "nu", None)
            terms = {"task": LossTerm(task)}
            if nu is not None:
                terms["contrastive"] = LossTerm(contrastive, nu, per_row=False)
            total_loss(terms).backward()
        task_losses.append(task.detach())
    task = torch.stack(task_losses).sum()
    return [task, torch.zeros_like(task) if contrastive is None else contrastive.detach()]


def _backward_cached(
    model: CMSBertCLRForSequenceClassification,
    batches: Batches,
    parts: Sequence[np.ndarray],
    count: int,
    gradients: Gradients,
    ranks: Ranks,
    settings: TrainingSettings,
) -> list[Tensor]:
    """:func:`backward` in parts, each compared with the whole global batch of ``count`` examples all the same."""
    loaded = [batches.load(part) for part in parts]
    labels = torch.cat([inputs.pop("labels") for inputs in loaded])
    weight = len(labels) * ranks.world_size / count

    def forward(inputs: dict[str, Any]) -> tuple[Tensor | None, ...]:
        with evaluation.autocast(settings.precision, ranks.device):
            output = model(**inputs)
        return output.logits, output.linguistic_embeds, output.visual_embeds, output.acoustic_embeds

    def loss(
        logits: Tensor, linguistic: Tensor | None, visual: Tensor | None, acoustic: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        task = task_loss(logits, labels) * weight
        embeds = {"linguistic_embeds": linguistic, "visual_embeds": visual, "acoustic_embeds": acoustic}
        present = {name: z for name, z in embeds.items() if z is not None}
        contrastive = contrastive_loss(present, labels, model.config, ranks.group, settings.backend)
        terms = {"task": LossTerm(task), "contrastive": LossTerm(contrastive, model.nu, per_row=False)}
        return total_loss(terms), task, contrastive

    _, task, contrastive = gradcache_backward(forward, loaded, loss, no_sync=gradients.no_sync).loss
    return [task, contrastive]


def _predict(model: Classifier, batches: Batches, ranks: Ranks, settings: TrainingSettings) -> Predictions:
    predictions = evaluation.predict(model, batches, ranks, settings.batch_size, settings.precision)
    values = torch.cat([predictions.logits, *predictions.embeddings.values()], dim=1)
    wrong = ~values.isfinite().all(dim=1)
    if wrong.any():
        ids = ", ".join(predictions.ids[i] for i in wrong.nonzero()[:, 0].tolist())
        raise NotFinite(f"the predictions for these examples are not finite; lower --learning-rate: {ids}")
    return predictions


def _ratio(task: float, contrastive: float | None, nu: Tensor) -> float:
    """nu hat of Eq. 22; the present nu where the contrastive loss is 0, so that there is nothing to scale."""
    return task / contrastive if contrastive else float(nu)


def _save_pretrained(model: Classifier, processor: CMSBertProcessor, path: Path) -> None:
    model.save_pretrained(path)
    processor.save_pretrained(path)


def _draw(
    folder: Path,
    best: Classifier,
    processor: CMSBertProcessor,
    corpus: Corpus,
    tested: Predictions,
    settings: TrainingSettings,
) -> None:
    """The figures of a run; their folder is there once all of them are."""
    atomic.replace_folder(
        folder / FIGURES,
        lambda path: results.write_figures(path, best, processor, corpus, tested, settings.embedded),
    )


def _make_folder(folder: Path, ranks: Ranks) -> None:
    distributed.from_main(lambda: make_folder(folder), ranks)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not to be seen on every machine; choose an --output on a disk that all share.")


def _check_unchanged(saved: dict, saved_examples: str, settings: TrainingSettings, examples: str, folder: Path) -> None:
    saved, now = (
        json.loads(json.dumps(values)) for values in (saved, dataclasses.asdict(settings))
    )  # lists, not tuples
    # What a run began without, before there was such a setting, is as by default.
    saved = {**json.loads(json.dumps(dataclasses.asdict(TrainingSettings()))), **saved}
    changed = [name for name in now if name not in _FREE_ON_RESUME and saved[name] != now[name]]
    if changed:
        name = changed[0]
        raise UsageError(
            f"The run in {folder} has {name} = {saved[name]!r}, not {now[name]!r}; resume it with its own settings."
        )
    if saved_examples != examples:
        raise UsageError(
            f"The run in {folder} was trained on other examples than {settings.data} holds; resume it with those."
        )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _silent(*values: object, **options: object) -> None:
    pass
