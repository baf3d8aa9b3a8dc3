"""An operator whose gradients are its public function's gives none by itself, and says so."""

import importlib
import re

import pytest
import torch

from cmsbert_fast.ops.attention import cpu as attention_cpu  # noqa: F401  # registers
from cmsbert_fast.ops.bert_layers import cpu as bert_layers_cpu  # noqa: F401
from cmsbert_fast.ops.bias_gelu import triton as bias_gelu_triton  # noqa: F401
from cmsbert_fast.ops.linear import cpu as linear_cpu  # noqa: F401
from cmsbert_fast.ops.residual_norm import triton as residual_norm_triton  # noqa: F401

ROWS, VECTOR = torch.ones(3, 8), torch.ones(8)
NOTHING = (None,) * 5
CALLS = {
    "linear": (ROWS, ROWS, None, torch.float32),
    "cms_attention_cpu_forward": (
        *[torch.ones(3, 1, 8)] * 3, *NOTHING, *NOTHING, torch.tensor([0, 3], dtype=torch.int32), None, "relu", 1.0, 0.0,
        True,
    ),
    "bert_layers": (
        ROWS, [None] * 6 + [torch.ones(8, 8), VECTOR] * 6 + [VECTOR] * 4, [0.1] * 2, None, None, None, None,
        torch.tensor([0, 3], dtype=torch.int32), 2, "relu", torch.float32,
    ),
    "bias_gelu_forward": (ROWS, VECTOR),
    "residual_norm_forward": (ROWS, ROWS, VECTOR, VECTOR, VECTOR, None, 1e-12, 0.0, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_no_gradient_is_lost_in_silence(name: str) -> None:
    operator = getattr(torch.ops.cmsbert_fast, name)
    for i, x in enumerate(CALLS[name]):
        last = x[-1] if isinstance(x, list) else x
        if not isinstance(last, torch.Tensor) or not last.is_floating_point():
            continue
        asking = list(CALLS[name])
        last = last.clone().requires_grad_()
        asking[i] = [*x[:-1], last] if isinstance(x, list) else last
        with pytest.raises(RuntimeError, match=f"^{name} is not differentiable by itself; call ") as caught:
            operator(*asking)
        module, _, function = re.search(r"call ([\w.]+),", str(caught.value))[1].rpartition(".")
        assert callable(getattr(importlib.import_module(module), function))
