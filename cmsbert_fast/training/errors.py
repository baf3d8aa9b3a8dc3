"""The exceptions that end a run, each with its own exit status (see :mod:`cmsbert_fast.training.runs`)."""

from cmsbert_fast.data.text import sentence


class UsageError(Exception):
    """The run cannot start as asked. The message is one sentence that says what to do."""

    def __str__(self) -> str:
        return sentence(super().__str__())  # values in it may be a file's


class NotFinite(Exception):
    """A loss, gradient or prediction is NaN or infinite. The message names step and examples."""

    def __str__(self) -> str:
        return sentence(super().__str__())  # ids in it are untrusted


class Interrupted(Exception):
    """The run was asked to stop and has written its checkpoint."""


def os_reason(error: Exception) -> str:
    """The system's reason for an error, without the path."""
    return getattr(error, "strerror", None) or str(error)
