"""Where a checkpoint is looked for, and what is said if it is nowhere."""

import pytest
from huggingface_hub import constants

from cmsbert_fast.training import hub
from cmsbert_fast.training.errors import UsageError


@pytest.fixture(autouse=True)
def session(monkeypatch):
    """A hub that does not answer; counts who asks."""

    class Session:
        asked = 0

        def head(self, url, timeout):
            self.asked += 1
            assert timeout <= 5
            raise ConnectionError

    session = Session()
    monkeypatch.setattr(hub.huggingface_hub, "get_session", lambda: session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    answers = hub._hub_answers
    answers.cache_clear()
    yield session
    answers.cache_clear()


def test_the_disk_is_looked_at_first(bert, session):
    assert hub.config_file(str(bert)) == bert / "config.json"
    assert not session.asked


def test_a_path_is_no_name_of_the_hub(tmp_path, session):
    (tmp_path / "bert-small").mkdir()
    with pytest.raises(UsageError, match=r"no such folder \(did you mean .*bert-small\?\); give a folder"):
        hub.config_file(str(tmp_path / "bert-smal"))
    with pytest.raises(UsageError, match=r"has no config.json"):
        hub.config_file(str(tmp_path / "bert-small"))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        hub.config_file(str(tmp_path / "file"))
    assert not session.asked


def test_a_hub_that_does_not_answer_is_asked_once(train, corpus_folder, tmp_path, session):
    for _ in range(2):
        status, errors = train("--data", corpus_folder, "--model", "bert-bas-uncased", "--output", tmp_path / "out")
        assert status == 2
        assert len(errors.splitlines()) == 1
        assert "no such folder, and the Hugging Face hub cannot be reached; give" in errors
    assert session.asked == 1


def test_what_is_in_the_cache_needs_no_hub(tmp_path, monkeypatch, bert):
    monkeypatch.setattr(hub, "cached_file", lambda name, file: str(bert / file) if name == "bert" else None)
    assert hub.config_file("bert") == bert / "config.json"
    assert constants.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_asked(monkeypatch, bert):
    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    monkeypatch.setattr(hub, "cached_file", lambda name, file: None)
    with pytest.raises(UsageError, match="nor a model of this name on the Hugging Face hub"):
        hub.config_file("no-such-model")
    assert not constants.HF_HUB_OFFLINE
