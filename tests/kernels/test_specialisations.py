"""How often Triton compiles a kernel anew from batch to batch: over an epoch of batches, without a GPU.

Triton makes a variant of a kernel for each combination of constants, of types, and of what it is told of pointers and
numbers: whether they are multiples of 16, or 1. What changes from batch to batch must not be among these.
"""

from collections import defaultdict
from typing import Any

import pytest
import torch

from cmsbert_fast.packing import cumulative
from tests.kernels import aot
from tests.kernels.aot import Launch, needs_compiler

MOST = 3  # variants of a kernel
EPOCH = 1284  # utterances


def variant(launch: Launch) -> str:
    """What Triton's launcher looks a compiled kernel up by, on an NVIDIA GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    kernel, backend = launch.kernel, make_backend(GPUTarget(*aot.TARGETS["sm_90"]))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    _, specialization, options = bind(**launch.arguments, **launch.options)
    return f"{specialization}{options}"


def variants(launches: list[Launch]) -> dict[str, set[str]]:
    """By kernel."""
    found: dict[str, set[str]] = defaultdict(set)
    for launch in launches:
        found[launch.name].add(variant(launch))
    return dict(found)


def attend(lengths: torch.Tensor, dtype: torch.dtype) -> list[Launch]:
    """The launches of CMS attention on a packed batch, in memory as the model makes it; forward and backward."""
    from cmsbert_fast.kernels import cms_attention as kernels

    heads, size, rows, longest = 12, 64, int(lengths.sum()), int(lengths.max())
    cu = cumulative(lengths)
    q, k, v = (torch.empty(rows, heads, size, dtype=dtype) for _ in range(3))
    token_gates = torch.empty(rows, 2, dtype=dtype)
    frames = lengths + lengths % 3  # not as many as tokens
    cu_frames = cumulative(frames)
    total, most = int(frames.sum()), int(frames.max())

    def modality(i: int, width: int) -> Any:
        tensors = token_gates[:, i], torch.empty(total, dtype=dtype), torch.empty(total, width, dtype=dtype)
        return kernels.Modality(*tensors, torch.empty(heads * size, width, dtype=dtype), cu_frames, None, most)

    seed = torch.zeros(1, dtype=torch.int64)
    call = kernels.Call(q, k, v, modality(0, 47), modality(1, 74), cu, None, longest, "relu", 0.125, 0.1, seed)

    def run() -> None:
        out, saved = kernels.forward(call)
        kernels.backward(call, torch.empty_like(q), out, saved, (False, False))

    return aot.record(run)


def batches(longest: int) -> list[torch.Tensor]:
    """Lengths of an epoch's batches of 32, the last one smaller; distributed as MOSI's, stretched to ``longest``."""
    from cmsbert_fast.kernels.tune import lengths

    order = torch.randperm(EPOCH, generator=torch.Generator().manual_seed(0))
    return list(lengths(longest, EPOCH)[order].split(32))


@needs_compiler
@pytest.mark.parametrize(("longest", "dtype"), [(50, torch.bfloat16), (50, torch.float32), (300, torch.bfloat16)])
def test_attention_compiles_few_variants_in_an_epoch(longest: int, dtype: torch.dtype) -> None:
    """Tiles of short sequences are 16, 32 or 64 tokens high: nothing else changes."""
    pytest.importorskip("triton")
    launches = [launch for lengths in batches(longest) for launch in attend(lengths, dtype)]
    found = variants(launches)
    assert len(launches) > 3 * EPOCH // 32
    assert found
    assert {name: len(keys) for name, keys in found.items() if len(keys) > MOST} == {}


@needs_compiler
@pytest.mark.parametrize("batch", [32, 128])
def test_the_loss_compiles_few_variants_in_an_epoch(batch: int) -> None:
    """The last batch of an epoch may have any size."""
    pytest.importorskip("triton")
    from cmsbert_fast.ops.contrastive import triton as engine
    from cmsbert_fast.ops.contrastive.types import Call

    def compare(n: int) -> list[Launch]:
        z = [torch.empty(n, 768, dtype=torch.bfloat16) for _ in range(3)]
        call = Call(z, torch.empty(n), None, 0.1, 0.9, 0.1, "triton")

        def run() -> None:
            _, saved = engine.TritonEngine().forward(call)
            engine.TritonEngine().backward(call, saved, torch.empty(()))

        return aot.record(run)

    for rest in (EPOCH % batch, 1, 16, 17):
        found = variants([launch for n in (batch, batch, rest) for launch in compare(n)])
        assert found
        assert max(map(len, found.values())) <= MOST


@needs_compiler
def test_layers_compile_one_variant() -> None:
    """Whatever the number of rows."""
    pytest.importorskip("triton")
    from cmsbert_fast.kernels import bias_gelu, residual_norm

    def run(rows: int) -> None:
        x, residual = torch.empty(rows, 768, dtype=torch.bfloat16), torch.empty(rows, 768)
        parameters = residual_norm.Parameters(*torch.empty(3, 768))
        call = residual_norm.Call(x, residual, parameters, 1e-12, 0.1, torch.zeros(2, dtype=torch.int64))
        y, narrow, mean, inverse = residual_norm.forward(call, torch.bfloat16)
        residual_norm.backward(call, y, narrow, mean, inverse)
        bias_gelu.backward(bias_gelu.forward(x, parameters.bias), x, parameters.bias)

    launches = [launch for rows in (1, 16, 473, 480, 1027, 4096, 9001) for launch in aot.record(lambda: run(rows))]  # noqa: B023
    found = variants(launches)
    assert len(found) == 4
    assert set(map(len, found.values())) == {1}


@needs_compiler
def test_a_count_that_specialises_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same epoch, with numbers of rows that Triton looks at: they are multiples of 16, or not."""
    pytest.importorskip("triton")
    from cmsbert_fast.kernels.cms_attention.launch import short_forward_kernel

    for parameter in short_forward_kernel.params:
        monkeypatch.setattr(parameter, "do_not_specialize", False)
    launches = [launch for lengths in batches(50) for launch in attend(lengths, torch.bfloat16)]
    assert len(variants(launches)["short_forward"]) > MOST
