"""The exceptions that end a run, each with its own exit status (see :mod:`cmsbert_fast.training.runs`)."""


class UsageError(Exception):
    """The run cannot start as asked. The message is one sentence that says what to do."""


class NotFinite(Exception):
    """A loss, gradient or prediction is NaN or infinite. The message names step and examples."""


class Interrupted(Exception):
    """The run was asked to stop and has written its checkpoint."""


def first_line(error: Exception) -> str:
    """The first line of an error's message; its kind where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def os_reason(error: Exception) -> str:
    """The system's reason for an error, without the path."""
    return getattr(error, "strerror", None) or str(error)
