"""Stage "smoke": every kernel against float64, on inputs whose invalid rows are NaN; cases side by side."""

import functools
from typing import Any

import torch

from bench.gpu.runner import Context, side_by_side

REHEARSED = [("attention", "short, head 24", "float16"), ("layer", 9, 24, "float16"), ("loss", 40, 24, "float32")]


def cases(_: object = None) -> list[tuple[Any, ...]]:
    """Attention's grid of the tests, layers' rows and the loss at sizes of all its plans, in all dtypes."""
    from tests.kernels.cms_attention.test_values import GRID
    from tests.kernels.cms_attention.test_varlen import GRID as VARLEN_GRID

    dtypes = ("bfloat16", "float16", "float32")
    found: list[tuple[Any, ...]] = [("attention", name, dtype) for name in GRID for dtype in dtypes]
    found += [("varlen attention", name, dtype) for name in VARLEN_GRID for dtype in dtypes[:2]]
    found += [("layer", n, d, dtype) for n, d in ((50, 768), (2100, 100)) for dtype in dtypes]
    return found + [("loss", n, d, dtype) for n, d in ((50, 96), (1300, 96), (1100, 20)) for dtype in dtypes]


def run(context: Context) -> None:
    """Checks all; failures are named, and do not keep the others from being checked."""
    if context.rehearsal:
        wanted = REHEARSED
    else:
        # Which of its modules asks for the GPU is the tests' affair: in processes of their own, this one asks nothing.
        ((_, wanted),) = side_by_side(cases, [None], 2)
    missing = set(context.missing("smoke", map(str, wanted)))
    wanted = [case for case in wanted if str(case) in missing]
    check = functools.partial(check_case, device=context.device)
    failed = []
    for case, why in side_by_side(check, wanted, context.processes):
        context.record("smoke", case=str(case), passed=why is None, why=str(why or ""))
        if why is not None:
            failed.append(str(case))
    if failed:
        raise AssertionError(f"{len(failed)} of {len(wanted)} are wrong: {', '.join(failed)[:500]}")


def check_case(case: tuple[Any, ...], device: str) -> None:
    """Fails if the kernels' error is not that of PyTorch in the same dtype."""
    kind, *what = case
    torch.use_deterministic_algorithms(True)  # fills what nobody wrote with NaN
    if kind.endswith("attention"):
        from tests.kernels.cms_attention import test_values, test_varlen
        from tests.kernels.cms_attention.cases import check, make_case

        backend = "triton" if kind == "attention" else "varlen"
        grid = test_values.GRID if kind == "attention" else test_varlen.GRID
        name, dtype = what[0], getattr(torch, what[1])
        check(make_case(**grid[name], dtype=dtype), dtype, tail=3, backend=backend)
    elif kind == "layer":
        from tests.kernels import test_layer_kernels

        rows, width, dtype = what[0], what[1], getattr(torch, what[2])
        test_layer_kernels.test_residual_norm(rows, width, dtype, torch.float32)
        test_layer_kernels.test_bias_gelu(rows, width, dtype, torch.float32)
    else:
        check_loss(what[0], what[1], getattr(torch, what[2]), device)


def check_loss(n: int, d: int, dtype: torch.dtype, device: str) -> None:
    """The loss's value and gradients."""
    from cmsbert_fast import pairwise_contrastive_loss

    generator = torch.Generator().manual_seed(n)
    common = torch.randn(n, d, generator=generator)
    drawn = [(common + torch.randn(n, d, generator=generator)).to(dtype) for _ in range(3)]
    labels = (torch.rand(n, generator=generator) * 6 - 3).mul(10).round() / 10

    def both(backend: str, dtype: torch.dtype) -> list[torch.Tensor]:
        z = [x.to(device, dtype).requires_grad_() for x in drawn]
        loss = pairwise_contrastive_loss(*z, labels.to(device), 0.1, 0.9, backend=backend)
        return [x.detach().double().cpu() for x in (loss, *torch.autograd.grad(loss, z))]

    results = both("reference", torch.float64), both("torch", dtype), both("triton", dtype)
    for i, (exact, rival, ours) in enumerate(zip(*results, strict=True)):
        scale = exact.abs().max().item()
        allowed = (3 if i else 2) * (rival - exact).abs().max().item() + 16 * torch.finfo(dtype).eps * scale
        error = (ours - exact).abs().max().item()
        if not error <= allowed:
            raise AssertionError(f"{'gradient' if i else 'loss'}: error {error:.3g}, allowed {allowed:.3g}")
