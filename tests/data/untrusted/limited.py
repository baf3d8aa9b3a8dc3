"""A limit of time for what could wait or work without end."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TooSlowError(BaseException):
    """No reader may catch it."""


@contextmanager
def seconds(limit: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlowError(f"it took more than {limit} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
