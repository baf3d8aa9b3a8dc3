"""Fused CMS attention in Triton: Eq. 1-7 of the paper, forward and backward. Tensors in, tensors out.

For each sequence (N tokens, N_m frames of size d_m) and head (d_h = D / H)::

    m_i = 1/N_m sum_j act(p_i + r_j) x_j         the mean frame: the sum over frames has d_m dimensions, not D
    a_i = W_v m^v_i + W_a m^a_i                  the shift, the same for q, k and v
    z   = softmax((q + a)(k + a)^T scale) (v + a)

and backward, with dq, dk, dv from attention::

    da   = dq + dk + dv
    dW   = da^T m                                one matrix product over all tokens, left to the caller
    dm   = W^T da                                summed over all heads
    u_ij = act'(p_i + r_j) <dm_i, x_j> / N_m
    dp_i = sum_j u_ij      dr_j = sum_i u_ij      dx_j = 1/N_m sum_i act(p_i + r_j) dm_i

There are no floating-point atomics: every sum lies within one program, in a fixed order.

Launches, by the longest sequence of a call:

* short (64 tokens, 16-bit, a modality; ``short.py``). Forward is one launch; a program serves one sequence and HEADS
  heads in single tiles, of 16, 32 or 64 rows as the sequence needs. Backward is two: attention for (sequence, heads),
  which recomputes a and the probabilities, then the gates for (sequence, modality), where one program sees all tokens
  and all frames. Only m is kept.
* medium (128 tokens; float32 and plain attention up to there; ``tiled.py``). Forward is one launch over several tiles.
  Each program writes a for its own heads, passes a barrier and reads it back. Backward is that of long sequences.
* long (anything else: 4,096 tokens, 16,384 frames, frame size 768 and more; ``tiled.py``, ``attention.py``,
  ``gates.py``). Forward is two launches: m and a for tiles of tokens, then attention, which adds a to every tile of q,
  k and v it loads. Backward: queries, keys, and for each modality tokens and frames. m, a and the log-sum-exp are
  kept: O(N D).

Where the caller allows it (``call.varlen``), PyTorch's varlen attention serves the forward pass above 64 tokens,
packed, in 16 bits and without dropout: m by a kernel, a by one product, q + a, k + a and v + a, attention. Backward is
the same (``launch.py``).

16-bit frames and weights whose rows are no multiple of 16 long are first copied into rows that are, where that pays:
one launch more each way (``aligned.py``).

Packed and padded batches share the source: a sequence is a first row and a length, from ``cu`` or from the shape. A
position counts if it lies within the sequence and its mask, if there is one, says so. All programs zero an equal share
of the rows beyond ``cu[-1]``.

A program that reads back what its other threads wrote passes a barrier first; why that suffices on NVIDIA and CDNA, and
not on RDNA: ``docs/kernels/cms_attention.md``.

Cost for B = 128, N = N_v = N_a = 50, H = 12, d_h = 64, d_v = 47, d_a = 74 in bfloat16; computed, not measured, at 4.0
TB/s and 800 TFLOP/s, taken as attainable on an H200; traffic without re-reads, operations of whole tiles:

========  =======  ============  ===============
pass      bytes    operations    bound by
========  =======  ============  ===============
forward   42.8 MB  5.2 GFLOP     memory: 10.7 us
backward  103 MB   10.3 GFLOP    memory: 26 us
========  =======  ============  ===============

What these consist of, and the alternatives weighed: ``docs/kernels/cms_attention.md``.
"""

from cmsbert_fast.kernels.cms_attention.call import (
    MAX_HEAD_SIZE,
    Call,
    Gradients,
    Modality,
    Saved,
    empty_gradients,
    empty_outputs,
    mean_width,
)
from cmsbert_fast.kernels.cms_attention.launch import backward, forward

__all__ = [
    "MAX_HEAD_SIZE",
    "Call",
    "Gradients",
    "Modality",
    "Saved",
    "backward",
    "empty_gradients",
    "empty_outputs",
    "forward",
    "mean_width",
]
