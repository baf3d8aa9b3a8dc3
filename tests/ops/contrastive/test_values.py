"""The contrastive loss: value and gradients against the reference in float64, on every backend this machine has."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cmsbert_fast import pairwise_contrastive_loss, reference
from cmsbert_fast.ops.contrastive import torch as torch_engine
from cmsbert_fast.ops.contrastive.torch import TorchEngine
from cmsbert_fast.ops.contrastive.types import LABEL_TOLERANCE, Numbers
from tests.ops.contrastive.cases import BACKENDS, DEVICE, INTERPRETED, check, compute, embeddings, score_labels, size


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["scores", "classes", "off"])
@pytest.mark.parametrize(("n", "modalities"), [(1, 3), (5, 2), (37, 3)])
def test_equals_reference(backend: str, kind: str, n: int, modalities: int) -> None:
    labels = {"scores": score_labels(n), "classes": torch.arange(n, device=DEVICE) % 4, "off": None}[kind]
    check(embeddings(n, modalities=modalities), labels, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["scores", "classes", "off"])
@pytest.mark.parametrize(("modalities", "d"), [(2, 20), (3, 20), (3, 32), (3, 100)])
def test_equals_reference_over_many_tiles(many_tiles: None, backend: str, kind: str, modalities: int, d: int) -> None:
    if d != 20 and DEVICE == "cpu":
        pytest.skip("d decides the tiles on a GPU")
    n = size(33, backend)  # one more than tiles hold
    labels = {"scores": score_labels(n), "classes": torch.arange(n, device=DEVICE) % 4, "off": None}[kind]
    check(embeddings(n, d, modalities), labels, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("large", [False, True])
def test_half_precision(request: pytest.FixtureRequest, backend: str, dtype: torch.dtype, large: bool) -> None:
    if backend == "triton" and INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("the interpreter's bfloat16 is wrong")
    if large:
        request.getfixturevalue("many_tiles")
    # Similarities are exact products summed in float32; only G and the gradients are rounded.
    n, d = size(33, backend, large), 32 if DEVICE == "cuda" else 20
    check(embeddings(n, d, dtype=dtype), score_labels(n), backend, tolerance=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("large", [False, True])
def test_temperature_0_005(request: pytest.FixtureRequest, backend: str, large: bool) -> None:
    if large:
        request.getfixturevalue("many_tiles")
    n = size(21, backend, large)
    z = embeddings(n)
    z[1][3], z[2][4] = z[0][3], -z[0][4]  # similarities of 200 and -200: no single shift serves exp
    check(z, score_labels(n), backend, temperature=0.005, tolerance=5e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [0.1, 0.025, 0.024])
def test_fixed_temperature(many_tiles: None, backend: str, temperature: float) -> None:
    """A number, of which it is known beforehand whether exponentials need a maximum."""
    n = size(33, backend)
    labels = score_labels(n)
    z = [e.detach().requires_grad_() for e in embeddings(n)]
    expected = [e.detach().double().requires_grad_() for e in z]
    loss = pairwise_contrastive_loss(*z, labels, temperature, 0.9, 0.1, backend=backend)
    wanted = reference.pairwise_contrastive_loss(*expected, labels, temperature, 0.9, 0.1)
    torch.testing.assert_close(loss.double(), wanted, rtol=2e-5, atol=2e-5)
    pairs = zip(torch.autograd.grad(loss, z), torch.autograd.grad(wanted, expected), strict=True)
    for got, want in pairs:
        torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "temperature"),
    [(torch.float16, 0.1), (torch.float16, 0.025), (torch.float32, 0.025), (torch.float32, 0.005)],
    ids=str,
)
@pytest.mark.parametrize("large", [False, True])
def test_opposed_modalities(
    request: pytest.FixtureRequest, backend: str, dtype: torch.dtype, temperature: float, large: bool
) -> None:
    """Every similarity far below 0, where exp(-log-sum-exp) overflows: what tiles hold beyond the batch stays out."""
    if large:
        request.getfixturevalue("many_tiles")
    n = size(20, backend, large)
    centre = 3 * torch.randn(1, 16, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    z = [(0.3 * e + sign * centre).to(dtype) for e, sign in zip(embeddings(n, 16, 2), (1, -1), strict=True)]
    tolerance = 8 * torch.finfo(dtype).eps if dtype == torch.float16 else 2e-3
    check(z, score_labels(n), backend, temperature=temperature, tolerance=tolerance)


def test_float64_reaches_float64(many_tiles: None) -> None:
    check(embeddings(67, dtype=torch.float64), score_labels(67), "torch", tolerance=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("labels", "threshold"),
    [
        ([1.0] * 9, 0.1),
        ([0.0] * 9, 0.1),
        ([-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0, 2.5], 0.1),
        ([-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3, 0.4], 0.1),  # delta apart, and near 0 with other signs
        ([-3.0, -2.9, -2.8, 2.6, 2.7, 2.8, 2.9, 3.0, 3.0], 0.1),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], 0.0),
        ([1.0, float("nan"), 1.0, float("nan"), 1.1, 2.0, 3.0, 1.05, 0.0], 0.1),
        ([7] * 9, 0.1),
        ([True, False, True, True, False, True, False, False, True], 0.1),
        (list(range(9)), 0.1),
    ],
)
def test_labels(backend: str, labels: list[float], threshold: float) -> None:
    check(embeddings(9), torch.tensor(labels, device=DEVICE), backend, threshold=threshold)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.5, 1.0])
def test_smoothing(backend: str, smoothing: float) -> None:
    check(embeddings(17), score_labels(17), backend, smoothing=smoothing)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("large", [False, True])
def test_zero_norm(request: pytest.FixtureRequest, backend: str, large: bool) -> None:
    if large:
        request.getfixturevalue("many_tiles")
    n = size(19, backend, large)
    z = embeddings(n, 32 if DEVICE == "cuda" else 7)
    z[0][3] = 0
    z[1][3] = 0
    z[2][5] *= 1e-14  # below the clamp of the norm, above zero
    check(z, score_labels(n), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("large", [False, True])
def test_nan_propagates(request: pytest.FixtureRequest, backend: str, large: bool) -> None:
    if large:
        request.getfixturevalue("many_tiles")
    n = size(19, backend, large)
    z = embeddings(n, 32 if DEVICE == "cuda" else 7)
    z[1][7, 2] = float("nan")
    loss, grads = compute(
        z, 0.1, lambda three, tau: pairwise_contrastive_loss(*three, score_labels(n), tau, backend=backend)
    )
    assert loss.isnan()
    assert all(g.isnan().all() for g in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_embeddings(backend: str) -> None:
    z = [e.T.contiguous().T for e in embeddings(11)]
    z[1] = torch.cat([z[1], z[1]], dim=1)[:, :7]
    z[2] = z[2][:1].expand(11, 7)
    check(z, score_labels(11), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", ["small", "large"])
def test_strided_labels(request: pytest.FixtureRequest, backend: str, size: str) -> None:
    """A column of a table of labels, and one number for all."""
    if size == "large":
        request.getfixturevalue("many_tiles")
    y = score_labels(11)
    check(embeddings(11), torch.stack([y, -y], dim=1)[:, 0], backend)
    check(embeddings(11), y[:1].expand(11), backend)
    check(embeddings(11), torch.stack([y.long(), -y.long()], dim=1)[:, 0], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_deterministic(many_tiles: None, backend: str) -> None:
    if backend == "triton" and INTERPRETED:
        pytest.skip("one thread says nothing")
    n = size(67, backend)
    runs = [
        compute(
            embeddings(n, 32),
            0.1,
            lambda three, tau: pairwise_contrastive_loss(*three, score_labels(n), tau, backend=backend),
        )
        for _ in range(2)
    ]
    for first, second in zip([runs[0][0], *runs[0][1]], [runs[1][0], *runs[1][1]], strict=True):
        assert first.equal(second)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_number_as_temperature(backend: str) -> None:
    z = [e.requires_grad_() for e in embeddings(9)]
    fixed = pairwise_contrastive_loss(*z, score_labels(9), 0.2, backend=backend)
    tau = torch.tensor(0.2, device=DEVICE)
    learned = pairwise_contrastive_loss(*z, score_labels(9), tau, backend=backend)
    torch.testing.assert_close(fixed, learned)
    for a, b in zip(torch.autograd.grad(fixed, z), torch.autograd.grad(learned, z), strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("large", [False, True])
def test_a_temperature_of_another_dtype(
    request: pytest.FixtureRequest, backend: str, dtype: torch.dtype, large: bool
) -> None:
    """It counts as the float32 number that it is: its gradient is that number's, rounded once."""
    if large:
        request.getfixturevalue("many_tiles")
    n = size(33, backend, large)
    tau = torch.tensor(0.09, dtype=torch.float16).to(DEVICE)
    gradients = []
    for t in (torch.float32, dtype):
        leaf = tau.to(t).requires_grad_()
        loss = pairwise_contrastive_loss(*embeddings(n), score_labels(n), leaf, backend=backend)
        gradients += torch.autograd.grad(loss, leaf)
    assert gradients[1].equal(gradients[0].to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_row_gives_exactly_zero(backend: str) -> None:
    """Not what is left of sums rounded in different orders, which the sum of many draws would show."""
    for seed in range(6 if backend == "triton" else 40):
        z = [e.requires_grad_() for e in embeddings(1, seed=seed)]
        loss = pairwise_contrastive_loss(*z, score_labels(1), backend=backend)
        loss.backward()
        assert loss == 0
        assert all(e.grad.abs().max() < 1e-5 for e in z)


def test_no_rows() -> None:
    z = [e.requires_grad_() for e in embeddings(0)]
    loss = pairwise_contrastive_loss(*z, score_labels(0))
    loss.backward()
    assert loss == 0


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """open_clip's ClipLoss as it is defined: the mean of the two cross-entropies, labels on the diagonal."""
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    logits = logit_scale * image @ text.T
    labels = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_modalities_are_clip_loss(backend: str) -> None:
    first, second, _ = (e.requires_grad_() for e in embeddings(23))
    tau = torch.tensor(0.07, device=DEVICE, requires_grad=True)
    ours = pairwise_contrastive_loss(first, second, None, temperature=tau, smoothing=None, backend=backend)
    theirs = 2 * clip_loss(first, second, 1 / tau)
    torch.testing.assert_close(ours, theirs)
    inputs = (first, second, tau)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_any_modality_may_be_absent() -> None:
    a, b, c = embeddings(9)
    y = score_labels(9)
    pairs = [(a, b, None), (a, None, c), (None, b, c)]
    total = sum(pairwise_contrastive_loss(*pair, y) for pair in pairs)
    torch.testing.assert_close(total, pairwise_contrastive_loss(a, b, c, y))


def test_mixed_dtypes_and_reference_backend() -> None:
    a, b, c = embeddings(9, dtype=torch.float64)
    wanted = pairwise_contrastive_loss(a, b, c, score_labels(9), backend="reference")
    torch.testing.assert_close(pairwise_contrastive_loss(a, b, c, score_labels(9)), wanted)
    mixed = pairwise_contrastive_loss(a.float(), b, c.bfloat16(), score_labels(9))
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(mixed, wanted, rtol=1e-2, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_sorted_counts_agree_with_comparisons(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of sorted labels has as many members as pairwise comparison finds, at the edges too."""
    generator = torch.Generator().manual_seed(seed)
    reach = 0.1 + LABEL_TOLERANCE
    base = torch.randn(40, generator=generator)
    edge = [base + reach, torch.nextafter(base + reach, base), torch.nextafter(base + reach, base + 9), base.round()]
    labels = torch.cat([base, *edge, torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf")])])
    engine, numbers = TorchEngine(), Numbers(torch.ones(()), 0.9, 0.1)
    block = engine.make_block((torch.ones(len(labels), 1),) * 2, labels, numbers)
    rectangle = torch_engine._Rectangle(block, block, numbers)
    related = rectangle.related(slice(0, len(labels)))
    for compared in (torch_engine.COMPARISONS, 0):
        assert compared == 0 or compared >= len(labels) ** 2
        monkeypatch.setattr(torch_engine, "COMPARISONS", compared)
        count = engine.count_related(labels, labels, numbers.reach) - 1
        assert count.clamp_min(0).equal(related.sum(1))
    assert related.equal(related.T)


@pytest.mark.cuda
def test_error_is_that_of_eager_at_most() -> None:
    """bfloat16 at the sizes that matter: no further from float64 than twice the eager composition in bfloat16."""
    z = embeddings(128, 768, dtype=torch.bfloat16)
    y = score_labels(128)
    exact = compute([e.double() for e in z], 0.1, lambda t, tau: reference.pairwise_contrastive_loss(*t, y, tau))
    eager = compute(z, 0.1, lambda t, tau: reference.pairwise_contrastive_loss(*t, y, tau))
    ours = compute(z, 0.1, lambda t, tau: pairwise_contrastive_loss(*t, y, tau, backend="triton"))
    assert (ours[0] - exact[0]).abs() <= (eager[0] - exact[0]).abs() + 1e-4 * exact[0]
    for got, low, want in zip(ours[1], eager[1], exact[1], strict=True):
        budget = torch.finfo(torch.bfloat16).eps * want.abs().max()
        assert (got - want).abs().max() <= 2 * (low - want).abs().max() + budget
