"""Checkpoints of strangers: nothing in them runs, and each is one sentence before any memory is taken."""

import builtins
import contextlib
import json
import os
import pickle
import resource
import shutil
import zipfile

import pytest
import torch
from transformers import AutoTokenizer
from transformers.models.bert import modeling_bert

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertConfig, CMSBertProcessor
from cmsbert_fast.data.example import DataError
from cmsbert_fast.models.configuration import harmless_fields
from cmsbert_fast.training import pretrained
from cmsbert_fast.training.build import load, load_trained
from cmsbert_fast.training.config import build_config
from cmsbert_fast.training.errors import NotFinite, UsageError
from cmsbert_fast.training.settings import TrainingSettings
from tests.data.untrusted.limited import seconds
from tests.training.helpers import tiny_corpus


@pytest.fixture(scope="session")
def trained(tmp_path_factory, bert):
    """A model as training saves it."""
    folder = tmp_path_factory.mktemp("trained") / "best"
    settings = TrainingSettings(model=str(bert), data="x", max_length=20)
    model, tokenizer = load(settings, build_config(settings, tiny_corpus(2)))
    model.save_pretrained(folder)
    ones = [1.0] * 3
    CMSBertProcessor(tokenizer, ones, ones, ones, ones, max_length=20).save_pretrained(folder)
    return folder


@pytest.fixture(params=["trained", "start"])
def checkpoint(request, trained, bert, tmp_path):
    """A copy of a checkpoint, and how it is loaded: as a trained model, or to start training from."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(trained if request.param == "trained" else bert, folder)

    def read():
        if request.param == "trained":
            return load_trained(folder)[0]
        settings = TrainingSettings(model=str(folder), data="x", max_length=20)
        return load(settings, build_config(settings, tiny_corpus(2)))[0]

    return folder, read


def change(folder, name, values):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(read, match, memory=200 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with seconds(10), pytest.raises(UsageError, match=match) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < memory


def test_undamaged_checkpoints_load(checkpoint):
    assert checkpoint[1]().num_parameters() > 1000


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "strangers/kernel"},
        {"_attn_implementation": "strangers/kernel", "_attn_implementation_internal": "strangers/kernel"},
        {"auto_map": {"AutoModel": "modeling.Attack", "AutoConfig": "modeling.Attack", "AutoTokenizer": "tok.Attack"}},
        {"experts_implementation": "strangers/kernel", "use_kernels": True},
        {"transformers_weights": "../elsewhere.safetensors"},
    ],
)
def test_fields_with_power_are_ignored_and_told(checkpoint, fields, capsys, monkeypatch):
    folder, read = checkpoint
    change(folder, "config.json", fields)
    asked = []
    monkeypatch.setattr(
        modeling_bert.BertPreTrainedModel,
        "_check_and_adjust_attn_implementation",
        lambda self, name, *rest, **more: asked.append(name) or name or "eager",
    )
    model = read()
    assert not [name for name in asked if name and "/" in name]
    assert callable(model.config.to_dict)
    public = [name for name in fields if not name.startswith("_")] or list(fields)
    said = [line for line in capsys.readouterr().err.splitlines() if "ignored" in line]
    assert len(said) == 1
    assert public[0] in said[0]


def test_models_ignore_them_too(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "c")
    change(tmp_path / "c", "config.json", {"attn_implementation": "strangers/kernel", "to_dict": 1, "auto_map": {}})
    model = CMSBertCLRForSequenceClassification.from_pretrained(tmp_path / "c")
    assert model.config._attn_implementation != "strangers/kernel"
    assert callable(model.config.to_dict)
    saved = CMSBertConfig(visual_size=3).to_dict()
    assert harmless_fields(saved, CMSBertConfig)[0].keys() == saved.keys() - {"_name_or_path"}
    assert not harmless_fields(saved, CMSBertConfig)[1]


def test_what_a_model_returns_is_not_the_checkpoints_choice(checkpoint, capsys):
    folder, read = checkpoint
    change(folder, "config.json", {"output_attentions": True, "output_hidden_states": True, "return_dict": False})
    config = read().config
    assert not config.output_attentions
    assert not config.output_hidden_states
    assert config.return_dict
    assert "output_attentions, output_hidden_states" in capsys.readouterr().err


def test_quantised_weights(checkpoint):
    change(checkpoint[0], "config.json", {"quantization_config": {"quant_method": "bitsandbytes"}})
    refused(checkpoint[1], "quantised")


def test_a_tokenizer_with_code_of_its_own(checkpoint, monkeypatch, tmp_path):
    folder, read = checkpoint
    trap = tmp_path / "trapped"
    (folder / "tok.py").write_text(f"open({str(trap)!r}, 'w')\nclass Attack: pass\n")
    fields = {"tokenizer_class": "Attack", "auto_map": {"AutoTokenizer": ["tok.Attack", None]}}
    change(folder, "tokenizer_config.json", fields)
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("it asked"))
    given = []
    original = AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer,
        "from_pretrained",
        lambda *arguments, **options: given.append(options.get("trust_remote_code")) or original(*arguments, **options),
    )
    with contextlib.suppress(UsageError):
        read()
    assert not trap.exists()
    assert given
    assert not any(trust is None or trust for trust in given)


NO_CONFIGS = ["[]", "5", "null", '"text"', "{", "[" * 100_000, "\0", "{}"]
NO_CONFIGS += ['{"architectures": 5}', '{"architectures": [5]}', '{"model_type": []}', '{"model_type": "gpt2"}']


@pytest.mark.parametrize("content", NO_CONFIGS)
def test_configurations_that_are_none(checkpoint, content):
    (checkpoint[0] / "config.json").write_text(content)
    refused(checkpoint[1], r"cannot be read|is a .* checkpoint|a checkpoint of")


WRONG = {
    "hidden_size": ["text", 2.5, None, [], -1, 10**9, 7],
    "num_hidden_layers": ["text", 10**12, -1, {}, 10**400],
    "vocab_size": [10**12, 8_000_000, -1, "x", None],
    "num_labels": [10**9, -1, "x"],
    "id2label": [[], "x", {"a": "b"}, {str(k): "x" for k in range(20_000)}],
    "max_position_embeddings": [10**12, 8_000_000, "x"],
    "hidden_act": [5, "none such", []],
    "layer_norm_eps": ["x", [], -1],
    "hidden_dropout_prob": ["x", 7],
    "cms_layers": ["x", [99], [10**9] * 20_000],
    "intermediate_size": [0, 131_072],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_fields_of_a_wrong_type_or_size(checkpoint, name, value):
    folder, read = checkpoint
    if "start" in os.environ["PYTEST_CURRENT_TEST"] and name in ("num_labels", "id2label", "cms_layers"):
        change(folder, "config.json", {name: value})
        with seconds(10), contextlib.suppress(UsageError):  # not taken from a checkpoint to start from
            read()
        return
    change(folder, "config.json", {name: value})
    refused(read, ".")


@pytest.mark.parametrize("kind", ["code", "bomb", "text", "empty", "shape"])
def test_weights_that_are_none(checkpoint, kind, tmp_path):
    folder, read = checkpoint
    (folder / "model.safetensors").unlink()
    path, trap = folder / "pytorch_model.bin", tmp_path / "trapped"
    if kind == "code":

        class Attack:
            def __reduce__(self):
                return os.system, (f"touch {trap}",)

        torch.save({"embeddings": Attack()}, path)
    elif kind == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({}))
            archive.writestr("archive/data/0", bytes(50 << 20))
    elif kind == "shape":
        torch.save({"bert.embeddings.word_embeddings.weight": torch.zeros(2)}, path)
    else:
        path.write_bytes(b"text" * (kind == "text"))
    refused(read, ".")
    assert not trap.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "vocab.txt"])
@pytest.mark.parametrize("kind", ["pipe", "device", "broken link"])
def test_files_that_are_none(checkpoint, name, kind):
    folder, read = checkpoint
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    refused(read, "is no regular file|cannot be read")


def test_an_adapter(checkpoint):
    (checkpoint[0] / "adapter_config.json").write_text('{"base_model_name_or_path": "strangers/model"}')
    refused(checkpoint[1], "adapter")


def test_a_vocabulary_without_end(checkpoint):
    with open(checkpoint[0] / "vocab.txt", "wb") as file:
        file.truncate(1 << 40)
    refused(checkpoint[1], "longer than any vocabulary")


@pytest.mark.parametrize("token", ["[CLS]", "[SEP]", "[PAD]", "[UNK]"])
def test_tokenizers_without_a_special_token(checkpoint, token):
    folder, read = checkpoint
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    name = f"{token[1:-1].lower()}_token"
    fields = json.loads((folder / "tokenizer_config.json").read_text()) | {name: None}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert tokenizer
    refused(read, r"has no \[|cannot be loaded")


def test_tokenizers_with_ids_beyond_the_vocabulary(checkpoint):
    folder, read = checkpoint
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["film"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(read, "has 5001 pieces|cannot be loaded")


NO_PROCESSORS = ["text", "null", "[]", "5", "[" * 100_000, '{"max_length": "x"}', '{"max_length": 1e99}']
NO_PROCESSORS += ['{"max_length": 5000}', '{"visual_mean": 5}', '{"visual_std": null}', '{"visual_std": [1, 0, 1]}']
NO_PROCESSORS += ['{"visual_std": [1, NaN, 1]}', '{"visual_mean": [1e999, 1, 1]}', '{"visual_mean": ["a", "b", "c"]}']
NO_PROCESSORS += ['{"visual_mean": [1], "visual_std": [1]}', '{"acoustic_std": [1, -1, 1]}', '{"visual_mean": {}}']


@pytest.mark.parametrize("content", NO_PROCESSORS)
def test_processors_that_are_none(trained, tmp_path, content):
    folder = tmp_path / "checkpoint"
    shutil.copytree(trained, folder)
    path = folder / "processor_config.json"
    values = json.loads(path.read_text())
    try:
        path.write_text(json.dumps({**values, **json.loads(content)}))
    except (ValueError, TypeError, RecursionError):
        path.write_text(content)
    refused(lambda: load_trained(folder), "processor|cannot be loaded")


def test_long_values_are_not_printed_back(checkpoint):
    change(checkpoint[0], "config.json", {"model_type": "x" * 100_000 + "\x1b[2J", "architectures": ["y" * 100_000]})
    refused(checkpoint[1], r"xxx|yyy")


def test_messages_are_short_and_hold_no_control_characters():
    for kind in (UsageError, NotFinite, DataError):
        said = str(kind("Give \x1b[31mthis " + "x" * 1_000_000 + " another name."))
        assert len(said) < 1500
        assert said.startswith("Give ?[31mthis xxx")
        assert said.endswith("xxx another name.")
        assert str(kind("Short as it is.")) == "Short as it is."


def test_meta_device_leaves_no_trace_in_random_numbers(trained):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    config = CMSBertConfig.from_pretrained(trained)
    pretrained.check_weights(trained, CMSBertCLRForSequenceClassification, config)
    assert torch.equal(torch.get_rng_state(), before)
