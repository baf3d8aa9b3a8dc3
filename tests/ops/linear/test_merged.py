"""Merged and cast products against separate linear layers."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cmsbert_fast.ops.linear.merged import Gate, attach, cast_copies, merge, merged_groups, product, project

ROWS, SIZE, FRAMES, SIZES = 7, 16, (5, 3), (4, 9)


def leaves(dtype: torch.dtype) -> list[Tensor]:
    """x, frames; weights and biases of three layers and two gates."""
    torch.manual_seed(0)
    shapes = [(ROWS, SIZE), *zip(FRAMES, SIZES, strict=True)]
    shapes += [(SIZE, SIZE)] * 3 + [(1, SIZE + size) for size in SIZES] + [(SIZE,)] * 3 + [(1,)] * 2
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def merged(given: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    x, *frames = (t.to(dtype) for t in given[:3])
    weights, gate_weights, biases, gate_biases = given[3:6], given[6:8], given[8:11], given[11:]
    gates = [Gate(*parts) for parts in zip(frames, gate_weights, gate_biases, strict=True)]
    copies = merge(cast_copies(merged_groups(weights, biases, gates), dtype))
    layers, of_tokens, of_frames = project(x, weights, biases, gates, copies)
    return [*layers, *(p[:, None] + r for p, r in zip(of_tokens, of_frames, strict=True))]


def separate(given: list[Tensor]) -> list[Tensor]:
    """Eq. 1 and 2 to the letter: W_g [X_i; V_j] + b for every pair."""
    x, *frames = given[:3]
    layers = [F.linear(x, w, b) for w, b in zip(given[3:6], given[8:11], strict=True)]
    logits = []
    for values, weight, bias in zip(frames, given[6:8], given[11:], strict=True):
        pairs = torch.cat([x[:, None].expand(-1, len(values), -1), values[None].expand(len(x), -1, -1)], dim=-1)
        logits.append(F.linear(pairs, weight, bias)[..., 0])
    return [*layers, *logits]


def test_merged_products_are_the_separate_ones() -> None:
    given = leaves(torch.float64)
    outputs, expected = merged(given, torch.float64), separate(given)
    upstream = [torch.randn_like(y) for y in expected]
    for y, e in zip(outputs, expected, strict=True):
        torch.testing.assert_close(y, e)
    gradients = torch.autograd.grad(outputs, given, upstream)
    for d, e in zip(gradients, torch.autograd.grad(expected, given, upstream), strict=True):
        torch.testing.assert_close(d, e)


def test_rounded_products_have_gradients_in_the_parameters_dtype() -> None:
    given = leaves(torch.float32)
    exact = [t.detach().double().requires_grad_() for t in given]
    outputs, expected = merged(given, torch.bfloat16), separate(exact)
    assert {y.dtype for y in outputs} == {torch.bfloat16}
    gradients = torch.autograd.grad([y.float().square().sum() for y in outputs], given)
    for d, leaf, e in zip(
        gradients, given, torch.autograd.grad([y.square().sum() for y in expected], exact), strict=True
    ):
        assert d.dtype == leaf.dtype
        assert (d.double() - e).norm() < 0.03 * e.norm()


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    for index in range(len(leaves(torch.float32))):
        given = [t.detach().requires_grad_(i == index) for i, t in enumerate(leaves(torch.float32))]
        sum(y.sum() for y in merged(given, torch.float32)).backward()
        assert [i for i, t in enumerate(given) if t.grad is not None] == [index]
        assert given[index].grad.shape == given[index].shape


def test_copies_are_aligned_and_one_allocation() -> None:
    tensors = [torch.randn(n) for n in (5, 40, 3)]
    first, second = cast_copies([tensors[:2], tensors[2:]], torch.bfloat16)
    assert torch.equal(first, torch.cat(tensors[:2]).bfloat16())
    assert torch.equal(second, tensors[2].bfloat16())
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert all(copy.storage_offset() % 16 == 0 for copy in (first, second))
    (same,) = cast_copies([tensors[:1]], torch.float32)
    assert same.data_ptr() == tensors[0].data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_single_products(dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, weight = torch.randn(6, 5, dtype=dtype, requires_grad=True), torch.randn(4, 5, dtype=wide, requires_grad=True)
    copies = cast_copies([[weight]], dtype)
    y = product(x, copies[0], weight)
    d_x, d_weight = torch.autograd.grad(y.square().sum(), (x, weight))
    expected = F.linear(x, weight.to(dtype))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(d_x, 2 * y.detach() @ weight.to(dtype))
    assert d_weight.dtype == wide
    torch.testing.assert_close(d_weight, 2 * y.detach().T.to(wide) @ x.to(wide))
    (copy,) = attach(copies, [weight])
    (d_weight,) = torch.autograd.grad((copy * 3).sum(), weight)
    assert torch.equal(d_weight, torch.full_like(weight, 3))
