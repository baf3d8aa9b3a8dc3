"""Input batches, padded or packed, and the packed form that the models compute with.

Packed inputs follow Hugging Face's padding-free convention: all utterances in one row of (1, T) tokens, delimited by
``cu_seq_lens``. Frames are packed the same way, (F, d_m).
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmsbert_fast.packing import (
    Packing,
    pack_mask,
    positions,
    take_rows,
    uniform_packing,
    valid_positions,
    without_rest,
)

# Arguments of BERT that Hugging Face's tools pass to every model, and why there is nothing to pass here.
_ABSENT = {
    "output_attentions": "a fused kernel never holds the probabilities; output_shift_maps=True returns the gates of "
    "Eq. 1 and 2",
    "output_hidden_states": "this returns a row an utterance; the forward of CMSBERT and CMSBERT-CLR has them",
    "past_key_values": "an encoder keeps nothing from call to call",
    "use_cache": "an encoder keeps nothing from call to call",
}


class FrameInputs(NamedTuple):
    """Input frames of one modality: padded (B, N_m, d_m), or packed (F, d_m) with lengths."""

    values: Tensor | None = None
    mask: Tensor | None = None
    cu_seq_lens: Tensor | None = None
    max_length: int | None = None


class Inputs(NamedTuple):
    """An input batch; see :meth:`~cmsbert_fast.models.cmsbert.modeling_cmsbert.CMSBertModel.forward` for the fields."""

    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None
    visual: Tensor | None = None
    acoustic: Tensor | None = None
    visual_mask: Tensor | None = None
    acoustic_mask: Tensor | None = None
    position_ids: Tensor | None = None
    inputs_embeds: Tensor | None = None
    cu_seq_lens_q: Tensor | None = None
    cu_seq_lens_k: Tensor | None = None
    max_length_q: int | None = None
    max_length_k: int | None = None
    seq_idx: Tensor | None = None
    cu_seq_lens_visual: Tensor | None = None
    max_length_visual: int | None = None
    cu_seq_lens_acoustic: Tensor | None = None
    max_length_acoustic: int | None = None

    @property
    def tokens(self) -> Tensor:
        """``input_ids``, or ``inputs_embeds`` if given instead."""
        tokens = self.input_ids if self.input_ids is not None else self.inputs_embeds
        assert tokens is not None
        return tokens

    @property
    def visual_frames(self) -> FrameInputs:
        return FrameInputs(self.visual, self.visual_mask, self.cu_seq_lens_visual, self.max_length_visual)

    @property
    def acoustic_frames(self) -> FrameInputs:
        return FrameInputs(self.acoustic, self.acoustic_mask, self.cu_seq_lens_acoustic, self.max_length_acoustic)


class Frames(NamedTuple):
    """Packed frames of one modality.

    Attributes:
        values: (F, d_m); 0 at rows of no utterance.
        packing: Which rows belong to which utterance; with host lengths if the caller gave them on the CPU.
    """

    values: Tensor
    packing: Packing


class Batch(NamedTuple):
    """What self-attention needs besides the hidden states: the frames, and the layout of tokens and frames.

    Attributes:
        packing: Which of the T token rows belong to which utterance.
        full: Whether all utterances have the same length and all frames are valid, so no packing is needed.
        visual, acoustic: Frames; None if the model lacks the modality.
    """

    packing: Packing
    full: bool
    visual: Frames | None
    acoustic: Frames | None

    @property
    def is_padded(self) -> bool:
        """Whether the rows are those of a padded batch: a full one, or one of torch.export."""
        return self.full or self.packing.is_padded

    def mask_of(self, packing: Packing) -> Tensor | None:
        """(B, n) bool, the valid rows of a padded batch's tokens or frames; None = all."""
        return None if self.full else valid_positions(packing)

    def by_utterance(self, rows: Tensor) -> Tensor:
        """Token or frame rows of a padded batch, (B * n, ...) -> (B, n, ...)."""
        size = self.packing.cu_seqlens.shape[0] - 1
        return rows.unflatten(0, (size, rows.shape[0] // size))


class Tokens(NamedTuple):
    """The text of a batch, packed.

    Attributes:
        embeddings: Arguments of BertEmbeddings, (1, T).
        packing: Which rows belong to which utterance.
        rows: (T,), each row's flat position in the padded batch; None = all positions, or the input was packed.
        padded_shape: (B, N) of a padded input; None = the input was packed.
    """

    embeddings: dict[str, Tensor | None]
    packing: Packing
    rows: Tensor | None = None
    padded_shape: torch.Size | None = None


class PackedInputs(NamedTuple):
    """A batch in packed form."""

    tokens: Tokens
    batch: Batch

    def restore(self, packed: Tensor) -> Tensor:
        """(1, T, D) -> the form of the input: (B, N, D), 0 at padding, or (1, T, D)."""
        _, packing, rows, padded_shape = self.tokens
        if padded_shape is None:
            return packed
        if rows is None:
            return packed[0].unflatten(0, padded_shape)
        values = without_rest(packed[0], packing)
        flat = values.new_zeros(padded_shape.numel(), values.shape[-1])
        return flat.index_copy(0, rows, values).unflatten(0, padded_shape)


def known_inputs(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The inputs of a model among what a caller gave; arguments of BERT's that ask for nothing are left out.

    Args:
        given: Arguments by name.
        known: The names that the model reads.

    Raises:
        TypeError: A name is unknown.
        ValueError: One asks for what no model here has.
    """
    for name, value in given.items():
        if name in _ABSENT and value:
            raise ValueError(f"{name} is not available: {_ABSENT[name]}.")
        if name not in known and name not in _ABSENT:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}."
            raise TypeError(f"The model has no argument {name!r}; {advice}")
    return {name: value for name, value in given.items() if name in known}


def pack(
    inputs: Inputs, *, visual_size: int, acoustic_size: int, max_positions: int, dtype: torch.dtype
) -> PackedInputs:
    """Converts a batch to packed form.

    Args:
        inputs: Padded or packed.
        visual_size, acoustic_size: d_m of the model; 0 = no such modality.
        max_positions: Number of positions of the model.
        dtype: Dtype of the model; frames are converted to it.

    Raises:
        ValueError: A shape or a combination of arguments is invalid; the message says which.
    """
    _check_tokens(inputs)
    inputs = _with_lengths(inputs)
    tokens = _packed_tokens(inputs) if inputs.cu_seq_lens_q is not None else _padded_tokens(inputs, max_positions)
    if inputs.inputs_embeds is not None:
        embeds = tokens.embeddings["inputs_embeds"]
        assert embeds is not None
        tokens.embeddings["inputs_embeds"] = without_rest(embeds[0], tokens.packing)[None]
    size = tokens.packing.cu_seqlens.shape[0] - 1
    device = inputs.tokens.device
    visual = _pack_frames("visual", inputs.visual_frames, visual_size, size, dtype, device)
    acoustic = _pack_frames("acoustic", inputs.acoustic_frames, acoustic_size, size, dtype, device)
    full = (
        tokens.padded_shape is not None
        and inputs.attention_mask is None
        and all(values is None or values.dim() == 3 for values in (inputs.visual, inputs.acoustic))
        and inputs.visual_mask is None
        and inputs.acoustic_mask is None
    )
    return PackedInputs(tokens, Batch(tokens.packing, full, visual, acoustic))


def _check_tokens(inputs: Inputs) -> None:
    if (inputs.input_ids is None) == (inputs.inputs_embeds is None):
        raise ValueError("Give either input_ids or inputs_embeds.")
    tokens = inputs.tokens
    axes, dims = ("(B, N)", 2) if inputs.inputs_embeds is None else ("(B, N, D)", 3)
    if tokens.dim() != dims:
        raise ValueError(
            f"{_name(inputs)} has shape {tuple(tokens.shape)}; give {axes}, or a single row of packed utterances."
        )
    if inputs.token_type_ids is not None:
        _check_shape("token_type_ids", inputs.token_type_ids, tokens.shape[:2])
    for_all_rows = (tokens.shape[1:2], (1, tokens.shape[1]))
    if inputs.position_ids is not None and inputs.position_ids.shape not in for_all_rows:
        _check_shape("position_ids", inputs.position_ids, tokens.shape[:2])


def _with_lengths(inputs: Inputs) -> Inputs:
    """Adds ``cu_seq_lens_q`` if only ``position_ids`` show that a single row is packed."""
    if inputs.cu_seq_lens_q is not None:
        return inputs
    if inputs.position_ids is None:
        if inputs.cu_seq_lens_k is not None or inputs.seq_idx is not None:
            raise ValueError("A packed batch needs cu_seq_lens_q; cu_seq_lens_k or seq_idx alone is not enough.")
    elif inputs.attention_mask is None and inputs.tokens.shape[0] == 1:
        cu_seqlens, max_length = _restarts(inputs.position_ids)
        return inputs._replace(cu_seq_lens_q=cu_seqlens, max_length_q=max_length)
    return inputs


def _packed_tokens(inputs: Inputs) -> Tokens:
    if inputs.attention_mask is not None:
        raise ValueError("attention_mask is for padded batches; leave it out with cu_seq_lens_q.")
    cu_seqlens, max_length = inputs.cu_seq_lens_q, inputs.max_length_q
    if cu_seqlens is None or max_length is None or inputs.tokens.shape[0] != 1:
        raise ValueError("A packed batch needs input_ids of shape (1, T) and max_length_q, besides cu_seq_lens_q.")
    if inputs.cu_seq_lens_k is not None and _differ(inputs.cu_seq_lens_k, cu_seqlens):
        raise ValueError("cu_seq_lens_k differs from cu_seq_lens_q; self-attention needs them equal.")
    packing = Packing(cu_seqlens, max_length)
    if inputs.position_ids is None:
        inputs = inputs._replace(position_ids=positions(packing, inputs.tokens.shape[1])[None])
    return Tokens(_embeddings(inputs), packing)


def _padded_tokens(inputs: Inputs, max_positions: int) -> Tokens:
    shape, rows = inputs.tokens.shape[:2], None
    if inputs.attention_mask is None:
        packing = uniform_packing(shape[0], shape[1], inputs.tokens.device)
    else:
        _check_shape("attention_mask", inputs.attention_mask, shape)
        rows, packing = pack_mask(inputs.attention_mask)
    position_ids = inputs.position_ids
    if position_ids is None:
        if not torch.compiler.is_compiling() and inputs.attention_mask is None and shape[1] > max_positions:
            raise ValueError(
                f"{_name(inputs)} has rows of {shape[1]} pieces, but the model has {max_positions} positions "
                "(max_position_embeddings); truncate them."
            )
        position_ids = torch.arange(shape[1], device=inputs.tokens.device)
    padded = _embeddings(inputs._replace(position_ids=position_ids.expand(shape)))
    embeddings = {name: None if tensor is None else take_rows(tensor, rows)[None] for name, tensor in padded.items()}
    return Tokens(embeddings, packing, rows, shape)


def _embeddings(inputs: Inputs) -> dict[str, Tensor | None]:
    """The arguments of BertEmbeddings."""
    return {
        "input_ids": inputs.input_ids,
        "token_type_ids": inputs.token_type_ids,
        "position_ids": inputs.position_ids,
        "inputs_embeds": inputs.inputs_embeds,
    }


@torch.compiler.disable(
    reason="position_ids alone do not say how many utterances a batch has: give cu_seq_lens_q and max_length_q too."
)
def _restarts(position_ids: Tensor) -> tuple[Tensor | None, int | None]:
    """cu_seq_lens_q and max_length_q of a row whose positions restart at 0 for every utterance; None for one utterance.

    Hugging Face's DataCollatorWithFlattening gives only positions by default. Reading them waits for the device and
    breaks the graph of torch.compile.
    """
    starts = (position_ids.flatten() == 0).nonzero()[:, 0]
    if len(starts) < 2 or starts[0] != 0:
        return None, None
    cu_seqlens = torch.cat([starts, starts.new_tensor([position_ids.numel()])]).int()
    return cu_seqlens, int(cu_seqlens.diff().max())


def _pack_frames(
    name: str, given: FrameInputs, size: int, batch_size: int, dtype: torch.dtype, device: torch.device
) -> Frames | None:
    """The frames of modality ``name`` with ``size`` features; None if the model lacks it."""
    if given.values is None:
        if not size:
            return None
        # Not None: DistributedDataParallel needs the parameters of an absent modality in the graph.
        given = FrameInputs(torch.zeros(batch_size, 0, size, device=device))
    assert given.values is not None
    _check_frames(name, given, size)
    values = given.values.to(dtype)
    if given.cu_seq_lens is not None and given.max_length is not None:
        on_host = given.cu_seq_lens if given.cu_seq_lens.device.type == "cpu" else None
        cu_seqlens = given.cu_seq_lens.to(values.device, non_blocking=True)
        packing = Packing(cu_seqlens, given.max_length, on_host)
    elif given.mask is None:
        packing = uniform_packing(values.shape[0], values.shape[1], values.device)
        values = values.flatten(0, 1)
    else:
        rows, packing = pack_mask(given.mask)
        values = take_rows(values, rows)
    if packing.cu_seqlens.shape[0] - 1 != batch_size:
        raise ValueError(
            f"{name} has {packing.cu_seqlens.shape[0] - 1} utterances but the tokens have {batch_size}; give one each."
        )
    return Frames(without_rest(values, packing), packing)


def _check_frames(name: str, given: FrameInputs, size: int) -> None:
    values = given.values
    assert values is not None
    if values.dim() not in (2, 3):
        raise ValueError(f"{name} has shape {tuple(values.shape)}; give padded (B, N, {size}) or packed (F, {size}).")
    if values.shape[-1] != size:
        raise ValueError(
            f"{name} has frames of size {values.shape[-1]}, but the model has {name}_size={size}; "
            "give the features it was trained on, or build a model for these."
        )
    if values.dim() == 3:
        if given.cu_seq_lens is not None:
            raise ValueError(
                f"cu_seq_lens_{name} is for packed {name} of shape (F, {size}), but {name} has shape "
                f"{tuple(values.shape)}; leave one out."
            )
        if given.mask is not None:
            _check_shape(f"{name}_mask", given.mask, values.shape[:2])
    elif given.cu_seq_lens is None or given.max_length is None:
        raise ValueError(
            f"Packed {name} of shape (F, {size}) needs cu_seq_lens_{name} and max_length_{name}; "
            f"padded {name} has shape (B, N, {size})."
        )
    elif given.mask is not None:
        raise ValueError(f"{name}_mask is for padded {name}; leave it out with cu_seq_lens_{name}.")


def _check_shape(name: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {tuple(shape)}.")


def _differ(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ. Values on a GPU or while tracing are not compared: reading them would wait."""
    if a is b or a.shape != b.shape:
        return a is not b
    comparable = a.device.type == b.device.type == "cpu" and not torch.compiler.is_compiling()
    return comparable and not torch.equal(a, b)


def _name(inputs: Inputs) -> str:
    return "input_ids" if inputs.inputs_embeds is None else "inputs_embeds"
