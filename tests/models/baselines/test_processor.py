"""The processor, called: every system's inputs, as encoding and collating make them."""

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast

from cmsbert_fast import CMSBertProcessor
from cmsbert_fast.data.example import Alignment, Example, FrameWords
from cmsbert_fast.data.word_vectors import WordVectors
from cmsbert_fast.models.encoding import FrameLevel
from cmsbert_fast.models.registry import BASELINES
from tests.models.baselines.systems import system
from tests.models.baselines.utterances import SIZES, WORD_SIZE

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "was", "un", "##believ", "##able", "good"]
TEXTS = [("the", "unbelievable", "film"), ("good",), ("film", "was", "good", "the")]
OF_WORDS = [np.array([-1, 0, 0, 2]), np.array([0]), np.array([0, 1, 1, 1, -1, 3])]


def frames(rows):
    counts = [len(own) for own in rows]
    dice = np.random.default_rng(1)
    sizes = {name.removesuffix("_size"): size for name, size in SIZES.items()}
    return {name: [dice.normal(size=(n, d)).astype(np.float32) for n in counts] for name, d in sizes.items()}


@pytest.fixture
def processor():
    found = CMSBertProcessor(BertTokenizerFast(vocab={piece: k for k, piece in enumerate(PIECES)}), max_length=7)
    words = sorted({word for text in TEXTS for word in text})
    values = np.random.default_rng(0).normal(size=(len(words) + 1, WORD_SIZE)).astype(np.float32)
    found.word_vectors = WordVectors(values, tuple(words), "here")
    return found


def logits(model, inputs):
    return model(**{k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()})[0]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("one_each", [True, False])
@pytest.mark.parametrize("name", BASELINES)
def test_called_as_encoded_and_collated(name, one_each, packed, processor):
    model = system(name)
    if one_each:
        own, words = frames(TEXTS), [None] * 3
    else:
        own, words = frames(OF_WORDS), [FrameWords(w, w) for w in OF_WORDS]
    examples = [
        Example(str(k), text, None, v, a, Alignment.WORDS if one_each else Alignment.NONE, w)
        for k, (text, v, a, w) in enumerate(zip(TEXTS, own["visual"], own["acoustic"], words, strict=True))
    ]
    encoded = [processor.encode(example, model.frame_level) for example in examples]
    expected = logits(model, processor.collate(encoded, packed=True, names=model.inputs))
    told = {"aligned": True} if one_each else {"visual_words": OF_WORDS, "acoustic_words": OF_WORDS}
    inputs = processor(TEXTS, **own, **told, packed=packed, model=model)
    torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-9, atol=1e-9)
    alone = {modality: values[0] for modality, values in own.items()}
    told = told if one_each else dict.fromkeys(told, OF_WORDS[0])
    one = processor(TEXTS[0], **alone, **told, packed=packed, model=model)
    torch.testing.assert_close(logits(model, one), expected[:1], rtol=1e-9, atol=1e-9)


def test_frames_matter_word_by_word(processor):
    """The shift of one frame to another word changes what a system of words says."""
    model, own = system("raven"), frames(OF_WORDS)
    told = {"visual_words": OF_WORDS, "acoustic_words": OF_WORDS}
    first = logits(model, processor(TEXTS, **own, **told, model=model))
    moved = {"visual_words": [np.array([-1, 0, 2, 2]), *OF_WORDS[1:]], "acoustic_words": OF_WORDS}
    second = logits(model, processor(TEXTS, **own, **moved, model=model))
    assert (first != second)[:, 0].tolist() == [True, False, False]


def test_the_only_frame_may_be_repeated(processor):
    model, own = system("mfn"), frames("abc")
    with pytest.raises(ValueError, match=r"reads the frames of each word: say which .* by aligned=True"):
        processor(TEXTS, **own, model=model)
    processor.repeat_frames = True
    found = processor(TEXTS, **own, model=model, packed=True)
    assert found["visual"].shape == (8, 5)
    assert torch.equal(found["visual"][0], found["visual"][2])


def test_what_does_not_fit_is_refused(processor):
    own, model = frames(OF_WORDS), system("raven")
    both = {"visual_words": OF_WORDS, "acoustic_words": OF_WORDS}
    for change, message in [
        ({"aligned": True}, "aligned=True or the words of the frames, one of them"),
        ({"acoustic_words": None}, "acoustic has frames; give acoustic_words"),
        ({"visual_words": OF_WORDS[:2]}, "visual_words has 2 utterances but words has 3"),
        ({"visual_words": [OF_WORDS[0][:2], *OF_WORDS[1:]]}, r"int64 of shape \(2,\) for 4 frames"),
        ({"visual_words": [OF_WORDS[0] * 1.0, *OF_WORDS[1:]]}, r"float64 of shape \(4,\) for 4 frames"),
        ({"visual_words": [OF_WORDS[0][::-1], *OF_WORDS[1:]]}, "must ascend from 0"),
        ({"visual_words": [OF_WORDS[0] + 1, *OF_WORDS[1:]]}, "below the number of words, 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            processor(TEXTS, **own, **{**both, **change}, model=model)
    with pytest.raises(ValueError, match="say which those are"):
        processor(TEXTS, **own, model=model)
    processor.word_vectors = None
    with pytest.raises(ValueError, match="reads word vectors"):
        processor(TEXTS, **own, **both, model=model)
    assert system("tfn").frame_level is FrameLevel.UTTERANCE  # which needs none of this
    processor(TEXTS, **own, model=system("tfn"))
