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


def impossible_architecture(found: str | Exception) -> UsageError:
    """The error for fields of a configuration that no model can be made of: a clause, or what making one raised."""
    reason = " ".join(str(found).split()) or type(found).__name__
    if isinstance(found, KeyError):  # hidden_act
        reason += " is unknown"
    return UsageError(
        f"The architecture is not possible: {reason.rstrip('.'):.300}; correct the option --architecture, the config "
        "file or the checkpoint's config.json, whichever says so."
    )


def os_reason(error: Exception) -> str:
    """The system's reason for an error, without the path."""
    return getattr(error, "strerror", None) or str(error)
