"""A disk that is full while a run writes: one sentence, with what is kept."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from cmsbert_fast.training import checkpoint
from cmsbert_fast.training.errors import UsageError

_NUMBERS = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file is too large"}
# PyTorch's writer of archives and safetensors' have no error numbers: what they say instead.
_SIGNS = ("inline_container", "PytorchStreamWriter", "os error 28", "os error 122", "os error 27")


@contextmanager
def explained(root: Path) -> Iterator[None]:
    """Raises UsageError for what writing raised because of a full disk.

    Args:
        root: The folder of the runs that write.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        saved = any(root.glob(f"*/*/{checkpoint.FILE_NAME}"))
        kept = "the last checkpoint and the best model are kept whole" if saved else "there is no checkpoint yet"
        raise UsageError(
            f"{root} cannot be written: {reason}; {kept}. Make room, then continue with --resume {root}."
        ) from error


def _reason(error: BaseException | None) -> str | None:
    """Why writing failed, if it is for lack of room; of an error or of those that led to it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NUMBERS:
            return _NUMBERS[error.errno]
        if any(sign in str(error) for sign in _SIGNS):
            return "the disk may be full"
        error = error.__cause__ or error.__context__
    return None
