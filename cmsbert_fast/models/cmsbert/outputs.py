"""Model outputs, in Hugging Face form."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from transformers.utils import ModelOutput

from cmsbert_fast.data.example import MODALITIES

SUBNETWORKS = ("linguistic", *MODALITIES)  # of CMSBERT-CLR; each has "NAME_embeds"


@dataclass
class CMSBertOutput(ModelOutput):
    """Output of :class:`~cmsbert_fast.models.cmsbert.modeling_cmsbert.CMSBertModel`.

    Attributes:
        last_hidden_state: h_l of Eq. 8, (B, N, D), 0 at padding; (1, T, D) for packed input.
        hidden_states: With ``output_hidden_states``: the embeddings and every layer's output, shaped like the last.
        shift_maps: With ``output_shift_maps``: for every CMS layer, the gates (g^v (B, N, N_v), g^a (B, N, N_a)) of
            Eq. 1 and 2, as in Fig. 1; 0 at padding, None for an absent modality.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    shift_maps: tuple[tuple[Tensor | None, Tensor | None], ...] | None = None


class Encoding(NamedTuple):
    """Output of CMSBertModel's layers, before the last hidden state is restored to the form of the inputs.

    Attributes:
        hidden: h_l of Eq. 8, packed, (1, T, D).
        hidden_states, shift_maps: As in :class:`CMSBertOutput`.
    """

    hidden: Tensor
    hidden_states: tuple[Tensor, ...] | None
    shift_maps: tuple[tuple[Tensor | None, Tensor | None], ...] | None


@dataclass
class CMSBertClassifierOutput(ModelOutput):
    """Output of CMSBERT and CMSBERT-CLR.

    Attributes:
        loss: Scalar, with ``labels``: l_task, or l_task + nu l_con (Eq. 20) for CMSBERT-CLR.
        logits: y hat, (B, num_labels).
        task_loss: l_task.
        contrastive_loss: l_con (Eq. 19); CMSBERT-CLR only.
        linguistic_embeds, visual_embeds, acoustic_embeds: z_m, (B, d), not normalised; CMSBERT-CLR only, None for a
            modality that the model lacks.
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
