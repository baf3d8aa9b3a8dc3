"""The "cpu" engine of the pairwise contrastive loss: plain PyTorch's, on the products of compiled C++."""

from torch import Tensor

from cmsbert_fast.kernels.cpu.product import matrix_product
from cmsbert_fast.ops.contrastive.torch import TorchEngine


class CpuEngine(TorchEngine):
    """See :class:`cmsbert_fast.ops.contrastive.engine.Engine`; float32."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return matrix_product(a, b, a.dtype, a.new_empty(len(a), len(b)))

    def add_product(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        total += matrix_product(a, b.T, a.dtype, total.new_empty(total.shape))
