"""CMSBERT (Eq. 1-9) and CMSBERT-CLR (Fig. 2b, Eq. 1-20), in Hugging Face form.

The encoder uses BERT's own layers with another self-attention. Inputs are padded or packed. Padded batches are packed
on input and padded again on output, so nothing is computed on padding. Exceptions: attention on the "reference"
backend, and on "torch" on a GPU; padded batches under torch.compile, whose shapes may not depend on data.
"""

import functools
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers import initialization as init
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPreTrainedModel

from cmsbert_fast.models.adapters import require_input_gradients
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.cmsbert.attention import CMSBertSelfAttention
from cmsbert_fast.models.cmsbert.configuration_cmsbert import FUSION_HEADS, CMSBertConfig
from cmsbert_fast.models.cmsbert.contrastive_loss import contrastive_loss
from cmsbert_fast.models.cmsbert.contrastive_weight import NO_LABELS, ContrastiveWeight, warn_that_nu_stays
from cmsbert_fast.models.cmsbert.direct_layer import DirectLayers
from cmsbert_fast.models.cmsbert.fused_layer import FusedLayers
from cmsbert_fast.models.cmsbert.outputs import CMSBertClassifierOutput, CMSBertOutput, Encoding
from cmsbert_fast.models.inputs import Batch, Frames, Inputs, PackedInputs, known_inputs, pack
from cmsbert_fast.models.layers import Fusion, Projector, init_as_torch
from cmsbert_fast.models.losses import LossTerm, task_loss
from cmsbert_fast.models.streams import beside, may_run_beside
from cmsbert_fast.ops.dropout.api import Dropout, use_cheap_dropout
from cmsbert_fast.ops.linear.api import use_fast_linear
from cmsbert_fast.ops.lstm.api import PackedLSTM
from cmsbert_fast.packing import segment_mean


class CMSBertPreTrainedModel(BertPreTrainedModel):
    """Base of all models: loads BERT checkpoints, initialises new modules."""

    config_class = CMSBertConfig
    config: CMSBertConfig
    base_model_prefix = "bert"
    _can_record_outputs: dict = {}  # noqa: RUF012  # our forward collects hidden states and maps itself
    # Heads of BERT checkpoints that CMSBERT does not use.
    _keys_to_ignore_on_load_unexpected = [r"^(bert\.)?pooler\.", r"^cls\."]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_as_torch(module)

    def enable_input_require_grads(self) -> None:
        require_input_gradients(self)


class CMSBertModel(CMSBertPreTrainedModel):
    """The encoder: BERT with CMS in ``config.cms_layers`` (Eq. 8).

    ``from_pretrained`` takes any BertModel checkpoint; only gates and shifts are new. With all shift weights 0 this is
    BertModel. State-dict keys are BertModel's (without pooler) plus ``encoder.layer.L.attention.self.gate_visual`` etc.
    """

    def __init__(self, config: CMSBertConfig):
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        for index, layer in enumerate(self.encoder.layer):
            layer.attention.self = CMSBertSelfAttention(config, index)  # type: ignore[union-attr]
        use_cheap_dropout(self, config)
        use_fast_linear(self, config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    def pack(self, inputs: Inputs) -> PackedInputs:
        """Converts a batch to the form that :meth:`encode` takes.

        Raises:
            ValueError: A shape or a combination of arguments is invalid; the message says which.
        """
        return pack(
            inputs,
            visual_size=self.config.visual_size,
            acoustic_size=self.config.acoustic_size,
            max_positions=self.config.max_position_embeddings,
            dtype=self.dtype,
        )

    def encode(
        self, inputs: PackedInputs, output_hidden_states: bool | None = False, output_shift_maps: bool = False
    ) -> Encoding:
        """Runs the layers on packed inputs; ``output_hidden_states`` None = as in the configuration."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden = self.embeddings(**inputs.tokens.embeddings)
        hidden_states, shift_maps = [hidden], []
        given = (self.encoder.layer, hidden, inputs.batch, self.config)
        runner = FusedLayers.of(*given) or DirectLayers.of(*given)
        if runner is not None and not (output_hidden_states or output_shift_maps):
            return Encoding(runner.run(list(self.encoder.layer)), None, None)
        for layer in self.encoder.layer:
            attention: CMSBertSelfAttention = layer.attention.self  # type: ignore[union-attr, assignment]
            if output_shift_maps and attention.modalities:
                shift_maps.append(attention.shift_maps(hidden[0], inputs.batch))
            hidden = layer(hidden, batch=inputs.batch) if runner is None else runner.run([layer])
            if output_hidden_states:
                hidden_states.append(hidden)
        return Encoding(
            hidden,
            tuple(map(inputs.restore, hidden_states)) if output_hidden_states else None,
            tuple(shift_maps) if output_shift_maps else None,
        )

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
        Packed, in Hugging Face's padding-free convention: ``input_ids`` and ``position_ids`` (1, T), ``cu_seq_lens_q``
        (B + 1,) int32, ``max_length_q``; ``visual`` (F, d_v) with ``cu_seq_lens_visual`` and ``max_length_visual``, the
        same for ``acoustic``. Without ``cu_seq_lens_q``, utterances begin where ``position_ids`` of a single row
        restart at 0. ``cu_seq_lens_visual`` and ``cu_seq_lens_acoustic`` may be on the CPU with all else on a GPU: the
        LSTMs of CMSBERT-CLR then compute nothing on padding. On the GPU they take ``max_length_visual`` and
        ``max_length_acoustic`` steps of every utterance, so that nothing waits for the lengths.

        Args:
            input_ids: Word pieces, int64.
            attention_mask: (B, N); padded only.
            token_type_ids: Like ``input_ids``; None = 0.
            visual, acoustic: Frames V and A; None = absent, the same as no valid frame.
            visual_mask, acoustic_mask: (B, N_v), (B, N_a); padded only.
            output_hidden_states: Whether to return every layer's output.
            output_shift_maps: Whether to return the gates of every CMS layer.
            return_dict: False = a tuple.
            **packed: ``position_ids`` (None = 0, 1, ... in every sequence), ``inputs_embeds`` instead of ``input_ids``,
                ``cu_seq_lens_q``, ``max_length_q``, ``cu_seq_lens_visual``, ``max_length_visual``,
                ``cu_seq_lens_acoustic``, ``max_length_acoustic``; also ``cu_seq_lens_k``, which must equal that of q,
                and ``max_length_k`` and ``seq_idx``, which are ignored; ``output_attentions`` and what else Hugging
                Face's tools pass to BERT, if it asks for nothing.

        Raises:
            TypeError: An argument is unknown.
            ValueError: A shape or a combination of arguments is invalid; the message says which.
        """
        packed = known_inputs(packed, Inputs._fields)
        inputs = self.pack(
            Inputs(input_ids, attention_mask, token_type_ids, visual, acoustic, visual_mask, acoustic_mask, **packed)
        )
        encoding = self.encode(inputs, output_hidden_states, output_shift_maps)
        output = CMSBertOutput(inputs.restore(encoding.hidden), encoding.hidden_states, encoding.shift_maps)
        return output.to_tuple() if return_dict is False else output


class CMSBertClassifier(CMSBertPreTrainedModel, Classifier):
    """Base of the models with a head: the encoder, and the path from inputs to rows and losses."""

    operators = ("attention", "linear")
    own_settings: ClassVar[Collection[str]] = ("gate_activation",)
    inputs = Inputs._fields
    output_class = CMSBertClassifierOutput
    fits_graphs = True

    def __init__(self, config: CMSBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 1
        if self.num_labels == 1:
            config.problem_type = "regression"  # or Hugging Face's pipeline prints a sigmoid of the score
        elif config.problem_type == "regression":  # of a checkpoint with another number of labels
            config.problem_type = None
        self.bert = CMSBertModel(config)

    def from_bert(self, name: str) -> bool:
        return super().from_bert(name) and ".gate_" not in name and ".shift_" not in name

    def head(self, hidden: Tensor, batch: Batch) -> dict[str, Tensor]:
        """h_l (1, T, D), packed -> the output of :meth:`rows`. CMSBERT-CLR's is made by :meth:`begin`."""
        raise NotImplementedError

    def begin(self, batch: Batch) -> Callable[[Tensor], dict[str, Tensor]]:
        """Starts what does not need h_l; what is returned is :meth:`head` of this batch."""
        return functools.partial(self.head, batch=batch)

    def rows(self, **inputs: Any) -> dict[str, Tensor]:
        """The logits (B, num_labels); for CMSBERT-CLR also z_m (B, d) as "linguistic_embeds" etc.

        Takes the inputs of :meth:`CMSBertModel.forward`.
        """
        packed = self.bert.pack(Inputs(**known_inputs(inputs, Inputs._fields)))
        head = self.begin(packed.batch)
        return head(self.bert.encode(packed).hidden)

    def row_losses(
        self, rows: Mapping[str, Tensor], labels: Tensor, targets: Tensor | None = None
    ) -> dict[str, LossTerm]:
        """l_task."""
        return {"task": LossTerm(task_loss(rows["logits"], labels))}

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
            labels: (B,); scores for ``num_labels=1``, class indices otherwise. (B, num_labels) for several labels at
                once: 1 and 0, floating point.
        """
        packed = known_inputs(packed, Inputs._fields)
        inputs = self.bert.pack(
            Inputs(input_ids, attention_mask, token_type_ids, visual, acoustic, visual_mask, acoustic_mask, **packed)
        )
        head = self.begin(inputs.batch)
        encoding = self.bert.encode(inputs, output_hidden_states, output_shift_maps)
        rows = head(encoding.hidden)
        more = dict(hidden_states=encoding.hidden_states, shift_maps=encoding.shift_maps)
        return self.output(rows, labels, return_dict, **more)


class CMSBertForSequenceClassification(CMSBertClassifier):
    """CMSBERT of Table II: encoder, mean pool (Eq. 9), linear head. ``num_labels=1`` is regression."""

    takes_bert_head = True

    def __init__(self, config: CMSBertConfig):
        super().__init__(config)
        dropout = config.classifier_dropout
        self.dropout = Dropout(config.hidden_dropout_prob if dropout is None else dropout, config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    def head(self, hidden: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"logits": self.classifier(self.dropout(segment_mean(hidden[0], batch.packing)))}


class CMSBertCLRForSequenceClassification(CMSBertClassifier):
    """CMSBERT-CLR, the whole of Fig. 2b: three subnetworks, contrastive alignment, fusion (Eq. 8-20).

    A modality of size 0 has no subnetwork, no fusion token and no contrastive directions. In training mode under
    torch.distributed, the contrastive loss compares this rank's examples with those of all ranks (SPEC 4), so all ranks
    must call with labels together.

    Attributes:
        nu: Weight of the contrastive loss (Eq. 20), a buffer: saved with the model, updated by
            :class:`ContrastiveWeight` (Eq. 21, 22), never by the optimiser.

    Raises:
        ValueError: Neither visual_size nor acoustic_size is given.
    """

    has_global_terms = True
    own_settings = ("gate_activation", "projection_size", "temperature", "smoothing", "threshold", "momentum")
    nu: Tensor

    def __init__(self, config: CMSBertConfig):
        if not any(config.frame_sizes.values()):
            raise ValueError("CMSBERT-CLR needs a second modality: give visual_size, acoustic_size or both.")
        super().__init__(config)
        self.modalities = [name for name, size in config.frame_sizes.items() if size]
        projection = config.projection_size
        self.linguistic_projector = Projector(config.hidden_size, projection)
        for name in self.modalities:
            setattr(self, f"{name}_lstm", PackedLSTM(config.frame_sizes[name], projection))
            setattr(self, f"{name}_projector", Projector(projection, projection))
        self.fusion = Fusion(
            1 + len(self.modalities), projection, self.num_labels, FUSION_HEADS, config.hidden_dropout_prob, config
        )
        use_cheap_dropout(self.fusion, config)
        use_fast_linear(self, config)
        self.register_buffer("nu", torch.ones(()))
        self._nu_follows = False  # whether a training state was asked for
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.ones_(self.nu)

    def head(self, hidden: Tensor, batch: Batch) -> dict[str, Tensor]:
        return self.begin(batch)(hidden)

    def begin(self, batch: Batch) -> Callable[[Tensor], dict[str, Tensor]]:
        of_frames: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {}
        for place, name in enumerate(self.modalities):
            frames = getattr(batch, name)
            compute = functools.partial(self._subnetwork, name, frames)
            if may_run_beside(frames.values, self.config.backend):
                of_frames[name] = beside(compute, [frames.values, frames.packing.cu_seqlens], place)
            else:
                of_frames[name] = compute

        def finish(hidden: Tensor) -> dict[str, Tensor]:
            middle, linguistic = self.linguistic_projector(segment_mean(hidden[0], batch.packing))
            middles, rows = [middle], {"linguistic_embeds": linguistic}
            for name, result in of_frames.items():
                middle, rows[f"{name}_embeds"] = result()
                middles.append(middle)
            return {"logits": self.fusion(middles), **rows}

        return finish

    def _subnetwork(self, name: str, frames: Frames) -> tuple[Tensor, Tensor]:
        """z_m^(1) and z_m, both (B, d), of a modality other than language (Eq. 11-13)."""
        lstm: PackedLSTM = getattr(self, f"{name}_lstm")
        projector: Projector = getattr(self, f"{name}_projector")
        return projector(segment_mean(lstm(frames.values, frames.packing, self.config.backend), frames.packing))

    def output(
        self, rows: Mapping[str, Tensor], labels: Tensor | None, return_dict: bool | None = None, **more: Any
    ) -> Any:
        if labels is None and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            warnings.warn(NO_LABELS, stacklevel=2)
        return super().output(rows, labels, return_dict, **more)

    def global_losses(
        self, rows: Mapping[str, Tensor], labels: Tensor, group: "dist.ProcessGroup | None" = None
    ) -> dict[str, LossTerm]:
        """l_con with the weight nu (Eq. 20)."""
        if self.training and not self._nu_follows and not torch.compiler.is_compiling():
            self._nu_follows = True  # says it once
            warn_that_nu_stays()
        return {"contrastive": LossTerm(contrastive_loss(rows, labels, self.config, group), self.nu, per_row=False)}

    def training_state(self, count: int, *, momentum: float | None = 0.9, **options: Any) -> ContrastiveWeight:
        """nu; ``momentum`` is alpha of Eq. 21, None = no EMA."""
        self._nu_follows = True
        return ContrastiveWeight(self.nu, momentum)


AutoModel.register(CMSBertConfig, CMSBertModel)
# Hugging Face picks the class that the checkpoint names, or the first if it names none.
AutoModelForSequenceClassification.register(
    CMSBertConfig, (CMSBertCLRForSequenceClassification, CMSBertForSequenceClassification)
)
