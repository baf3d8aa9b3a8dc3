"""Speech, and a tracker that needs no MediaPipe."""

import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def spoken() -> np.ndarray:
    """Two sentences with half a second of silence around each: 7 seconds."""
    from tests.extract.media import SENTENCES, silence, speak  # needs av, which not all tests here do

    parts = [part for sentence in SENTENCES[:2] for part in (silence(0.5), speak(sentence).samples)]
    return np.concatenate([*parts, silence(0.5)])


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python whose face tracker is ``tracker.py`` beside this file."""
    here = Path(__file__).parent
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} {here / 'tracker.py'} {here / 'mesh.npy'}\n")
    script.chmod(0o755)
    return script
