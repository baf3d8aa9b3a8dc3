"""cms_attention on a CUDA device: graphs and launches."""

import pytest
import torch
from torch import Tensor

from tests.interpreter import INTERPRETED
from tests.ops.attention.operator_cases import SHAPE_CLASSES, ShapeClass, inputs, run, value_and_gradients
from tests.ops.launches import launched_on_gpu


@pytest.mark.cuda
@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no graphs")
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_cuda_graph_replay(shape_class: ShapeClass, dropout_p: float) -> None:
    """Replay reads new inputs and draws new dropout, in both passes the same: that of its seed without a graph."""
    leaves, options = inputs(shape_class.dtype)

    def step() -> list[Tensor]:
        return value_and_gradients(lambda x: run(x, "triton", dropout_p=dropout_p, **options), leaves)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    first = captured[0].clone()
    graph.replay()
    assert torch.equal(first, captured[0]) == (dropout_p == 0)
    with torch.no_grad():
        leaves[0].add_(1)
    torch.manual_seed(0)
    graph.replay()
    replayed = [x.clone() for x in captured]
    torch.manual_seed(0)
    for a, e in zip(replayed, step(), strict=True):
        assert torch.equal(a, e)


# What backward launches in PyTorch beside the kernels of SHAPE_CLASSES: <da, W> of each modality, by names of cuBLAS.
PRODUCTS = ("gemm", "gemv", "cutlass", "cublas", "splitk", "memset")


@pytest.mark.cuda
@pytest.mark.skipif(INTERPRETED, reason="the interpreter launches nothing")
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_launches_on_gpu(shape_class: ShapeClass, dropout_p: float) -> None:
    """What the device really runs, without the host ever waiting; dropout adds one launch, the draw of its seed."""
    leaves, options = inputs(shape_class.dtype)
    wanted = [x for i, x in enumerate(leaves) if i not in (6, 10)]  # the weights' gradients are products of their own
    d_out = torch.ones_like(leaves[0])

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(leaves, "triton", dropout_p=dropout_p, **options), wanted, d_out)

    names = [name.removesuffix("_kernel") for name in launched_on_gpu(step)]
    gates = ["gate_backward_token", "gate_backward_frame"] * 2
    expected = {
        "short": ["short_forward", "short_backward", "short_gate_backward"],
        "medium": ["medium_forward", "attention_backward_query", "attention_backward_key", *gates],
        "long": ["shift_forward", "attention_forward", "attention_backward_query", "attention_backward_key", *gates],
    }[next(name for name, chosen in SHAPE_CLASSES.items() if chosen is shape_class)]
    assert [name for name in names if name in shape_class.kernels] == expected
    others = [name for name in names if name not in shape_class.kernels]
    if "short_forward" not in expected:
        others = [name for name in others if not any(product in name.lower() for product in PRODUCTS)]
    assert len(others) == (dropout_p > 0), others
