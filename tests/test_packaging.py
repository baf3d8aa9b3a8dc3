"""The folder ``kernels`` at the top level must not get in the way of Hugging Face's package of the same name.

From a checkout, an editable install and a wheel; under python, torchrun and pytest; with and without that package.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def hugging_face_kernels(tmp_path_factory):
    """A folder with Hugging Face's own ``kernels`` package, and whether this transformers uses that version of it."""
    folder = tmp_path_factory.mktemp("hf_kernels")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), "kernels"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"Hugging Face's kernels package cannot be installed here: {done.stderr.strip()[-200:]}")
    result = folder / "result.json"
    (folder / "probe.py").write_text(
        "import json, sys; from transformers.utils.import_utils import is_kernels_available;"
        "open(sys.argv[1], 'w').write(json.dumps(bool(is_kernels_available())))"
    )
    run([sys.executable, "probe.py", str(result)], folder, [folder])
    return folder, json.loads(result.read_text())


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
        assert {"cmsbert_fast/kernels/contrastive.py", "cmsbert_fast/kernels/cpu/cms_attention.cpp"} <= set(names)
        assert not [name for name in names if name.startswith(("kernels/", "tests/", "bench/"))]
        archive.extractall(folder / "site")
    return folder / "site"


def probe(tmp_path, runner, cwd, path):
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


def check(result, package, theirs=None, used=False):
    assert Path(result["package"]).is_relative_to(package)
    assert Path(result["ours"]).is_relative_to(package)
    assert result["transformers_sees_theirs"] == used
    if theirs is None:
        assert result["theirs"] is None  # a folder without __init__.py has no origin
    else:
        assert Path(result["theirs"]).is_relative_to(theirs)


@pytest.mark.parametrize("runner", ["python", "torchrun", "pytest"])
def test_checkout(tmp_path, runner, hugging_face_kernels):
    check(probe(tmp_path, runner, ROOT, [hugging_face_kernels[0]]), ROOT, *hugging_face_kernels)


@pytest.mark.parametrize("runner", ["python", "torchrun", "pytest"])
def test_wheel(tmp_path, runner, wheel, hugging_face_kernels):
    check(probe(tmp_path, runner, tmp_path, [wheel, hugging_face_kernels[0]]), wheel, *hugging_face_kernels)


@pytest.mark.parametrize("runner", ["python", "torchrun", "pytest"])
def test_editable(tmp_path, runner, hugging_face_kernels):
    origin = importlib.metadata.distribution("cmsbert-fast").read_text("direct_url.json") or "{}"
    if not json.loads(origin).get("dir_info", {}).get("editable"):
        pytest.skip("this environment has no editable install of the project")
    check(probe(tmp_path, runner, tmp_path, [hugging_face_kernels[0]]), ROOT, *hugging_face_kernels)


def test_without_hugging_face_kernels(tmp_path, wheel):
    if importlib.util.find_spec("kernels") and importlib.util.find_spec("kernels").origin:
        pytest.skip("Hugging Face's kernels package is installed in this environment")
    for name, cwd, path, package in (("checkout", ROOT, [], ROOT), ("wheel", tmp_path, [wheel], wheel)):
        (tmp_path / name).mkdir()
        check(probe(tmp_path / name, "python", cwd, path), package)
