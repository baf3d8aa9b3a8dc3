"""CMSBERT (Eq. 1-9) and CMSBERT-CLR (Fig. 2b, Eq. 1-20), in Hugging Face form.

The encoder is BERT's own layers with another self-attention. Inputs are padded or packed; inside, nothing is computed
on padding: padded batches are packed on the way in and padded again on the way out. Exceptions: attention of the
"reference" backend, and of "torch" on a GPU; and a padded batch under torch.compile, whose shapes may not depend on
data.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers import initialization as init
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPreTrainedModel
from transformers.utils import ModelOutput

from cmsbert_fast.data.example import MODALITIES
from cmsbert_fast.models.cmsbert.configuration_cmsbert import FUSION_HEADS, CMSBertConfig
from cmsbert_fast.models.losses import task_loss, total_loss
from cmsbert_fast.ops.attention.api import cms_attention
from cmsbert_fast.ops.attention.torch import ACTIVATIONS
from cmsbert_fast.ops.attention.types import ModalityShift
from cmsbert_fast.ops.contrastive.api import pairwise_contrastive_loss
from cmsbert_fast.ops.dropout.api import Dropout, use_cheap_dropout
from cmsbert_fast.ops.lstm.api import PackedLSTM
from cmsbert_fast.packing import (
    Packing,
    pack_mask,
    pad,
    segment_mean,
    sequence_of_row,
    uniform_packing,
    valid_positions,
)


class Frames(NamedTuple):
    """The frames of one modality of a batch, packed.

    Attributes:
        values: (F, d_m).
        packing: Which rows belong to which utterance.
        host_cu_seqlens: ``packing.cu_seqlens`` on the CPU, where the caller had it there.
    """

    values: Tensor
    packing: Packing
    host_cu_seqlens: Tensor | None = None


class Batch(NamedTuple):
    """What every layer's self-attention needs besides the hidden states: where tokens and frames lie.

    Attributes:
        packing: Which of the T token rows belong to which utterance.
        full: Whether all utterances have the same length and all frames are valid, so that no packing is needed.
        visual, acoustic: Frames; None where the model has no such modality.
    """

    packing: Packing
    full: bool
    visual: Frames | None
    acoustic: Frames | None


class PackedInputs(NamedTuple):
    """A batch in packed form.

    Attributes:
        embeddings: Arguments of BertEmbeddings, (1, T).
        batch: Where tokens and frames lie.
        rows: (T,), the flat position in the padded batch of each row; None = every position, or the input was packed.
        padded_shape: (B, N) of a padded input; None = the input was packed.
    """

    embeddings: dict[str, Tensor | None]
    batch: Batch
    rows: Tensor | None
    padded_shape: torch.Size | None

    def restore(self, packed: Tensor) -> Tensor:
        """(1, T, D) in the form the input had: (B, N, D), 0 at padding, or (1, T, D)."""
        if self.padded_shape is None:
            return packed
        if self.rows is None:
            return packed[0].unflatten(0, self.padded_shape)
        rows = torch.arange(packed.shape[1], device=packed.device)
        values = packed[0].masked_fill((rows >= self.batch.packing.cu_seqlens[-1])[:, None], 0)
        flat = values.new_zeros(self.padded_shape.numel(), values.shape[-1])
        return flat.index_copy(0, self.rows, values).unflatten(0, self.padded_shape)


@dataclass
class CMSBertOutput(ModelOutput):
    """Output of :class:`CMSBertModel`.

    Attributes:
        last_hidden_state: h_l of Eq. 8, (B, N, D), 0 at padding; (1, T, D) for packed input.
        hidden_states: With ``output_hidden_states``: the embeddings and every layer's output, each like the last.
        shift_maps: With ``output_shift_maps``: for every layer that shifts, the gates (g^v (B, N, N_v), g^a (B, N,
            N_a)) of Eq. 1 and 2, 0 at padding, None for a modality that is absent. Fig. 1 draws them.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    shift_maps: tuple[tuple[Tensor | None, Tensor | None], ...] | None = None


@dataclass
class CMSBertClassifierOutput(ModelOutput):
    """Output of the models with a head.

    Attributes:
        loss: Scalar, with ``labels``: l_task, or l_task + nu l_con (Eq. 20) for CMSBERT-CLR.
        logits: y hat, (B, num_labels).
        task_loss: l_task.
        contrastive_loss: l_con (Eq. 19); CMSBERT-CLR only.
        linguistic_embeds, visual_embeds, acoustic_embeds: z_m, (B, d), not normalised; CMSBERT-CLR only, None for a
            modality the model does not have.
        hidden_states, shift_maps: As in :class:`CMSBertOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    task_loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    linguistic_embeds: Tensor | None = None
    visual_embeds: Tensor | None = None
    acoustic_embeds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    shift_maps: tuple[tuple[Tensor | None, Tensor | None], ...] | None = None


class CMSBertSelfAttention(nn.Module):
    """BERT's self-attention with q, k and v shifted by the whole utterance's face and voice (Eq. 1-7).

    A modality of size 0, or a layer outside ``config.cms_layers``, has no gate and no shift.
    """

    def __init__(self, config: CMSBertConfig, layer_index: int):
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.heads = (config.num_attention_heads, hidden // config.num_attention_heads)
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        sizes = {"visual": config.visual_size, "acoustic": config.acoustic_size}
        self.modalities = [name for name in MODALITIES if sizes[name] and layer_index in config.cms_layers]
        for name in self.modalities:
            setattr(self, f"gate_{name}", nn.Linear(hidden + sizes[name], 1))  # W_g, b of Eq. 1, 2
            setattr(self, f"shift_{name}", nn.Linear(sizes[name], hidden, bias=False))  # W_v, W_a of Eq. 3

    def forward(
        self, hidden_states: Tensor, attention_mask: None = None, *, batch: Batch, **kwargs: object
    ) -> tuple[Tensor, None]:
        """hidden_states (1, T, D) -> (1, T, D)."""
        hidden = hidden_states[0]
        query, key, value = (layer(hidden).unflatten(-1, self.heads) for layer in (self.query, self.key, self.value))
        shifts: dict[str, ModalityShift | None] = dict.fromkeys(MODALITIES)
        for name, (token_gate, frame_gate, frames) in self._gate_halves(hidden, batch).items():
            weight = getattr(self, f"shift_{name}").weight
            shifts[name] = ModalityShift(token_gate, frame_gate, frames.values, weight, *frames.packing)
        arguments: dict[str, Any] = dict(
            activation=self.config.gate_activation,
            dropout_p=self.config.attention_probs_dropout_prob if self.training else 0.0,
            backend=self.config.backend,
        )
        if batch.full:
            z = self._full_attention(query, key, value, shifts, batch, arguments)
        else:
            arguments |= dict(cu_seqlens=batch.packing.cu_seqlens, max_seqlen=batch.packing.max_length)
            z = cms_attention(query, key, value, shifts["visual"], shifts["acoustic"], **arguments)
        return z.flatten(-2)[None], None

    def _gate_halves(self, hidden: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor, Frames]]:
        """W_g [X_i; V_j] + b = p_i + r_j: for each modality present p (T,), r (F,) and the frames."""
        present = [(name, frames) for name in self.modalities if (frames := getattr(batch, name)) is not None]
        if not present:
            return {}
        gates = [getattr(self, f"gate_{name}") for name, _ in present]
        token_gates = nn.functional.linear(hidden, torch.cat([gate.weight[:, : hidden.shape[-1]] for gate in gates]))
        halves = {}
        for gate, token_gate, (name, frames) in zip(gates, token_gates.unbind(-1), present, strict=True):
            frame_gate = nn.functional.linear(frames.values, gate.weight[:, hidden.shape[-1] :], gate.bias)[..., 0]
            halves[name] = (token_gate, frame_gate, frames)
        return halves

    @staticmethod
    def _full_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        shifts: dict[str, ModalityShift | None],
        batch: Batch,
        arguments: dict[str, Any],
    ) -> Tensor:
        """The padded form, for a batch without padding: no gathering, and no mask."""
        size = batch.packing.cu_seqlens.shape[0] - 1

        def rows(tensor: Tensor) -> Tensor:
            return tensor.unflatten(0, (size, tensor.shape[0] // size))

        def padded(shift: ModalityShift | None) -> ModalityShift | None:
            if shift is None:
                return None
            return ModalityShift(rows(shift.token_gate), rows(shift.frame_gate), rows(shift.frames), shift.weight)

        visual, acoustic = padded(shifts["visual"]), padded(shifts["acoustic"])
        return cms_attention(rows(query), rows(key), rows(value), visual, acoustic, **arguments).flatten(0, 1)

    def shift_maps(self, hidden: Tensor, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """The gates g^v (B, N, N_v) and g^a (B, N, N_a) of Eq. 1 and 2, 0 at padding; hidden is X, (T, D)."""
        maps: dict[str, Tensor | None] = dict.fromkeys(MODALITIES)
        tokens = valid_positions(batch.packing)
        for name, (token_gate, frame_gate, frames) in self._gate_halves(hidden, batch).items():
            logits = pad(token_gate, batch.packing)[:, :, None] + pad(frame_gate, frames.packing)[:, None]
            valid = tokens[:, :, None] & valid_positions(frames.packing)[:, None]
            maps[name] = ACTIVATIONS[self.config.gate_activation](logits).masked_fill(~valid, 0)
        return maps["visual"], maps["acoustic"]


class CMSBertPreTrainedModel(BertPreTrainedModel):
    """What the models share: loading BERT checkpoints, initialising what is new."""

    config_class = CMSBertConfig
    config: CMSBertConfig
    base_model_prefix = "bert"
    accepts_loss_kwargs = False  # or the Hugging Face Trainer would not divide the loss by its accumulation steps
    _can_record_outputs: dict = {}  # noqa: RUF012  # our forward collects hidden states and maps itself
    # Heads of BERT checkpoints that CMSBERT has no use for.
    _keys_to_ignore_on_load_unexpected = [r"^(bert\.)?pooler\.", r"^cls\."]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CMSBertCLRForSequenceClassification):
            init.ones_(module.nu)
        elif isinstance(module, HeadLinear):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            init.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5)
        elif isinstance(module, PackedLSTM):  # as torch.nn.LSTM does
            bound = module.hidden_size**-0.5
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)


class CMSBertModel(CMSBertPreTrainedModel):
    """The encoder: BERT with CMS in ``config.cms_layers`` (Eq. 8).

    ``from_pretrained`` takes any BertModel checkpoint; only gates and shifts are new. With all shift weights zero it is
    BertModel. State-dict keys are BertModel's (without pooler) plus ``encoder.layer.L.attention.self.gate_visual`` etc.
    """

    def __init__(self, config: CMSBertConfig):
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        for index, layer in enumerate(self.encoder.layer):
            layer.attention.self = CMSBertSelfAttention(config, index)  # type: ignore[union-attr]
        use_cheap_dropout(self, config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    def pack(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        visual: Tensor | None = None,
        acoustic: Tensor | None = None,
        visual_mask: Tensor | None = None,
        acoustic_mask: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seq_lens_visual: Tensor | None = None,
        max_length_visual: int | None = None,
        cu_seq_lens_acoustic: Tensor | None = None,
        max_length_acoustic: int | None = None,
    ) -> PackedInputs:
        """Brings padded or packed inputs, those of :meth:`forward`, into the packed form.

        Raises:
            ValueError: a shape or a combination of arguments does not fit; the message says which.
        """
        tokens = input_ids if input_ids is not None else inputs_embeds
        if tokens is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("Give either input_ids or inputs_embeds.")
        name, axes, dims = ("input_ids", "(B, N)", 2) if inputs_embeds is None else ("inputs_embeds", "(B, N, D)", 3)
        if tokens.dim() != dims:
            raise ValueError(
                f"{name} has shape {tuple(tokens.shape)}; give {axes}, or a single row of packed utterances."
            )
        if token_type_ids is not None:
            _check_shape("token_type_ids", token_type_ids, tokens.shape[:2])
        for_all_rows = (tokens.shape[1:2], (1, tokens.shape[1]))
        if position_ids is not None and position_ids.shape not in for_all_rows:
            _check_shape("position_ids", position_ids, tokens.shape[:2])
        rows = None
        padded_shape = None
        if cu_seq_lens_q is None and position_ids is None and (cu_seq_lens_k is not None or seq_idx is not None):
            raise ValueError("Of cu_seq_lens_q, cu_seq_lens_k and seq_idx a packed batch needs cu_seq_lens_q at least.")
        if cu_seq_lens_q is None and attention_mask is None and position_ids is not None and tokens.shape[0] == 1:
            cu_seq_lens_q, max_length_q = _restarts(position_ids)
        if cu_seq_lens_q is not None:
            if attention_mask is not None:
                raise ValueError("attention_mask belongs to padded batches; with cu_seq_lens_q leave it out.")
            if max_length_q is None or tokens.shape[0] != 1:
                raise ValueError(
                    "A packed batch needs input_ids of shape (1, T) and max_length_q beside cu_seq_lens_q."
                )
            if cu_seq_lens_k is not None and _differ(cu_seq_lens_k, cu_seq_lens_q):
                raise ValueError("cu_seq_lens_k differs from cu_seq_lens_q; in self-attention they are the same.")
            packing = Packing(cu_seq_lens_q, max_length_q)
            if position_ids is None:
                position_ids = positions(packing, tokens.shape[1])[None]
        else:
            padded_shape = tokens.shape[:2]
            if attention_mask is None:
                packing = uniform_packing(padded_shape[0], padded_shape[1], tokens.device)
            else:
                _check_shape("attention_mask", attention_mask, padded_shape)
                rows, packing = pack_mask(attention_mask)
            if position_ids is None:
                too_long = attention_mask is None and padded_shape[1] > self.config.max_position_embeddings
                if not torch.compiler.is_compiling() and too_long:
                    raise ValueError(
                        f"{name} has rows of {padded_shape[1]} pieces, but the model has "
                        f"{self.config.max_position_embeddings} positions (max_position_embeddings); truncate them."
                    )
                position_ids = torch.arange(padded_shape[1], device=tokens.device)
            position_ids = position_ids.expand(padded_shape)
            input_ids, token_type_ids, position_ids, inputs_embeds = (
                None if tensor is None else _take(tensor, rows)[None]
                for tensor in (input_ids, token_type_ids, position_ids, inputs_embeds)
            )
        size = packing.cu_seqlens.shape[0] - 1
        visual_frames = self._frames("visual", visual, visual_mask, cu_seq_lens_visual, max_length_visual, size)
        acoustic_frames = self._frames(
            "acoustic", acoustic, acoustic_mask, cu_seq_lens_acoustic, max_length_acoustic, size
        )
        full = (
            padded_shape is not None
            and attention_mask is None
            and all(values is None or values.dim() == 3 for values in (visual, acoustic))
            and visual_mask is None
            and acoustic_mask is None
        )
        return PackedInputs(
            dict(
                input_ids=input_ids,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
            ),
            Batch(packing, full, visual_frames, acoustic_frames),
            rows,
            padded_shape,
        )

    def _frames(
        self,
        name: str,
        values: Tensor | None,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        max_length: int | None,
        batch_size: int,
    ) -> Frames | None:
        size = getattr(self.config, f"{name}_size")
        if values is None:
            if not size:
                return None
            # Not None: the parameters of an absent modality stay in the graph, as DistributedDataParallel needs.
            values, mask, cu_seqlens = torch.zeros(batch_size, 0, size, device=self.device), None, None
        if values.dim() not in (2, 3):
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}; give padded (B, N, {size}) or packed (F, {size})."
            )
        if values.shape[-1] != size:
            raise ValueError(
                f"{name} has frames of size {values.shape[-1]}, but the model was made for {name}_size={size}; "
                "give the features it was trained on, or make a model for these."
            )
        values = values.to(self.dtype)
        host_cu_seqlens = None
        if values.dim() == 3 and cu_seqlens is not None:
            raise ValueError(
                f"cu_seq_lens_{name} belongs to packed {name} of shape (F, {size}), but {name} has shape "
                f"{tuple(values.shape)}; leave one out."
            )
        if values.dim() == 2:
            if cu_seqlens is None or max_length is None:
                raise ValueError(
                    f"Packed {name} of shape (F, {size}) needs cu_seq_lens_{name} and max_length_{name}; "
                    f"padded {name} has shape (B, N, {size})."
                )
            if mask is not None:
                raise ValueError(f"{name}_mask belongs to padded {name}; with cu_seq_lens_{name} leave it out.")
            if cu_seqlens.device.type == "cpu":
                host_cu_seqlens = cu_seqlens
            packing = Packing(cu_seqlens.to(values.device, non_blocking=True), max_length)
        elif mask is None:
            packing = uniform_packing(values.shape[0], values.shape[1], values.device)
            values = values.flatten(0, 1)
        else:
            _check_shape(f"{name}_mask", mask, values.shape[:2])
            rows, packing = pack_mask(mask)
            values = _take(values, rows)
        if packing.cu_seqlens.shape[0] - 1 != batch_size:
            raise ValueError(
                f"{name} holds {packing.cu_seqlens.shape[0] - 1} utterances but the tokens {batch_size}; give one each."
            )
        return Frames(values, packing, host_cu_seqlens)

    def encode(
        self, inputs: PackedInputs, output_hidden_states: bool = False, output_shift_maps: bool = False
    ) -> tuple[Tensor, list[Tensor] | None, list[tuple[Tensor | None, Tensor | None]] | None]:
        """Runs the layers on packed inputs.

        Returns:
            h_l (1, T, D), the hidden states and the shift maps, if asked for.
        """
        hidden = self.embeddings(**inputs.embeddings)
        hidden_states, shift_maps = [hidden], []
        for layer in self.encoder.layer:
            attention: CMSBertSelfAttention = layer.attention.self  # type: ignore[union-attr, assignment]
            if output_shift_maps and attention.modalities:
                shift_maps.append(attention.shift_maps(hidden[0], inputs.batch))
            hidden = layer(hidden, batch=inputs.batch)
            hidden_states.append(hidden)
        return hidden, hidden_states if output_hidden_states else None, shift_maps if output_shift_maps else None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        visual: Tensor | None = None,
        acoustic: Tensor | None = None,
        visual_mask: Tensor | None = None,
        acoustic_mask: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_shift_maps: bool = False,
        return_dict: bool | None = None,
        **packed: Any,
    ) -> CMSBertOutput | tuple:
        """Encodes a batch, padded or packed.

        Padded: ``input_ids`` (B, N), masks 1 = valid in any pattern, None = all valid, ``visual`` (B, N_v, d_v).
        Packed, after Hugging Face's padding-free convention: ``input_ids`` and ``position_ids`` (1, T),
        ``cu_seq_lens_q`` (B + 1,) int32, ``max_length_q``; ``visual`` (F, d_v) with ``cu_seq_lens_visual`` and
        ``max_length_visual``, likewise ``acoustic``; without ``cu_seq_lens_q``, ``position_ids`` of a single row that
        start anew at 0 say where utterances begin. ``cu_seq_lens_visual`` and ``cu_seq_lens_acoustic`` may be on the
        CPU though all else is on a GPU: then the LSTMs of CMSBERT-CLR need not wait for the device to learn lengths.

        Args:
            input_ids: Word pieces, int64.
            attention_mask: (B, N); padded only.
            token_type_ids: Like ``input_ids``; None = 0.
            visual, acoustic: Frames V and A; None = absent, which is the same as no valid frame.
            visual_mask, acoustic_mask: (B, N_v), (B, N_a); padded only.
            output_hidden_states: Whether to return every layer's output.
            output_shift_maps: Whether to return the gates of every layer that shifts.
            return_dict: False = a tuple.
            **packed: ``position_ids`` (None = 0, 1, ... in every sequence), ``inputs_embeds`` instead of ``input_ids``,
                ``cu_seq_lens_q``, ``max_length_q``, ``cu_seq_lens_visual``, ``max_length_visual``,
                ``cu_seq_lens_acoustic``, ``max_length_acoustic``; of the convention also ``cu_seq_lens_k``, which must
                be that of q, and ``max_length_k`` and ``seq_idx``, which say nothing more and are not read.

        Raises:
            ValueError: a shape or a combination of arguments does not fit; the message says which.
        """
        inputs = self.pack(
            input_ids, attention_mask, token_type_ids, visual, acoustic, visual_mask, acoustic_mask, **packed
        )
        hidden, hidden_states, shift_maps = self.encode(
            inputs, _flag(output_hidden_states, self.config.output_hidden_states), output_shift_maps
        )
        output = CMSBertOutput(
            last_hidden_state=inputs.restore(hidden),
            hidden_states=None if hidden_states is None else tuple(map(inputs.restore, hidden_states)),
            shift_maps=None if shift_maps is None else tuple(shift_maps),
        )
        return output.to_tuple() if return_dict is False else output


class HeadLinear(nn.Linear):
    """A linear layer that starts as torch.nn.Linear does, not as BERT's do.

    BERT's zero biases would project an utterance without frames to the zero vector, whose direction, and with it the
    gradient of the contrastive loss, does not exist.
    """


class Projector(nn.Module):
    """q_m: Linear - ReLU - Linear (Eq. 10, 13)."""

    def __init__(self, input_size: int, size: int):
        super().__init__()
        self.dense = HeadLinear(input_size, size)
        self.out_proj = HeadLinear(size, size)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """u_m (B, d_m) -> z_m^(1), the output of the ReLU, and z_m, both (B, d)."""
        middle = torch.relu(self.dense(pooled))
        return middle, self.out_proj(middle)


class Fusion(nn.Module):
    """The modalities' z_m^(1) as tokens of one Transformer layer, flattened, then the predictor (Eq. 14-16)."""

    def __init__(self, config: CMSBertConfig, num_modalities: int, num_labels: int):
        super().__init__()
        size = config.projection_size
        self.transformer = nn.TransformerEncoderLayer(
            size, FUSION_HEADS, dim_feedforward=4 * size, dropout=config.hidden_dropout_prob, batch_first=True
        )
        self.dense = HeadLinear(num_modalities * size, size)
        self.out_proj = HeadLinear(size, num_labels)

    def forward(self, middles: list[Tensor]) -> Tensor:
        """z_m^(1), each (B, d) -> y hat, (B, num_labels)."""
        fused = self.transformer(torch.stack(middles, dim=1)).flatten(1)
        return self.out_proj(torch.relu(self.dense(fused)))


class CMSBertClassifier(CMSBertPreTrainedModel):
    """What the models with a head share: the encoder, and a forward that calls their :meth:`head`."""

    def __init__(self, config: CMSBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 1
        self.bert = CMSBertModel(config)

    def head(self, hidden: Tensor, batch: Batch, labels: Tensor | None) -> dict[str, Tensor | None]:
        """h_l (1, T, D), packed -> the fields of :class:`CMSBertClassifierOutput` that the head computes."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        visual: Tensor | None = None,
        acoustic: Tensor | None = None,
        visual_mask: Tensor | None = None,
        acoustic_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_shift_maps: bool = False,
        return_dict: bool | None = None,
        **packed: Any,
    ) -> CMSBertClassifierOutput | tuple:
        """Predicts a score or a class; inputs as in :meth:`CMSBertModel.forward`.

        Args:
            labels: (B,); scores for ``num_labels=1``, class indices otherwise.
        """
        inputs = self.bert.pack(
            input_ids, attention_mask, token_type_ids, visual, acoustic, visual_mask, acoustic_mask, **packed
        )
        hidden, hidden_states, shift_maps = self.bert.encode(
            inputs, _flag(output_hidden_states, self.config.output_hidden_states), output_shift_maps
        )
        output = CMSBertClassifierOutput(
            **self.head(hidden, inputs.batch, labels),
            hidden_states=None if hidden_states is None else tuple(map(inputs.restore, hidden_states)),
            shift_maps=None if shift_maps is None else tuple(shift_maps),
        )
        return output.to_tuple() if return_dict is False else output


class CMSBertForSequenceClassification(CMSBertClassifier):
    """CMSBERT of Table II: encoder, mean pool (Eq. 9), linear head. ``num_labels=1`` is regression."""

    def __init__(self, config: CMSBertConfig):
        super().__init__(config)
        dropout = config.classifier_dropout
        self.dropout = Dropout(config.hidden_dropout_prob if dropout is None else dropout, config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    def head(self, hidden: Tensor, batch: Batch, labels: Tensor | None) -> dict[str, Tensor | None]:
        logits = self.classifier(self.dropout(segment_mean(hidden[0], batch.packing)))
        task = None if labels is None else task_loss(logits, labels)
        return dict(loss=task, logits=logits, task_loss=task)


class CMSBertCLRForSequenceClassification(CMSBertClassifier):
    """CMSBERT-CLR, the whole of Fig. 2b: three subnetworks, contrastive alignment, fusion (Eq. 8-20).

    A modality of size 0 has no subnetwork: its token of the fusion and its contrastive directions do not exist. In
    training mode under torch.distributed the contrastive loss compares this rank's examples with every rank's (SPEC 4),
    so all ranks must call with labels together.

    Attributes:
        nu: Weight of the contrastive loss (Eq. 20), a buffer: saved with the model, moved by the training loop
            (Eq. 21, 22), never by the optimiser.

    Raises:
        ValueError: neither visual_size nor acoustic_size is given, so there is nothing to contrast with.
    """

    nu: Tensor

    def __init__(self, config: CMSBertConfig):
        sizes = {"visual": config.visual_size, "acoustic": config.acoustic_size}
        if not any(sizes.values()):
            raise ValueError("CMSBERT-CLR contrasts modalities: give visual_size, acoustic_size or both.")
        super().__init__(config)
        self.modalities = [name for name in MODALITIES if sizes[name]]
        projection = config.projection_size
        self.linguistic_projector = Projector(config.hidden_size, projection)
        for name in self.modalities:
            setattr(self, f"{name}_lstm", PackedLSTM(sizes[name], projection))
            setattr(self, f"{name}_projector", Projector(projection, projection))
        self.fusion = Fusion(config, 1 + len(self.modalities), self.num_labels)
        use_cheap_dropout(self.fusion, config)
        self.register_buffer("nu", torch.ones(()))
        self.post_init()

    def head(self, hidden: Tensor, batch: Batch, labels: Tensor | None) -> dict[str, Tensor | None]:
        middle, linguistic = self.linguistic_projector(segment_mean(hidden[0], batch.packing))
        middles, embeds = [middle], {"linguistic": linguistic}
        for name in self.modalities:
            frames = getattr(batch, name)
            lstm: PackedLSTM = getattr(self, f"{name}_lstm")
            encoded = lstm(frames.values, frames.packing, frames.host_cu_seqlens, self.config.backend)
            middle, embeds[name] = getattr(self, f"{name}_projector")(segment_mean(encoded, frames.packing))
            middles.append(middle)
        logits = self.fusion(middles)
        task = contrastive = loss = None
        if labels is not None:
            task = task_loss(logits, labels)
            contrastive = pairwise_contrastive_loss(
                embeds["linguistic"],
                embeds.get("visual"),
                embeds.get("acoustic"),
                labels,
                self.config.temperature,
                self.config.smoothing,
                self.config.threshold,
                group=dist.group.WORLD if self.training and _distributed() else None,
                backend=self.config.backend,
            )
            loss = total_loss(task, contrastive, self.nu)
        return dict(
            loss=loss,
            logits=logits,
            task_loss=task,
            contrastive_loss=contrastive,
            linguistic_embeds=embeds["linguistic"],
            visual_embeds=embeds.get("visual"),
            acoustic_embeds=embeds.get("acoustic"),
        )


def positions(packing: Packing, total: int) -> Tensor:
    """(total,) int64: 0, 1, ... within every sequence; 0 at rows of no sequence."""
    rows = torch.arange(total, device=packing.cu_seqlens.device)
    position = rows - packing.cu_seqlens[sequence_of_row(packing, total)]
    return position.masked_fill(rows >= packing.cu_seqlens[-1], 0)


def _restarts(position_ids: Tensor) -> tuple[Tensor | None, int | None]:
    """cu_seq_lens_q and max_length_q of a row whose positions start anew at 0 for every utterance; None for one.

    Hugging Face's DataCollatorWithFlattening says no more than this by default. Reading it waits for the device, and
    torch.compile breaks the graph here.
    """
    starts = (position_ids.flatten() == 0).nonzero()[:, 0]
    if len(starts) < 2 or starts[0] != 0:
        return None, None
    cu_seqlens = torch.cat([starts, starts.new_tensor([position_ids.numel()])]).int()
    return cu_seqlens, int(cu_seqlens.diff().max())


def _take(tensor: Tensor, rows: Tensor | None) -> Tensor:
    """The given rows of (B, N, ...) flattened to (B * N, ...); all of them for None."""
    flat = tensor.flatten(0, 1)
    return flat if rows is None else flat.index_select(0, rows)


def _check_shape(name: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {tuple(shape)}.")


def _differ(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ; values on a GPU, or while tracing, are not compared: that would wait for them."""
    if a is b or a.shape != b.shape:
        return a is not b
    comparable = a.device.type == b.device.type == "cpu" and not torch.compiler.is_compiling()
    return comparable and not torch.equal(a, b)


def _flag(argument: bool | None, default: bool | None) -> bool:
    return bool(default if argument is None else argument)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


AutoModel.register(CMSBertConfig, CMSBertModel)
# Of several classes Hugging Face takes the one that the checkpoint names; the first for one that names none.
AutoModelForSequenceClassification.register(
    CMSBertConfig, (CMSBertCLRForSequenceClassification, CMSBertForSequenceClassification)
)
