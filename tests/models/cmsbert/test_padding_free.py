"""From the packed batch to the loss nothing is computed on padding, forward or backward."""

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertConfig
from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.packing import cumulative

TOKENS, VISUAL, ACOUSTIC = [5, 2, 11], [4, 1, 7], [13, 0, 3]


class Shapes(TorchDispatchMode):
    """Remembers the shape of everything that is computed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen |= {tuple(x.shape) for x in tree_leaves(result) if isinstance(x, torch.Tensor)}
        return result


def padded_shapes(seen):
    """Those that begin with (batch, longest), or with as many rows as a padded batch, flattened, has."""
    batch = len(TOKENS)
    longest = {max(TOKENS), max(VISUAL), max(ACOUSTIC)}
    flat = {batch * n for n in longest}
    return sorted(s for s in seen if (s[:1] and s[0] in flat) or (len(s) > 1 and s[0] == batch and s[1] in longest))


def computed(backend):
    """Shapes of a training step's forward and backward pass."""
    torch.manual_seed(0)
    config = CMSBertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        visual_size=5, acoustic_size=9, backend=backend,
    )  # fmt: skip
    model = CMSBertCLRForSequenceClassification(config).train()
    inputs = dict(input_ids=torch.randint(50, (1, sum(TOKENS))), labels=torch.tensor([0.5, -1.0, 2.0]))
    inputs |= dict(cu_seq_lens_q=cumulative(torch.tensor(TOKENS)), max_length_q=max(TOKENS))
    for name, lengths, size in (("visual", VISUAL, 5), ("acoustic", ACOUSTIC, 9)):
        inputs[name] = torch.randn(sum(lengths), size)
        inputs |= {f"cu_seq_lens_{name}": cumulative(torch.tensor(lengths)), f"max_length_{name}": max(lengths)}
    with Shapes() as shapes:
        model(**inputs).loss.backward()
    assert (sum(TOKENS), 8) in shapes.seen
    return shapes.seen


@pytest.mark.parametrize(
    "backend",
    [
        "torch",
        pytest.param("cpu", marks=pytest.mark.skipif(library.why_not() is not None, reason="no compiler")),
        pytest.param(
            "triton", marks=pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="interprets kernels")
        ),
    ],
)
def test_nothing_is_computed_on_padding(backend):
    assert padded_shapes(computed(backend)) == []


def test_the_reference_pads_and_is_found():
    assert (len(TOKENS), max(TOKENS), 8) in padded_shapes(computed("reference"))
