"""The tables as the paper prints them, and table files of one's own."""

import re

import pytest
import yaml

from cmsbert_fast.experiments import tuning
from cmsbert_fast.experiments.tables import read_table
from cmsbert_fast.training.errors import UsageError
from tests.experiments.conftest import CONFIGS

SHIPPED = [read_table(name, CONFIGS) for name in "1234"]


def test_rows_of_the_paper():
    assert [len(table.rows) for table in SHIPPED] == [10, 4, 5, 5]
    assert [table.reference for table in SHIPPED] == ["CMSBERT-CLR (B)", "CMSBERT", "CMSBERT-CLR", None]
    assert [row.label for row in SHIPPED[3].rows if row.variant is None] == ["MHA-3", "F-III", "AugPauseRoBERTa"]
    assert SHIPPED[3].folds == 10


def test_figures_of_the_same_system_agree_between_tables():
    clr = [row.figures["paper"]["mosi"] for table in SHIPPED[:3] for row in table.rows if row.variant == "cmsbert-clr"]
    assert clr[0] == clr[1]
    assert clr[0] == {
        "mae": 0.708,
        "corr": 0.802,
        "acc2_non_negative": 84.82,
        "acc2_positive": 86.56,
        "f1_non_negative": 84.73,
        "f1_positive": 86.48,
    }
    tfn = SHIPPED[0].rows[0].figures["paper"]["mosi"]
    assert tfn == {"mae": 0.901, "corr": 0.698, "acc2_positive": 80.8, "f1_positive": 80.7}
    assert SHIPPED[0].rows[1].figures["paper"]["mosei"] == {"acc2_non_negative": 76.0, "f1_non_negative": 76.0}


def test_the_paper_has_a_figure_for_every_row():
    for table in SHIPPED:
        for row in table.rows:
            assert set(row.figures["paper"]) <= set(table.data)
            assert row.figures["paper"], row.label
            tuning.check_space(row.space, row.label)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["loudness"]}, "loudness"),
        ({"reference": "nobody"}, "reference"),
        ({"rows": [{"label": "A"}, {"label": "A"}]}, "once"),
        ({"rows": [{"label": "A", "colour": 1, 2: 3}]}, "the unknown entry 2, colour"),
        ({"rows": [{"label": "A", "figures": {"paper": {"x": "0.1 0.2"}}}]}, "2 cells for 1"),
        ({"rows": [{"label": "A", "figures": {"paper": {"x": "0.1/0.2"}}}]}, "too many parts"),
        ({"rows": [{"label": "A", "figures": {"gossip": {"x": "0.1"}}}]}, "not of gossip"),
        ({"rows": None}, "not a table"),
        ({"fold": 10}, "the unknown entry fold"),
    ],
)
def test_mistakes_in_a_table_file(tmp_path, change, message):
    path = tmp_path / "mine.yaml"
    whole = {"title": "T", "data": ["x"], "metrics": ["mae"], "rows": [{"label": "A"}]}
    path.write_text(yaml.safe_dump(whole))
    assert read_table(str(path), CONFIGS).name == "mine"
    path.write_text(yaml.safe_dump({**whole, **change}))
    with pytest.raises(UsageError, match=re.escape(message)):
        read_table(str(path), CONFIGS)


def test_unknown_table():
    with pytest.raises(UsageError, match="choose from 1, 2, 3, 4"):
        read_table("7", CONFIGS)
