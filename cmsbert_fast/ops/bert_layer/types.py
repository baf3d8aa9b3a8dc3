"""What a layer of BERT takes, by name."""

from typing import Any, NamedTuple


class Dense(NamedTuple):
    """x W^T + b: W (d_out, d_in), b (d_out,)."""

    weight: Any
    bias: Any


class Norm(NamedTuple):
    """LayerNorm."""

    weight: Any
    bias: Any
    epsilon: float


class Parameters(NamedTuple):
    """Weights of a layer."""

    query: Dense
    key: Dense
    value: Dense
    attention_output: Dense
    intermediate: Dense
    output: Dense
    attention_norm: Norm
    output_norm: Norm

    @property
    def dense(self) -> tuple[Dense, ...]:
        return self.query, self.key, self.value, self.attention_output, self.intermediate, self.output

    @property
    def norms(self) -> tuple[Norm, Norm]:
        return self.attention_norm, self.output_norm


class Shift(NamedTuple):
    """What a modality gives to a layer (Eq. 1-4). None in every place: it is absent.

    Attributes:
        gate: W_g (1, D + d_m) and b (1,).
        weight: W_v or W_a, (D, d_m).
        frames: (F, d_m).
        cu_seqlens: (B + 1,) int32, of the frames.
    """

    gate: Dense = Dense(None, None)
    weight: Any = None
    frames: Any = None
    cu_seqlens: Any = None

    @property
    def tensors(self) -> tuple[Any, ...]:
        return (*self.gate, self.weight, self.frames, self.cu_seqlens)
