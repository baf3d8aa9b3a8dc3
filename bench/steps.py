"""Training steps: ours as ``train.py`` makes them, and plain ones; and that models agree before they are timed."""

from unittest import mock

import torch

from bench.rivals.models import padded_clr
from cmsbert_fast import CMSBertCLRForSequenceClassification
from cmsbert_fast.models.baselines.mag_bert import MagBertConfig, MagBertForSequenceClassification
from cmsbert_fast.models.configuration import BERT_FIELDS
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.lstm import cpu as lstm_cpu
from cmsbert_fast.training.distributed import Gradients, Ranks


class Trainer:
    """Steps with train.py's gradients and optimiser."""

    def __init__(self, model, device, fused=True, capturable=False):
        self._gradients = Gradients(model, Ranks(0, 1, device))
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=fused, capturable=capturable)

    def step(self, forward):
        """The step as a call; ``forward`` returns the loss."""

        def run():
            self._gradients.zero()
            loss = forward()
            loss.backward()
            self._gradients.finish()
            self._gradients.norm()
            self._optimizer.step()
            return loss.detach()

        return run


def plain_step(model, forward):
    """One step as most training scripts do it, with the fast optimiser to their advantage."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def run():
        optimizer.zero_grad()
        loss = forward()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def autocast(forward, device):
    def run():
        with torch.autocast(device.type, torch.bfloat16):
            return forward()

    return run


def without(step, owner, name, instead):
    """The step with something else in place of the owner's attribute."""

    def run():
        with mock.patch.object(owner, name, instead):
            return step()

    return run


def with_pytorch_products(step):
    """The step with the products of linear layers, LSTMs and the loss by PyTorch, where ours run."""
    for owner in (capability, lstm_cpu):
        step = without(step, owner, "why_not_own_products", lambda *_: "PyTorch's are raced")
    return step


def clr(config, device):
    torch.manual_seed(0)
    return CMSBertCLRForSequenceClassification(config).to(device).train()


def mag(config, device):
    """Variant mag-bert of the same sizes."""
    torch.manual_seed(0)
    taken = (*BERT_FIELDS, "vocab_size", "visual_size", "acoustic_size", "backend")
    own = MagBertConfig(**{name: getattr(config, name) for name in taken})
    return MagBertForSequenceClassification(own).to(device).train()


def of_pieces(packed):
    """The inputs with the frame of each piece: every one has its own."""
    rows = torch.arange(packed["input_ids"].shape[1], device=packed["input_ids"].device)[None]
    return packed | {"token_frames_visual": rows, "token_frames_acoustic": rows}


def check_same(batch, *models):
    """The packed model and its padded form have the same loss, whatever the backend; in bfloat16 nearly."""
    with torch.no_grad():
        losses = [model.eval()(**batch.packed).loss for model in models]
        losses.append(padded_clr(models[0], batch.padded)[1])
        half = autocast(lambda: models[0](**batch.packed).loss, losses[0].device)()
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(half.float(), losses[0], rtol=5e-2, atol=5e-2)
    for model in models:
        model.train()
