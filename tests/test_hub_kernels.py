"""The operators as Hugging Face's ``kernels`` loads them, from a folder made of our sources."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

import cmsbert_fast
from cmsbert_fast import hub_kernels

# What a process does that has the folder only: load the variant as the package would, and compute.
ALONE = """
import importlib.util, json, sys
sys.modules["cmsbert_fast"] = None  # not to be imported
folder = sys.argv[1]
name = json.load(open(folder + "/metadata.json"))["id"]
spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
import torch
q = torch.ones(1, 2, 1, 4)
for backend in ("auto", "torch", "reference"):
    assert module.cms_attention(q, q, q, backend=backend).eq(1).all()
print(module.pairwise_contrastive_loss(torch.eye(2), torch.eye(2), None, None, smoothing=None).item())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "kernel"
    assert hub_kernels.main([str(path)]) == 0
    return path


def compute(module) -> list[torch.Tensor]:
    """Values and gradients of both operators, over packed sequences with frames."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    q, k, v, gates = random(5, 2, 4), random(5, 2, 4), random(5, 2, 4), random(5)
    ends = torch.tensor([0, 3, 5], dtype=torch.int32)
    frames, weight = random(5, 3), random(8, 3)
    face = module.ModalityShift(gates, random(5), frames, weight, torch.tensor([0, 4, 5], dtype=torch.int32), 4)
    z = module.cms_attention(q, k, v, face, cu_seqlens=ends, max_seqlen=3)
    z.square().sum().backward()
    text, image = random(6, 4), random(6, 4)
    loss = module.pairwise_contrastive_loss(text, image, None, torch.arange(6.0))
    loss.backward()
    return [z.detach(), loss.detach(), *(x.grad for x in (q, k, v, gates, frames, weight, text, image))]


def test_it_needs_nothing_of_this_package(folder):
    command = [sys.executable, "-I", "-c", ALONE, str(folder / "build" / "torch-cpu")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = cmsbert_fast.pairwise_contrastive_loss(torch.eye(2), torch.eye(2), None, None, smoothing=None)
    assert float(done.stdout) == pytest.approx(expected.item(), abs=1e-6)


def test_the_files_of_a_variant(folder):
    for backend in hub_kernels.BACKENDS:
        variant = folder / "build" / f"torch-{backend}"
        metadata = json.loads((variant / "metadata.json").read_text())
        assert metadata["backend"] == {"type": backend}
        files = {path.relative_to(variant).as_posix() for path in variant.rglob("*") if path.is_file()}
        files = {name for name in files if "__pycache__" not in name}  # another test imports it
        assert set(metadata["digest"]["files"]) == files - {"metadata.json"}
        assert {"__init__.py", "_ops.py", "kernels/tiles.json", "kernels/cpu/common.h"} <= files
        assert not any(name.startswith(("models", "training", "data")) for name in files)
        for name in files:
            if name.endswith(".py"):
                text = (variant / name).read_text(encoding="utf-8")
                assert "from cmsbert_fast" not in text
                assert "torch.ops.cmsbert_fast" not in text
                assert 'Library("cmsbert_fast"' not in text


def test_kernels_loads_it_beside_this_package(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rust = pytest.importorskip("kernels._rust")  # in a checkout our folder kernels has the name, too
    import kernels

    folder = tmp_path / "kernel"
    hub_kernels.write_layout(folder)
    actual = rust.Digest.hash_variant(rust.DigestAlgorithm.SHA256, folder / "build" / "torch-cpu")
    loaded = kernels.get_local_kernel(folder, backend="cpu")
    found = next(one for one in kernels.get_loaded_kernels() if one.module is loaded)
    assert (str(found.metadata.name), found.metadata.version, found.metadata.license) == ("cmsbert", 1, "Apache-2.0")
    found.metadata.digest.validate(actual)
    for ours, theirs in zip(compute(cmsbert_fast), compute(loaded), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert loaded.__name__ == found.metadata.id
    assert getattr(torch.ops, found.metadata.id).contrastive is not torch.ops.cmsbert_fast.contrastive


def test_imports_become_relative():
    source = (
        "from cmsbert_fast import reference\nif 1:\n    from cmsbert_fast.ops.dispatch import (\n        a,\n    )\n"
    )
    assert hub_kernels.relative("ops/x/api.py", source) == (
        "from ... import reference\nif 1:\n    from ...ops.dispatch import (\n        a,\n    )\n"
    )
    assert hub_kernels.relative("packing.py", "from cmsbert_fast.atomic import sync") == "from .atomic import sync"
    with pytest.raises(ValueError, match="with from"):
        hub_kernels.relative("ops/x/api.py", "import cmsbert_fast.ops.dispatch")


def test_a_folder_that_exists_is_kept(folder, capsys):
    assert hub_kernels.main([str(folder)]) == 2
    assert "exists; remove it" in capsys.readouterr().err


def test_a_folder_without_kernels_for_gpus_is_not_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert hub_kernels.main([str(tmp_path / "kernel")]) == 2
    assert "Install triton first" in capsys.readouterr().err
    assert not (tmp_path / "kernel").exists()
