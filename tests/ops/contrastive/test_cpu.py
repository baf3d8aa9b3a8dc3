"""The compiled backend of the contrastive loss: both ways of multiplying, targets, threads, what it keeps."""

import pytest
import torch
from torch import Tensor

from cmsbert_fast import pairwise_contrastive_loss, reference
from cmsbert_fast.kernels.cpu import contrastive_call
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.contrastive import cpu as cpu_engine
from cmsbert_fast.ops.contrastive import torch as torch_engine
from cmsbert_fast.ops.contrastive.cpu import CpuEngine
from cmsbert_fast.ops.contrastive.types import Call, Numbers
from tests.ops.contrastive.cases import check, compute, embeddings, score_labels, without_library

pytestmark = without_library


@pytest.fixture(params=[False, True], ids=["PyTorch's products", "own products"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = None if request.param else "they are PyTorch's"
    monkeypatch.setattr(capability, "why_not_own_products", lambda *_: reason)


@pytest.mark.parametrize("n", [1, 2, 8, 31, 65, 130])
@pytest.mark.parametrize("large", [False, True])
def test_every_product_gives_the_reference(request: pytest.FixtureRequest, products: None, n: int, large: bool) -> None:
    """At once and chunk by chunk; whole vectors, blocks and stripes, and less."""
    if large:
        request.getfixturevalue("many_tiles")
    check(embeddings(n, 19), score_labels(n), "cpu")
    check(embeddings(n, 32, 2), None, "cpu")


def test_own_products_are_added_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "why_not_own_products", lambda *_: None)
    monkeypatch.setattr(cpu_engine, "ROWS", 7)
    check(embeddings(33, 5), score_labels(33), "cpu")


def test_error_is_that_of_pytorch_at_most() -> None:
    """float32 at the sizes that matter: within twice (loss) and three times (gradients) the literal composition's."""
    for n, labels in ((33, score_labels(33)), (200, score_labels(200)), (200, None)):
        z, smoothing = embeddings(n, 96), None if labels is None else 0.9

        def exact(three: list[Tensor], tau: Tensor, labels=labels, smoothing=smoothing) -> Tensor:
            return reference.pairwise_contrastive_loss(*three, labels, tau, smoothing)

        def ours(three: list[Tensor], tau: Tensor, labels=labels, smoothing=smoothing) -> Tensor:
            return pairwise_contrastive_loss(*three, labels, tau, smoothing, backend="cpu")

        wanted = compute([e.double() for e in z], 0.1, exact)
        errors = []
        for function in (ours, exact):
            loss, gradients = compute(z, 0.1, function)
            pairs = zip(gradients, wanted[1], strict=True)
            errors.append([float((loss - wanted[0]).abs()), *(float((g - w).abs().max()) for g, w in pairs)])
        least = torch.finfo(torch.float32).eps * float(wanted[0])  # one rounding, which luck may spare the other
        assert errors[0][0] <= 2 * errors[1][0] + least
        for own, theirs in zip(errors[0][1:-1], errors[1][1:-1], strict=True):
            assert own <= 3 * theirs


@pytest.mark.parametrize("kind", ["float32", "float64", "int64", "uint8"])
def test_targets_are_those_of_pytorch(kind: str) -> None:
    """At the edges of the threshold, with NaN and infinities, of a rectangle whose diagonal is beside its own."""
    reach = 0.1 + 1e-5
    base = torch.randn(20, generator=torch.Generator().manual_seed(4))
    edges = [base + reach, torch.nextafter(base + reach, base), torch.nextafter(base + reach, base + 9), base.round()]
    labels = torch.cat([base, *edges, torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf")])])
    labels = labels.nan_to_num().clamp(0, 3).to(getattr(torch, kind)) if kind[0] in "iu" else labels.double()
    labels = labels.float() if kind == "float32" else labels
    n, numbers = len(labels), Numbers(torch.ones(()), 0.9, 0.1)
    whole = CpuEngine().make_block((torch.ones(n, 1),) * 2, labels, numbers)
    rows, columns = whole.part(slice(11, 40)), whole.part(slice(5, n))
    rectangle = torch_engine._Rectangle(rows, columns, numbers)
    g = torch.zeros(1, rows.rows, columns.rows)
    far = [torch.full((1, size), 1000.0) for size in (rows.rows, columns.rows)]  # exp(s - lse) is 0: targets are left
    contrastive_call.gradients(g, 1.0, cpu_engine._targets(rows, columns, numbers), *far)
    assert torch.equal(-g[0], rectangle.targets(slice(0, rows.rows)))
    assert rectangle.related(slice(0, rows.rows)).any()


def test_results_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "why_not_own_products", lambda *_: None)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            loss, gradients = compute(
                embeddings(301, 40),
                0.1,
                lambda three, tau: pairwise_contrastive_loss(*three, score_labels(301), tau, backend="cpu"),
            )
            found.append([loss, *gradients[:3]])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_rows_of_zeros_get_no_radial_gradient_and_nan_stays_nan() -> None:
    z = embeddings(9)
    z[0][2] = 0
    check(z, score_labels(9), "cpu")
    z[1][4, 1] = float("nan")
    loss, gradients = compute(
        z, 0.1, lambda three, tau: pairwise_contrastive_loss(*three, score_labels(9), tau, backend="cpu")
    )
    assert loss.isnan()
    assert all(g.isnan().any() for g in gradients)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("temperature", [-0.3, -0.02, -0.01, 0.0])
def test_a_temperature_of_zero_or_below_is_as_in_pytorch(
    request: pytest.FixtureRequest, temperature: float, large: bool
) -> None:
    """A learned one may come there; what it means then is not for this backend to say."""
    if large:
        request.getfixturevalue("many_tiles")
    found = []
    for backend in ("torch", "cpu"):
        loss, gradients = compute(
            embeddings(40),
            temperature,
            lambda three, tau, name=backend: pairwise_contrastive_loss(*three, score_labels(40), tau, backend=name),
        )
        found.append([loss, *gradients])
    for got, want in zip(*found[::-1], strict=True):
        scale = float(want.abs().nan_to_num().max())
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)


def test_gradients_are_computed_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the embeddings or the temperature alone, and not in an evaluation."""
    asked = []
    original = CpuEngine.loss_and_gradients

    def noting(self: CpuEngine, call: Call):
        asked.append(call)
        return original(self, call)

    monkeypatch.setattr(CpuEngine, "loss_and_gradients", noting)
    a, b, c = embeddings(5)

    def loss(a: Tensor, temperature: Tensor | float = 0.1) -> Tensor:
        return pairwise_contrastive_loss(a, b, c, smoothing=None, temperature=temperature, backend="cpu")

    loss(a)
    with torch.no_grad():
        loss(a.clone().requires_grad_())
    assert not asked
    tau = torch.tensor(0.1, requires_grad=True)
    loss(a, tau).backward()
    loss(a.clone().requires_grad_()).backward()
    assert len(asked) == 2
    assert tau.grad != 0
