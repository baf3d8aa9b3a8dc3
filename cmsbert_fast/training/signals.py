"""SIGTERM and SIGINT: they stop a run between two steps, with a checkpoint. So does the end of torchrun."""

import os
import signal
import threading
import time
import types
from typing import Any

_POLL_SECONDS = 0.5
_PATIENCE = 600.0  # seconds for a checkpoint; a worker that waits for a dead one never ends by itself


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


def stop_with_torchrun() -> None:
    """In a worker of torchrun: asks this process to stop as soon as torchrun's agent is gone, however that ended.

    Else its workers would train on, unseen, beside those of the next start. They hold the lock of the run meanwhile.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_PATIENCE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="torchrun's agent").start()
