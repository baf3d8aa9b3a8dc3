"""What is installed: the sdist, the wheel and its command, types for others.

The folder ``kernels`` at the top level must not get in the way of Hugging Face's package of the same name: from a
checkout, an editable install and a wheel; under python, torchrun and pytest; with and without that package.
"""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from transformers.utils.import_utils import KERNELS_MIN_VERSION

import cmsbert_fast

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
def built(tmp_path_factory):
    """The folder of an sdist and of the wheel that is built from it, made as ``python -m build`` does."""
    folder = tmp_path_factory.mktemp("dist")
    sources = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in sources:
        if (ROOT / name).is_file():
            (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "src" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(folder / "src")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    """A wheel of this project, unpacked."""
    (archive,) = built.glob("*.whl")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(built / "site")
    return built / "site"


def test_what_the_wheel_holds(built):
    (path,) = built.glob("*.whl")
    assert path.name == f"cmsbert_fast-{cmsbert_fast.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert f"\nVersion: {cmsbert_fast.__version__}\n" in metadata
    wanted = {"py.typed", "kernels/contrastive/statistics.py", "kernels/cpu/cms_attention.cpp", "kernels/tiles.json"}
    wanted |= {f"page/page.{kind}" for kind in ("html", "css", "js")}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    assert {f"cmsbert_fast/{file}" for file in wanted} <= names
    assert {name.split("/")[0] for name in names} == {
        "cmsbert_fast",
        f"cmsbert_fast-{cmsbert_fast.__version__}.dist-info",
    }


def test_the_sdist_is_a_checkout(built):
    """It has all that is needed to test it and to build its wheel."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    there = {name for name in tracked if (ROOT / name).is_file()}
    assert {name for name in there - names if not name.startswith(".")} == set()


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The Python of a new environment with the wheel; the libraries come from this environment."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    (path,) = built.glob("*.whl")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", f"--prefix={folder}"]
    command += ["--ignore-installed", "--no-warn-script-location", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    # Not as a .pth file's "import" lines would: an editable install of this project must not come first.
    libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n")
    script = folder / "bin" / "cmsbert"
    script.write_text(re.sub(r"^#!.*", f"#!{python}", script.read_text(), count=1))
    return folder


def call(installed, *command, cwd):
    """Runs a program of the environment with the wheel."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(installed / "bin" / command[0]), *map(str, command[1:])],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


USE = """
import sys
from cmsbert_fast.cli import main
assert main(["predict", sys.argv[1], "embedded", "--split", "test"]) == 0
assert main(["tables", "2", "--data", "embedded=embedded", "--set", "epochs=1", "--dry-run"]) == 0
"""


def test_the_command_works_outside_a_checkout(installed, tmp_path):
    assert call(installed, "cmsbert", "--version", cwd=tmp_path) == f"cmsbert-fast {cmsbert_fast.__version__}\n"
    small = ["--architecture", "hidden_size=16", "intermediate_size=16", "--output", "out"]
    told = call(installed, "cmsbert", "train", "--variant", "cmsbert-clr", "--epochs", 1, *small, cwd=tmp_path)
    assert "| cmsbert-clr | 1 " in told
    run = tmp_path / "out" / "cmsbert-clr" / "seed-0"
    results = json.loads((run / "results.json").read_text())
    assert results["versions"]["cmsbert_fast"] == cmsbert_fast.__version__
    assert results["commit"] is None
    assert results["settings"]["batch_size"] == 32  # of the embedded corpus's published settings
    told = call(installed, "python", "-c", USE, run, cwd=tmp_path).splitlines()
    rows = [line.split(",") for line in (run / "predictions.csv").read_text().splitlines()]
    assert told[: len(rows)] == [f"{name},{score}" for name, _, score in rows]
    assert any("finished" in line for line in told[len(rows) :])  # the plan of the tables


CONSUMER = """
import torch
from cmsbert_fast import *
import cmsbert_fast
reveal_type(CMSBertProcessor)
reveal_type(CMSBertModel(CMSBertConfig()))
reveal_type(CMSBertCLRForSequenceClassification(CMSBertConfig()))
reveal_type(pairwise_contrastive_loss)
reveal_type(cmsbert_fast.cms_attention)
reveal_type(cmsbert_fast.__version__)
def mine(text: torch.Tensor) -> torch.Tensor:
    return pairwise_contrastive_loss(text, text, None, smoothing="much")
"""


def test_a_users_type_checker_sees_types(installed, tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "consumer.py").write_text(CONSUMER)
    # The types of large libraries are not the subject, and reading them takes a minute.
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = True\n[mypy-torch.*,transformers.*]\nfollow_imports = skip\n")
    python = installed / "bin" / "python"
    command = [sys.executable, "-m", "mypy", "--python-executable", str(python), "consumer.py"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300).stdout
    revealed = re.findall(r'Revealed type is "(.*)"', told)
    assert len(revealed) == 6, told
    assert revealed[0].startswith("def (tokenizer: ")
    assert revealed[1].endswith(".CMSBertModel")
    assert revealed[2].endswith(".CMSBertCLRForSequenceClassification")
    assert revealed[3].startswith("def (linguistic: ")
    assert revealed[4].startswith("def (")
    assert revealed[5] == "str"
    assert 'Argument "smoothing"' in told


def test_type_checkers_know_every_public_name():
    tree = ast.parse((ROOT / "cmsbert_fast" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    names = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names | {"__version__"} == set(cmsbert_fast.__all__)
    assert names - {"reference"} == cmsbert_fast._MODULE_OF.keys()
    for node in block.body:
        for alias in node.names if node.module != "cmsbert_fast" else ():
            assert node.module == f"cmsbert_fast.{cmsbert_fast._MODULE_OF[alias.name]}"


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
    for other in (
        "tensorboard",
        "wandb",
        "mlflow-skinny",
        "sqlalchemy",
        "alembic",
        "optuna",
        "faster-whisper",
        "openvino",
        "mkdocs",
        "mkdocs-material",
        "networkx",
        "ruff",
        "mypy",
    ):
        del promised[other]

    def version(text: str) -> list[int]:
        return [int(part) for part in text.split(".")]

    assert lowest.keys() == promised.keys()
    for name, bound in promised.items():
        assert version(lowest[name])[: len(version(bound))] == version(bound), name
