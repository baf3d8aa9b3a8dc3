"""Fused CMS attention in Triton: Eq. 1-7 of the paper, forward and backward. Tensors in, tensors out.

What is computed, per sequence (N tokens, N_m frames of size d_m) and head (d_h = D / H)::

    m_i = 1/N_m sum_j act(p_i + r_j) x_j         the mean frame: the sum over frames runs in d_m dimensions, not in D
    a_i = W_v m^v_i + W_a m^a_i                  the shift, the same for q, k and v
    z   = softmax((q + a)(k + a)^T scale) (v + a)

and backward, with dq, dk, dv from attention: ``da = dq + dk + dv``; ``dW = da^T m`` (one matrix product over all
tokens, left to the caller); ``dm = W^T da``, summed over all heads; ``u_ij = act'(p_i + r_j) <dm_i, x_j> / N_m``;
``dp_i = sum_j u_ij``; ``dr_j = sum_i u_ij``; ``dx_j = 1/N_m sum_i act(p_i + r_j) dm_i``. No floating-point atomics:
every sum lies within one program, in a fixed order.

Launches. By the longest sequence a call is

* short (64 tokens, 16-bit, a modality): forward is one launch, a program serving one sequence and HEADS heads in
  single tiles. Backward is two: attention for (sequence, heads), recomputing a and the probabilities, then the gates
  for (sequence, modality), where one program sees all tokens and all frames. Neither z nor the log-sum-exp is kept;
  only m is.
* medium (128 tokens; float32 and plain attention up to there): forward is one launch over several tiles. The shift
  goes through memory: each program writes a for its own heads, passes a barrier and reads it back. Backward as for
  long ones.
* long (anything else; 4,096 tokens, 16,384 frames, frame size 768 and more): forward is two launches, m and a for
  tiles of tokens, then attention that adds a to every tile of q, k and v it loads. Backward: queries, keys, and for
  each modality tokens and frames. m, a and the log-sum-exp are kept: O(N D).

Packed and padded batches share the source: a sequence is a first row and a length, from ``cu`` or from the shape, and
a position counts if it lies within and its mask, if there is one, says so. Rows beyond ``cu[-1]`` are zeroed in equal
shares by all programs. Offsets of rows, heads and sequences are 64-bit, within a tile's row 32-bit.

Where a program reads back from memory what its other threads wrote, a barrier lies between. On NVIDIA it orders global
memory among them, as PTX's ``bar.sync`` does; on AMD too, by fences of workgroup scope (which for AMD
``tests/kernels/test_aot.py`` reads) and because CDNA runs a workgroup on one compute unit. RDNA is refused.

Cost, computed for B = 128, N = N_v = N_a = 50, H = 12, d_h = 64, d_v = 47, d_a = 74, bfloat16, at 4.0 TB/s and 800
TFLOP/s, taken as attainable on an H200 (nominally 4.8 TB/s and 989 TFLOP/s, dense); memory traffic without re-reads:

========  ==================================================================  =======  ============  ==========
pass      what moves                                                          bytes    operations    bound by
========  ==================================================================  =======  ============  ==========
forward   q, k, v 29.5 MB; z 9.8; frames 1.5; m 1.6; weights and gates 0.3    42.8 MB  5.2 GFLOP     memory:
          (in 64-wide tiles: attention and shift 4.0 GFLOP, m 1.2)                                   10.7 us
backward  q, k, v, dz 39.3; dq, dk, dv, da 39.3; m 3.3; da again for the      103 MB   10.3 GFLOP    memory:
          gates 9.8 and for dW 9.8 (mostly still in cache); frames 1.5                               26 us
========  ==================================================================  =======  ============  ==========

Operations are those of whole tiles: 2.3 times the true ones forward. In packed form with MOSI's 15 tokens on average
the traffic falls to about a third while a tile stays a tile: short sequences are then bound by operations, not by
memory.

Alternatives weighed, by the same arithmetic:

* The augmented product ``[X, m] [W_QKV; W_shift x 3]`` before any fast attention: attention moves the same 39 MB, but
  m needs its own launches (gates, two batched products, in padded form), concatenating [X, m] moves 23 MB more, and
  the QKV product grows by 3.8 GFLOP. It is the best plain PyTorch can do, and the rival that the benchmark measures.
* The shift computed once a layer and added on load: 20 MB more forward (a written and read once: 15.6 us instead of
  10.7), no recomputation. This is what long sequences do, because there each key tile's shift would be recomputed by
  every query tile: (d_v + d_a) / (2 BLOCK_M) times the work of attention itself.
* Recomputed for each group of heads: m costs 1.6 MFLOP a program, so HEADS = 2 spends 1.2 GFLOP (1.5 us) on it and
  keeps 768 programs for some 130 multiprocessors. HEADS = 12 would spend 0.2 GFLOP, but leave a program per sequence:
  fewer programs than multiprocessors. Chosen for short sequences.
* One 128-row tile for 65 to 128 tokens: ahead-of-time compiles spilled 344 bytes a thread forward and 1,152 backward
  (sm_90, float16, 8 warps), several tiles none.
* True float32 in the tiles of 16-bit numbers: 7,088 bytes spilled (sm_80, 8 warps), 128 with the products summed in
  parts of 16 (:func:`_dot`), none with 32-row tiles on top.

The figures of time are computed, not measured. Tiles, warps and heads a program come from
``cms_attention_table.json``; its rows were chosen by registers and spills of ahead-of-time compiles.
``tune_cms_attention.py`` chooses by time on a device.
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
