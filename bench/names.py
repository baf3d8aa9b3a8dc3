"""Names of suites, cases and contenders that the suites record and the report looks up.

The files in ``bench/results`` hold them too: whoever renames one renames it there, or measures again.
"""

# ------------------------------------------------------------------ suites, in the order of the page

ATTENTION = "CMS attention"
CONTRASTIVE = "Contrastive loss"
STEP = "Training step"
INFERENCE = "Inference"
DATA = "Data to batch"
SCALING = "Scaling"
SUITES = [ATTENTION, CONTRASTIVE, STEP, INFERENCE, DATA, SCALING]

# ------------------------------------------------------------------ contenders

OURS = "ours"
OURS_CLR = "ours: cmsbert-clr"
NOBODY_ELSE = "ours, nobody else on the cores"
OURS_BFLOAT16 = "ours in bfloat16"
OURS_FLOAT32 = "ours in float32"
F_LINEAR = "with F.linear's products"
OURS_PROJECTIONS = "ours: projections, then the operator"
CLR, CMS, BERT, MAG = "cmsbert-clr", "cmsbert", "bert", "mag-bert"  # the variants, all of them this project's code

TORCH = "torch backend"
TORCH_PADDED = "torch backend, padded"
LEAN = "lean PyTorch, padded"
BUCKETED = "lean PyTorch, in 4 buckets of similar length"
LEAN_COMPILED = "torch.compile of it, padded"
LITERAL_PADDED = "literal reference, padded"
VARLEN = "lean PyTorch, packed, varlen attention"  # on GPUs in 16 bits only
AUGMENTED = "augmented product + SDPA in buckets"
AUGMENTED_VARLEN = "augmented product + varlen attention"
AUGMENTED_COMPILED = "torch.compile of it"
MODEL_PADDED = "torch backend, padded to 50"
MAG_BERT = "MAG-BERT's way: padded to 50, eager"
TEXT_BERT = "Hugging Face BERT, text only, padded to the longest"
ONNXRUNTIME = "onnxruntime BERT, text only, padded to the longest"
OPENVINO = "OpenVINO BERT, text only, padded to the longest"
OPENVINO_BFLOAT16 = "OpenVINO BERT in bfloat16, text only, padded to the longest"
OPEN_CLIP = "open_clip's algorithm, 3 pairs"
GROUPS = 4  # by length, that a runtime's batch is cut into
RUNTIMES = (ONNXRUNTIME, OPENVINO, OPENVINO_BFLOAT16)
SAME_PACKED, SAME_TO_50, SAME_TO_THE_LONGEST = (  # as ours: the same weights
    f"the same on the torch backend, {form}" for form in ("packed", "padded to 50", "padded to the longest")
)
SAME_COMPILED = "torch.compile of it, padded to the longest"
LITERAL = "the literal reference"


def in_groups(contender: str, groups: int) -> str:
    """The contender on utterances sorted by length, in groups that are each padded to their own longest."""
    return f"{contender} of {groups} groups by length"


def is_compiled(contender: str) -> bool:
    """Whether torch.compile makes it."""
    return "torch.compile" in contender


def is_ours(contender: str) -> bool:
    """Whether the contender is this project's."""
    return contender.startswith(OURS)


# ------------------------------------------------------------------ cases

BATCH, PAPER_BATCH = 32, 128  # of a step
STEP_CASE, PAPER_STEP_CASE = (f"cmsbert-clr, MOSI lengths, batch {n}" for n in (BATCH, PAPER_BATCH))
VARIANTS, PAPER_VARIANTS = (
    f"what the variants cost, all packed, MOSI lengths, batch {n}" for n in (BATCH, PAPER_BATCH)
)
RANDOM_BATCHES = f"cmsbert-clr in bfloat16, random batches of MOSI lengths, batch {BATCH}"
STEP_GROWTH = "cmsbert-clr, BERT-base shape, batch 16 to 128"
BUSY_PROCESSES = 2  # of one thread each
BUSY = f"{BUSY_PROCESSES} other processes on the same cores, cmsbert-clr, MOSI lengths, batch {BATCH}"
ATTENTION_GROWTH = "forward + backward, MOSI lengths"


def systems_case(trains_bert: bool, batch: int) -> str:
    """The systems that train BERT, or those of frozen BERT or word vectors."""
    kind = "train BERT" if trains_bert else "read frozen text"
    return f"systems that {kind} against cmsbert-clr, all packed, MOSI lengths, batch {batch}"


def inference_case(batch: int) -> str:
    """Of so many utterances of MOSI's lengths, or one of their mean length."""
    return "one utterance of 15 word pieces" if batch == 1 else f"MOSI lengths, batch {batch}"


def attention_case(kind: str | int, batch: int, backward: bool) -> str:
    """``kind`` is "mosi" or the one length of all sequences."""
    lengths = "MOSI lengths" if kind == "mosi" else f"length {kind}"
    return f"{lengths}, batch {batch}, {'forward + backward' if backward else 'forward'}"


def with_projections(case: str) -> str:
    """An attention case that begins at the hidden states."""
    return f"projections and attention, {case}"


def by_kernel(case: str) -> str:
    """The case, timed kernel by kernel (:mod:`bench.gpu`)."""
    return f"{case}, by kernel"


def by_varlen(case: str) -> str:
    """The case with PyTorch's varlen attention inside our operator (:mod:`bench.gpu`)."""
    return f"{case}, backend varlen"


def as_graphs(case: str) -> str:
    """The case replayed as CUDA graphs."""
    return f"{case}, replayed as CUDA graphs"


def contrastive_case(n: int, size: int, smoothed: bool) -> str:
    """``n`` rows of ``size`` features."""
    return f"n = {n}, d = {size}, targets {'smoothed' if smoothed else 'one-hot'}"
