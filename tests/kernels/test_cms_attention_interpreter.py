"""The tests of the CMS attention kernels in Triton's interpreter, where there is no GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.attention_cases import DEVICE, INTERPRETED

ROOT = Path(__file__).resolve().parents[2]
FILES = [f"tests/kernels/test_cms_attention_{name}.py" for name in ("values", "launches", "dropout", "tiles")]
FILES.append("tests/ops/test_capability.py")
AT_LEAST = 100  # tests that pass in the interpreter


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the kernels run in this process already")
def test_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *FILES]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None, result.stdout
    assert int(passed[1]) >= AT_LEAST, result.stdout  # what skips everything is green too
