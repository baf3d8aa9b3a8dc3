"""Mean and standard deviation of every feature, over frames that pass by block by block."""

from typing import Any

import numpy as np


class Moments:
    """Running moments of frames, in float64.

    Blocks are merged as Chan, Golub and LeVeque (1979) do, which loses no digits, unlike sum(x^2) - mean^2.

    Attributes:
        count: Frames seen.
        mean: Their mean, (d,); empty before the first frame.
        squares: The sum of their squared deviations from the mean, (d,).
    """

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        """Starts from nothing, or from what :meth:`state` gave."""
        self.count: int = state["count"] if state else 0
        self.mean = np.array(state["mean"]) if state else np.zeros(0)
        self.squares = np.array(state["square"]) if state else np.zeros(0)

    def see(self, frames: np.ndarray) -> None:
        """Takes in a block of frames (n, d); n or d may be 0."""
        if not frames.size:
            return
        frames = frames.astype(np.float64)
        mean, squares = (self.mean, self.squares) if self.count else (0.0, 0.0)
        count, total = len(frames), self.count + len(frames)
        own = frames.mean(axis=0)
        delta = own - mean
        squares = squares + ((frames - own) ** 2).sum(axis=0)
        self.squares = squares + delta**2 * self.count * count / total
        self.mean = mean + delta * count / total
        self.count = total

    @property
    def std(self) -> np.ndarray:
        """The standard deviation (d,) of the frames seen, the square root of their mean squared deviation."""
        return np.sqrt(self.squares / max(1, self.count))

    def state(self) -> dict[str, Any]:
        """All there is, as JSON holds it to the bit."""
        return {"count": self.count, "mean": self.mean.tolist(), "square": self.squares.tolist()}
