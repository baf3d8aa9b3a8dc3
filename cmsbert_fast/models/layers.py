"""Layers that several systems share, and their initialisation."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from cmsbert_fast.ops.linear.api import Linear
from cmsbert_fast.ops.lstm.api import PackedLSTM


class HeadLinear(Linear):
    """A linear layer initialised like torch.nn.Linear, not like BERT's.

    BERT's zero biases would project an utterance without frames to the zero vector, which has no direction, so the
    gradient of the contrastive loss would not exist.
    """


class Projector(nn.Module):
    """q_m: Linear - ReLU - Linear (Eq. 10, 13)."""

    def __init__(self, input_size: int, size: int):
        super().__init__()
        self.dense = HeadLinear(input_size, size)
        self.out_proj = HeadLinear(size, size)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """u_m (B, d_m) -> z_m^(1), the output of the ReLU, and z_m, both (B, d)."""
        middle = torch.relu(self.dense(pooled))
        return middle, self.out_proj(middle)


class Fusion(nn.Module):
    """The modalities' z_m^(1) as tokens of one Transformer layer, flattened, then the predictor (Eq. 14-16).

    Args:
        num_modalities: Number of tokens.
        size: d, size of a token.
        num_labels: Number of outputs.
        heads: Heads of the Transformer layer; they share d.
        dropout: Dropout probability in the Transformer layer.
    """

    def __init__(self, num_modalities: int, size: int, num_labels: int, heads: int, dropout: float):
        super().__init__()
        self.transformer = nn.TransformerEncoderLayer(
            size, heads, dim_feedforward=4 * size, dropout=dropout, batch_first=True
        )
        self.dense = HeadLinear(num_modalities * size, size)
        self.out_proj = HeadLinear(size, num_labels)

    def forward(self, middles: list[Tensor]) -> Tensor:
        """z_m^(1), each (B, d) -> y hat, (B, num_labels)."""
        fused = self.transformer(torch.stack(middles, dim=1)).flatten(1)
        return self.out_proj(torch.relu(self.dense(fused)))


@torch.no_grad()
def init_as_torch(module: nn.Module) -> None:
    """Initialises :class:`HeadLinear` and PackedLSTM like torch.nn.Linear and torch.nn.LSTM; leaves others alone.

    For a model's ``_init_weights``, after Hugging Face's own, which treats them like BERT's layers.
    """
    if isinstance(module, HeadLinear):
        init.kaiming_uniform_(module.weight, a=5**0.5)
        init.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5)
    elif isinstance(module, PackedLSTM):
        bound = module.hidden_size**-0.5
        for parameter in module.parameters():
            init.uniform_(parameter, -bound, bound)
