"""One-layer LSTM over packed sequences (Eq. 11), without padding and without graph breaks: cuDNN's, or an operator.

On CPUs ATen's LSTM adds to the weights' gradients at every time step, which moves more bytes than all else it does; the
operator here makes them with one matrix product after the last. Its recurrence is compiled C++ (float32, where the
"cpu" backend runs) or a loop of PyTorch's operators.

Under autocast to bfloat16 the compiled recurrence rounds W_hh, and what it multiplies, to bfloat16; gates, cells, sums
and hidden states stay float32, and W_hh's gradient is a product in bfloat16 as every weight's. The others keep the
parameters' dtype.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cmsbert_fast.ops.dispatch import choose_backend
from cmsbert_fast.ops.lstm import cpu as lstm_cpu
from cmsbert_fast.packing import Packing


class PackedLSTM(nn.Module):
    """h_m = LSTM(frames), each sequence from a zero state (Eq. 11).

    Parameters are named, laid out and initialised as torch.nn.LSTM's, a module at which torch.compile breaks the graph.

    Args:
        input_size: d_m.
        hidden_size: d.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.weight_ih_l0 = nn.Parameter(torch.empty(4 * hidden_size, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.empty(4 * hidden_size))
        self.bias_hh_l0 = nn.Parameter(torch.empty(4 * hidden_size))

    def forward(self, frames: Tensor, packing: Packing, backend: str = "auto") -> Tensor:
        """Frames (F, d_m) -> (F, d) in the parameters' dtype; 0 at rows of no sequence.

        The time steps are laid out on the CPU: without ``packing.host_cu_seqlens`` it waits for the device.
        ``backend``: see :mod:`cmsbert_fast.ops.dispatch`; only "auto" and "cpu" run compiled C++.
        """
        frames = frames.to(self.weight_ih_l0.dtype)
        cu_seqlens = packing.cu_seqlens if packing.host_cu_seqlens is None else packing.host_cu_seqlens
        weights = (self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0)
        compiled = choose_backend("lstm", frames, backend) == "cpu"
        products = lstm_cpu.product_dtype() if compiled else None
        with torch.autocast(frames.device.type, enabled=False):
            if frames.is_cuda and not torch.compiler.is_compiling():
                return _cudnn_lstm(frames, cu_seqlens, *weights)
            return torch.ops.cmsbert_fast.lstm(frames, cu_seqlens, *weights, products)[0]


def _cudnn_lstm(
    frames: Tensor, cu_seqlens: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> Tensor:
    """cuDNN's LSTM (off the GPU: ATen's) on a PackedSequence made without padding."""
    rows, batch_sizes = _time_steps(cu_seqlens, frames.device)
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    if not len(batch_sizes):
        # Adding 0 * parameter keeps every parameter in the graph: DistributedDataParallel waits for all of them.
        anchor = sum((weight.sum() for weight in weights), frames[:0].sum())
        return frames.new_zeros(frames.shape[0], weight_hh.shape[1]) + 0 * anchor
    state = frames.new_zeros(1, int(batch_sizes[0]), weight_hh.shape[1])
    hidden, _, _ = torch.lstm(
        frames[rows],
        batch_sizes,
        (state, state),
        weights,
        True,  # biases
        1,  # layers
        0.0,  # dropout
        torch.is_grad_enabled(),
        False,  # bidirectional
    )
    return hidden.new_zeros(frames.shape[0], hidden.shape[1]).index_copy(0, rows, hidden)


def _time_steps(cu_seqlens: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows in the order of a PackedSequence: step by step, within a step the longest sequence first.

    Returns:
        rows (F,) on ``device``, and batch_sizes (steps,) on the host: how many sequences are alive.
    """
    cu_seqlens = cu_seqlens.cpu().long()
    ordered, order = cu_seqlens.diff().sort(descending=True, stable=True)
    step = torch.arange(int(ordered[0]))[:, None]
    alive = step < ordered
    rows = (cu_seqlens[:-1][order] + step)[alive]
    if device.type == "cuda":
        rows = rows.pin_memory()  # or the copy would wait for the device
    return rows.to(device, non_blocking=True), alive.sum(dim=1)


# One opaque operator, with its own backward: inside an operator autograd does not run. What it saves is ordered as in a
# PackedSequence, so that a time step is a slice.


@torch.library.custom_op("cmsbert_fast::lstm", mutates_args=())
def _lstm_op(
    frames: Tensor,
    cu_seqlens: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    products: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states (F, d); for the backward, in the order of time: hidden states as W_hh was multiplied with them (F,
    d, made even where they are rounded), the activated gates i, f, g, o (F, 4d) and the cells c (F, d).

    ``products``: of :func:`cmsbert_fast.ops.lstm.cpu.product_dtype`.
    """
    rows, batch_sizes = _time_steps(cu_seqlens, frames.device)
    size = weight_hh.shape[1]
    gates, hidden, cells = (frames.new_zeros(frames.shape[0], columns) for columns in (4 * size, size, size))
    torch.addmm(bias_ih + bias_hh, frames[rows], weight_ih.T, out=gates[: len(rows)])
    operand = hidden
    if products is None:
        _recur(batch_sizes, weight_hh, gates, hidden, cells)
    elif products == torch.bfloat16:
        operand = _rounded(hidden)
        lstm_cpu.forward(batch_sizes, weight_hh, gates, hidden, cells, operand)
    else:
        lstm_cpu.forward(batch_sizes, weight_hh, gates, hidden, cells)
    in_order = torch.zeros_like(hidden).index_copy_(0, rows, hidden[: len(rows)])
    return in_order, operand, gates, cells


def _rounded(hidden: Tensor) -> Tensor:
    """Zeros for the rounded hidden states: of even size, because they are multiplied two and two."""
    rows, size = hidden.shape
    return hidden.new_zeros(rows, size + size % 2, dtype=torch.bfloat16)


def _recur(batch_sizes: Tensor, weight_hh: Tensor, gates: Tensor, hidden: Tensor, cells: Tensor) -> None:
    """As :func:`cmsbert_fast.ops.lstm.cpu.forward`, for any dtype and device."""
    size = weight_hh.shape[1]
    h = c = None
    begin = 0
    for alive in batch_sizes.tolist():
        step = slice(begin, begin + alive)
        z = gates[step]
        if h is not None:
            z.addmm_(h[:alive], weight_hh.T)
        z[:, : 2 * size].sigmoid_()
        z[:, 2 * size : 3 * size].tanh_()
        z[:, 3 * size :].sigmoid_()
        i, f, g, o = z.chunk(4, dim=1)
        new = torch.mul(i, g, out=cells[step])
        c = new if c is None else new.addcmul_(f, c[:alive])
        h = torch.mul(o, c.tanh(), out=hidden[step])
        begin += alive


@_lstm_op.register_fake
def _(
    frames: Tensor,
    cu_seqlens: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    products: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, size = frames.shape[0], weight_hh.shape[1]
    hidden, gates, cells = (frames.new_empty(rows, columns) for columns in (size, 4 * size, size))
    operand = _rounded(hidden) if products == torch.bfloat16 else torch.empty_like(hidden)
    return hidden, operand, gates, cells


@torch.library.custom_op("cmsbert_fast::lstm_backward", mutates_args=())
def _lstm_backward_op(
    grad: Tensor,
    frames: Tensor,
    cu_seqlens: Tensor,
    weight_hh: Tensor,
    hidden: Tensor,
    gates: Tensor,
    cells: Tensor,
    products: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the gates before activation (F, 4d), 0 at rows of no sequence, and of both weights."""
    rows, batch_sizes = _time_steps(cu_seqlens, grad.device)
    if products is None:
        grad_gates = operand = _recur_back(batch_sizes, weight_hh, gates, cells, grad[rows])
    else:
        grad_gates, operand = lstm_cpu.backward(batch_sizes, weight_hh, gates, cells, grad[rows], products)
    sizes = batch_sizes.tolist()
    begins = (batch_sizes.cumsum(0) - batch_sizes).tolist()
    before = [torch.arange(begin, begin + alive) for begin, alive in zip(begins, sizes[1:], strict=False)]
    if before:
        product = operand[sizes[0] :].T @ hidden[torch.cat(before)]
        grad_hh = product[:, : weight_hh.shape[1]].to(weight_hh.dtype)
    else:
        grad_hh = torch.zeros_like(weight_hh)
    grad_ih = grad_gates.T @ frames[rows]  # rows of no sequence may hold NaN
    return torch.zeros_like(gates).index_copy_(0, rows, grad_gates), grad_ih, grad_hh


def _recur_back(batch_sizes: Tensor, weight_hh: Tensor, gates: Tensor, cells: Tensor, d_hidden: Tensor) -> Tensor:
    """The gradients that :func:`cmsbert_fast.ops.lstm.cpu.backward` computes, for any dtype and device."""
    sizes = batch_sizes.tolist()
    begins = (batch_sizes.cumsum(0) - batch_sizes).tolist()
    grad_gates = gates.new_empty(len(d_hidden), gates.shape[1])
    grad_h = grad_c = None
    for t in range(len(sizes) - 1, -1, -1):
        step = slice(begins[t], begins[t] + sizes[t])
        i, f, g, o = gates[step].chunk(4, dim=1)
        d_i, d_f, d_g, d_o = grad_gates[step].chunk(4, dim=1)
        tanh_c = cells[step].tanh()
        d_h = d_hidden[step]
        if grad_h is not None:  # sequences that end at this step have no gradient from later ones
            d_h[: len(grad_h)] += grad_h
        d_c = torch.addcmul(d_h * o, d_h * o, tanh_c * tanh_c, value=-1)
        if grad_c is not None:
            d_c[: len(grad_c)] += grad_c
        torch.mul(d_h * tanh_c, o - o * o, out=d_o)
        torch.mul(d_c * g, i - i * i, out=d_i)
        torch.mul(d_c * i, 1 - g * g, out=d_g)
        if t:
            torch.mul(d_c * cells[begins[t - 1] : begins[t - 1] + sizes[t]], f - f * f, out=d_f)
            grad_h, grad_c = grad_gates[step] @ weight_hh, d_c * f
        else:
            d_f.zero_()
    return grad_gates


@_lstm_backward_op.register_fake
def _(
    grad: Tensor,
    frames: Tensor,
    cu_seqlens: Tensor,
    weight_hh: Tensor,
    hidden: Tensor,
    gates: Tensor,
    cells: Tensor,
    products: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(gates), gates.new_empty(gates.shape[1], frames.shape[1]), torch.empty_like(weight_hh)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    frames, cu_seqlens, weight_ih, weight_hh, _, _, ctx.products = inputs
    ctx.save_for_backward(frames, cu_seqlens, weight_ih, weight_hh, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    frames, cu_seqlens, weight_ih, weight_hh, hidden, gates, cells = ctx.saved_tensors
    with torch.autocast(grad.device.type, enabled=False):
        grad_gates, grad_ih, grad_hh = torch.ops.cmsbert_fast.lstm_backward(
            grad, frames, cu_seqlens, weight_hh, hidden, gates, cells, ctx.products
        )
        bias = grad_gates.sum(dim=0)
        grad_frames = grad_gates @ weight_ih if ctx.needs_input_grad[0] else None
    return grad_frames, None, grad_ih, grad_hh, bias, bias.clone(), None


_lstm_op.register_autograd(_backward, setup_context=_save_for_backward)
