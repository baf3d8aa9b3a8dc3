"""Which figures a run has, and which utterance its maps show."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cmsbert_fast.data import DataRequest, read_corpus
from cmsbert_fast.data.embedded import embedded_utterances
from cmsbert_fast.data.example import Alignment, Corpus, Example, FrameWords
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.task import LabelKind, Labels
from cmsbert_fast.plots.shift_maps import Span
from cmsbert_fast.training import figures, map_figures, tested
from cmsbert_fast.training.evaluate import Predictions, alignment_of
from tests.data.extracted import write_extracted


def example(words: int, visual: int = 2, acoustic: int = 2, **facts) -> Example:
    frames = [np.zeros((count, 3), np.float32) for count in (visual, acoustic)]
    return Example(f"{words} words", tuple("abcdefghij"[:words]), 0.5, *frames, **facts)


def of(*examples: Example, **sizes: int) -> tested.Tested:
    corpus = Corpus("tiny", {"test": examples}, 3, 3, ReadReport("tiny"))
    model = SimpleNamespace(config=SimpleNamespace(**{"visual_size": 3, "acoustic_size": 3, **sizes}))
    return tested.Tested(model, None, corpus, None, DataRequest())


@pytest.mark.parametrize(
    ("examples", "chosen"),
    [
        ([example(5), example(1), example(3), example(3), example(9)], 2),
        ([example(5), example(1), example(3), example(9)], 2),
        ([example(5, visual=0), example(1), example(3, acoustic=0), example(9)], 1),  # of those with all frames
        ([example(5, visual=0), example(2, 0, 0), example(3, acoustic=0)], 2),  # of those with any
        ([example(4, 0, 0), example(2, 0, 0)], 0),
    ],
)
def test_the_maps_are_of_the_first_utterance_of_median_length(examples, chosen) -> None:
    assert figures._example(of(*examples)) == chosen


def test_frames_of_a_modality_that_the_model_lacks_do_not_count() -> None:
    assert figures._example(of(example(5, acoustic=0), example(1), example(3), visual_size=0)) == 1


def test_words_of_frames() -> None:
    timed = FrameWords(np.array([-1, 0, 0, 2], np.int32), np.array([1, 1, 0], np.int32))
    known = example(3, 4, 3, frame_words=timed)
    assert map_figures.word_spans(known, "visual") == [Span("a", 1, 3), Span("c", 3, 4)]
    assert map_figures.word_spans(known, "acoustic") == [Span("b", 0, 2), Span("a", 2, 3)]
    aligned = example(3, 3, 0, alignment=Alignment.WORDS)
    assert map_figures.word_spans(aligned, "visual") == [Span("a", 0, 1), Span("b", 1, 2), Span("c", 2, 3)]
    assert map_figures.word_spans(aligned, "acoustic") == []
    assert map_figures.word_spans(example(3), "visual") == []


def drawn_maps(monkeypatch, corpus: Corpus, told: Example, request: DataRequest) -> tuple[dict, dict]:
    """What the figure of the maps is given, and its caption, for a model of the corpus's modalities."""
    drawn: dict = {}
    monkeypatch.setattr(
        "cmsbert_fast.plots.shift_maps.plot_shift_maps", lambda maps, pieces, **given: drawn.update(given)
    )
    monkeypatch.setattr("cmsbert_fast.plots.style.save", lambda figure, stem: None)
    frames = len(told.visual), len(told.acoustic)
    maps = [tuple(np.ones((len(told.words) + 2, count)) for count in frames)]
    sizes = {"visual_size": corpus.visual_size, "acoustic_size": corpus.acoustic_size}
    config = SimpleNamespace(**sizes, cms_layers=[0], num_hidden_layers=1)
    monkeypatch.setattr(figures, "shift_maps", lambda model, processor, e: maps if e.id == told.id else None)
    tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda ids: ["x"] * len(ids))
    processor = SimpleNamespace(tokenizer=tokenizer, input_ids=lambda words: [0, *range(len(words)), 1])
    labels = torch.tensor([e.label for e in corpus.splits["test"]])
    predictions = Predictions([], {"logits": torch.arange(float(len(labels)))[:, None]}, labels)
    whole = tested.Tested(SimpleNamespace(config=config), processor, corpus, predictions, request, "cmsbert")
    caption = figures._draw_shift_maps(Path(), whole, Labels(LabelKind.SENTIMENT), "title")
    assert caption is not None
    return drawn, caption


def test_events_of_the_embedded_corpus_are_those_of_the_chosen_utterance(monkeypatch) -> None:
    """The title names the utterance and the rule; label and prediction are its own."""
    utterances = embedded_utterances()["test"][:7]
    lengths = [len(u.example.words) for u in utterances]
    index = lengths.index(sorted(lengths)[3])
    told = utterances[index].example
    corpus = Corpus("embedded", {"test": [u.example for u in utterances]}, 8, 6, ReadReport("embedded"))
    drawn, caption = drawn_maps(monkeypatch, corpus, told, request=DataRequest())
    assert drawn["times"] == {}
    assert drawn["events"] == utterances[index].events
    assert caption["id"] == told.id
    assert caption["words"] == list(told.words)
    assert (caption["label"], caption["prediction"]) == (f"{told.label:.2f}", f"{index:.2f}")
    for part in (told.id, " ".join(told.words), caption["label"], caption["prediction"], figures.RULE):
        assert part in drawn["title"]


@pytest.mark.parametrize("options", [{}, {"words": "words"}, {"words": "words", "average_words": False}])
def test_maps_of_timed_frames_have_words_and_seconds(monkeypatch, tmp_path, options) -> None:
    """Though training read no times."""
    folder = write_extracted(tmp_path / "data", splits=("train", "test"), labels=True)
    request = DataRequest.of(folder, **options)
    corpus = read_corpus(request)
    (told,) = corpus.splits["test"]
    drawn, _ = drawn_maps(monkeypatch, corpus, told, request=request)
    words = list(told.words)
    for modality, frames in (("visual", 4), ("acoustic", 8)):  # a word of 0.4 s
        times, spans = drawn["times"][modality], drawn["words"][modality]
        assert times.shape == (len(getattr(told, modality)), 2)
        assert (times[0, 0], times[-1, 1]) == pytest.approx((2.2, 5.0))
        assert [span.name for span in spans] == words
        step = 1 if options == {"words": "words"} else frames
        assert [span.start for span in spans] == pytest.approx([step * k for k in range(len(words))], abs=1)


def test_maps_of_data_that_are_gone_number_their_frames(monkeypatch, tmp_path) -> None:
    folder = write_extracted(tmp_path / "data", splits=("train", "test"), labels=True)
    corpus = read_corpus(folder)
    shutil.rmtree(folder)
    drawn, _ = drawn_maps(monkeypatch, corpus, corpus.splits["test"][0], request=DataRequest.of(folder))
    assert (drawn["times"], drawn["words"]) == ({}, {"visual": [], "acoustic": []})


def test_alignment_of_what_has_no_embeddings_or_no_single_label() -> None:
    rows = {"logits": torch.zeros(4, 1)}
    assert alignment_of(Predictions(list("abcd"), rows, torch.ones(4)), Labels(LabelKind.SCORE)) is None
    rows = {**rows, "linguistic_embeds": torch.eye(4), "acoustic_embeds": torch.eye(4)}
    several = Predictions(list("abcd"), rows, torch.ones(4, 2))
    found = alignment_of(several, Labels(LabelKind.SEVERAL, ("sad", "happy")))
    assert found["recall_at_1"]["linguistic_to_acoustic"] == 100
    assert "neighbour_correlation" not in found
    assert alignment_of(dataclasses.replace(several, ids=["a"]), Labels(LabelKind.SCORE)) is None


def test_every_kind_of_predictions_has_a_figure(tmp_path) -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    one = Predictions(["a", "b"], {"logits": logits}, torch.tensor([0, 0]))
    several = Predictions(["a", "b"], {"logits": logits}, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    score = Predictions(["a", "b"], {"logits": logits[:, :1]}, torch.tensor([0.5, 1.0]))
    found = [
        figures.draw_predictions(tmp_path, one, Labels(LabelKind.CLASSES, ("sad", "happy")), "one"),
        figures.draw_predictions(tmp_path, several, Labels(LabelKind.SEVERAL, ("sad", "happy")), "several"),
        figures.draw_predictions(tmp_path, score, Labels(LabelKind.SCORE), "scores"),
    ]
    assert found == ["confusion", "confusion", "scatter"]
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.{end}" for n in found for end in ("png", "svg")}
