"""Ranks change rounding only, micro-batches on them too: every system's gradients, losses and memory.

With DistributedDataParallel and no trainer of ours, as in Hugging Face's, the systems with global terms too.
"""

import datetime
import multiprocessing
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from cmsbert_fast.models.registry import BASELINES, VARIANTS
from cmsbert_fast.training.distributed import Ranks
from tests.models.baselines import steps
from tests.models.baselines.systems import needs, system
from tests.models.baselines.utterances import labels, packed, utterances

RANKS = 4
SPLITS = {"2 ranks": (2, 1), "2 ranks, 3 micro-batches": (2, 3), "4 ranks": (4, 1)}


def one_step(name: str, ranks: Ranks, parts: int) -> dict[str, Any]:
    batch = utterances("word_frames" in needs(name), "frames_of_words" in needs(name))
    return steps.one_step(system(name), batch, parts, ranks)._asdict()


GLOBAL = [name for name in BASELINES if VARIANTS[name].model_class.has_global_terms]


def one_forward(name: str, rank: int, world: int) -> dict[str, Any]:
    """Gradients of ``model(labels=...).loss`` on a rank's share; random numbers differ between ranks."""
    whole = utterances("word_frames" in needs(name))
    count = len(whole) // world
    batch = whole[rank * count : (rank + 1) * count]
    model = system(name).train()
    wrapped: Any = model if world == 1 else DistributedDataParallel(model)
    torch.manual_seed(rank)
    wrapped(**packed(batch, model), labels=labels(batch)).loss.backward()
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def rank_main(rank: int, folder: str, world: int) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=300)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world, timeout=timeout
    )
    try:
        for label, (size, parts) in SPLITS.items():
            if size != world:
                continue
            for name in BASELINES:
                try:
                    found: Any = one_step(name, Ranks(rank, world, torch.device("cpu")), parts)
                except Exception:
                    found = traceback.format_exc()
                if rank == 0:
                    torch.save(found, Path(folder) / f"{label}, {name}")
        for name in GLOBAL if world == 2 else ():
            found = one_forward(name, rank, world)
            if rank == 0:
                torch.save(found, Path(folder) / name)
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all results: processes start slowly, so that they compute every system."""
    folder = tmp_path_factory.mktemp("ranks")
    # The processes are forked from one that has imported everything once.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["cmsbert_fast.training.runs"])
    for world in sorted({size for size, _ in SPLITS.values()}):
        mp.start_processes(rank_main, (str(folder), world), nprocs=world, start_method="forkserver")
    return folder


@pytest.mark.parametrize("label", SPLITS)
@pytest.mark.parametrize("name", BASELINES)
def test_ranks_change_rounding_only(name: str, label: str, results: Path) -> None:
    found = torch.load(results / f"{label}, {name}")
    assert isinstance(found, dict), found
    expected = one_step(name, steps.ALONE, 1)
    for kind in expected:
        assert found[kind].keys() == expected[kind].keys()
        for key, values in expected[kind].items():
            torch.testing.assert_close(found[kind][key], values, rtol=1e-9, atol=1e-11, msg=f"{kind} {key}")


@pytest.mark.parametrize("name", GLOBAL)
def test_without_our_trainer_too(name: str, results: Path) -> None:
    """MFM's samples are those of the first rank."""
    found, expected = torch.load(results / name), one_forward(name, 0, 1)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        torch.testing.assert_close(found[key], values, rtol=1e-9, atol=1e-11, msg=key)
