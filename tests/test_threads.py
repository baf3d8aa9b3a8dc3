"""How threads wait: said before PyTorch is imported, unless the user has said it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cmsbert_fast.threads import SPINS, wait_without_spinning

ROOT = Path(__file__).resolve().parents[1]
# Ends the program at its first import of PyTorch, which would read the environment then.
WATCH = """
import os, runpy, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
sys.argv = ["program", "--help"]
"""


@pytest.mark.parametrize(
    "program", ["runpy.run_path('train.py', run_name='__main__')", "runpy._run_module_as_main('cmsbert_fast.predict')"]
)
def test_programs_say_it_before_pytorch_is_imported(program):
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", WATCH + program], cwd=ROOT, env=kept, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == [SPINS], done.stderr


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": ""}])
def test_what_the_user_said_stays(said):
    environment = dict(said)
    wait_without_spinning(environment)
    assert environment == said
