"""The card of a trained model, and where it goes with the model."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.utils.hub
from huggingface_hub import CommitOperationAdd, ModelCard, ModelCardData, RepoUrl, repocard
from huggingface_hub.errors import EntryNotFoundError

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertProcessor
from cmsbert_fast.data.embedded import embedded_tokenizer
from cmsbert_fast.models.model_card import CARD, PICTURE, weights_digest
from cmsbert_fast.models.registry import VARIANTS
from cmsbert_fast.training.model_card import _hub_name, _line, _use, equations
from cmsbert_fast.training.report import read_results
from tests.models.baselines import systems


@pytest.fixture
def best(run_folder: Path) -> Path:
    return run_folder / "best"


def test_the_card_of_a_run(run_folder, best, corpus_folder):
    card, results = ModelCard.load(best / CARD), read_results(run_folder)
    assert isinstance(card.data, ModelCardData)  # parsed with its results, or a warning would say why not
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values == pytest.approx({n: v for n, v in results["test"].items() if v is not None}, abs=1e-4)
    assert {r.metric_type for r in card.data.eval_results} == {"mae", "pearsonr", "accuracy", "f1"}
    assert (card.data.library_name, card.data.license) == ("transformers", "other")
    assert card.data.base_model is None  # a folder of this machine is no name
    for title in ("Results", "Data", "Model", "Use", "Settings", "Limits", "Licence", "Citation"):
        assert f"\n## {title}\n" in card.text
    for part in ("(Eq. 1, 2)", "(Eq. 17-20, 23)", "25 train, 7 valid, 9 test", "learning_rate: ", "doi"):
        assert part in card.text
    assert f"| mae | {results['test']['mae']:.4g} | {results['valid']['mae']:.4g} |" in card.text
    assert str(corpus_folder.parent) not in str(card)  # nor any other path of the machine
    assert not re.search(r"/(tmp|home|work)/", str(card))


def test_the_map_is_beside_the_card(run_folder, best):
    assert f"]({PICTURE})" in (best / CARD).read_text()
    assert (best / PICTURE).read_bytes() == (run_folder / "figures" / PICTURE).read_bytes()


def test_the_card_goes_with_the_weights_that_it_describes(best, tmp_path):
    model = CMSBertCLRForSequenceClassification.from_pretrained(best)
    model.save_pretrained(tmp_path / "same")
    assert (tmp_path / "same" / CARD).read_text() == (best / CARD).read_text()
    assert (tmp_path / "same" / PICTURE).is_file()
    with torch.no_grad():
        model.fusion.out_proj.bias += 1
    model.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other" / CARD).exists()


def test_a_card_that_somebody_wrote_is_kept(best, tmp_path):
    model = CMSBertCLRForSequenceClassification.from_pretrained(best)
    card = (best / CARD).read_text()
    digest = weights_digest(best)
    edited = card.replace("## Limits", "## Mine\n\n## Limits")
    for before, after in (
        ("# Mine\n", "# Mine\n"),
        (edited, edited),
        (card.replace(digest, "0" * 64), card),  # of other weights
    ):
        (tmp_path / CARD).write_text(before)
        model.save_pretrained(tmp_path)
        assert (tmp_path / CARD).read_text() == after


class Hub:
    """A folder in place of the hub: what is committed lies there."""

    def __init__(self, folder: Path):
        self.folder = folder

    def create_repo(self, repo_id, **options):
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def create_commit(self, repo_id, operations, **options):
        for operation in operations:
            assert isinstance(operation, CommitOperationAdd)
            target = self.folder / operation.path_in_repo
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(operation.path_or_fileobj, target)
        return "committed"

    def download(self, repo_id, filename, **options):
        if not (self.folder / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(self.folder / filename)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(transformers.utils.hub, "hf_api", lambda *a, **k: hub)
    monkeypatch.setattr(repocard, "hf_hub_download", hub.download)
    return hub


def test_push_to_hub(best, hub):
    model = CMSBertCLRForSequenceClassification.from_pretrained(best).eval()
    processor = CMSBertProcessor.from_pretrained(best)
    assert model.push_to_hub("somebody/some-model", tags=["mine"]) == "committed"
    processor.push_to_hub("somebody/some-model")
    card = ModelCard.load(hub.folder / CARD)
    assert "mine" in card.data.tags
    assert card.text.strip() == ModelCard.load(best / CARD).text.strip()
    assert (hub.folder / PICTURE).is_file()
    assert weights_digest(hub.folder) == weights_digest(best)
    again = CMSBertCLRForSequenceClassification.from_pretrained(hub.folder).eval()
    inputs = CMSBertProcessor.from_pretrained(hub.folder)(["the", "film"], torch.ones(2, 3).numpy())
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)
        expected = model(**processor(["the", "film"], torch.ones(2, 3).numpy())).logits
        torch.testing.assert_close(again(**inputs).logits, expected, rtol=0, atol=0)


def test_pushed_again_the_card_is_the_one_that_was_edited_on_the_hub(best, hub):
    model = CMSBertCLRForSequenceClassification.from_pretrained(best)
    hub.folder.mkdir()
    card = (best / CARD).read_text()
    (hub.folder / CARD).write_text(card.replace("## Limits", "## Mine\n\n## Limits"))
    model.push_to_hub("somebody/some-model", tags=["mine"])
    pushed = ModelCard.load(hub.folder / CARD)
    assert "## Mine" in pushed.text
    assert "mine" in pushed.data.tags


def test_another_card_is_left_alone(best, hub, tmp_path):
    """A model that is not of a run has Hugging Face's own card."""
    (tmp_path / "base").mkdir()
    model = CMSBertCLRForSequenceClassification.from_pretrained(best)
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / CARD).write_text("# Another model\n")
    CMSBertCLRForSequenceClassification.from_pretrained(tmp_path / "base").push_to_hub("somebody/some-model")
    assert "automatically generated" in (hub.folder / CARD).read_text()


@pytest.mark.parametrize("name", ["misa", "tfn"])
def test_the_equations_of_a_baseline(name):
    text = equations(systems.system(name))
    assert VARIANTS[name].model_class.__module__.split(".")[-1].upper() in text.upper()
    assert "y = " in text
    assert "Differences" not in text


@pytest.mark.parametrize("name", ["tfn", "mag-bert"])
def test_how_a_baseline_is_used(name, tmp_path):
    """The code of the card runs; the processor's inputs are those of the system."""
    tokenizer = embedded_tokenizer()
    model = systems.system(name, vocab_size=len(tokenizer)).float()
    model.save_pretrained(tmp_path)
    CMSBertProcessor(tokenizer).save_pretrained(tmp_path)
    code = _use(model).split("```")[1].removeprefix("python").replace("FOLDER_OR_NAME", repr(str(tmp_path)))
    frames = {m: np.ones((2, getattr(model.config, f"{m}_size")), np.float32) for m in ("visual", "acoustic")}
    found = {"words": ["good", "film"], **frames}
    exec(code, found)
    assert found["output"].logits.shape == (1, 1)
    assert "aligned=True" in code if name == "mag-bert" else "aligned" not in code


def test_what_is_cut_ends_in_an_ellipsis():
    assert _line("a | b\n`c`") == "a \\| b \\`c\\`"
    assert _line("x" * 400) == "x" * 400
    assert _line("x" * 401) == "x" * 399 + "\N{HORIZONTAL ELLIPSIS}"


def test_names_on_the_hub(tmp_path, monkeypatch):
    """What came from the hub is in its cache; a relative path of a folder that is gone only looks like a name."""
    snapshot = tmp_path / "models--google-bert--bert-base-uncased" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert _hub_name("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"
    assert _hub_name("models/mine") is None
    assert _hub_name("no folder: nor a name") is None
    assert _hub_name(str(tmp_path)) is None
    assert _hub_name("/no/such/folder") is None
