"""Short runs on the embedded corpus: results, log and predictions are those of commit 2931ebd.

To the bit where the environment is the recorded one, else within a tolerance, with a warning that says what differs.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors import safe_open

from tests.frozen import golden
from tests.frozen.checkpoints import TEXTS, predict
from tests.frozen.runs import COMMANDS, read, run_all

RUNS = [(name, variant) for name, command in COMMANDS.items() for variant in command.variants]
# The fields of config.json that are Hugging Face's own business. Their defaults come and go with its versions.
OURS = ("architectures", "model_type", "cms_layers", "gate_activation", "visual_size", "acoustic_size", "id2label")
OURS += ("label2id", "projection_size", "smoothing", "temperature", "threshold", "hidden_size", "num_hidden_layers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder with the runs of every command."""
    return run_all(tmp_path_factory.mktemp("frozen"))


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """The golden file."""
    return golden.load("runs")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_runs_of_a_command(folders, name):
    assert list(read(folders[name])) == sorted(COMMANDS[name].variants)
    assert (folders[name] / "summary.json").is_file()
    assert (folders[name] / "summary.md").is_file()


@pytest.mark.parametrize(("name", "variant"), RUNS)
def test_results_log_and_predictions(folders, recorded, name, variant):
    if COMMANDS[name].backend == "cpu" and golden.environment()["compiler"] is None:
        pytest.skip("there is no C++ compiler, and without compiled code dropout draws other masks")
    expected = recorded["runs"][name][variant]
    expected["predictions"] |= recorded["examples"]
    assert expected["results"]["backend"] == COMMANDS[name].backend
    golden.assert_unchanged(expected, read(folders[name])[variant], golden.to_the_bit(recorded["environment"]))


@pytest.mark.parametrize(("name", "variant"), [run for run in RUNS if COMMANDS[run[0]].ranks == 1])
def test_the_best_model_predicts_what_the_run_wrote(folders, name, variant):
    folder = folders[name] / variant / "seed-0"
    expected = read(folders[name])[variant]["predictions"]
    del expected["label"]
    arguments = (folder, "embedded", "--split", "test", "--batch-size", 128)
    assert predict(*arguments, backend="torch" if name == "torch" else "auto") == expected


# What later versions write besides.
SINCE_THEN = {
    "files": {"CHECKSUMS.json", "README.md", "shift_maps.png"},
    "processor": {"repeat_frames", "extraction", "feature_names"},
}


def test_files_of_a_model(folders, recorded):
    best = folders["default"] / "cmsbert-clr" / "seed-0" / "best"
    then = {"model.safetensors", *(path.name for path in TEXTS.iterdir())}
    assert {path.name for path in best.iterdir()} == then | SINCE_THEN["files"]
    exact = golden.to_the_bit(recorded["environment"])
    expected, found = (
        {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in ("config.json", "tokenizer.json")}
        for folder in (TEXTS, best)
    )
    version = expected["config.json"].pop("transformers_version")
    if transformers.__version__ != version:
        expected["config.json"] = {name: expected["config.json"][name] for name in OURS}
        expected["tokenizer.json"] = {"model": {"vocab": expected["tokenizer.json"]["model"]["vocab"]}}
    golden.assert_unchanged(expected, found)
    expected, found = (
        json.loads((folder / "processor_config.json").read_text(encoding="utf-8")) for folder in (TEXTS, best)
    )
    golden.assert_unchanged(expected, found, exact)
    assert set(found) == set(expected) | SINCE_THEN["processor"]


def test_weights_of_a_model(folders):
    with safe_open(folders["default"] / "cmsbert-clr" / "seed-0" / "best" / "model.safetensors", "np") as file:
        found = {key: "x".join(map(str, file.get_slice(key).get_shape())) for key in file.keys()}  # noqa: SIM118
    expected = golden.load("state_dicts")["trained CMSBERT-CLR"]
    assert found == {key: text.partition(" ")[2] for key, text in expected.items()}
