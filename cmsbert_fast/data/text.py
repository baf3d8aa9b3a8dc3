"""Text from files: repaired, made safe to print, and split into words."""

import re
import unicodedata

_LONGEST = 1200  # characters of a message
_HALVES = re.compile("[\ud800-\udfff]")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_CHINESE = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


def whole(text: str) -> str:
    """Text with lone surrogates replaced: neither files nor tokenizers accept them."""
    return text if text.isascii() else _HALVES.sub("\N{REPLACEMENT CHARACTER}", text)


def printable(text: str) -> str:
    """Text without control characters and lone surrogates; tabs and line ends stay."""
    return _CONTROLS.sub("?", text)


def sentence(text: str) -> str:
    """What is told to a user: printable, and without the middle of what is far longer than any sentence."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 3 :]}"
    return printable(text)


def bare(word: str) -> str:
    """A word without case and punctuation, to compare it with another: "Don't," is "dont"; "--" stays what it is."""
    if word.isascii() and word.isalpha():  # most words
        return word.lower()
    folded = unicodedata.normalize("NFKC", word).casefold()
    kept = "".join(letter for letter in folded if unicodedata.category(letter)[0] in "LMN")
    return kept or folded


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text: split at white space, and each Chinese character by itself, as BERT's tokenizer does."""
    return tuple(_CHINESE.sub(r" \1 ", text).split())
