"""``train.py``: from the command line to the results of every run, and the exit status."""

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers

from cmsbert_fast import atomic
from cmsbert_fast.commandline import nobody_reads
from cmsbert_fast.data.example import DataError
from cmsbert_fast.data.task import labels_of
from cmsbert_fast.data.text import printable
from cmsbert_fast.models.model_card import CARD
from cmsbert_fast.progress import hidden
from cmsbert_fast.training import (
    best,
    distributed,
    figures,
    folders,
    model_card,
    preflight,
    presets,
    report,
    resume,
    strict_json,
    text_features,
)
from cmsbert_fast.training.backends import backend_report
from cmsbert_fast.training.build import Loaded
from cmsbert_fast.training.command import Command, command_parser, parse_command
from cmsbert_fast.training.disk import explained
from cmsbert_fast.training.distributed import Ranks
from cmsbert_fast.training.epochs import epoch_table
from cmsbert_fast.training.errors import Interrupted, NotFinite, UsageError
from cmsbert_fast.training.precision import precision_warning
from cmsbert_fast.training.preflight import Checked, Data
from cmsbert_fast.training.settings import TrainingSettings
from cmsbert_fast.training.signals import StopRequest, stop_with_torchrun
from cmsbert_fast.training.tested import load_and_test
from cmsbert_fast.training.trainer import Trainer

__all__ = ["command_parser", "main", "run", "run_all"]

EXIT_USAGE = 2
EXIT_NOT_FINITE = 3


def main(arguments: Sequence[str], embedded_config: Path = presets.EMBEDDED, prog: str = "train.py") -> int:
    """Runs ``train.py``, which is ``cmsbert train``.

    Args:
        arguments: The command line, without the program.
        embedded_config: Settings for the embedded corpus.
        prog: The name of the program.

    Returns:
        The exit status: 0 success, 2 user error, 3 loss not finite, 128 + n stopped by signal n, 141 where nobody reads
            standard output.
    """
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    stop_with_torchrun()
    stop = StopRequest()
    try:
        command = parse_command(arguments, embedded_config, prog)
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
    except KeyboardInterrupt:  # before StopRequest, or the second one
        distributed.report_once("Stopped at once; runs with a checkpoint continue with --resume.")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return nobody_reads()
    finally:
        distributed.stop()


def run_all(command: Command, ranks: Ranks, stop: StopRequest) -> None:
    """Checks all runs of a command, does them, and prints the table of their test metrics."""
    say = _silent if not ranks.is_main else _say_warnings if command.quiet else _say
    warning = precision_warning(command.runs[0].precision, ranks.device)
    if warning:
        say(warning, file=sys.stderr, flush=True)
    with hidden(command.quiet), ExitStack() as locks:
        checked = preflight.check_command(command, ranks, say, locks)
        with explained(checked.root):
            _run_checked(command, checked, ranks, stop, say)


def _run_checked(command: Command, checked: Checked, ranks: Ranks, stop: StopRequest, say: Callable[..., None]) -> None:
    """Does all runs of a command after its checks."""
    for line in backend_report(command.runs, ranks.device):
        say(line, flush=True)
    loaded, done, features = checked.loaded, [], checked.root / text_features.FOLDER
    for settings in command.runs:
        folder = checked.root / folders.run_name(settings)
        say(f"\n{folder}", flush=True)
        data = checked.data[settings.fold]
        result = run(
            settings,
            data,
            ranks,
            folder,
            stop,
            loaded=loaded,
            resuming=checked.resume,
            features=features,
            quiet=command.quiet,
        )
        done.append(result)
        loaded = None
    if ranks.is_main:
        text_features.remove(features)
    text, rows = report.table(done)
    name = checked.data[command.runs[0].fold].corpus.name
    if ranks.is_main:
        _say(f"\nTest set of {name}:\n\n{text}\n\nEverything is in {checked.root}")
        strict_json.write_json(checked.root / "summary.json", rows)
        atomic.replace_file(checked.root / "summary.md", lambda path: path.write_text(text + "\n", encoding="utf-8"))


def run(
    settings: TrainingSettings,
    data: Data,
    ranks: Ranks,
    folder: Path,
    stop: StopRequest,
    *,
    loaded: Loaded | None = None,
    resuming: bool = False,
    testing: bool = True,
    features: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """One run: trains, selects on validation, tests, and leaves everything in ``folder``.

    Args:
        settings: What to do.
        data: What to train on.
        ranks: This process.
        folder: Where log, checkpoint, best model, results, predictions and figures go.
        stop: Whether to stop early.
        loaded: Model and tokenizer from :func:`cmsbert_fast.training.preflight.check`; None = load them now.
        resuming: Continue from the checkpoint in ``folder``, if any. A finished run is not repeated, but missing
            figures are drawn and a missing model card is written.
        testing: False: the test set is not even predicted, and there is no "test" in the results.
        features: As in :class:`Trainer`.
        quiet: Do not print the table of epochs.

    Returns:
        The contents of ``results.json``, on every rank.

    Raises:
        UsageError: The settings do not fit the data, checkpoint or ``folder``.
        NotFinite: A loss, gradient or prediction is NaN or infinite.
        Interrupted: ``stop`` was requested; the checkpoint has been written.
    """
    folders.make_shared_folder(folder, ranks)
    saved = None
    if resuming:
        finished = distributed.from_main(
            lambda: resume.finished_results(settings, data.fingerprint, folder, testing), ranks
        )
        if finished is not None:
            if testing:
                _finish_what_is_shown(settings, data, ranks, folder, finished)
            return finished
        saved = resume.last_checkpoint(settings, data.fingerprint, folder)
        if saved is not None and "damaged" in saved and ranks.is_main:
            print(f"warning: {saved['damaged']}", file=sys.stderr, flush=True)
    trainer = Trainer(settings, data, ranks, folder, stop, loaded, features)
    if saved is None:
        trainer.begin()
    else:
        trainer.restore(saved)
        del saved  # as large as model and optimiser
    outcome = trainer.run(testing)
    if ranks.is_main and not quiet:
        _say(f"\n{epoch_table(folder)}", flush=True)
    return outcome


def _finish_what_is_shown(
    settings: TrainingSettings, data: Data, ranks: Ranks, folder: Path, results: dict[str, Any]
) -> None:
    """Draws the figures and writes the model card of a finished run that was stopped before it had done so."""

    def missing() -> tuple[bool, bool]:
        model = folder / best.BEST  # the experiments may remove it
        described = not model.is_dir() or (model / CARD).is_file() or (best.find(folder).folder / CARD).is_file()
        return not (folder / figures.FIGURES).is_dir(), not described

    drawing, describing = distributed.from_main(missing, ranks)
    if drawing or describing:
        tested = load_and_test(settings, data, ranks, folder)
        if ranks.is_main:
            if drawing:
                figures.draw(folder, tested)
            if describing:
                model_card.write_card(folder, tested.model, results, tuple(labels_of(data.corpus).classes))


def _say(*values: object, **options: Any) -> None:
    """Prints; names and sentences may be those of untrusted data."""
    print(*(printable(str(value)) for value in values), **options)


def _say_warnings(*values: object, **options: Any) -> None:
    """Prints what is for stderr."""
    if options.get("file") is sys.stderr:
        _say(*values, **options)


def _silent(*values: object, **options: object) -> None:
    pass
