"""The one spelling of a data request."""

import argparse
from dataclasses import fields
from pathlib import Path

import pytest

from cmsbert_fast.data import DataError, DataRequest
from cmsbert_fast.data.request import CHOICES, DataOptions, add_options, options_in


def parsed(*arguments: str) -> DataRequest:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return DataRequest.of("folder", **options_in(parser.parse_args(arguments)))


def test_the_command_line_makes_the_same_request_as_keywords() -> None:
    assert parsed() == DataRequest.of(Path("folder")) == DataRequest(data="folder")
    options = (
        "--visual",
        "a",
        "b@30",
        "--acoustic",
        "none",
        "--columns",
        "AU*",
        "--words",
        "w",
        "--average-words",
        "false",
        "--label",
        "l",
        "--folds",
        "f",
        "--fold",
        "2",
    )
    meant = DataRequest.of(
        "folder",
        visual=["a", "b@30"],
        acoustic="none",
        columns="AU*",
        words="w",
        average_words=False,
        label="l",
        folds=Path("f"),
        fold=2,
    )
    assert parsed(*options) == meant
    assert meant.choices() == {
        "visual": ("a", "b@30"), "acoustic": ("none",), "columns": "AU*", "words": "w", "average_words": False,
        "label": "l", "folds": "f", "fold": 2,
    }  # fmt: skip


def test_options_become_requests() -> None:
    options = DataOptions(data="x", words="w", fold=3)
    assert options.request() == DataRequest(data="x", words="w", fold=3)
    assert options.request(labels=False) == DataRequest(data="x", words="w", fold=3, labels=False)
    assert {field.name for field in fields(DataRequest)} == {"data", "labels", "clocks", "task", *CHOICES}
    assert DataRequest.of(options.request(), visual="v") == DataRequest(data="x", visual=("v",), words="w", fold=3)


def test_only_the_name_is_the_embedded_corpus() -> None:
    assert DataOptions().embedded
    assert not DataRequest.of("./embedded").embedded


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="stream"):
        DataRequest.of("x", stream="y")


def test_what_is_left_out_of_formats_without_streams() -> None:
    assert DataRequest.of("x").left_out("MMSA") == []
    assert DataRequest.of("x", visual="none", acoustic=("none",)).left_out("MMSA") == ["visual", "acoustic"]
    with pytest.raises(DataError, match="Leave out --average-words: MMSA data have no stream of words"):
        DataRequest.of("x", average_words=False).left_out("MMSA")
    with pytest.raises(DataError, match="Leave out --words: MMSA data have words of their own"):
        DataRequest.of("x", words="TimestampedWords").left_out("MMSA")
    assert DataRequest.of("x", words="words.tsv").left_out("MulT", takes_words=True) == []
    with pytest.raises(DataError, match="Leave out --acoustic: MMSA data"):
        DataRequest.of("x", acoustic="none,none").left_out("MMSA")
