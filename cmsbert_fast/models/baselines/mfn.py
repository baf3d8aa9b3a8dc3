"""MFN, the memory fusion network (Zadeh et al., AAAI 2018, arXiv:1802.00927), word by word.

    c^m_t, h^m_t = LSTMCell_m(x^m_t), m = l, a, v          C_t = [c_{t-1}; c_t] in R^2H, H = h_l + h_a + h_v, c_0 = 0
    A_t = softmax(L2 drop relu L1 C_t) over the 2H entries;   Chat_t = A_t * C_t;   U_t = tanh(L4 drop relu L3 Chat_t)
    g1_t = sigmoid(L6 drop relu L5 [Chat_t; u_{t-1}]);   g2_t = sigmoid(L8 drop relu L7 [Chat_t; u_{t-1}])
    u_t = g1_t * u_{t-1} + g2_t * U_t, u_0 = 0;   y = Lin drop relu Lin [h^l_W; h^a_W; h^v_W; u_W]

The LSTMs do not read the memory. So they run first, then A, Chat and U for all words at once; only u goes step by step.
The layers L5 and L7 are sums of a part of Chat, computed for all words at once, and a part of u.

Differences from published code, on purpose:
- All words of an utterance are read, and no others. The original keeps the last 20 and puts zeros in front of less.
- A word has its own frame. MMSA repeats the utterance's mean frame for every word; setting ``repeat_frames`` does
  that for data with one frame an utterance.
- MMSA reads BERT's pieces, [CLS], [SEP] and padding as words; with ``text="bert"`` a word here is its pieces' mean.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmsbert_fast.models.adapters import weight_and_bias
from cmsbert_fast.models.baselines.base import Baseline, Utterances, register
from cmsbert_fast.models.baselines.configuration import BaselineConfig
from cmsbert_fast.models.baselines.recurrent import CellLSTM, CellStates, in_order, order_of_time
from cmsbert_fast.models.encoding import FrameLevel
from cmsbert_fast.ops.lstm.padded import State, scan_rows
from cmsbert_fast.ops.lstm.steps import TimeSteps
from cmsbert_fast.packing import Packing, pad, positions, segment_last

VIEWS = ("text", "acoustic", "visual")  # l, a, v: in the order of the published code


class MemoryConfig(BaselineConfig):
    """Sizes and dropouts of the memory; the defaults are those of the published MOSI model with the best MAE.

    Args:
        text_hidden_size, acoustic_hidden_size, visual_hidden_size: h_l, h_a, h_v, of the LSTMs.
        memory_size: M, size of u.
        attention_size: Width of L1.
        proposal_size: Width of L3.
        retain_size: Width of L5.
        update_size: Width of L7.
        attention_dropout, proposal_dropout, retain_dropout, update_dropout: Probabilities, after these layers.
        **kwargs: Fields of :class:`BaselineConfig`.
    """

    text_hidden_size: int = 88
    acoustic_hidden_size: int = 48
    visual_hidden_size: int = 16
    memory_size: int = 128
    attention_size: int = 128
    proposal_size: int = 64
    retain_size: int = 256
    update_size: int = 64
    attention_dropout: float = 0.0
    proposal_dropout: float = 0.2
    retain_dropout: float = 0.0
    update_dropout: float = 0.2


class MFNConfig(MemoryConfig):
    """The memory, and the head's width and dropout.

    Args:
        output_size: Width of the head.
        output_dropout: Probability.
        **kwargs: Fields of :class:`MemoryConfig`.
    """

    model_type = "cmsbert-mfn"

    text: str = "vectors"
    output_size: int = 64
    output_dropout: float = 0.5


class TwoLayers(nn.Module):
    """Linear - ReLU - dropout - Linear."""

    def __init__(self, input_size: int, size: int, output_size: int, dropout: float):
        super().__init__()
        self.dense = nn.Linear(input_size, size)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.dense(x))

    def top(self, products: Tensor) -> Tensor:
        """All after the first layer, from its output before the ReLU."""
        return self.out_proj(self.dropout(torch.relu(products)))


class Memory(nn.Module):
    """The cells of all views -> u_W.

    Args:
        config: Widths and dropouts.
        cells: H, the views' cells side by side.
    """

    def __init__(self, config: MemoryConfig, cells: int):
        super().__init__()
        both, size = 2 * cells, config.memory_size
        self.size = size
        self.attention = TwoLayers(both, config.attention_size, both, config.attention_dropout)
        self.proposal = TwoLayers(both, config.proposal_size, size, config.proposal_dropout)
        self.retain = TwoLayers(both + size, config.retain_size, size, config.retain_dropout)
        self.update = TwoLayers(both + size, config.update_size, size, config.update_dropout)

    def forward(self, cells: Tensor, packing: Packing, steps: "TimeSteps | Packing") -> Tensor:
        """(P, H) -> (B, M); 0 for an utterance without words. ``steps`` are the packing's."""
        first = positions(packing, cells.shape[0]) == 0
        before = cells.roll(1, dims=0).masked_fill(first[:, None], 0)
        if isinstance(steps, Packing):
            both = torch.cat([before, cells], dim=1)
            attended = torch.softmax(self.attention(both), dim=1) * both
            return segment_last(self._padded(attended, torch.tanh(self.proposal(attended)), packing), packing)
        rows, batch_sizes = steps
        both = torch.cat([before, cells], dim=1).index_select(0, rows)
        attended = torch.softmax(self.attention(both), dim=1) * both
        states = self._scan(attended, torch.tanh(self.proposal(attended)), batch_sizes.tolist())
        sources = (*self.retain.parameters(), *self.update.parameters(), attended)
        return segment_last(in_order(states, rows, (len(cells), self.size), *sources), packing)

    def _padded(self, attended: Tensor, proposals: Tensor, packing: Packing) -> Tensor:
        """u_t of every row (P, M), from Chat and U, for the padded layout of torch.export."""

        def step(before: State, now: State) -> State:
            chat, proposal = now
            both = torch.cat([chat, before[0]], dim=1)
            return (self.retain(both).sigmoid() * before[0] + self.update(both).sigmoid() * proposal,)

        first = pad(proposals, packing)[:, 0] * 0
        return scan_rows(step, (first,), (attended, proposals), packing.max_length)[0]

    def _scan(self, attended: Tensor, proposals: Tensor, batch_sizes: list[int]) -> list[Tensor]:
        """u_t of every step, from Chat and U, in the order of time."""
        layers = [weight_and_bias(gate.dense, attended) for gate in (self.retain, self.update)]
        weight = torch.cat([weight for weight, _ in layers])
        of_cells, of_memory = weight.split([attended.shape[1], self.size], dim=1)
        with torch.autocast(attended.device.type, enabled=False):
            bias = torch.cat([bias for _, bias in layers if bias is not None])
            products = F.linear(attended.to(weight.dtype), of_cells, bias).split(batch_sizes)
            states: list[Tensor] = []
            for of_chat, proposal in zip(products, proposals.to(weight.dtype).split(batch_sizes), strict=True):
                u = states[-1][: len(of_chat)] if states else proposal.new_zeros(proposal.shape)
                retain, update = torch.addmm(of_chat, u, of_memory.T).split([len(weight) for weight, _ in layers], 1)
                g1, g2 = self.retain.top(retain).sigmoid(), self.update.top(update).sigmoid()
                states.append(g1 * u + g2 * proposal)
        return states


class MFN(Baseline):
    """What MFN and MFM share: an LSTM of each view, and the memory over their cells."""

    config: MemoryConfig
    of_words = True
    frame_level = FrameLevel.WORDS

    def __init__(self, config: MemoryConfig):
        super().__init__(config)
        sizes = self.view_sizes()
        hidden = {name: getattr(config, f"{name}_hidden_size") for name in sizes}
        for name, size in sizes.items():
            setattr(self, f"{name}_lstm", CellLSTM(size, hidden[name]))
        self.memory = Memory(config, sum(hidden.values()))
        self.fused_size = sum(hidden.values()) + config.memory_size

    def view_sizes(self) -> dict[str, int]:
        """Size of a row of each view that the model has, in the order of :data:`VIEWS`."""
        sizes = {"text": self.config.text_size, **self.config.frame_sizes}
        return {name: sizes[name] for name in VIEWS if sizes[name]}

    def views(self, batch: Utterances) -> dict[str, Tensor]:
        """The rows of each view, (P, d_m), one a word, in the order of :data:`VIEWS`."""
        assert batch.words is not None
        frames = {name: batch.words.frames(rows) for name, rows in batch.frames.items()}
        rows = {"text": batch.text.values, **frames}
        return {name: rows[name] for name in self.view_sizes()}

    def fuse(self, views: Mapping[str, Tensor], packing: Packing) -> Tensor:
        """[h^l; h^a; h^v; u]_W, (B, H + M)."""
        steps = order_of_time(packing, views["text"].device)
        states: list[CellStates] = [getattr(self, f"{name}_lstm")(rows, steps) for name, rows in views.items()]
        memory = self.memory(torch.cat([state.cells for state in states], dim=1), packing, steps)
        return torch.cat([*(segment_last(state.hidden, packing) for state in states), memory], dim=1)


class MFNForSequenceClassification(MFN):
    """MFN. An absent modality's view is left out."""

    config_class = MFNConfig
    config: MFNConfig

    def __init__(self, config: MFNConfig):
        super().__init__(config)
        self.classifier = TwoLayers(self.fused_size, config.output_size, self.num_labels, config.output_dropout)
        self.post_init()

    def read(self, batch: Utterances) -> dict[str, Tensor]:
        return {"logits": self.classifier(self.fuse(self.views(batch), batch.text.packing))}


register(MFNConfig, MFNForSequenceClassification)
