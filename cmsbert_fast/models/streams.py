"""Work beside a GPU's current stream: what does not wait for the rest of a model runs while that does."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cmsbert_fast.ops.dispatch import requested_backend

Result = TypeVar("Result")

_streams: dict[tuple[torch.device, int], torch.cuda.Stream] = {}


def may_run_beside(example: Tensor, backend: str) -> bool:
    """Whether a model starts its subnetworks beside each other for inputs like the example.

    On a GPU, for the backends "triton" and "varlen" by name, because no device has timed it yet. Not on several ranks,
    which add gradients up while backward runs: a bucket would have to wait for every stream that wrote to it.
    """
    if not example.is_cuda or torch.compiler.is_compiling() or requested_backend(backend) not in ("triton", "varlen"):
        return False
    return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def beside(compute: Callable[[], Result], reads: Sequence[Tensor], place: int) -> Callable[[], Result]:
    """Starts ``compute`` on a side stream. The stream that calls what is returned waits for it and has its result.

    A capture of a CUDA graph takes both streams in. PyTorch runs the backward pass on the streams of the forward pass.

    Args:
        compute: Returns tensors, in tuples, lists or mappings.
        reads: What it reads and what may be freed before it has run: a tensor of a GPU, and others of it or the host.
        place: Which side stream of that GPU.
    """
    device = reads[0].device
    side = _streams.get((device, place)) or _streams.setdefault((device, place), torch.cuda.Stream(device))
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        result = compute()
    for x in reads:
        if x.device == device:
            x.record_stream(side)

    def join() -> Result:
        here = torch.cuda.current_stream(device)
        here.wait_stream(side)
        for x in tree_leaves(result):
            x.record_stream(here)
        return result

    return join
