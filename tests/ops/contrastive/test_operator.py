"""The contrastive loss as an operator: autograd, torch.compile, CUDA graphs, and the errors of the public function."""

import pytest
import torch
from torch import Tensor

from cmsbert_fast import pairwise_contrastive_loss
from cmsbert_fast.ops import capability
from tests.ops.contrastive.cases import (
    BACKENDS,
    DEVICE,
    INTERPRETED,
    allocations,
    embeddings,
    score_labels,
    without_library,
)


@pytest.mark.parametrize("backend", BACKENDS)
def test_upstream_gradient(backend: str) -> None:
    z = [e.requires_grad_() for e in embeddings(9)]
    loss = pairwise_contrastive_loss(*z, score_labels(9), backend=backend)
    once = torch.autograd.grad(loss, z, retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, z)
    for a, b in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("learned", [False, True])
def test_a_second_derivative_is_refused(backend: str, learned: bool) -> None:
    """A gradient penalty, with which the loss alone would still train, must not lose its part in silence."""
    z = [e.requires_grad_() for e in embeddings(9)]
    tau = torch.tensor(0.1, device=DEVICE, requires_grad=learned)
    loss = pairwise_contrastive_loss(*z, score_labels(9), tau, backend=backend)
    once = torch.autograd.grad(loss, z, retain_graph=True)
    gradients = torch.autograd.grad(loss, [*z, tau] if learned else z, create_graph=True)
    for a, b in zip(once, gradients[:3], strict=True):
        assert a.equal(b)
    for gradient in gradients:
        with pytest.raises(RuntimeError, match="only once"):
            (loss + gradient.square().sum()).backward(retain_graph=True)


def test_errors_say_what_to_do() -> None:
    a, b, c = embeddings(4)
    y = score_labels(4)
    for arguments, named, words in [
        ((a, None, None, y), {}, "at least two"),
        ((a, b[:3], None, y), {}, r"one shape \(n, d\)"),
        ((a[0], b[0], None, y), {}, r"one shape \(n, d\)"),
        ((a.long(), b.long(), None, y), {}, "floating-point"),
        ((a, b, c, None), {}, "smoothing=None"),
        ((a, b, c, y[:3]), {}, r"shape \(4,\)"),
        ((a, b, c, y, 0.0), {}, "positive"),
        ((a, b, c, y, torch.ones(2)), {}, "0-dim"),
        ((a, b, c, y, 0.1, 1.5), {}, r"\[0, 1\]"),
        ((a, b, c, y, 0.1, 0.9, -1.0), {}, "negative"),
        ((a, b, c, y), {"backend": "cublas"}, "choose one of"),
        ((a.double(), b.double(), c.double(), y), {"backend": "triton"}, "float64"),
    ]:
        with pytest.raises(ValueError, match=words):
            pairwise_contrastive_loss(*arguments, **named)


def test_triton_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "HAS_TRITON", False)
    z, y = embeddings(4), score_labels(4)
    with pytest.raises(ValueError, match="not installed"):
        pairwise_contrastive_loss(*z, y, backend="triton")
    wanted = pairwise_contrastive_loss(*z, y, backend="torch")
    assert pairwise_contrastive_loss(*z, y).equal(wanted)


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
def test_triton_refuses_bfloat16_in_the_interpreter() -> None:
    with pytest.raises(ValueError, match="wrong for bfloat16"):
        pairwise_contrastive_loss(*embeddings(4, dtype=torch.bfloat16), score_labels(4), backend="triton")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("learned", [False, True])
def test_opcheck(backend: str, learned: bool) -> None:
    z = embeddings(5, dtype=torch.float16 if learned else torch.float32)
    z[1] = z[1].T.contiguous().T
    z = [e.requires_grad_() for e in z]
    tau = torch.tensor(0.1, device=DEVICE, requires_grad=True) if learned else None
    labels = score_labels(5) if learned else None
    torch.library.opcheck(
        torch.ops.cmsbert_fast.contrastive.default, (z, labels, tau, 0.1, 0.9, 0.1, backend), atol=1e-3, rtol=1e-3
    )


@without_library
@pytest.mark.parametrize("learned", [False, True])
def test_opcheck_of_the_operator_at_once(learned: bool) -> None:
    z = embeddings(5, dtype=torch.float16 if learned else torch.float32)
    z[1] = z[1].T.contiguous().T
    z = [e.requires_grad_() for e in z]
    tau = torch.tensor(0.1, requires_grad=True) if learned else None
    labels = score_labels(5) if learned else None
    arguments = (z, labels, tau, 0.1, 0.9, 0.1, "cpu")
    torch.library.opcheck(torch.ops.cmsbert_fast.contrastive_at_once.default, arguments, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_calls_without_a_backward_pass_leave_nothing(backend: str) -> None:
    """What an operator saves of its outputs must not hold the graph that holds it."""
    if backend == "triton" or DEVICE == "cuda":
        pytest.skip("counts what a CPU allocates, and Triton's interpreter keeps some of it")

    def call() -> None:
        z = [e.requires_grad_() for e in embeddings(6, 4567)]
        loss = pairwise_contrastive_loss(*z, score_labels(6), backend=backend)
        torch.autograd.grad(loss, z, retain_graph=True)

    call()
    assert sum(allocations(lambda: [call() for _ in range(3)])) < 6 * 4567 * 4  # one embedding


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_rounds_nothing(backend: str) -> None:
    z = [e.requires_grad_() for e in embeddings(9)]
    found = []
    for enabled in (False, True):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=enabled):
            loss = pairwise_contrastive_loss(*z, score_labels(9), backend=backend)
            gradients = torch.autograd.grad(loss, z)
            with torch.no_grad():
                found.append([loss, *gradients, pairwise_contrastive_loss(*z, score_labels(9), backend=backend)])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_graph_break(backend: str) -> None:
    def function(a: Tensor, b: Tensor, c: Tensor, y: Tensor, tau: Tensor) -> Tensor:
        return 2 * pairwise_contrastive_loss(a * 1.5, b, c.sin(), y, tau, backend=backend)

    inputs = [*embeddings(6), score_labels(6), torch.tensor(0.1, device=DEVICE)]
    leaves = [t.requires_grad_() for t in (*inputs[:3], inputs[4])]
    wanted = torch.autograd.grad(function(*inputs), leaves)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for got, want in zip(torch.autograd.grad(compiled(*inputs), leaves), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.cuda
@pytest.mark.parametrize(("n", "d"), [(128, 768), (1500, 96)])
def test_cuda_graph(n: int, d: int) -> None:
    """No host synchronisation: forward and backward are captured, and replayed on other numbers give their results."""
    z = [e.requires_grad_() for e in embeddings(n, d, dtype=torch.bfloat16)]
    y, tau = score_labels(n), torch.tensor(0.1, device=DEVICE, requires_grad=True)
    inputs = (*z, tau)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(pairwise_contrastive_loss(*z, y, tau), inputs)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for e, new in zip(z, embeddings(n, d, dtype=torch.bfloat16, seed=9), strict=True):
            e.copy_(new)
    graph.replay()
    for got, want in zip(captured, step(), strict=True):
        assert got.equal(want)
