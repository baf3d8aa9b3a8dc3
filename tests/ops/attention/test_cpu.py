"""The compiled CPU backend of cms_attention: its numbers, and what it keeps."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cmsbert_fast import ModalityShift, cms_attention
from cmsbert_fast.kernels.cpu import build, library
from cmsbert_fast.ops.attention import cpu
from cmsbert_fast.packing import Packing, pad, valid_positions
from tests.ops.attention.cpu_cases import CASES, DIMENSIONS, call, make, needs_compiler, values


def assert_as_good_as_torch(case, dimensions, activation="relu", dtype=torch.float32, oracle="reference"):
    """The largest error of each output is at most 2 times (gradients: 3 times) torch's.

    The gradient of a gate's logits has one number a token or frame; the largest error of six numbers is luck.
    Where there are few, as many draws count together as give it 128.
    """
    limits, errors = {}, {}
    fewest = min(sum(lengths) for lengths in case if lengths and sum(lengths))
    for seed in range(-(-128 // fewest)):
        leaves, *rest = make(case, dimensions, dtype, seed=seed)
        wide = [x.detach().double().requires_grad_() for x in leaves]
        exact = values(wide, *rest, backend=oracle, activation=activation)
        eager = values(leaves, *rest, backend="torch", activation=activation)
        actual = values(leaves, *rest, backend="cpu", activation=activation)
        for i, (e, t, a) in enumerate(zip(exact, eager, actual, strict=True)):
            assert a.dtype == dtype
            if e.numel() == 0:
                continue
            limit = (3 if i else 2) * (t - e).abs().max() + 4 * torch.finfo(dtype).eps * e.abs().max()
            limits[i], errors[i] = max(limits.get(i, 0), limit), max(errors.get(i, 0), (a - e).abs().max())
    for i, error in errors.items():
        assert error <= limits[i], f"output {i}"


@needs_compiler
@pytest.mark.parametrize("dimensions", DIMENSIONS, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_error_is_that_of_torch(poisoned, activation, case, dimensions):
    assert_as_good_as_torch(CASES[case], dimensions, activation)


@needs_compiler
@pytest.mark.parametrize(
    ("case", "dimensions"),
    [
        (([4099], [130], [7]), (1, 16, 20, 5)),
        (([3, 7], [5, 16387], [0, 70]), (2, 16, 20, 5)),
        (([130, 7], [300, 5], [1, 9]), (2, 64, 768, 768)),
    ],
    ids=["4,096 tokens", "16,384 frames", "frame size 768"],
)
def test_error_beyond_the_papers_sizes(poisoned, case, dimensions):
    """Against torch in float64: the reference's N x N_v x D would be too large."""
    assert_as_good_as_torch(case, dimensions, oracle="torch")


@needs_compiler
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_memory_is_linear_in_the_sequence():
    """In a process of its own, whose peak nothing before has raised: the library's own memory counts, too."""
    script = """
import re, torch
from pathlib import Path
from tests.ops.attention.test_cpu import make, values

def peak():
    return int(re.search("VmHWM: *([0-9]+)", Path("/proc/self/status").read_text().replace("\\t", " "))[1]) * 1024

torch.set_num_threads(2)
values(*make(([65], [65], None), (1, 16, 5, 0)), backend="cpu")
before = peak()
n = 4099
values(*make(([n], [n], None), (1, 16, 5, 0)), backend="cpu")
grown = peak() - before
assert grown < n * n * 4 / 2, f"{grown} bytes beyond a small call"
torch.ones(n, n)
assert peak() - before > n * n * 4, "the measure sees nothing"
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=300)


@needs_compiler
@pytest.mark.parametrize("extra_rows", [0, 3])
def test_no_tokens_at_all(poisoned, extra_rows):
    for x in values(*make(([0, 0], [3, 2], [0, 0]), DIMENSIONS[0], extra_rows=extra_rows), backend="cpu"):
        assert (x == 0).all()


@needs_compiler
@pytest.mark.parametrize("case", ["unequal", "one utterance without frames", "long"])
def test_error_in_bfloat16(poisoned, case):
    assert_as_good_as_torch(CASES[case], DIMENSIONS[0], dtype=torch.bfloat16)


@needs_compiler
@pytest.mark.parametrize("flags", [["-march=x86-64"], ["-march=haswell"]], ids=str)
def test_other_vector_lengths(monkeypatch, tmp_path, poisoned, flags):
    if os.uname().machine != "x86_64" or ("haswell" in flags[0] and "avx2" not in Path("/proc/cpuinfo").read_text()):
        pytest.skip("this CPU has other instructions")
    monkeypatch.setattr(build, "FLAGS", [*build.FLAGS, "-O1"])
    compiled = ctypes.CDLL(str(build._build(tmp_path, "other", flags)))
    monkeypatch.setattr(build, "load", lambda: compiled)
    for name, dimensions in (("unequal", DIMENSIONS[1]), ("long", DIMENSIONS[0])):
        assert_as_good_as_torch(CASES[name], dimensions, "tanh")


@needs_compiler
def test_rows_of_no_sequence_are_zero_and_never_read(poisoned):
    leaves, shifts, arguments = make(CASES["unequal"], DIMENSIONS[0], extra_rows=0)
    expected = values(leaves, shifts, arguments, backend="cpu")
    longer = []
    for x in leaves:
        is_weight = x.dim() == 2 and x.shape[0] == 2 * 64
        tail = x.new_full((0 if is_weight else 5, *x.shape[1:]), torch.nan)
        longer.append(torch.cat([x.detach(), tail]).requires_grad_())
    for x, e in zip(values(longer, shifts, arguments, backend="cpu"), expected, strict=True):
        assert torch.equal(x[: len(e)], e)
        assert (x[len(e) :] == 0).all()


@needs_compiler
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_threads_do_not_change_a_bit(dropout_p):
    case = make(([40, 70, 12, 0, 33] * 3, [20, 70, 3, 1, 0] * 3, [31, 8, 9, 1, 2] * 3), (4, 64, 47, 74))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            results.append(values(*case, backend="cpu", dropout_p=dropout_p))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert torch.equal(x, y)


def test_the_parallel_loop_is_that_of_pytorch():
    if "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this PyTorch has no OpenMP")
    assert library.parallel_loop() != 0


@needs_compiler
def test_dropout_mask_recovered_and_the_same_in_backward():
    n, heads, p = 64, 8, 0.25
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2 * n, heads, n, generator=generator) for _ in range(2))
    v = torch.eye(n)[:, None].expand(n, heads, n).repeat(2, 1, 1)  # z is then the matrix of probabilities
    leaves = [x.requires_grad_() for x in (q, k, v)]
    arguments = dict(cu_seqlens=torch.tensor([0, n, 2 * n], dtype=torch.int32), max_seqlen=n)
    torch.manual_seed(3)
    z, *gradients = values(leaves, [None, None], arguments, backend="cpu", dropout_p=p)
    torch.manual_seed(3)
    assert torch.equal(z, call(leaves, [None, None], arguments, backend="cpu", dropout_p=p))
    assert not torch.equal(z, call(leaves, [None, None], arguments, backend="cpu", dropout_p=p))

    kept = (z != 0).view(2, n, heads, n).transpose(1, 2)  # (B, H, query, key)
    rate = 1 - kept.double().mean()
    assert abs(rate - p) < 4 * (p * (1 - p) / kept.numel()) ** 0.5
    for axis in range(4):  # no two sequences, heads, queries or keys share decisions
        first, second = kept.narrow(axis, 0, 1), kept.narrow(axis, 1, 1)
        assert abs((first == second).double().mean() - (1 - 2 * p * (1 - p))) < 0.06

    exact = [x.detach().double().requires_grad_() for x in leaves]
    q, k, v = (x.view(2, n, heads, n).transpose(1, 2) for x in exact)
    probabilities = torch.softmax(q @ k.transpose(-1, -2) * n**-0.5, dim=-1)
    expected = (probabilities * kept / (1 - p) @ v).transpose(1, 2).flatten(0, 1)
    weight = torch.randn(z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(z.double(), expected, rtol=0, atol=3e-6)
    for x, e in zip(gradients, torch.autograd.grad((expected * weight).sum(), exact), strict=True):
        torch.testing.assert_close(x.double(), e, rtol=0, atol=1e-5)


@needs_compiler
def test_padded_equals_packed_whatever_lies_in_the_padding():
    leaves, shifts, arguments = make(([5, 3, 0, 7], [4, 0, 2, 3], [2, 9, 3, 1]), DIMENSIONS[0], extra_rows=0)
    expected = values(leaves, shifts, arguments, backend="cpu")
    packings = [Packing(arguments["cu_seqlens"], arguments["max_seqlen"]), *(Packing(*s) for s in shifts)]
    masks = [valid_positions(packing) for packing in packings]

    def padded(x, which):
        mask = masks[which].view(*masks[which].shape, *[1] * (x.dim() - 1))
        return pad(x, packings[which]).masked_fill(~mask, torch.nan)

    def run(*leaves):
        modalities = []
        for m in (1, 2):
            p, r, frames, weight = leaves[4 * m - 1 : 4 * m + 3]
            modalities.append(ModalityShift(padded(p, 0), padded(r, m), padded(frames, m), weight, mask=masks[m]))
        return cms_attention(*(padded(x, 0) for x in leaves[:3]), *modalities, attention_mask=masks[0], backend="cpu")

    z = run(*leaves)
    assert (z[~masks[0]] == 0).all()
    assert torch.equal(z[masks[0]], expected[0])
    weight = torch.randn(expected[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).float()
    for x, e in zip(torch.autograd.grad((z[masks[0]] * weight).sum(), leaves), expected[1:], strict=True):
        torch.testing.assert_close(x, e, rtol=0, atol=0)


@needs_compiler
def test_padded_without_masks():
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, 6, 2, 8, generator=generator) for _ in range(3)]
    shift = ModalityShift(torch.randn(2, 6), torch.randn(2, 5), torch.randn(2, 5, 7), torch.randn(16, 7))
    z, expected = (cms_attention(*qkv, shift, backend=backend) for backend in ("cpu", "torch"))
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-5)


@needs_compiler
def test_strided_inputs_and_gradients():
    leaves, shifts, arguments = make(CASES["unequal"], DIMENSIONS[0])
    expected = values(leaves, shifts, arguments, backend="cpu")
    fused = torch.stack([x.detach() for x in leaves[:3]], dim=1).unbind(1)
    gates = torch.stack([leaves[3].detach(), leaves[7].detach()], dim=1).unbind(1)
    strided = [*fused, gates[0], *leaves[4:7], gates[1], *leaves[8:]]
    strided[5] = leaves[5].detach().T.contiguous().T
    strided[6] = leaves[6].detach().T.contiguous().T
    for x, e in zip(
        values([x.detach().requires_grad_() for x in strided], shifts, arguments, backend="cpu"), expected, strict=True
    ):
        assert torch.equal(x, e)
    z = call(leaves, shifts, arguments, backend="cpu")
    ones = torch.autograd.grad(z, leaves, torch.ones_like(z), retain_graph=True)
    expanded = torch.autograd.grad(z.sum(), leaves)
    assert all(torch.equal(x, y) for x, y in zip(ones, expanded, strict=True))


@needs_compiler
def test_only_what_is_asked_for_gets_a_gradient():
    leaves, *rest = make(CASES["unequal"], DIMENSIONS[0])
    expected = values(leaves, *rest, backend="cpu")[1:]
    for index in range(len(leaves)):
        chosen = [x.detach().requires_grad_(i == index) for i, x in enumerate(leaves)]
        (gradient,) = torch.autograd.grad(call(chosen, *rest, backend="cpu").sum(), [chosen[index]])
        assert gradient.shape == expected[index].shape
        assert gradient.abs().sum() > 0


@needs_compiler
@pytest.mark.parametrize("shifted", [True, False])
def test_what_is_kept_for_backward_is_linear_in_the_length(shifted):
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    n, heads, head_size = 400, 2, 40
    leaves, *rest = make(([n], [n], [n]), (heads, head_size, 47, 74), extra_rows=0)
    if not shifted:
        leaves, rest[0] = leaves[:3], [None, None]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        call(leaves, *rest, backend="cpu", dropout_p=0.1)
    own = sum(kept) - sum(x.numel() for x in leaves)  # beyond the inputs
    assert own <= n * (shifted * (48 + 80 + 48 * heads) + 2 * heads) + 16


@needs_compiler
@pytest.mark.parametrize(
    ("shifted", "for_backward", "shape"),
    [(True, True, (2, 30, 48)), (True, False, (2, 30, 0)), (False, True, (2, 30, 0))],
)
def test_shifts_are_kept_for_a_backward_pass_only(shifted, for_backward, shape):
    n, heads, head_size = 30, 2, 40
    leaves, shifts, arguments = make(([n], [n], [n]), (heads, head_size, 47, 74), extra_rows=0)
    tensors = [x.detach() for x in leaves]
    modalities = (*tensors[3:7], shifts[0][0], *tensors[7:], shifts[1][0]) if shifted else (None,) * 10
    options = (arguments["cu_seqlens"], None, "relu", 0.1, 0.0, for_backward)
    z, _, kept, _ = torch.ops.cmsbert_fast.cms_attention_cpu_forward(*tensors[:3], *modalities, *options)
    assert kept.shape == shape
    others = torch.ops.cmsbert_fast.cms_attention_cpu_forward(
        *tensors[:3], *modalities, *options[:-1], not for_backward
    )
    if shifted:  # whose weights are read in place without a backward pass
        torch.testing.assert_close(z, others[0], rtol=0, atol=1e-6)
    else:
        assert torch.equal(z, others[0])


@needs_compiler
@pytest.mark.parametrize("present", ["both", "visual", "acoustic"])
@pytest.mark.parametrize(("n", "n_frames"), [(1, 1), (15, 40), (30, 0), (62, 7), (63, 7)])
def test_shift_weights_read_in_place(n, n_frames, present):
    """By one sequence of at most 64 rows (the last case has 65, tail included) without a backward pass: what packed
    weights give, but for the order of sums, with less memory."""
    leaves, shifts, arguments = make(([n], [n_frames], [n_frames + 1]), (3, 40, 47, 74), extra_rows=2)

    def forward(for_backward):
        tensors = [x.detach() for x in leaves]
        for weight in (6, 10):
            tensors[weight] = torch.cat([tensors[weight]] * 2, dim=1)[:, : tensors[weight].shape[1]]
        library.most_scratch_bytes()
        visual, acoustic, none = [*tensors[3:7], shifts[0][0]], [*tensors[7:], shifts[1][0]], [None] * 5
        modalities = (*(none if present == "acoustic" else visual), *(none if present == "visual" else acoustic))
        options = (arguments["cu_seqlens"], None, "tanh", 0.1, 0.0, for_backward)
        z = torch.ops.cmsbert_fast.cms_attention_cpu_forward(*tensors[:3], *modalities, *options)[0]
        return z, library.most_scratch_bytes()

    (in_place, of_in_place), (packed, of_packed) = forward(False), forward(True)
    assert (of_packed > of_in_place) == (n + 2 <= 64)
    assert torch.isfinite(in_place).all()
    assert (in_place[n:] == 0).all()
    torch.testing.assert_close(in_place, packed, rtol=0, atol=2e-6)


@needs_compiler
def test_nothing_is_kept_without_a_graph(monkeypatch):
    asked = []
    monkeypatch.setattr(cpu, "_outputs", lambda a, f=cpu._outputs: asked.append(a.for_backward) or f(a))
    leaves, *rest = make(CASES["unequal"], DIMENSIONS[0])
    for graph in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with graph():
            call(leaves, *rest, backend="cpu")
    assert asked == [False, False, True]


@needs_compiler
@pytest.mark.parametrize("cu", [[0, 3, 9], [0, 5, 3], [1, 2, 4], [0, -1, 4]])
def test_cu_seqlens_that_point_outside_are_refused(cu):
    x = torch.randn(4, 2, 8)
    with pytest.raises(ValueError, match="cu_seqlens must start at 0"):
        cms_attention(x, x, x, cu_seqlens=torch.tensor(cu, dtype=torch.int32), max_seqlen=4, backend="cpu")
