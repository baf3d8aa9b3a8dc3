"""SIGTERM and SIGINT: they stop a run between two steps, with a checkpoint."""

import signal
import types
from typing import Any


class StopRequest:
    """While entered, records SIGTERM or SIGINT, so the loop can stop between two steps.

    Attributes:
        signal: Number of the signal; 0 if none.
    """

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
            raise KeyboardInterrupt  # second Ctrl-C: at once
        self.signal = self.signal or number
