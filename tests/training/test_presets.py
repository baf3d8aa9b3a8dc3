"""Published settings by name, and a user's own files of the same name."""

from pathlib import Path

import pytest

from cmsbert_fast.training import presets
from cmsbert_fast.training.command import parse_command
from cmsbert_fast.training.errors import UsageError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the checkout, where every path to a published file exists."""
    monkeypatch.chdir(tmp_path)


def test_every_published_file_but_the_tables_has_a_name_of_its_own() -> None:
    files = [path for path in presets.FOLDER.rglob("*.yaml") if path.parent.name != "tables"]
    assert sorted(presets.presets().values()) == sorted(files)
    assert {"embedded", "mosi", "mosei", "iemocap", "tfn-mosi"} <= presets.presets().keys()


@pytest.mark.parametrize("text", ["tfn-mosi", "tfn-mosi.yaml", "baselines/tfn-mosi", "configs/baselines/tfn-mosi.yaml"])
def test_a_name_is_the_published_file(text: str) -> None:
    assert presets.find(text) == presets.FOLDER / "baselines" / "tfn-mosi.yaml"
    (run,) = parse_command(["--config", text, "--epochs", "3"]).runs
    assert (run.variant, run.epochs) == ("tfn", 3)


@pytest.mark.parametrize("text", ["other/tfn-mosi.yaml", "x/configs/mosi.yaml", "configs/tfn-mosi.yaml", "tables/1"])
def test_other_paths_are_paths(text: str) -> None:
    assert presets.find(text) == Path(text)


def test_a_file_of_that_path_wins_and_a_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "mosi").mkdir()  # of data
    assert presets.find("mosi") == presets.FOLDER / "mosi.yaml"
    (tmp_path / "mosei.yaml").write_text("epochs: 3\n")
    assert presets.find("mosei.yaml") == Path("mosei.yaml")


def test_a_name_of_two_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mosi.yaml").write_text("epochs: 3\n")
    with pytest.raises(UsageError, match=r"mosi names published settings \(.*\) and mosi.yaml is here too"):
        presets.find("mosi")
    (tmp_path / "mosi.yaml").write_bytes((presets.FOLDER / "mosi.yaml").read_bytes())
    assert presets.find("mosi") == presets.FOLDER / "mosi.yaml"


def test_a_misspelt_name() -> None:
    with pytest.raises(UsageError, match="did you mean misa-mosi"):
        parse_command(["--config", "misa-mois"])
    with pytest.raises(UsageError, match="cannot be read"):
        parse_command(["--config", "missing/mois.yaml"])
