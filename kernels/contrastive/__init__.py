"""The pairwise contrastive loss (Eq. 17-19, 23) in Triton: NVIDIA (sm_80 and later) and AMD (CDNA) from one source.

Kernels work on a rectangle of similarities, rows against columns (:mod:`.call`): in one process a square, under data
parallelism the own rows against everybody's. :mod:`.statistics` is the forward pass, :mod:`.gradients` the backward
pass; both have the equations and launch plan. :mod:`.preparation` makes norms and counts of related labels.

Cost, with three modalities: 15 passes of n^2 d multiply-adds, 3 forward (one similarity tile a pair serves both of its
directions) and 12 backward (two recomputations and two products a pair). d = 768, bfloat16, H100 (989 TFLOP/s, 3.35
TB/s): at least 23 us * (n / 1000)^2 for the operations, 4 us * (n / 1000) for reading embeddings twice and writing
gradients. Memory beyond these is O(n); but one process sorts more than 1,024 labelled rows by label, and either pass
then holds a copy of the embeddings. See ``docs/kernels/contrastive.md``.
"""
