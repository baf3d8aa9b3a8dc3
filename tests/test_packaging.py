"""The folder ``kernels`` at the top level must not get in the way of Hugging Face's package of the same name.

From a checkout, an editable install and a wheel; under python, torchrun and pytest; with and without that package.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from transformers.utils.import_utils import KERNELS_MIN_VERSION

ROOT = Path(__file__).resolve().parents[1]

PROBE = """
import importlib.util, json, sys
import transformers
from transformers.models.bert.modeling_bert import BertModel
from transformers.utils import is_kernels_available
import cmsbert_fast
from cmsbert_fast import CMSBertModel, cms_attention, pairwise_contrastive_loss
import cmsbert_fast.kernels.contrastive
found = importlib.util.find_spec("kernels")
result = {
    "package": cmsbert_fast.__file__,
    "ours": cmsbert_fast.kernels.contrastive.__file__,
    "theirs": found and found.origin,
    "transformers_sees_theirs": bool(is_kernels_available()),
}
open(sys.argv[1], "w").write(json.dumps(result))
"""

PYTEST_PROBE = """
import runpy, sys
def test_probe():
    sys.argv = ["probe.py", {result!r}]
    runpy.run_path({probe!r}, run_name="__main__")
"""


def run(command, cwd, path):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, path)), OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


# What transformers takes from Hugging Face's kernels while it is imported: classes, and makers of decorators.
HF_KERNELS = """
class Anything:
    def __init__(self, *arguments, **options): pass
    def __call__(self, decorated): return decorated

def __getattr__(name):
    if name.startswith("__"): raise AttributeError(name)
    return Anything
"""


@pytest.fixture(scope="module", params=["with", "without"])
def hf_kernels(tmp_path_factory, request):
    """A folder with a package that transformers takes for Hugging Face's ``kernels``; None: there is no such package.

    A stand-in: the newest is seldom the one that this transformers accepts, and none can be had offline.
    """
    if request.param == "without":
        found = importlib.util.find_spec("kernels")
        if found and found.origin:
            pytest.skip("Hugging Face's kernels package is installed in this environment")
        return None
    folder = tmp_path_factory.mktemp("hf_kernels")
    (folder / "kernels").mkdir()
    (folder / "kernels" / "__init__.py").write_text(HF_KERNELS)
    information = folder / f"kernels-{KERNELS_MIN_VERSION}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    (information / "top_level.txt").write_text("kernels\n")
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this project, built from a copy of the sources and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in sources:
        if (ROOT / name).is_file():
            (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "src" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(folder / "src")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
        wanted = {"contrastive/statistics.py", "cpu/cms_attention.cpp"}
        assert {f"cmsbert_fast/kernels/{file}" for file in wanted} <= set(names)
        assert not [name for name in names if name.startswith(("kernels/", "tests/", "bench/"))]
        archive.extractall(folder / "site")
    return folder / "site"


def probe(tmp_path, runner, cwd, path, hf_kernels):
    path = [*path, *([hf_kernels] if hf_kernels else [])]
    script, result = tmp_path / "probe.py", tmp_path / "result.json"
    script.write_text(PROBE)
    if runner == "pytest":
        test = tmp_path / "test_probe.py"
        test.write_text(PYTEST_PROBE.format(result=str(result), probe=str(script)))
        run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)], cwd, path)
    else:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"] * (runner == "torchrun")
        # A script puts its own folder on sys.path; the user's is the checkout's train.py, in the current folder.
        run([sys.executable, *launcher, str(script), str(result)], cwd, [*path, *([cwd] if cwd == ROOT else [])])
    return json.loads(result.read_text())


def check(result, package, theirs):
    assert Path(result["package"]).is_relative_to(package)
    assert Path(result["ours"]).is_relative_to(package)
    assert result["transformers_sees_theirs"] == (theirs is not None)
    if theirs is None:
        assert result["theirs"] is None  # a folder without __init__.py has no origin
    else:
        assert Path(result["theirs"]).is_relative_to(theirs)


@pytest.mark.parametrize("runner", ["python", "torchrun", "pytest"])
def test_checkout(tmp_path, runner, hf_kernels):
    check(probe(tmp_path, runner, ROOT, [], hf_kernels), ROOT, hf_kernels)


@pytest.mark.parametrize("runner", ["python", "torchrun", "pytest"])
def test_wheel(tmp_path, runner, wheel, hf_kernels):
    check(probe(tmp_path, runner, tmp_path, [wheel], hf_kernels), wheel, hf_kernels)


@pytest.mark.parametrize("runner", ["python", "torchrun", "pytest"])
def test_editable(tmp_path, runner, hf_kernels):
    # Several: setuptools leaves one in the checkout, which comes first and knows nothing of how it was installed.
    found = importlib.metadata.distributions(name="cmsbert-fast")
    origins = [json.loads(distribution.read_text("direct_url.json") or "{}") for distribution in found]
    if not any(origin.get("dir_info", {}).get("editable") for origin in origins):
        pytest.skip("this environment has no editable install of the project")
    check(probe(tmp_path, runner, tmp_path, [], hf_kernels), ROOT, hf_kernels)


def test_the_lowest_versions_are_those_that_are_promised() -> None:
    lowest = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / ".ci" / "lowest.txt").read_text(), re.MULTILINE))
    promised = dict(re.findall(r'"([\w-]+)>=([\d.]+)', (ROOT / "pyproject.toml").read_text()))
    # To build, optional, or for those who change the code.
    for other in ("setuptools", "tensorboard", "optuna", "ruff", "mypy"):
        del promised[other]

    def version(text: str) -> list[int]:
        return [int(part) for part in text.split(".")]

    assert lowest.keys() == promised.keys()
    for name, bound in promised.items():
        assert version(lowest[name])[: len(version(bound))] == version(bound), name
