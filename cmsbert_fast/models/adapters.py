"""What adapters (PEFT's LoRA) and quantised weights (torchao) need of the models.

A linear layer that these libraries wrapped computes something else than its ``weight`` says. Where a product is
rearranged and needs the weight itself, it is read off the layer's outputs.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cmsbert_fast.ops.linear.api import Linear


def is_plain(layer: nn.Module) -> bool:
    """Whether a linear layer is nothing but its weight and bias: it has the forward of its class, and a weight that is
    no tensor of another library's class."""
    own = type(layer).forward in (nn.Linear.forward, Linear.forward)
    return own and not hasattr(layer.weight, "__tensor_flatten__")


def is_watched(module: nn.Module) -> bool:
    """Whether a module has hooks, a compiled call, or a forward of its own instance, as Accelerate's hooks give it."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    attributes = vars(module)
    return bool(hooks) or "forward" in attributes or "_compiled_call_impl" in attributes


def weight_and_bias(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """W (d_out, d_in) and b (d_out,) of a linear layer, wrapped or not, differentiable in all that it computes with.

    A wrapped layer is called with the rows of the identity, and with zeros for b. An adapter's dropout then drops
    features for the whole batch.

    Args:
        layer: Maps (n, d_in) to x W^T + b.
        like: A tensor with the dtype and device of the layer's input.
    """
    if is_plain(layer):
        return layer.weight, layer.bias  # type: ignore[return-value]
    size: int = layer.in_features  # type: ignore[assignment]
    identity = torch.eye(size + 1, size, dtype=like.dtype, device=like.device)
    rows = layer(identity)
    return (rows[:-1] - rows[-1]).T, rows[-1]


def require_input_gradients(model: PreTrainedModel) -> None:
    """Hugging Face's ``enable_input_require_grads``, with a hook that can be pickled."""
    hook = model.get_input_embeddings().register_forward_hook(_require_gradient)
    model._require_grads_hook, model._require_grads_hooks = hook, [hook]


def _require_gradient(module: nn.Module, inputs: tuple, output: Tensor) -> None:
    output.requires_grad_(True)
