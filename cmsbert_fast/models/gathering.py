"""The rows of the global batch, with gradient: for losses that compare utterances of all ranks."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as collectives

# torch 2.13 renamed it. It concatenates along dimension 0, and its backward pass sums over the ranks.
_all_gather: Any = getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd


def gather_rows(rows: Mapping[str, Tensor], group: "dist.ProcessGroup | None") -> dict[str, Tensor]:
    """Joins the rows of all ranks, in the order of the ranks.

    Gradients: a rank's own rows get the *sum* over the ranks of the gradients of what was gathered. Where every rank
    computes the same scalar from it, the average of the parameters' gradients over the ranks, as
    DistributedDataParallel and the trainer take it, is the gradient of one process with the whole batch. Such a scalar
    must not be rescaled: it is a :class:`~cmsbert_fast.models.losses.LossTerm` with ``per_row=False``.

    Two collectives, whatever the number of tensors: the ranks' numbers of rows, and all rows side by side.

    Args:
        rows: By name, each (b, ...) and floating point; b may differ between ranks and be 0. Names, further dimensions
            and dtypes are those of every rank.
        group: The ranks that share the batch. All of them must call, and all or none of them differentiate. None: this
            process has the whole batch.

    Returns:
        By name (B, ...), all of one dtype: the widest of those given, float32 at least.
    """
    dtype = functools.reduce(torch.promote_types, (values.dtype for values in rows.values()), torch.float32)
    own = {name: values.to(dtype) for name, values in rows.items()}
    if group is None or dist.get_world_size(group) == 1 or not own:
        return own
    flat = torch.cat([values.flatten(1) if values.ndim > 1 else values[:, None] for values in own.values()], dim=1)
    counts = _counts(flat, group)
    longest = max(counts)
    padded = torch.cat([flat, flat.new_zeros(longest - len(flat), flat.shape[1])])
    parts = _all_gather(padded, 0, group).split(longest)
    whole = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    columns = whole.split([values.shape[1:].numel() for values in own.values()], dim=1)
    return {
        name: column.reshape(len(whole), *values.shape[1:])
        for (name, values), column in zip(own.items(), columns, strict=True)
    }


def _counts(rows: Tensor, group: "dist.ProcessGroup") -> list[int]:
    """The number of rows of each rank."""
    # On the CPU where the group can: reading the numbers then does not wait for the GPU.
    on_cpu = any(device.type == "cpu" for device in group._device_types)
    own = torch.tensor([len(rows)], device="cpu" if on_cpu else rows.device)
    return _all_gather(own, 0, group).tolist()
