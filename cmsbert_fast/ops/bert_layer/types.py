"""What a layer of BERT takes, by name."""

from typing import Any, NamedTuple


class Parameters(NamedTuple):
    """Weights of a layer.

    Attributes:
        dense: Weight and bias of query, key, value, of attention's output, and of the feed-forward part's two layers.
        norms: Weight and bias of the two norms.
        epsilons: Of the two norms.
    """

    dense: list[Any]
    norms: list[Any]
    epsilons: list[float]


class Shift(NamedTuple):
    """What a modality gives to a layer (Eq. 1-4). None in every place: it is absent.

    Attributes:
        gate_weight, gate_bias: W_g (1, D + d_m) and b (1,).
        weight: W_v or W_a, (D, d_m).
        frames: (F, d_m).
        cu_seqlens: (B + 1,) int32, of the frames.
    """

    gate_weight: Any = None
    gate_bias: Any = None
    weight: Any = None
    frames: Any = None
    cu_seqlens: Any = None
