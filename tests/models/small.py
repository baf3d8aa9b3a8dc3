"""Models small enough for tests, and the packed form of the batch that the tests share."""

import torch

from cmsbert_fast import CMSBertConfig
from cmsbert_fast.models.registry import BASELINES, VARIANTS

SMALL = dict(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=40,
)
# The variants of the paper; what each baseline does is in tests/models/baselines.
OURS = [name for name in VARIANTS if name not in BASELINES]
SIZES = dict(visual_size=5, acoustic_size=3)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def config(**changes):
    return CMSBertConfig(**(SMALL | SIZES | NO_DROPOUT | changes))


def lively(model):
    """Larger weights than the initial ones, so that gates and shifts matter to the result; float64, eval."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.double().eval()


def packed(batch):
    """The same batch as Hugging Face's padding-free convention has it."""
    inputs = {}
    tokens = batch["attention_mask"].bool()
    inputs["input_ids"] = batch["input_ids"][tokens][None]
    inputs["position_ids"] = torch.arange(tokens.shape[1]).expand_as(tokens)[tokens][None]
    for name, mask in (
        ("q", tokens),
        ("visual", batch["visual_mask"].bool()),
        ("acoustic", batch["acoustic_mask"].bool()),
    ):
        lengths = mask.sum(1)
        inputs[f"cu_seq_lens_{name}"] = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        inputs[f"max_length_{name}"] = int(lengths.max())
        if name != "q":
            inputs[name] = batch[name][mask]
    return inputs | dict(cu_seq_lens_k=inputs["cu_seq_lens_q"], max_length_k=inputs["max_length_q"])


def in_float32(inputs):
    """A batch with its floating tensors in float32."""
    return {name: x.float() if torch.is_tensor(x) and x.is_floating_point() else x for name, x in inputs.items()}


class Wrapped(torch.nn.Module):
    """A linear layer as an adapter wraps it: it adds 1 to the output."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.weight, self.bias = base_layer, base_layer.weight, base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + 1
