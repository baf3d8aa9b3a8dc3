"""The gradient of a large embedding, of which a step fills only the rows of its words.

PyTorch's backward pass allocates and clears one for all words, 94 MB for BERT-base, to fill some hundred rows. With
``sparse=True`` it gives these rows and their indices instead. Here they are added to a dense gradient that is kept from
step to step, and the next step clears the rows that this one filled.
"""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

LEAST_ROWS = 4096  # below, clearing all takes no longer than finding those of the words
# The norm sums by columns, as many at a time as a vector holds: in such widths rows of zeros change no bit of it.
COLUMNS = 64


def large_embeddings(model: nn.Module) -> list[nn.Embedding]:
    """Large trained embeddings on a CPU, for :class:`EmbeddingGradient`; of several with one weight, the first."""
    found: dict[Tensor, nn.Embedding] = {}
    for module in model.modules():
        if type(module) is not nn.Embedding or module.sparse or module.scale_grad_by_freq:
            continue
        weight = module.weight
        large = weight.shape[0] >= LEAST_ROWS and weight.shape[1] % COLUMNS == 0
        if large and weight.requires_grad and weight.device.type == "cpu":
            found.setdefault(weight, module)
    return list(found.values())


class EmbeddingGradient:
    """Adds the rows of a step's backward passes to ``weight.grad``: a dense gradient, the same bits as PyTorch's.

    PyTorch's own operator sums each backward pass, so that additions keep their order. Where the weight is used in
    other ways too, as by a tied output layer, autograd makes a dense sum: then all rows count as filled.

    Attributes:
        weight: The embedding's.
        filled: After :meth:`end`: a tensor whose ``grad`` holds the filled rows (a copy), or the weight itself.
    """

    def __init__(self, module: nn.Embedding):
        self.weight = self.filled = module.weight
        self._module = module
        self._kept: Tensor | None = None
        self._rows: Tensor | None = None  # that the last step filled; None = any
        self._passes: list[Tensor] = []  # the rows of each backward pass
        self._dense = False  # whether one of them had a dense gradient
        self._hook: RemovableHandle | None = None

    def clear(self) -> None:
        """Makes ``weight.grad`` the kept gradient, all 0."""
        if self._kept is None:
            self._kept = torch.zeros_like(self.weight)
        elif self._rows is None:
            self._kept.zero_()
        else:
            self._kept.index_fill_(0, self._rows, 0)
        self.weight.grad = self._kept

    def begin(self) -> None:
        """Before a step's first forward pass. ``weight.grad`` is dense: that of :meth:`clear`, or another."""
        self._rows, self._passes, self._dense = None, [], False
        if self._hook is not None:  # the last step did not come to its end
            self._hook.remove()
        self._module.sparse = True
        self._hook = self.weight.register_hook(self._sum)

    def end(self) -> None:
        """After a step's last backward pass: the embedding is as it was before."""
        self._module.sparse = False
        assert self._hook is not None
        self._hook.remove()
        self._hook = None
        self.filled = self.weight
        if self._kept is not None and self.weight.grad is self._kept and not self._dense:
            self._rows = torch.cat([torch.empty(0, dtype=torch.int64), *self._passes]).unique()
            rows = self._kept.index_select(0, self._rows)
            self.filled = rows.detach()
            self.filled.grad = rows

    def write(self) -> None:
        """Puts changed numbers of ``filled.grad`` into ``weight.grad``."""
        if self._kept is not None and self._rows is not None and self.filled.grad is not None:
            self._kept.index_copy_(0, self._rows, self.filled.grad)

    def _sum(self, gradient: Tensor) -> Tensor | None:
        """The hook: sums the rows of each word in a backward pass. Adding them to ``weight.grad`` is autograd's."""
        if not gradient.is_sparse:
            self._dense = True
            return None
        rows, place = gradient._indices()[0].unique(return_inverse=True)
        self._passes.append(rows)
        sums = torch.ops.aten.embedding_dense_backward(gradient._values(), place, len(rows), -1, False)
        return torch.sparse_coo_tensor(rows[None], sums, gradient.shape, is_coalesced=True, check_invariants=False)
