"""nu, the weight of the contrastive loss, and how training updates it (Eq. 21, 22)."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

NO_LABELS = (
    "CMSBERT-CLR is called in training without labels, so there is no contrastive loss (Eq. 19): a loss made from the "
    "logits alone trains another objective. Hugging Face's Trainer takes the labels away with label_smoothing_factor "
    "and compute_loss_func; leave these out."
)


class ContrastiveWeight:
    """The :class:`~cmsbert_fast.models.base.TrainingState` of CMSBERT-CLR: an exponential moving average.

    Validation pass 0, before training, sets nu = l_task / l_con (Eq. 22). Each later pass i updates
    nu <- alpha nu + (1 - alpha) l_task^(i) / l_con^(i) (Eq. 21). If l_con is 0, nu stays as it is.

    Args:
        nu: The model's buffer, 0-dim; updated in place, so every loss and every saved model has the current value.
        momentum: alpha; None = no average, nu stays 1.
    """

    row_names = ()

    def __init__(self, nu: Tensor, momentum: float | None = 0.9):
        self.nu = nu
        self.momentum = momentum
        self.starts_with_validation = momentum is not None
        self._initial = True  # no validation pass yet

    def start(self, labels: Tensor) -> None:
        self.nu.fill_(1.0)  # the initial checkpoint may hold another value

    def targets(self, indices: Tensor) -> None:
        return None

    def step(self, epoch: int, indices: Tensor, rows: Mapping[str, Tensor]) -> None:
        pass

    def validated(self, losses: Mapping[str, float]) -> None:
        if self.momentum is None:
            return
        task, contrastive = losses["task"], losses["contrastive"]
        ratio = task / contrastive if contrastive else float(self.nu)
        if self._initial:
            self.nu.fill_(ratio)
            self._initial = False
        else:
            self.nu.mul_(self.momentum).add_((1 - self.momentum) * ratio)

    def report(self) -> dict[str, float]:
        return {"nu": float(self.nu)}

    def state_dict(self) -> dict[str, Any]:
        return {"initial": self._initial}  # nu itself is part of the model

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._initial = state["initial"]


def warn_that_nu_stays() -> None:
    """Warns of training with a constant nu, which is another objective."""
    warnings.warn(
        "Nothing updates nu, the weight of the contrastive loss: it stays what it is, 1 in a new model, and does not "
        "follow Eq. 21 and 22. With Hugging Face's Trainer: "
        "trainer.add_callback(cmsbert_fast.ContrastiveWeightCallback(trainer)); in a loop of your own: "
        "model.training_state(count).",
        stacklevel=3,
    )
