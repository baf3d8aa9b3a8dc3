"""The gates of words, from those of their pieces."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast

import cmsbert_fast
from cmsbert_fast import CMSBertProcessor
from cmsbert_fast.data.example import Example
from cmsbert_fast.training.gates import has_gates, shift_maps, word_gates

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "##s", "un", "##real"]
SMALL = dict(
    vocab_size=len(PIECES), hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=16, visual_size=3, acoustic_size=2,
)  # fmt: skip


def built(max_length: int = 16, **fields):
    torch.manual_seed(0)
    config = cmsbert_fast.CMSBertConfig(**SMALL | fields)
    tokenizer = BertTokenizerFast(vocab={piece: k for k, piece in enumerate(PIECES)})
    return cmsbert_fast.CMSBertForSequenceClassification(config), CMSBertProcessor(tokenizer, max_length=max_length)


@pytest.fixture
def example() -> Example:
    random = np.random.default_rng(0)
    frames = [random.normal(size=(count, width)).astype(np.float32) for count, width in ((5, 3), (7, 2))]
    return Example("a", ("unreal", "good", "films"), None, *frames)


def test_a_words_gate_is_the_mean_over_its_pieces(example) -> None:
    model, processor = built(cms_layers=[0, 2])
    maps = shift_maps(model, processor, example)
    assert [[part.shape for part in layer] for layer in maps] == [[(7, 5), (7, 7)]] * 2
    # The first layer by the equation: its input is the embeddings (Eq. 1).
    ids = torch.tensor([processor.input_ids(example.words)])
    hidden = model.bert.embeddings(input_ids=ids)[0]
    gate = model.bert.encoder.layer[0].attention.self.gate_visual
    pairs = torch.cat([hidden[:, None].expand(-1, 5, -1), torch.tensor(example.visual).expand(7, -1, -1)], dim=-1)
    np.testing.assert_allclose(maps[0][0], torch.relu(gate(pairs))[..., 0].detach(), atol=1e-6)
    read, gates = word_gates(model, processor, example)
    assert read == 3
    for modality, of_pieces in zip(("visual", "acoustic"), zip(*maps, strict=True), strict=True):
        for layer, found in zip(of_pieces, gates[modality], strict=True):
            expected = [layer[1:3].mean(axis=0), layer[3], layer[4:6].mean(axis=0)]  # without [CLS] and [SEP]
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_long_text_is_cut(example) -> None:
    model, processor = built(max_length=5)
    read, gates = word_gates(model, processor, example)
    assert read == 2
    assert gates["visual"].shape == (3, 2, 5)


def test_what_is_absent_has_no_gates(example) -> None:
    model, processor = built()
    assert list(word_gates(model, processor, replace(example, acoustic=np.zeros((0, 2), np.float32))).gates) == [
        "visual"
    ]
    assert list(word_gates(*built(acoustic_size=0), example).gates) == ["visual"]
    assert word_gates(model, processor, replace(example, words=())).gates["visual"].shape == (3, 0, 5)
    model, processor = built(cms_layers=[])
    assert not has_gates(model.config)
    assert word_gates(model, processor, example) == (3, {})
