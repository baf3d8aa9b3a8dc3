"""One-layer LSTM over packed sequences (Eq. 11), without padding and without graph breaks.

On a GPU cuDNN runs it, whose float32 products are TF32 by PyTorch's default (``torch.backends.cudnn.allow_tf32``).
Elsewhere, and under torch.compile, an operator of the project does: ATen's LSTM adds to the
weights' gradients at every time step, which moves more bytes than all else it does.

Under autocast to bfloat16 the compiled recurrence rounds W_hh, and what it multiplies, to bfloat16; gates, cells, sums
and hidden states stay float32, and W_hh's gradient is a product in bfloat16 as every weight's. The others keep the
parameters' dtype.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends.cudnn.rnn import get_cudnn_mode

from cmsbert_fast.ops.dispatch import choose_backend
from cmsbert_fast.ops.lstm import cpu
from cmsbert_fast.ops.lstm.operator import lstm
from cmsbert_fast.ops.lstm.padded import padded_lstm
from cmsbert_fast.ops.lstm.torch import cudnn_lstm, padded_cudnn_lstm
from cmsbert_fast.packing import Packing


class PackedLSTM(nn.Module):
    """h_m = LSTM(frames), each sequence from a zero state (Eq. 11).

    Parameters are named and laid out as torch.nn.LSTM's, a module at which torch.compile breaks the graph. They hold
    nothing until a model initialises them (:func:`cmsbert_fast.models.layers.init_as_torch`) or a checkpoint is loaded.

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

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "PackedLSTM":
        """Moves or casts the parameters, and makes them one piece of memory on a GPU, as torch.nn.LSTM does.

        Of loose ones cuDNN's LSTM makes a copy in every call, and PyTorch warns.
        """
        super()._apply(fn, recurse)
        weights: list[Tensor] = [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]
        if all(torch.backends.cudnn.is_acceptable(weight) for weight in weights):
            # Weights a layer, input size, mode, hidden size, projection (none), layers, batch first, both directions.
            shape = (4, self.input_size, get_cudnn_mode("LSTM"), self.hidden_size, 0, 1, True, False)
            with torch.cuda.device_of(weights[0]), torch.no_grad():
                torch._cudnn_rnn_flatten_weight(weights, *shape)
        return self

    def forward(self, frames: Tensor, packing: Packing, backend: str = "auto") -> Tensor:
        """Frames (F, d_m) -> (F, d) in the parameters' dtype; 0 at rows of no sequence.

        The time steps are laid out on the CPU. Without ``packing.host_cu_seqlens`` a GPU takes ``packing.max_length``
        steps of every sequence instead, so that nothing waits for it.
        ``backend``: see :mod:`cmsbert_fast.ops.dispatch`; only "auto" and "cpu" run compiled C++.
        """
        frames = frames.to(self.weight_ih_l0.dtype)
        cu_seqlens = packing.cu_seqlens if packing.host_cu_seqlens is None else packing.host_cu_seqlens
        weights = (self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0)
        if packing.is_padded:
            return padded_lstm(frames, packing, *weights)[0]
        products = cpu.product_dtype() if choose_backend("lstm", frames, backend) == "cpu" else None
        with torch.autocast(frames.device.type, enabled=False):
            if frames.is_cuda and not torch.compiler.is_compiling():
                if cu_seqlens.is_cuda:
                    return padded_cudnn_lstm(frames, packing, *weights)
                return cudnn_lstm(frames, cu_seqlens, *weights)
            return lstm(frames, cu_seqlens, *weights, products=products)
