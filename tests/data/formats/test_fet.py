"""MMSA-FET's files: single clips, padding in front, the entries of MMSA's files that are no split."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, read_corpus
from cmsbert_fast.data.example import Alignment
from tests.data.formats.expected import clean


def clip(files: Any, name: str, tokens: int = 6, aligned: bool = False) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = files.clip(tokens, aligned)
    files.pickle(f"{name}.pkl", found, 5)
    return found


def words(files: Any, rows: list[str], header: str = "id,split,label,text") -> Path:
    path = files.folder.parent / "words.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_single_clip(files: Any) -> None:
    content = clip(files, "talk")
    with pytest.raises(DataError, match=r"Name a table .* --words TABLE, .* talk.pkl holds MMSA-FET's features"):
        read_corpus(files.folder / "talk.pkl")
    table = words(files, ["any,,,it was good"])
    corpus = read_corpus(files.folder / "talk.pkl", words=str(table), labels=False)
    (example,) = corpus.splits["all"]
    assert (example.id, example.words, example.label, example.alignment) == (
        "any",
        ("it", "was", "good"),
        None,
        Alignment.NONE,
    )
    np.testing.assert_array_equal(example.acoustic, clean(content["audio"]))
    np.testing.assert_array_equal(example.visual, clean(content["vision"]))
    table = words(files, ["a,,,x", "b,,,y"])
    with pytest.raises(DataError, match=r"talk.pkl is none of its 2 ids"):
        read_corpus(files.folder / "talk.pkl", words=str(table))


@pytest.mark.parametrize(("tokens", "alignment"), [(5, Alignment.WORDS), (7, Alignment.PIECES)])
def test_a_folder_of_aligned_clips(files: Any, tokens: int, alignment: Alignment) -> None:
    contents = {name: clip(files, name, tokens, aligned=True) for name in ("a", "b", "c", "d")}
    table = words(files, ["a,train,good,x y z", "b,test,bad,x y z", "c,valid,good,x y z"])
    with pytest.raises(DataError, match="Name a table"):
        read_corpus(files.folder)
    corpus = read_corpus(files.folder, words=str(table))
    assert (corpus.report.counts, corpus.classes) == ({"train": 1, "valid": 1, "test": 1}, ("bad", "good"))
    assert "1 clips are not in words.csv: d.pkl" in str(corpus.report)
    (example,) = corpus.splits["test"]
    assert (example.id, example.label, example.alignment) == ("b", 0, alignment)
    np.testing.assert_array_equal(example.visual, clean(contents["b"]["vision"])[1:-1])
    files.pickle("b.pkl", {"some": "thing"})
    with pytest.raises(DataError, match=r"in place of b.pkl"):
        read_corpus(files.folder, words=str(table))


def test_padding_in_front(files: Any) -> None:
    root = files.mmsa(aligned=False)
    meant = {}
    for split, part in root.items():
        for key, lengths in (("vision", part["vision_lengths"]), ("audio", part["audio_lengths"])):
            for k, n in enumerate(lengths):
                rows = part[key][k, :n].copy()
                part[key][k] = 0
                part[key][k, len(part[key][k]) - n :] = rows
                meant[split, key, k] = rows
    corpus = read_corpus(files.pickle("feature.pkl", root | {"config": {"audio": {"tool": "librosa"}}}))
    for split, examples in corpus.splits.items():
        for k, example in enumerate(examples):
            np.testing.assert_array_equal(example.visual, clean(meant[split, "vision", k]))
            np.testing.assert_array_equal(example.acoustic, clean(meant[split, "audio", k]))
    assert "vision is padded in front" in str(corpus.report)
    assert "entries that are no split, not read: config" in str(corpus.report)


@pytest.mark.parametrize("texts", [True, False])
def test_the_mixed_split_of_sims_is_no_split(files: Any, texts: bool) -> None:
    root = files.mmsa(aligned=False)
    root["train_mix"] = dict(root["train"], mask=np.ones(4))
    if not texts:
        del root["train_mix"]["raw_text"]
    corpus = read_corpus(files.pickle("simsv2.pkl", root))
    assert corpus.report.counts == {"train": 4, "valid": 4, "test": 4}
    assert "entries that are no split, not read: train_mix" in str(corpus.report)


def test_tensors_of_pytorch_are_named(files: Any) -> None:
    import torch

    path = files.pickle("feature.pkl", {"audio": torch.ones(2, 3)})
    with pytest.raises(DataError, match=r"it holds tensors of PyTorch, save them as arrays \(tensor.numpy\(\)\)"):
        read_corpus(path)
