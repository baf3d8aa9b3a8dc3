"""Layers that several systems share, and their initialisation."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from cmsbert_fast.models.adapters import is_watched
from cmsbert_fast.ops.linear.api import Linear, Options, linear, use_fast_linear
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


class FusionLayer(nn.TransformerEncoderLayer):
    """One post-norm layer of a Transformer over a few tokens, (B, M, d) -> (B, M, d); PyTorch's, batch first.

    Its parts are called one by one: PyTorch's forward reads the weights of its linear layers, whatever adapter wraps
    them, and multiplies them by PyTorch's products.
    """

    def __init__(self, size: int, heads: int, inner_size: int, dropout: float, options: Options):
        super().__init__(size, heads, inner_size, dropout, batch_first=True)
        self.options = options
        use_fast_linear(self, options)

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        if type(self.self_attn) is nn.MultiheadAttention and not is_watched(self.self_attn):
            attended = self._attend(tokens)
        else:
            attended = self.self_attn(tokens, tokens, tokens, need_weights=False)[0]
        tokens = self.norm1(tokens + self.dropout1(attended))
        return self.norm2(tokens + self._ff_block(tokens))

    def _attend(self, tokens: Tensor) -> Tensor:
        """The self-attention, in PyTorch's order of memory, (M, B, d), which the masks of dropout follow."""
        layer = self.self_attn
        heads = linear(tokens.transpose(0, 1), layer.in_proj_weight, layer.in_proj_bias, self.options.backend)
        query, key, value = heads.unflatten(-1, (3, layer.num_heads, -1)).permute(2, 1, 3, 0, 4).unbind()
        z = F.scaled_dot_product_attention(query, key, value, dropout_p=layer.dropout if self.training else 0.0)
        return layer.out_proj(z.permute(2, 0, 1, 3).flatten(2)).transpose(0, 1)


class Fusion(nn.Module):
    """The modalities' z_m^(1) as tokens of one Transformer layer, flattened, then the predictor (Eq. 14-16).

    Args:
        num_modalities: Number of tokens.
        size: d, size of a token.
        num_labels: Number of outputs.
        heads: Heads of the Transformer layer; they share d.
        dropout: Dropout probability in the Transformer layer.
        options: As of :class:`FusionLayer`.
    """

    def __init__(self, num_modalities: int, size: int, num_labels: int, heads: int, dropout: float, options: Options):
        super().__init__()
        self.transformer = FusionLayer(size, heads, 4 * size, dropout, options)
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
