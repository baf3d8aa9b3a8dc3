"""Self-MM, self-supervised labels of the modalities (Yu et al., AAAI 2021, arXiv:2102.04830).

    F_l = BERT's last hidden state at [CLS];  F_m = W drop(last LSTM_m(frames)) + b, m = a, v
    f_M = relu W drop [F_l; F_a; F_v] + b;  f_s = relu W drop F_s + b, s = l, a, v;  y'_k = W2 relu(W1 f_k + b1) + b2
    L = |y'_M - y| + sum over s of tanh |y_s - y| |y'_s - y_s|, means over the batch;  the prediction is y'_M

y_s is a label that training makes up for the modality: :class:`UnimodalLabels`. In epoch 1 it is y, so that the losses
of the modalities are 0.

Differences from published code, on purpose:
- Labels and features are remembered once per step of the optimiser. The official code does so after each of the four
  mini-batches whose gradients it adds: there the number of mini-batches changes the labels.
- All examples of an epoch train. The official code drops the gradients of its last mini-batches where they do not fill
  a step.
- A label stays where a centre would be the mean of no example, or a quotient is not finite. Official labels become NaN.
- Weight decay is AdamW's, and biases have none. The official code adds it to Adam's gradients, and decays the biases
  outside BERT.
- With word vectors, which have no [CLS], F_l is their mean.

The paper squares the distances D and divides them by the square root of their size; the official code does neither, and
so do we. As in the code behind the published figures, 0 is a positive label.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cmsbert_fast.models.baselines.base import Baseline, Utterances, register
from cmsbert_fast.models.baselines.configuration import BaselineConfig
from cmsbert_fast.models.baselines.recurrent import LastLSTM
from cmsbert_fast.models.losses import LossTerm
from cmsbert_fast.packing import segment_first, segment_mean

EPSILON = 1e-8  # of the quotients of distances


class SelfMMConfig(BaselineConfig):
    """Sizes and dropouts of Self-MM; the defaults are MMSA's for MOSI.

    Args:
        visual_hidden_size, acoustic_hidden_size: Of the LSTMs.
        visual_output_size, acoustic_output_size: o_m, of F_m.
        fusion_size, text_task_size, visual_task_size, acoustic_task_size: Of f_M, f_l, f_v, f_a.
        visual_lstm_dropout, acoustic_lstm_dropout: Before the linear layer of F_m.
        fusion_dropout, text_dropout, visual_dropout, acoustic_dropout: Before the first layer of each head.
        label_limit: Made-up labels are clipped to plus or minus this: the range of the labels, 3 for MOSI and MOSEI, 1
            for CH-SIMS.
        **kwargs: Fields of :class:`BaselineConfig`; ``loss`` is that of the prediction, the modalities' are as above.
    """

    model_type = "cmsbert-self-mm"

    visual_hidden_size: int = 32
    acoustic_hidden_size: int = 16
    visual_output_size: int = 32
    acoustic_output_size: int = 16
    fusion_size: int = 128
    text_task_size: int = 32
    visual_task_size: int = 32
    acoustic_task_size: int = 16
    visual_lstm_dropout: float = 0.0
    acoustic_lstm_dropout: float = 0.0
    fusion_dropout: float = 0.0
    text_dropout: float = 0.1
    visual_dropout: float = 0.0
    acoustic_dropout: float = 0.1
    label_limit: float = 3.0

    def _check(self) -> None:
        super()._check()
        if not self.label_limit > 0:
            raise ValueError(f"label_limit is {self.label_limit} but must be greater than 0.")


class Head(nn.Module):
    """F_k (B, d) -> f_k (B, size) and y'_k (B, 1)."""

    def __init__(self, input_size: int, size: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(input_size, size)
        self.dense2 = nn.Linear(size, size)
        self.classifier = nn.Linear(size, 1)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.dense(self.dropout(inputs)))
        return features, self.classifier(torch.relu(self.dense2(features)))


class SelfMMForSequenceClassification(Baseline):
    """Self-MM. An absent modality has no head, no label and no part in F_M.

    Raises:
        ValueError: There is more than one label: it is made for scores.
    """

    config_class = SelfMMConfig
    config: SelfMMConfig

    def __init__(self, config: SelfMMConfig):
        super().__init__(config)
        if self.num_labels > 1:
            raise ValueError(f"Self-MM predicts a score, not {self.num_labels} classes; give num_labels=1.")
        sizes = {"text": config.text_size}
        for name in reversed(self.modalities):  # text, acoustic, visual, as in F_M
            hidden, sizes[name] = (getattr(config, f"{name}_{part}_size") for part in ("hidden", "output"))
            setattr(self, f"{name}_lstm", LastLSTM(config.frame_sizes[name], hidden))
            setattr(self, f"{name}_dropout", nn.Dropout(getattr(config, f"{name}_lstm_dropout")))
            setattr(self, f"{name}_linear", nn.Linear(hidden, sizes[name]))
        self.tasks = tuple(sizes)
        self.heads = nn.ModuleDict({"fusion": Head(sum(sizes.values()), config.fusion_size, config.fusion_dropout)})
        for name, size in sizes.items():
            dropout = getattr(config, f"{name}_dropout")
            self.heads[name] = Head(size, getattr(config, f"{name}_task_size"), dropout)
        self.post_init()

    def read(self, batch: Utterances) -> dict[str, Tensor]:
        """The rows.

        Returns:
            "logits" (B, 1), y'_M; of every modality "NAME_logits" (B, 1), y'_s; and "NAME_features" (B, d), f_s, with
            "fusion_features", f_M.
        """
        pooled = segment_mean if self.config.text == "vectors" else segment_first
        inputs = {"text": pooled(*batch.text)}
        for name in self.tasks[1:]:
            last = getattr(self, f"{name}_lstm")(*batch.frames[name], self.config.backend)
            inputs[name] = getattr(self, f"{name}_linear")(getattr(self, f"{name}_dropout")(last))
        rows = {}
        rows["fusion_features"], rows["logits"] = self.heads["fusion"](torch.cat(list(inputs.values()), dim=1))
        for name, values in inputs.items():
            rows[f"{name}_features"], rows[f"{name}_logits"] = self.heads[name](values)
        return rows

    def row_losses(
        self, rows: Mapping[str, Tensor], labels: Tensor, targets: Tensor | None = None
    ) -> dict[str, LossTerm]:
        """The loss of the prediction; with ``targets`` (B, modalities), the y_s, also that of each modality."""
        terms = super().row_losses(rows, labels)
        if targets is not None:
            for name, made_up in zip(self.tasks, targets.unbind(1), strict=True):
                error = (rows[f"{name}_logits"][:, 0].to(made_up.dtype) - made_up).abs()
                terms[name] = LossTerm(((made_up - labels).abs().tanh() * error).mean())
        return terms

    def training_state(self, count: int, **options: Any) -> "UnimodalLabels":
        return UnimodalLabels(self.tasks, self.config.label_limit, self.device)


class Memory(NamedTuple):
    """What is remembered of the training examples.

    Attributes:
        labels: y, (count,).
        made_up: y_s, (count, modalities).
        features: f_k of the last step that saw the example, 0 before; by name, (count, d).
    """

    labels: Tensor
    made_up: Tensor
    features: dict[str, Tensor]


class UnimodalLabels:
    """The :class:`~cmsbert_fast.models.base.TrainingState` of Self-MM: the labels that it makes up (ULGM).

    After a step of epoch n:

    1. from n = 2 on, for the examples of the batch, with C^p_k and C^n_k the means of all remembered f_k whose label
       y_k (y_M = y) is at least 0, and below 0:
       D^p_k = |f_k - C^p_k|, D^n_k = |f_k - C^n_k|, delta_k = (D^n_k - D^p_k) / (D^p_k + 1e-8),
       y_s <- (n - 1)/(n + 1) y_s + 2/(n + 1) clip(0.5 (delta_s / (delta_M + 1e-8)) y + 0.5 (y + delta_s - delta_M));
    2. their f_k are remembered.

    The centres follow from what is remembered before the step, so they are not kept. Every rank has the whole memory:
    14 MB for MOSEI.

    Args:
        tasks: The modalities, in the order of the targets.
        limit: Labels are clipped to plus or minus this.
        device: Of the memory.
    """

    starts_with_validation = False

    def __init__(self, tasks: Collection[str], limit: float, device: torch.device):
        self.tasks, self.limit, self.device = tuple(tasks), limit, device
        self.memory: Memory | None = None

    @property
    def row_names(self) -> Collection[str]:
        return [f"{name}_features" for name in ("fusion", *self.tasks)]

    def start(self, labels: Tensor) -> None:
        labels = labels.to(self.device)
        self.memory = Memory(labels.clone(), labels[:, None].repeat(1, len(self.tasks)), {})

    def targets(self, indices: Tensor) -> Tensor:
        """y_s, (n, modalities)."""
        assert self.memory is not None
        return self.memory.made_up[indices]

    @torch.no_grad()
    def step(self, epoch: int, indices: Tensor, rows: Mapping[str, Tensor]) -> None:
        assert self.memory is not None
        labels, made_up, features = self.memory
        for name in self.row_names:
            if name not in features:  # their size is known now
                features[name] = labels.new_zeros(len(labels), rows[name].shape[1])
        if epoch > 1:
            made_up[indices] = self._moved(epoch, indices, rows)
        for name in self.row_names:
            features[name][indices] = rows[name].to(labels.dtype)

    def _moved(self, epoch: int, indices: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """The new y_s of some examples, (n, modalities)."""
        assert self.memory is not None
        labels, made_up, features = self.memory
        y, before = labels[indices], made_up[indices]
        sides = {"fusion": labels, **dict(zip(self.tasks, made_up.unbind(1), strict=True))}
        delta = {
            name: relative_distance(rows[f"{name}_features"].to(y.dtype), features[f"{name}_features"], side)
            for name, side in sides.items()
        }
        whole = delta.pop("fusion")[:, None]
        own = torch.stack(list(delta.values()), dim=1)
        new = 0.5 * (own / (whole + EPSILON)) * y[:, None] + 0.5 * (y[:, None] + own - whole)
        after = (epoch - 1) / (epoch + 1) * before + 2 / (epoch + 1) * new.clamp(-self.limit, self.limit)
        return torch.where(new.isfinite(), after, before)

    def validated(self, losses: Mapping[str, float]) -> None:
        pass

    def report(self) -> dict[str, float]:
        """How far the labels of each modality are from y, on average."""
        assert self.memory is not None
        far = (self.memory.made_up - self.memory.labels[:, None]).abs().double().mean(dim=0).tolist()
        return {f"{name}_label_distance": value for name, value in zip(self.tasks, far, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        assert self.memory is not None
        return self.memory._asdict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        features = {name: values.to(self.device) for name, values in state["features"].items()}
        self.memory = Memory(state["labels"].to(self.device), state["made_up"].to(self.device), features)


def relative_distance(rows: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """delta_k = (D^n_k - D^p_k) / (D^p_k + 1e-8), (n,); NaN if a side is empty.

    Args:
        rows: f_k, (n, d).
        features: All remembered f_k, (count, d).
        labels: Their y_k, (count,), whose signs are the sides.
    """
    positive = labels >= 0
    to_centre = []
    for side in (positive, ~positive):
        centre = side.to(features.dtype) @ features / side.sum()  # 0 / 0 for an empty side
        to_centre.append(torch.linalg.vector_norm(rows - centre, dim=1))
    near_positive, near_negative = to_centre
    return (near_negative - near_positive) / (near_positive + EPSILON)


register(SelfMMConfig, SelfMMForSequenceClassification)
