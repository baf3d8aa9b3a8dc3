"""The "cpu" engine of the pairwise contrastive loss: plain PyTorch's, on the products of compiled C++."""

from torch import Tensor

from cmsbert_fast.kernels.cpu.product import matrix_product
from cmsbert_fast.ops.contrastive.torch import TorchEngine

ROWS = 4096  # of a product that is added to another, and has memory of its own


class CpuEngine(TorchEngine):
    """See :class:`cmsbert_fast.ops.contrastive.engine.Engine`; float32."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return matrix_product(a, b, a.dtype, a.new_empty(len(a), len(b)))

    def add_product(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        for to, rows in zip(total.split(ROWS), a.split(ROWS), strict=True):
            to += matrix_product(rows, b.T, a.dtype, to.new_empty(to.shape))
