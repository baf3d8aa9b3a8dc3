"""What layers of BERT take, by name."""

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


class Shift(NamedTuple):
    """Weights of a modality in a layer (Eq. 1-4), all None where the layer has no shift or the modality is absent.

    Attributes:
        gate: W_g (1, D + d_m) and b (1,).
        weight: W_v or W_a, (D, d_m).
    """

    gate: Dense = Dense(None, None)
    weight: Any = None


class Layer(NamedTuple):
    """Weights of a layer."""

    query: Dense
    key: Dense
    value: Dense
    attention_output: Dense
    intermediate: Dense
    output: Dense
    attention_norm: Norm
    output_norm: Norm
    visual: Shift = Shift()
    acoustic: Shift = Shift()

    @property
    def dense(self) -> tuple[Dense, ...]:
        return self.query, self.key, self.value, self.attention_output, self.intermediate, self.output

    @property
    def norms(self) -> tuple[Norm, Norm]:
        return self.attention_norm, self.output_norm

    @property
    def shifts(self) -> tuple[Shift, Shift]:
        return self.visual, self.acoustic

    @property
    def tensors(self) -> list[Any]:
        """Its :data:`TENSORS` tensors, in the order of the fields."""
        tensors = [tensor for dense in self.dense for tensor in dense]
        tensors += [tensor for norm in self.norms for tensor in (norm.weight, norm.bias)]
        return tensors + [tensor for shift in self.shifts for tensor in (*shift.gate, shift.weight)]


TENSORS = 6 * 2 + 2 * 2 + 2 * 3  # of a layer


class Stream(NamedTuple):
    """A modality's frames; None in both places: it is absent.

    Attributes:
        frames: (F, d_m).
        cu_seqlens: (B + 1,) int32, of the frames.
    """

    frames: Any = None
    cu_seqlens: Any = None
