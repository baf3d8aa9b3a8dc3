"""The exit status of the commands that use a trained model."""

import sys
from collections.abc import Callable

import transformers

from cmsbert_fast.commandline import nobody_reads
from cmsbert_fast.data.example import DataError
from cmsbert_fast.training.errors import UsageError


def exit_status(run: Callable[[], None]) -> int:
    """Runs a command.

    Returns:
        0; 2 for a user's error, with one sentence on stderr; as in shells, 130 after Ctrl-C and 141 if standard output
        is closed.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        run()
        sys.stdout.flush()
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return nobody_reads()
    return 0
