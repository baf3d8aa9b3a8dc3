"""What this machine can run.

Each ``why_not`` function returns the reason why not, as half a sentence, or None where it can. They know devices and
dtypes but no operators; :mod:`cmsbert_fast.ops.dispatch` calls them. torch.compile takes their answers as constants
while it traces.
"""

import functools
import importlib.util
from pathlib import Path

import torch

from cmsbert_fast.kernels.cpu import build, library
from cmsbert_fast.kernels.cpu.product import FEW_ROWS

HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON:
    import triton

INTERPRETED = HAS_TRITON and bool(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1; fixed when kernels are imported
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CDNA = ("gfx908", "gfx90a", "gfx942", "gfx950")


@torch.compiler.assume_constant_result
def why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the project's Triton kernels cannot run on tensors of this device and dtype.

    With ``TRITON_INTERPRET=1`` they also run on the CPU, slowly: for tests.
    """
    if not HAS_TRITON:
        return "Triton is not installed"
    if dtype not in TRITON_DTYPES:
        return f"its kernels compute in float32, float16 and bfloat16, not in {dtype}"
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"its kernels run on CUDA and ROCm devices, not on {device.type}"
    if INTERPRETED and dtype == torch.bfloat16:
        return "Triton's interpreter is wrong for bfloat16"
    return why_not_gpu(device.index) if device.type == "cuda" else None


def why_not_gpu(index: int) -> str | None:
    """Why the project's Triton kernels cannot run on this GPU.

    Below compute capability 8.0 they spill registers. AMD's RDNA has no matrix instructions of the kind they use, and
    its work-groups may span compute units: kernels that exchange data through global memory are proven for CDNA only.
    """
    if torch.version.hip is not None:
        architecture = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        if architecture not in CDNA:
            return f"its kernels need an AMD GPU of the CDNA kind ({', '.join(CDNA)}), not {architecture}"
    elif torch.cuda.get_device_capability(index) < (8, 0):
        return "its kernels need an NVIDIA GPU of compute capability 8.0 or later"
    return None


@torch.compiler.assume_constant_result
def why_not_varlen(device: torch.device) -> str | None:
    """Why PyTorch's attention over packed sequences (``torch.nn.attention.varlen``) cannot run on this device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "PyTorch's varlen attention runs on NVIDIA GPUs only"
    return None if torch.backends.cuda.is_flash_attention_available() else "this PyTorch has no flash attention"


@torch.compiler.assume_constant_result
def why_not_compiled(device: torch.device, dtype: torch.dtype, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why the compiled C++ cannot run on tensors of this device and dtype.

    The first question that reaches the library compiles it where the user's cache has none: a few seconds.

    Args:
        dtypes: Those that the operator's C++ computes in.
    """
    if device.type != "cpu":
        return f"its code runs on the CPU, not on {device.type}"
    if dtype not in dtypes:
        known = " and ".join(str(x).removeprefix("torch.") for x in dtypes)
        return f"its code computes in {known}, not in {dtype}"
    return library.why_not()


@torch.compiler.assume_constant_result
def why_not_own_products(dtype: torch.dtype, rows: int | None = None) -> str | None:
    """Why large matrix products are better left to PyTorch on this CPU.

    Its float32 products are MKL's, which has AVX-512 for Intel's CPUs only: on AMD's it runs at half of their rate. On
    others it is at the CPU's rate, but for a few rows ours take 0.4 to 0.9 of its time (:func:`rows_that_pay`).
    bfloat16's are oneDNN's, which packs each weight anew and casts it first. Decided by what the CPU is, never by a
    stopwatch: results must be the same bits in every process.

    Args:
        rows: Those that a weight is multiplied with, in a product without gradients; None = many, or with gradients,
            which read a few rows' weight the other way.
    """
    few = dtype == torch.float32 and rows is not None and rows in rows_that_pay()
    if _vendor_and_vectors() != ("AuthenticAMD", "AVX512") and not few:
        return "PyTorch's own products are as fast on this CPU"
    if dtype == torch.bfloat16 and not has_bfloat16_vectors():
        return "this CPU has no bfloat16 instructions"
    return None


@torch.compiler.assume_constant_result
def rows_that_pay() -> range:
    """The row counts for which our float32 product beats MKL's, which with more rows is as fast; empty where none does,
    and where ours is faster with any number."""
    fewest = {("AuthenticAMD", "AVX2"): 2, ("GenuineIntel", "AVX512"): 4}.get(_vendor_and_vectors(), FEW_ROWS + 1)
    return range(fewest, FEW_ROWS + 1)


def _vendor_and_vectors() -> tuple[str, str]:
    """The CPU's vendor, and its vector instructions as PyTorch names them."""
    return _vendor(), torch.backends.cpu.get_cpu_capability()


@functools.cache
def _vendor() -> str:
    """The CPU's vendor as the system names it; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


@torch.compiler.assume_constant_result
def has_bfloat16_vectors() -> bool:
    """Whether the CPU has the vector instructions that our C++ multiplies bfloat16 with."""
    return _has_feature("avx512_bf16")


@functools.cache
def _has_feature(name: str) -> bool:
    return name in build.cpu_features().split()


def has_bfloat16_products(device: torch.device) -> bool:
    """Whether PyTorch multiplies matrices of bfloat16 with instructions.

    GPUs: True. CPUs: what oneDNN needs (AVX-512 or Arm's bfloat16 instructions); without it PyTorch falls back to loops
    that are tens of times slower than float32. A build of PyTorch that cannot tell counts as True.
    """
    if device.type != "cpu":
        return True
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a private name, and builds without oneDNN have none
        return True


@torch.compiler.assume_constant_result
def why_slow_bfloat16(device: torch.device) -> str | None:
    """Why matrix products in bfloat16 take longer than in float32 on this device.

    Intel's vector instructions for bfloat16 do half as many operations as float32's, unlike AMD's: only the matrix unit
    is faster.
    """
    if not has_bfloat16_products(device):
        return "this CPU has no bfloat16 instructions, so bfloat16 takes many times as long as float32"
    if device.type == "cpu" and _vendor() == "GenuineIntel" and not has_matrix_unit():
        return "this Intel CPU shows no matrix unit (AMX), so bfloat16 takes longer than float32"
    return None


def has_matrix_unit() -> bool:
    """Whether the CPU multiplies matrices of bfloat16 in tiles (Intel's AMX)."""
    return _has_feature("amx_bf16")
