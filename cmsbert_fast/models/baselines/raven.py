"""RAVEN, recurrent attended variation embeddings (Wang et al., AAAI 2019, arXiv:1811.09362).

    h^m_i = last LSTM_m(Lin drop frames of word i), m = v, a, 0 without frames;   w^m_i = sigmoid(Lin [h^m_i; e_i])
    s_i = W_v (w^v_i h^v_i) + W_a (w^a_i h^a_i) + b;   e'_i = e_i + min(beta |e_i| / |s_i|, 1) s_i
    y = Lin last LSTM(drop e')

There are two packings: frames by word for the LSTMs of frames, words by utterance for the LSTM of shifted words.

Differences from published code (victorywys/RAVEN), on purpose; all but the second follow the paper:
- Everything trains. The public code cuts the graph at the projected frames and at the shift, so that nothing non-verbal
  ever trains.
- Frames are standardised by the training split's statistics (:mod:`cmsbert_fast.models.processing`). The public code
  has a BatchNorm over acoustic frames that uses the batch's statistics in evaluation too.
- The gates have a sigmoid, and the shift is at most beta |e| long. The public code has no sigmoid, and multiplies s by
  beta |e| min(|s|, 1) / |s|.
- All frames of a word are read, at the source's rate. The public data have at most 20 a word, at 20 Hz.
"""

import torch
from torch import Tensor, nn

from cmsbert_fast.models.baselines.base import Baseline, Utterances, register
from cmsbert_fast.models.baselines.configuration import BaselineConfig
from cmsbert_fast.models.baselines.recurrent import LastLSTM
from cmsbert_fast.models.encoding import FrameLevel
from cmsbert_fast.models.inputs import Frames


class RAVENConfig(BaselineConfig):
    """Sizes and dropouts of RAVEN; the defaults are the published code's, for both data sets.

    Args:
        visual_hidden_size, acoustic_hidden_size: Sizes of projected frames and of their LSTMs.
        text_hidden_size: Of the LSTM of words.
        largest_shift: beta, length of the longest shift as a fraction of the word vector's.
        frame_dropout, text_dropout: Probabilities, of frames and of shifted words.
        **kwargs: Fields of :class:`BaselineConfig`.
    """

    model_type = "cmsbert-raven"

    text: str = "vectors"
    loss: str = "mse"
    visual_hidden_size: int = 150
    acoustic_hidden_size: int = 150
    text_hidden_size: int = 300
    largest_shift: float = 0.2
    frame_dropout: float = 0.2
    text_dropout: float = 0.2

    def _check(self) -> None:
        super()._check()
        if not self.largest_shift >= 0:
            raise ValueError(f"largest_shift is {self.largest_shift} but must be at least 0.")


class WordFrames(nn.Module):
    """The frames of one modality, word by word -> w^m_i h^m_i.

    Args:
        input_size: d_m.
        hidden_size: Of h^m.
        word_size: e.
        dropout: Probability.
    """

    def __init__(self, input_size: int, hidden_size: int, word_size: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(input_size, hidden_size)
        self.lstm = LastLSTM(hidden_size, hidden_size)
        self.gate = nn.Linear(hidden_size + word_size, 1)

    def forward(self, frames: Frames, words: Tensor, backend: str) -> Tensor:
        """Frames packed by word and e (P, e) -> (P, hidden_size)."""
        h = self.lstm(self.dense(self.dropout(frames.values)), frames.packing, backend)
        return torch.sigmoid(self.gate(torch.cat([h, words], dim=1))) * h


class RAVENForSequenceClassification(Baseline):
    """RAVEN. An absent modality's summand is left out of the shift.

    Raises:
        ValueError: The configuration has no frames.
    """

    config_class = RAVENConfig
    config: RAVENConfig
    of_words = True
    frame_level = FrameLevel.OF_WORDS

    def __init__(self, config: RAVENConfig):
        super().__init__(config)
        self.require_frames("RAVEN")
        hidden = {name: getattr(config, f"{name}_hidden_size") for name in self.modalities}
        for name, size in hidden.items():
            own = WordFrames(config.frame_sizes[name], size, config.text_size, config.frame_dropout)
            setattr(self, f"{name}_frames", own)
        self.shift = nn.Linear(sum(hidden.values()), config.text_size)  # W_v and W_a side by side, and b
        self.text_dropout = nn.Dropout(config.text_dropout)
        self.text_lstm = LastLSTM(config.text_size, config.text_hidden_size)
        self.classifier = nn.Linear(config.text_hidden_size, self.num_labels)
        self.post_init()

    def read(self, batch: Utterances) -> dict[str, Tensor]:
        words, packing = batch.text
        heard = []
        for name in self.modalities:
            frames = batch.maps.of_words(name, batch.frames[name], packing)
            heard.append(getattr(self, f"{name}_frames")(frames, words, self.config.backend))
        shifted = shift_words(words, self.shift(torch.cat(heard, dim=1)), self.config.largest_shift)
        last = self.text_lstm(self.text_dropout(shifted), packing, self.config.backend)
        return {"logits": self.classifier(last)}


def shift_words(words: Tensor, shifts: Tensor, largest: float) -> Tensor:
    """e + min(beta |e| / |s|, 1) s, all (P, e); finite gradients at s = 0 too."""
    limit = largest * torch.linalg.vector_norm(words, dim=1, keepdim=True)
    length = torch.linalg.vector_norm(shifts, dim=1, keepdim=True)
    cut = length > limit
    return words + torch.where(cut, limit / torch.where(cut, length, 1), 1) * shifts


register(RAVENConfig, RAVENForSequenceClassification)
