"""What CMS attention and its backends take, by name."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from cmsbert_fast.kernels.cpu.attention_call import ACTIVATIONS as ACTIVATIONS
from cmsbert_fast.packing import Packing


class ModalityShift(NamedTuple):
    """What one modality (the face, the voice) contributes to :func:`cms_attention` (Eq. 1-4).

    The gate's input product is split, ``W_g [X_i; V_j] + b = p_i + r_j``, so that it costs O(N + N_m), not O(N N_m).
    Shapes are those of the packed form; those of the padded form stand in brackets.

    Attributes:
        token_gate: p_i = w_x . X_i, (T,) [(B, N)].
        frame_gate: r_j = w_f . V_j + b, (F,) [(B, N_m)].
        frames: V, (F, d_m) [(B, N_m, d_m)].
        weight: W_m, (H * d_h, d_m).
        cu_seqlens: (B + 1,) int32, where each sequence's frames lie; packed form only.
        max_length: The most frames of a sequence, or any larger number; packed form only.
        mask: (B, N_m) bool, True = valid, any pattern; padded form only. None = all valid.
    """

    token_gate: Tensor
    frame_gate: Tensor
    frames: Tensor
    weight: Tensor
    cu_seqlens: Tensor | None = None
    max_length: int | None = None
    mask: Tensor | None = None

    @property
    def packing(self) -> Packing:
        """Where the frames of each sequence lie (packed form)."""
        assert self.cu_seqlens is not None
        assert self.max_length is not None
        return Packing(self.cu_seqlens, self.max_length)


class Call(NamedTuple):
    """A call of :func:`cms_attention`, cast and checked: the argument of every backend. Shapes are that function's.

    Attributes:
        packing: Where the sequences lie; None for the padded form.
        attention_mask: Padded form only; None = all valid.
        scale: Factor of the scores.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    visual: ModalityShift | None
    acoustic: ModalityShift | None
    packing: Packing | None
    attention_mask: Tensor | None
    activation: str
    scale: float
    dropout_p: float


def group(flat: Sequence[Any], modality: type[tuple]) -> tuple[Any, ...]:
    """The flat arguments of a registered operator with those of each modality in one tuple.

    Args:
        flat: query, key, value, the fields of the visual modality, those of the acoustic one, others; or whatever lies
            in their places: what needs a gradient, or gradients.
        modality: A NamedTuple with the fields of a modality.

    Returns:
        query, key, value, visual, acoustic, others.
    """
    query, key, value, *rest = flat
    size = len(modality._fields)  # type: ignore[attr-defined]  # mypy has no type for NamedTuple classes
    return query, key, value, modality(*rest[:size]), modality(*rest[size : 2 * size]), *rest[2 * size :]


def flatten(grouped: Iterable[Any]) -> list[Any]:
    """Undoes :func:`group`."""
    flat: list[Any] = []
    for part in grouped:
        if isinstance(part, tuple):
            flat += part
        else:
            flat.append(part)
    return flat
