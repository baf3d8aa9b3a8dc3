"""The processor: word pieces, cutting, standardising, padding and packing."""

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, BatchFeature, BertTokenizer

from cmsbert_fast import CMSBertConfig, CMSBertModel, CMSBertProcessor
from cmsbert_fast.data.example import Alignment, Example

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "was", "great", "un", "##believ", "##able"]


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCABULARY))
    return BertTokenizer.from_pretrained(str(tmp_path))


def example(words, visual=0, acoustic=0, label=0.5, **kwargs):
    rng = np.random.default_rng(len(words))
    frames = [rng.normal(3, 2, size=(n, d)).astype(np.float32) for n, d in ((visual, 4), (acoustic, 2))]
    return Example("id", tuple(words.split()), label, *frames, **kwargs)


def test_statistics_are_those_of_all_frames_and_standardise(tokenizer):
    examples = [example("the film", 5, 1), example("the film was", 1, 0), example("the", 200, 3)]
    processor = CMSBertProcessor(tokenizer).fit(examples)
    frames = np.concatenate([e.visual for e in examples]).astype(np.float64)
    np.testing.assert_allclose(processor.visual_mean, frames.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(processor.visual_std, frames.std(axis=0), rtol=1e-12)
    encoded = np.concatenate([processor.encode(e).visual for e in examples])
    np.testing.assert_allclose(encoded.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(encoded.std(axis=0), 1, atol=1e-5)
    assert encoded.dtype == np.float32


def test_values_that_are_not_finite_count_as_zero(tokenizer):
    rough, clean = example("the film", 5, 1), example("the film", 5, 1)
    rough.visual[2, 1], rough.acoustic[0, 0] = np.nan, -np.inf
    clean.visual[2, 1], clean.acoustic[0, 0] = 0, 0
    processor = CMSBertProcessor(tokenizer).fit([rough])
    expected = CMSBertProcessor(tokenizer).fit([clean])
    assert (processor.visual_mean, processor.visual_std) == (expected.visual_mean, expected.visual_std)
    assert processor.acoustic_mean == expected.acoustic_mean
    np.testing.assert_array_equal(processor.encode(rough).visual, expected.encode(clean).visual)


def test_a_constant_feature_becomes_zero(tokenizer):
    frames = np.full((6, 4), 7.3, dtype=np.float32)
    constant = Example("id", ("the",), 0.0, frames, np.zeros((0, 2), np.float32))
    processor = CMSBertProcessor(tokenizer).fit([constant])
    np.testing.assert_allclose(processor.encode(constant).visual, 0, atol=1e-6)


def test_long_texts_are_cut_at_a_word_boundary_with_their_frames(tokenizer):
    processor = CMSBertProcessor(tokenizer, max_length=6)
    encoded = processor.encode(example("the film unbelievable was", 4, 4, alignment=Alignment.WORDS))
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids) == [
        "[CLS]",
        "the",
        "film",
        "[SEP]",
    ]  # "un" alone would fit
    assert len(encoded.visual) == len(encoded.acoustic) == 2
    assert encoded.token_frames["visual"].tolist() == [-1, 0, 1, -1]
    unaligned = processor.encode(example("the film unbelievable was", 9, 4))
    assert len(unaligned.visual) == 9
    assert unaligned.token_frames is None
    first = CMSBertProcessor(tokenizer, max_length=4).encode(example("unbelievable film"))
    assert tokenizer.convert_ids_to_tokens(first.input_ids) == ["[CLS]", "un", "##believ", "[SEP]"]


@pytest.mark.parametrize("words", ["the film was", "unbelievable", "the unbelievable film was great", ""])
def test_word_pieces_without_frames_are_those_of_an_example(tokenizer, words):
    processor = CMSBertProcessor(tokenizer, max_length=5)
    assert processor.input_ids(tuple(words.split())) == processor.encode(example(words)).input_ids


def test_pieces_of_a_word_share_its_frame(tokenizer):
    encoded = CMSBertProcessor(tokenizer).encode(example("the unbelievable film", 3, 3, alignment=Alignment.WORDS))
    assert encoded.token_frames["visual"].tolist() == [-1, 0, 1, 1, 1, 2, -1]


def test_packed_and_padded_are_the_same_batch(tokenizer):
    torch.manual_seed(0)
    examples = [example("the film was great", 3, 0), example("unbelievable", 0, 2), example("", 1, 1)]
    processor = CMSBertProcessor(tokenizer).fit(examples)
    encoded = [processor.encode(e) for e in examples]
    packed, padded = processor.collate(encoded), processor.collate(encoded, packed=False, pad_to=9)
    assert packed["cu_seq_lens_q"].tolist() == [0, 6, 11, 13]
    assert packed["max_length_visual"] == 3
    assert padded["input_ids"].shape == (3, 9)
    assert padded["attention_mask"].sum(1).tolist() == [6, 5, 2]
    assert packed["labels"].tolist() == padded["labels"].tolist() == [0.5] * 3
    config = CMSBertConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, visual_size=4, acoustic_size=2
    )
    model = CMSBertModel(config).eval()
    del packed["labels"], padded["labels"]
    valid = padded["attention_mask"].bool()
    torch.testing.assert_close(
        model(**packed).last_hidden_state[0], model(**padded).last_hidden_state[valid], rtol=0, atol=1e-6
    )


def test_labels_scores_classes_and_unknown(tokenizer):
    processor = CMSBertProcessor(tokenizer)

    def labels(*values):
        return processor.collate([processor.encode(example("the", label=value)) for value in values]).get("labels")

    assert labels(1.0, -0.2).dtype == torch.float32
    assert labels(1, 0).dtype == torch.int64
    assert labels(1.0, None) is None


def test_call_takes_text_words_or_a_batch(tokenizer):
    processor = CMSBertProcessor(tokenizer).fit([example("the film", 5, 3)])
    frames = example("the film", 5, 3)
    one = processor("The FILM", visual=frames.visual, acoustic=frames.acoustic)
    assert one["input_ids"].tolist() == [[2, 5, 6, 3]]
    assert one["visual"].shape == (1, 5, 4)
    same = processor(["the", "film"], visual=frames.visual, acoustic=frames.acoustic)
    assert torch.equal(same["visual"], one["visual"])
    many = processor([["the"], ["film", "was"]], visual=[frames.visual, frames.visual[:2]])
    assert many["visual_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert many["acoustic"].shape == (2, 0, 2)
    texts = processor(["the film", "was great"], visual=[frames.visual, frames.visual[:2]])
    assert texts["input_ids"].tolist() == [[2, 5, 6, 3], [2, 7, 8, 3]]
    assert processor(["the", "film"], visual=[frames.visual, frames.visual])["input_ids"].shape == (2, 3)
    with pytest.raises(ValueError, match="visual has 1 utterances but words has 2"):
        processor([["the"], ["film"]], visual=[frames.visual])
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        processor("the film", visual=frames.visual[0])


def test_call_treats_frames_as_training_does(tokenizer):
    processor = CMSBertProcessor(tokenizer, max_length=4)
    frames = np.array([[1, np.nan], [-np.inf, 2], [3, 3]], np.float32)
    inputs = processor("the film was", visual=frames, aligned=True)
    assert inputs["visual"].tolist() == [[[1, 0], [0, 2]]]


def test_round_trip_beside_the_model(tokenizer, tmp_path):
    processor = CMSBertProcessor(tokenizer, max_length=17).fit([example("the film", 5, 3)])
    processor.save_pretrained(tmp_path / "saved")
    CMSBertConfig().save_pretrained(tmp_path / "saved")
    for loaded in (
        CMSBertProcessor.from_pretrained(tmp_path / "saved"),
        AutoProcessor.from_pretrained(tmp_path / "saved"),
    ):
        assert isinstance(loaded, CMSBertProcessor)
        assert loaded.max_length == 17
        assert loaded.visual_std == processor.visual_std
        assert loaded("the film was")["input_ids"].tolist() == processor("the film was")["input_ids"].tolist()


def test_errors(tokenizer):
    processor = CMSBertProcessor(tokenizer).fit([example("the film", 5, 3)])
    other = Example("id", ("the",), 0.0, np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="visual frames have 3 features, but the processor was fitted to 4"):
        processor.encode(other)
    with pytest.raises(ValueError, match="max_length=2 leaves no room"):
        CMSBertProcessor(tokenizer, max_length=2)


def test_hugging_faces_way_to_call_it(tokenizer):
    processor = CMSBertProcessor(tokenizer)
    frames = np.ones((3, 2), np.float32)
    expected = processor("the film", visual=frames)
    found = processor(text="the film", visual=frames, return_tensors="pt")
    assert isinstance(found, BatchFeature)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    half = processor(text=["the film", "good"], visual=[frames, frames], packed=True).to("cpu", torch.float16)
    assert half["visual"].dtype == torch.float16
    assert half["input_ids"].dtype == torch.int64
    assert half["max_length_visual"] == 3
    assert half.to("meta")["input_ids"].device.type == "meta"
    arrays = processor(text="the film", visual=frames, return_tensors="np")
    assert isinstance(arrays["visual"], np.ndarray)
    for arguments in ({}, {"words": "a", "text": "b"}):
        with pytest.raises(ValueError, match="as words or as text"):
            processor(**arguments)
    with pytest.raises(ValueError, match="choose 'pt' or 'np'"):
        processor("good", return_tensors="tf")


def test_fit_says_what_it_takes(tokenizer):
    with pytest.raises(TypeError, match=r"fit takes cmsbert_fast.data.Example, .* not ndarray"):
        CMSBertProcessor(tokenizer).fit([np.ones((3, 2))])
