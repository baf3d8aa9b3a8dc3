"""Which frames belong to which pieces and words, at every level, before and after a cut."""

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast

from cmsbert_fast import CMSBertProcessor
from cmsbert_fast.data.example import Alignment, Example, FrameWords
from cmsbert_fast.models.encoding import FrameLevel, Pieces, fits
from cmsbert_fast.models.frame_maps import FrameMaps
from cmsbert_fast.models.inputs import FrameInputs, Inputs, pack

WORDS = ("the", "unbelievable", "film", "was")  # pieces: the un ##believ ##able film was
NAMES = frozenset(
    {"token_words", "cu_seq_lens_words", "max_length_words"}
    | {f"{part}_{m}" for part in ("token_frames",) for m in ("visual", "acoustic")}
)
OF_WORDS = frozenset(f"{part}_{m}_of_words" for part in ("cu_seq_lens", "max_length") for m in ("visual", "acoustic"))


@pytest.fixture
def tokenizer():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "was", "un", "##believ", "##able"]
    return BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)})


def frames(count: int, width: int = 1) -> np.ndarray:
    """Frame k holds k + 1."""
    return np.repeat(np.arange(1.0, count + 1, dtype=np.float32)[:, None], width, axis=1)


def example(alignment=Alignment.NONE, visual=0, acoustic=0, words=None, text=WORDS) -> Example:
    given = None if words is None else FrameWords(*(np.array(own, dtype=np.int32) for own in words))
    return Example("id", text, 0.5, frames(visual, 2), frames(acoustic), alignment, given)


def test_frames_of_words_at_every_level(tokenizer):
    processor = CMSBertProcessor(tokenizer)
    given = example(Alignment.WORDS, 0, 4)
    whole, pieces, words, of_words = (processor.encode(given, level) for level in FrameLevel)
    assert whole.acoustic.tolist() == pieces.acoustic.tolist() == words.acoustic.tolist() == [[1], [2], [3], [4]]
    assert whole.token_words.tolist() == [-1, 0, 1, 1, 1, 2, 3, -1]
    assert whole.token_frames["acoustic"].tolist() == pieces.token_frames["acoustic"].tolist()
    assert pieces.token_frames["acoustic"].tolist() == [-1, 0, 1, 1, 1, 2, 3, -1]
    assert pieces.token_frames["visual"].tolist() == [-1] * 8
    assert pieces.token_frames["visual"].dtype == np.int64
    assert words.visual.shape == (0, 2)
    assert of_words.word_frames["acoustic"].tolist() == [1, 1, 1, 1]
    assert of_words.word_frames["visual"].tolist() == [0, 0, 0, 0]


def test_frames_of_pieces(tokenizer):
    """A word's frame is the mean over its pieces."""
    processor = CMSBertProcessor(tokenizer)
    given = example(Alignment.PIECES, 6, 6)
    whole, pieces, words, of_words = (processor.encode(given, level) for level in FrameLevel)
    assert len(whole.visual) == len(pieces.visual) == len(of_words.visual) == 6
    assert pieces.token_frames["visual"].tolist() == [-1, 0, 1, 2, 3, 4, 5, -1]
    assert words.acoustic.tolist() == [[1], [3], [5], [6]]
    assert of_words.word_frames["visual"].tolist() == [1, 3, 1, 1]


@pytest.mark.parametrize(("max_length", "kept"), [(8, 4), (7, 3), (6, 2), (5, 1), (4, 1)])
def test_a_cut_keeps_frames_and_pieces_together(tokenizer, max_length, kept):
    processor = CMSBertProcessor(tokenizer, max_length=max_length)
    count = {4: 6, 3: 5, 2: 4, 1: 1}[kept]
    pieces = processor.encode(example(Alignment.PIECES, 6, 6), FrameLevel.PIECES)
    assert len(pieces.input_ids) == count + 2
    assert pieces.words == WORDS[:kept]
    assert pieces.token_frames["visual"].tolist() == [-1, *range(count), -1]
    assert len(pieces.visual) == len(processor.encode(example(Alignment.PIECES, 6, 6)).visual) == count
    spoken = [[0, 0, 1, 2, 2, 3], [-1, 1, -1, 3]]
    of_words = processor.encode(example(visual=6, acoustic=4, words=spoken), FrameLevel.OF_WORDS)
    assert of_words.word_frames["visual"].tolist() == [2, 1, 2, 1][:kept]
    assert of_words.word_frames["acoustic"].tolist() == [0, 1, 0, 1][:kept]
    assert len(of_words.visual) == sum([2, 1, 2, 1][:kept])


def test_a_cut_within_a_first_word(tokenizer):
    processor = CMSBertProcessor(tokenizer, max_length=4)
    found = processor.encode(example(Alignment.PIECES, 4, 4, text=WORDS[1:3]), FrameLevel.WORDS)
    assert found.token_words.tolist() == [-1, 0, 0, -1]
    assert found.acoustic.tolist() == [[1.5]]


def test_pieces_that_are_not_the_sources(tokenizer):
    """All frames stay for systems that read whole utterances; no piece and no word has one."""
    processor = CMSBertProcessor(tokenizer)
    given = example(Alignment.PIECES, 5, 5)
    whole, pieces, words, of_words = (processor.encode(given, level) for level in FrameLevel)
    assert len(whole.visual) == 5
    assert whole.token_frames is None
    assert pieces.token_frames["visual"].tolist() == [-1] * 8
    assert len(pieces.visual) == len(words.visual) == len(of_words.visual) == 0


def test_a_source_may_have_cut_a_long_text_where_it_is_cut_here():
    assert fits(6, Pieces([], [], total=6, room=48))
    assert fits(48, Pieces([], [], total=60, room=48))
    assert fits(48, Pieces([], [], total=60, room=40))
    assert not fits(48, Pieces([], [], total=60, room=58))
    assert not fits(7, Pieces([], [], total=6, room=48))
    assert not fits(5, Pieces([], [], total=6, room=48))


def test_frames_with_times_of_words(tokenizer):
    """Frames between words are left out; a word without frames has none, or zeros where each word has one."""
    processor = CMSBertProcessor(tokenizer)
    given = example(visual=6, acoustic=3, words=[[-1, 0, 0, -1, 2, 3], [-1, -1, -1]])
    whole, pieces, words, of_words = (processor.encode(given, level) for level in FrameLevel)
    assert len(whole.visual) == 6
    assert whole.token_frames is None
    assert words.visual[:, 0].tolist() == [2.5, 0, 5, 6]
    assert words.acoustic.shape == (0, 1)
    assert pieces.token_frames["visual"].tolist() == [-1, 0, -1, -1, -1, 2, 3, -1]
    assert pieces.visual[:, 0].tolist() == [2.5, 0, 5, 6]
    assert of_words.visual[:, 0].tolist() == [2, 3, 5, 6]
    assert of_words.word_frames["visual"].tolist() == [2, 0, 1, 1]
    assert of_words.word_frames["acoustic"].tolist() == [0, 0, 0, 0]


def test_the_only_frame_of_an_utterance_may_be_repeated(tokenizer):
    given, longer = example(acoustic=1), example(acoustic=2)
    processor = CMSBertProcessor(tokenizer, repeat_frames=True)
    whole, pieces, words, of_words = (processor.encode(given, level) for level in FrameLevel)
    assert whole.acoustic.tolist() == [[1]]
    assert words.acoustic.tolist() == of_words.acoustic.tolist() == [[1]] * 4
    assert of_words.word_frames["acoustic"].tolist() == [1] * 4
    assert pieces.acoustic[pieces.token_frames["acoustic"][1:-1]].tolist() == [[1]] * 6
    for level in (FrameLevel.PIECES, FrameLevel.WORDS, FrameLevel.OF_WORDS):
        with pytest.raises(ValueError, match="do not belong to words"):
            processor.encode(longer, level)
        with pytest.raises(ValueError, match="do not belong to words"):
            CMSBertProcessor(tokenizer).encode(given, level)


def batch_of(processor, level):
    examples = [
        example(Alignment.PIECES, 6, 6),
        example(Alignment.WORDS, 2, 0, text=("film", "was")),
        example(text=()),
        example(visual=3, acoustic=2, words=[[0, -1, 1], [1, 1]], text=("was", "unbelievable")),
    ]
    return [processor.encode(e, level) for e in examples]


def test_packed_maps_count_over_the_batch(tokenizer):
    processor = CMSBertProcessor(tokenizer)
    batch = batch_of(processor, FrameLevel.PIECES)
    inputs = processor.collate(batch, names=NAMES)
    assert inputs["token_words"].tolist() == [[-1, 0, 1, 1, 1, 2, 3, -1, -1, 4, 5, -1, -1, -1, -1, 6, 7, 7, 7, -1]]
    assert inputs["cu_seq_lens_words"].tolist() == [0, 4, 6, 6, 8]
    assert (inputs["cu_seq_lens_words"].dtype, inputs["max_length_words"]) == (torch.int32, 4)
    visual, acoustic = (inputs[f"token_frames_{m}"] for m in ("visual", "acoustic"))
    assert visual.tolist() == [[-1, 0, 1, 2, 3, 4, 5, -1, -1, 6, 7, -1, -1, -1, -1, 8, 9, 9, 9, -1]]
    assert acoustic.tolist() == [[-1, 0, 1, 2, 3, 4, 5, -1, -1, -1, -1, -1, -1, -1, -1, -1, 7, 7, 7, -1]]
    assert visual.dtype == acoustic.dtype == torch.int64
    assert not set(processor.collate(batch)) & NAMES
    assert set(processor.collate(batch, names={"token_words"})) & (NAMES | OF_WORDS) == {"token_words"}


def test_packed_frames_of_words(tokenizer):
    processor = CMSBertProcessor(tokenizer)
    inputs = processor.collate(batch_of(processor, FrameLevel.OF_WORDS), names=OF_WORDS)
    assert inputs["cu_seq_lens_visual_of_words"].tolist() == [0, 1, 4, 5, 6, 7, 8, 9, 10]
    assert inputs["cu_seq_lens_acoustic_of_words"].tolist() == [0, 1, 4, 5, 6, 6, 6, 6, 8]
    assert (inputs["max_length_visual_of_words"], inputs["max_length_acoustic_of_words"]) == (3, 3)
    assert len(inputs["visual"]) == 10
    assert inputs["cu_seq_lens_visual"].tolist() == [0, 6, 8, 8, 10]
    for level, known in ((FrameLevel.PIECES, NAMES), (FrameLevel.OF_WORDS, OF_WORDS | {"token_words"})):
        every = processor.collate(batch_of(processor, level), names=NAMES | OF_WORDS)
        assert set(every) & (NAMES | OF_WORDS) == known | {"cu_seq_lens_words", "max_length_words"}


@pytest.mark.parametrize("pad_to", [None, 11])
def test_padded_maps_are_the_packed_ones(tokenizer, pad_to):
    processor = CMSBertProcessor(tokenizer)
    for level, names in (
        (FrameLevel.PIECES, NAMES),
        (FrameLevel.OF_WORDS, {"token_words", "cu_seq_lens_words", "visual_words", "acoustic_words"} | OF_WORDS),
    ):
        batch = batch_of(processor, level)
        forms = []
        for packed in (True, False):
            inputs = processor.collate(batch, packed=packed, pad_to=pad_to, names=names)
            own = Inputs(**{name: value for name, value in inputs.items() if name in Inputs._fields})
            maps = FrameMaps(**{name: value for name, value in inputs.items() if name in FrameMaps._fields})
            whole = pack(own, visual_size=2, acoustic_size=1, max_positions=50, dtype=torch.float32)
            words = torch.tensor([0, 4, 6, 6, 8], dtype=torch.int32)
            layout = whole.tokens.packing._replace(cu_seqlens=words)
            for name in ("visual", "acoustic"):
                given: FrameInputs = getattr(own, f"{name}_frames")
                if level is FrameLevel.PIECES:
                    forms.append([maps.token_frames(name, given, whole)])
                else:
                    found = maps.of_words(name, getattr(whole.batch, name), layout)
                    forms.append([found.values, found.packing.cu_seqlens])
        for one, other in zip(forms[:2], forms[2:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        missing = FrameMaps()
        with pytest.raises(ValueError, match="give token_frames_visual"):
            missing.token_frames("visual", given, whole)
        with pytest.raises(ValueError, match="give cu_seq_lens_visual_of_words"):
            missing.of_words("visual", whole.batch.visual, layout)


def test_masked_frames_belong_to_no_piece(tokenizer):
    own = Inputs(
        torch.zeros(2, 3, dtype=torch.int64),
        visual=torch.ones(2, 3, 2),
        visual_mask=torch.tensor([[0, 1, 1], [1, 0, 1]]),
    )
    whole = pack(own, visual_size=2, acoustic_size=0, max_positions=50, dtype=torch.float32)
    maps = FrameMaps(token_frames_visual=torch.tensor([[0, 1, 2], [-1, 1, 2]]))
    assert maps.token_frames("visual", own.visual_frames, whole).tolist() == [-1, 0, 1, -1, -1, 3]
