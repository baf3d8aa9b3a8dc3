"""Pairwise contrastive loss: value and gradients against the reference in float64, on every backend this machine has.

The Triton kernels run on a GPU, or slowly in Triton's interpreter (``TRITON_INTERPRET=1``), as
``tests/kernels/test_contrastive_kernels.py`` does with these tests. Memory that nobody wrote is NaN throughout.
"""

import os
import time
from collections.abc import Iterator
from itertools import accumulate, pairwise

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from cmsbert_fast import pairwise_contrastive_loss, reference
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.contrastive import api as contrastive
from cmsbert_fast.ops.contrastive import torch as contrastive_torch
from cmsbert_fast.ops.contrastive.torch import LABEL_TOLERANCE, count_related
from tests.ops.launches import launched_on_gpu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
without_triton = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1")
BACKENDS = ["torch", pytest.param("triton", marks=without_triton)]


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens at large n, at small n: several chunks, tiles, groups of tiles, strips and splits.

    Tiles are compiled for a GPU as they are: tests take ``size(n)`` rows there, more than ``SMALL`` and than
    ``MAX_GROUPS`` tiles hold.
    """
    monkeypatch.setattr(contrastive_torch, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(contrastive_torch, "COMPARISONS", 0)
    if not INTERPRETED:
        return
    from cmsbert_fast.kernels import contrastive as kernels

    def small_tile(kernel: str, *_: object) -> kernels.Tile:
        return kernels.Tile(32, 32, 16, 4, 2) if kernel == "product" else kernels.Tile(16, 16, 32, 4, 2)

    monkeypatch.setattr(kernels, "choose_tile", small_tile)
    for name, value in {"SMALL": 0, "MAX_GROUPS": 2, "MIN_STRIP": 32, "STRIP_BYTES": 1, "PROGRAMS": 16}.items():
        monkeypatch.setattr(kernels, name, value)


def size(n: int, backend: str, large: bool = True) -> int:
    """Rows of a test that ``many_tiles`` makes a large one: ``n``, but on a GPU what is large there."""
    return 1229 if large and backend == "triton" and DEVICE == "cuda" else n


def embeddings(
    n: int, d: int = 7, modalities: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, d, generator=generator) * 3).to(DEVICE, dtype) for _ in range(modalities)]


def score_labels(n: int, seed: int = 1) -> Tensor:
    """Scores in steps of 0.1, as MOSI has them: many exactly delta apart, some 0."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-12, 13, (n,), generator=generator) / 10).to(DEVICE)


def compute(z: list[Tensor], temperature: float, function) -> tuple[Tensor, list[Tensor]]:
    z = [e.detach().clone().requires_grad_() for e in z]
    tau = torch.tensor(temperature, dtype=torch.promote_types(z[0].dtype, torch.float32), device=z[0].device)
    tau.requires_grad_()
    three = [*z, *[None] * (3 - len(z))]
    loss = function(three, tau)
    return loss.detach(), [g.detach() for g in torch.autograd.grad(loss, [*z, tau])]


def check(
    z: list[Tensor],
    labels: Tensor | None,
    backend: str,
    *,
    temperature: float = 0.1,
    smoothing: float | None = 0.9,
    threshold: float = 0.1,
    tolerance: float = 2e-5,
    function=pairwise_contrastive_loss,
) -> None:
    """Loss and gradients, also the temperature's, are the reference's in float64 to ``tolerance``, row by row."""
    smoothing = None if labels is None else smoothing
    loss, grads = compute(
        z, temperature, lambda three, tau: function(*three, labels, tau, smoothing, threshold, backend=backend)
    )
    expected, wanted = compute(
        [e.double() for e in z],
        temperature,
        lambda three, tau: reference.pairwise_contrastive_loss(*three, labels, tau, smoothing, threshold),
    )
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    assert [g.dtype for g in grads[:-1]] == [e.dtype for e in z]
    for got, want in zip(grads[:-1], wanted[:-1], strict=True):
        scale = want.norm(dim=1, keepdim=True)
        scale = scale + scale.median() + 1e-4
        torch.testing.assert_close(got / scale, want / scale, rtol=0, atol=tolerance)
    # A sum of n^2 terms of both signs over tau^2.
    bound = tolerance * (1 + 1 / temperature**2)
    torch.testing.assert_close(grads[-1].double(), wanted[-1], rtol=tolerance, atol=bound)


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
@pytest.mark.parametrize(("dtype", "temperature"), [(torch.float16, 0.1), (torch.float32, 0.005)], ids=str)
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
    block = contrastive_torch.make_block((torch.ones(len(labels), 1),) * 2, labels, 0.9, 0.1)
    rectangle = contrastive_torch._Rectangle(block, block, torch.ones(()), 0.9, 0.1)
    related = rectangle.related(slice(0, len(labels)))
    for compared in (contrastive_torch.COMPARISONS, 0):
        assert compared == 0 or compared >= len(labels) ** 2
        monkeypatch.setattr(contrastive_torch, "COMPARISONS", compared)
        count = count_related(labels, labels, 0.1) - 1
        assert count.clamp_min(0).equal(related.sum(1))
    assert related.equal(related.T)


class Touched(TorchDispatchMode):
    """Counts the numbers that operators read and write."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        tensors = [t for t in pytree.tree_leaves((arguments, named, result)) if isinstance(t, Tensor)]
        self.numbers += sum(t.numel() for t in tensors)
        return result


@pytest.mark.parametrize("kind", ["scores", "classes"])
def test_counts_of_many_labels_take_n_log_n(kind: str) -> None:
    """A million examples are not compared with a million others."""

    def touched(n: int) -> int:
        labels = torch.linspace(-3, 3, n) if kind == "scores" else torch.arange(n) % 7
        with Touched() as mode:
            count_related(labels, labels, 0.1)
        return mode.numbers

    assert touched(2**15) < 100 * 15 * 2**15
    assert touched(2**15) < 1.2 * touched(2**14) * 2  # n^2 would be four times as much


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


class Products(TorchDispatchMode):
    """Counts the multiply-adds of matrix products."""

    multiply_adds = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = function.overloadpacket.__name__
        if "mm" in name:
            a, b = arguments[-2:]
            assert name in ("mm", "addmm_", "addmm")
            self.multiply_adds += a.shape[0] * a.shape[1] * b.shape[1]
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize(("modalities", "forward", "backward"), [(2, 1, 3), (3, 3, 9)])
def test_passes_in_pytorch(many_tiles: None, modalities: int, forward: int, backward: int) -> None:
    """12 n^2 d multiply-adds with three modalities: a similarity is computed once each way, for both directions."""
    n, d = 40, 24
    z, y = embeddings(n, d, modalities), score_labels(n)
    with Products() as mode:
        loss, *saved = contrastive._contrastive(z, y, None, 0.1, 0.9, 0.1, "torch")
    assert mode.multiply_adds == forward * n * n * d
    with Products() as mode:
        contrastive._contrastive_backward(loss, z, y, None, 0.1, 0.9, 0.1, "torch", *saved)
    assert mode.multiply_adds == backward * n * n * d


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize(
    ("large", "modalities", "forward", "backward"), [(False, 2, 1, 4), (False, 3, 3, 12), (True, 3, 3, 12)]
)
def test_passes_in_triton(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    large: bool,
    modalities: int,
    forward: int,
    backward: int,
) -> None:
    """At most 15 n^2 d multiply-adds with three modalities, where tiles divide n and d."""
    from cmsbert_fast.kernels import contrastive as kernels
    from triton.runtime.interpreter import InterpreterBuilder

    n, d = 64, 32
    if large:
        request.getfixturevalue("many_tiles")
    else:
        monkeypatch.setattr(kernels, "choose_tile", lambda *_: kernels.Tile(32, 32, 32, 4, 2))
    counted, dot = [0], InterpreterBuilder.create_dot

    def counting(builder, a, b, *others):
        counted[0] += a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
        return dot(builder, a, b, *others)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counting)
    z, y = embeddings(n, d, modalities), score_labels(n)
    loss, *saved = contrastive._contrastive(z, y, None, 0.1, 0.9, 0.1, "triton")
    assert counted[0] == forward * n * n * d
    contrastive._contrastive_backward(loss, z, y, None, 0.1, 0.9, 0.1, "triton", *saved)
    assert counted[0] == (forward + backward) * n * n * d


def peak_on_cpu(n: int, d: int, dtype: torch.dtype, group: dist.ProcessGroup | None = None, modalities: int = 3) -> int:
    """The most bytes alive at a time in forward and backward, inputs apart, gradients included: every allocation."""
    z = [torch.randn(n, d).to(dtype).requires_grad_() for _ in range(modalities)]
    three = [*z, *[None] * (3 - modalities)]
    labels, tau = torch.randn(n), torch.tensor(0.1, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        pairwise_contrastive_loss(*three, labels, tau, backend="torch", group=group).backward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = list(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    gradients = [e.grad for e in (*z, tau)]
    assert alive[-1] >= sum(g.numel() * g.element_size() for g in gradients)  # nothing was missed
    return max(alive)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_on_cpu_is_linear(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """65,536 rows of 768 train within 2 GB: what is alive is so much a row, and a few chunks of fixed size."""
    torch.use_deterministic_algorithms(False)  # its filling of new memory would be all that takes time
    chunk = 2**17
    fraction = contrastive_torch.CHUNK_BYTES // chunk
    monkeypatch.setattr(contrastive_torch, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(contrastive_torch, "COMPARISONS", 0)
    peak_on_cpu(8, 768, dtype)  # what PyTorch allocates once
    sizes = (384, 768, 1152)
    peaks = [peak_on_cpu(n, 768, dtype) for n in sizes]
    row, next_row = ((b - a) / 384 for a, b in pairwise(peaks))
    assert next_row < 1.02 * row + chunk / 1024  # n x n bytes would add 768
    chunks = max(peak - next_row * n for peak, n in zip(peaks, sizes, strict=True)) / chunk
    assert chunks < 16
    total = 65_536 * next_row + chunks * chunk * fraction
    assert total < 2e9
    if dtype == torch.float32:  # README.md's numbers, without and with gradients
        assert (total - 65_536 * 768 * 3 * 4) / 2**30 == pytest.approx(0.45, abs=0.01)
        assert total / 2**30 == pytest.approx(1.01, abs=0.01)


@pytest.mark.skipif(os.environ.get("CMSBERT_SLOW_TESTS") != "1", reason="takes minutes: CMSBERT_SLOW_TESTS=1 runs it")
def test_65536_rows_on_cpu() -> None:
    """Forward and backward of 65,536 rows, measured and not extrapolated, in less than 2 GB.

    Opt-in, as it takes minutes: ``CMSBERT_SLOW_TESTS=1 pytest -s tests/test_contrastive.py -k 65536``. The embeddings
    are short and of two modalities: what might grow with n^2 depends on neither, and the rest is linear (see above).
    """
    torch.use_deterministic_algorithms(False)
    start = time.monotonic()
    peak = peak_on_cpu(65_536, 16, torch.float32, modalities=2)
    print(f"{time.monotonic() - start:.0f} s on {torch.get_num_threads()} threads, {peak:,} bytes")
    assert peak < 2e9


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


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["scores", "classes", "off"])
def test_small_batch_on_gpu(kind: str) -> None:
    """n = 128, d = 768: two launches forward, two backward, and nothing for which the host waits."""
    torch.use_deterministic_algorithms(False)  # it fills new memory, with launches of its own
    z = [e.requires_grad_() for e in embeddings(128, 768, dtype=torch.bfloat16)]
    y = {"scores": score_labels(128), "classes": torch.arange(128, device=DEVICE) % 4, "off": None}[kind]
    tau, one = torch.tensor(0.1, device=DEVICE, requires_grad=True), torch.ones((), device=DEVICE)
    smoothing = None if y is None else 0.9

    def step() -> tuple[Tensor, ...]:
        loss = pairwise_contrastive_loss(*z, y, tau, smoothing, backend="triton")
        return torch.autograd.grad(loss, (*z, tau), one)

    assert launched_on_gpu(step) == [
        "_statistics_kernel",
        "_loss_kernel",
        "_gradient_tile_kernel",
        "_gradient_product_kernel",
    ]


@pytest.mark.cuda
def test_memory_on_gpu_is_linear() -> None:
    def extra(n: int) -> float:
        z = [e.requires_grad_() for e in embeddings(n, 64, dtype=torch.bfloat16)]
        y = score_labels(n)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        pairwise_contrastive_loss(*z, y, backend="triton").backward()
        return torch.cuda.max_memory_allocated() - before

    extra(2048)
    small, large = extra(32768), extra(65536)
    assert large < 2.2 * small
    assert large < 65536**2 / 4  # bytes


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
