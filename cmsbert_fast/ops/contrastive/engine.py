"""What computes the contrastive loss: the functions that every engine has."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from cmsbert_fast.ops.contrastive.types import Block, Call, Numbers, Saved

EPSILON = 1e-12  # torch.nn.functional.normalize's


class Engine(ABC):
    """Works on a rectangle: the rows of one :class:`Block` against the columns of another.

    One process has one block and one square; under data parallelism every rank has its own rows and meets the columns
    of all.

    With s_ij = <a_i, b_j>/tau (a, b normalised) and targets t (Eq. 23), both directions of a pair together are
    ``mean_i [lse_j s_ij + lse_j s_ji - sum_j (t_ij + t_ji) s_ij]`` and have the gradient ``G_ij/n`` with respect to
    s_ij, where ``G_ij = exp(s_ij - rowlse_i) + exp(s_ij - collse_j) - (t_ij + t_ji)``.
    """

    @abstractmethod
    def inverse_norms(self, embeddings: Sequence[Tensor]) -> Tensor:
        """Returns (M, n): 1 / max(|z|, EPSILON) in the accumulation dtype."""

    @abstractmethod
    def count_related(self, labels: Tensor, columns: Tensor, reach: float) -> Tensor:
        """How many of ``columns`` are related to each of ``labels`` (Eq. 23), a label itself included: (n,), int64.

        Args:
            reach: see :attr:`Numbers.reach`; not used for classes.
        """

    @abstractmethod
    def statistics(self, rows: Block, columns: Block, numbers: Numbers) -> tuple[Tensor, Tensor, Tensor]:
        """Log-sum-exps over one rectangle, every similarity computed once.

        Args:
            rows, columns: blocks of n_r and n_c rows, 0 or more.

        Returns:
            row_lse: (P, n_r), of the directions a -> b with a < b, over these columns.
            column_lse: (P, n_c), of the directions b -> a, over these rows.
            attraction: 0-dim, the sum of (t_ij + t_ji) s_ij over pairs and the rectangle.
        """

    @abstractmethod
    def gradients(self, rows: Block, columns: Block, numbers: Numbers) -> tuple[list[Tensor], Tensor]:
        """Gradient of n tau * loss with respect to the normalised rows, as far as these columns contribute to it.

        Args:
            rows, columns: with their global ``lse``.

        Returns:
            raw: M tensors (n_r, d) in the accumulation dtype, sum_b sum_j G_ij b_j.
            radial: (M, n_r), <normalised row, raw>.
        """

    def make_block(self, embeddings: Sequence[Tensor], labels: Tensor | None, numbers: Numbers) -> Block:
        """The block of a process that holds the whole batch."""
        inverse_norm = self.inverse_norms(embeddings)
        return Block(tuple(embeddings), labels, inverse_norm, self.target_weights(labels, numbers, inverse_norm[0]))

    def target_weights(self, labels: Tensor | None, numbers: Numbers, like: Tensor) -> Tensor:
        """:attr:`Block.weight` of a process that holds the whole batch, (n,) as ``like``."""
        if labels is None or labels.numel() == 0:
            return torch.zeros_like(like)
        return target_weight(self.count_related(labels, labels, numbers.reach) - 1, numbers.smoothing, like.dtype)

    def forward(self, call: Call) -> tuple[Tensor, Saved]:
        """The loss of one process, 0-dim, and what :meth:`backward` needs."""
        numbers = call.numbers
        block = self.make_block(call.embeddings, call.labels, numbers)
        row_lse, column_lse, attraction = self.statistics(block, block, numbers)
        lse = torch.cat([row_lse, column_lse])
        return (lse.sum() - attraction) / max(call.rows, 1), Saved(lse, block.inverse_norm, block.weight)

    def backward(self, call: Call, saved: Saved, grad: Tensor) -> tuple[list[Tensor], Tensor]:
        """Gradients of one process: the embeddings', in their dtype, and the temperature's, 0-dim.

        Args:
            grad: the loss's gradient, 0-dim.
        """
        numbers = call.numbers
        block = block_of(call, saved)
        raw, radial = self.gradients(block, block, numbers)
        scale = grad / (max(call.rows, 1) * numbers.temperature)
        gradients = finish(block, raw, radial, scale, call.embeddings[0].dtype)
        return gradients, temperature_gradient(scale, numbers.temperature, radial)


def block_of(call: Call, saved: Saved) -> Block:
    """The block of a process that holds the whole batch, in its backward pass."""
    return Block(tuple(call.embeddings), call.labels, saved.inverse_norm, saved.weight, saved.lse)


def target_weight(count: Tensor, smoothing: float, dtype: torch.dtype) -> Tensor:
    """(1 - beta) / |S_i| from |S_i|; 0 where S_i is empty."""
    return ((1.0 - smoothing) / count.clamp_min(1).to(dtype)).masked_fill_(count <= 0, 0.0)


def temperature_gradient(scale: Tensor, temperature: Tensor, radial: Tensor) -> Tensor:
    """The temperature's gradient, 0-dim, from the factor of the rows' gradients and all of :meth:`Engine.gradients`'
    ``radial``."""
    return -0.5 * scale / temperature * radial.sum()


def finish(block: Block, raw: list[Tensor], radial: Tensor, scale: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """``scale`` times ``raw`` through z / max(|z|, EPSILON): the embeddings' gradients. Overwrites ``raw``."""
    out = []
    for z, inverse, grad, along in zip(block.embeddings, block.inverse_norm, raw, radial, strict=True):
        # A clamped norm is a constant: nothing flows through it.
        along = torch.where(inverse < 0.9999 / EPSILON, along * inverse, 0.0)
        for start in range(0, z.shape[0], 8192):
            chunk = slice(start, start + 8192)
            grad[chunk].addcmul_(z[chunk].to(grad.dtype), along[chunk, None], value=-1)
        out.append(grad.mul_((scale * inverse)[:, None]).to(dtype))
    return out
