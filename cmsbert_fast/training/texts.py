"""What the tokenizer makes of the texts of a corpus: how many are cut, and whether it knows their words."""

from collections.abc import Iterator, Sequence
from typing import Any

from cmsbert_fast.data.example import Corpus, outlines
from cmsbert_fast.training.errors import UsageError

_AT_A_TIME = 1000  # texts
_MANY_UNKNOWN = 0.1  # share of word pieces


def check_texts(corpus: Corpus, tokenizer: Any, max_length: int, splits: Sequence[str] | None = None) -> list[str]:
    """What a reader of results should know of the texts, a sentence each.

    Args:
        corpus: Its texts.
        tokenizer: The model's.
        max_length: Word pieces of an utterance, [CLS] and [SEP] included; longer ones are cut.
        splits: Those to look at; None = all.

    Raises:
        UsageError: The tokenizer knows no word at all: its vocabulary is missing.
    """
    cut, pieces, unknown, silent = {}, 0, 0, 0
    for split in splits or tuple(corpus.splits):
        longer = 0
        for ids, missing in _pieces([o.words for o in outlines(corpus.splits[split])], tokenizer):
            silent += missing
            longer += len(ids) > max_length - 2
            pieces += len(ids)
            unknown += ids.count(tokenizer.unk_token_id)
        if longer:
            cut[split] = f"{longer} of {len(corpus.splits[split])} {split}"
    if pieces and unknown == pieces:
        raise UsageError(
            f"The tokenizer knows no word of {corpus.name}: its vocabulary is missing or of another language; give a "
            "checkpoint with its tokenizer."
        )
    found = []
    if cut:
        found.append(f"cut to {max_length} word pieces (--max-length): {', '.join(cut.values())} examples")
    if silent:
        found.append(
            f"{silent} words have no word piece (control or zero-width characters): the model does not see them, and "
            "word-level systems leave out the frames of those that end an utterance"
        )
    if unknown > _MANY_UNKNOWN * pieces:
        found.append(f"{unknown} of {pieces} word pieces are unknown to the tokenizer ([UNK])")
    return found


def _pieces(texts: list[tuple[str, ...]], tokenizer: Any) -> Iterator[tuple[list[int], int]]:
    """The word pieces of each text that has words, and how many of its words have none."""
    known = [list(words) for words in texts if words]
    for begin in range(0, len(known), _AT_A_TIME):
        some = known[begin : begin + _AT_A_TIME]
        found = tokenizer(some, is_split_into_words=True, add_special_tokens=False, verbose=False)
        for number, (words, ids) in enumerate(zip(some, found["input_ids"], strict=True)):
            yield ids, len(words) - len(set(found.word_ids(number)))
