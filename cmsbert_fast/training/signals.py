"""SIGTERM and SIGINT: a run that gets one stops between two steps, with a checkpoint."""

import signal
import types
from typing import Any


class StopRequest:
    """While entered, remembers that SIGTERM or SIGINT came, so that the loop can stop between two steps.

    Attributes:
        signal: Its number; 0 before.
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
            raise KeyboardInterrupt  # Ctrl-C a second time: at once
        self.signal = self.signal or number
