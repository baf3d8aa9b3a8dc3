"""What other people's code and files hold on to: state dicts, configuration, operators, names, options."""

import inspect
import re
from typing import Any

import torch
from transformers import BertConfig

import cmsbert_fast
from tests.frozen.programs import TRAIN, call

MODELS = ("CMSBertModel", "CMSBertForSequenceClassification", "CMSBertCLRForSequenceClassification")
_SIZES = dict(vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
_SMALL = {**_SIZES, "max_position_embeddings": 16}
_FRAMES = dict(visual_size=5, acoustic_size=3)
_CASES: dict[str, dict[str, Any]] = {
    "both modalities": _FRAMES,
    "visual only": dict(visual_size=5),
    "acoustic only": dict(acoustic_size=3),
    "first layer": {**_FRAMES, "cms_layers": [0]},
    "no layer": {**_FRAMES, "cms_layers": []},
    "4 labels, projection 6": {**_FRAMES, "num_labels": 4, "projection_size": 6},
}


def state_dicts() -> dict[str, dict[str, str]]:
    """Of each model and configuration, every key with dtype and shape, in order."""
    from tests.frozen.checkpoints import CASES

    found = {}
    for name in MODELS:
        model_class = getattr(cmsbert_fast, name)
        cases = {**_CASES, "no modality": {}} if name != MODELS[2] else _CASES
        for case, fields in cases.items():
            found[f"{name}, {case}"] = _keys(model_class(cmsbert_fast.CMSBertConfig(**_SMALL, **fields)))
    # As configs/embedded.yaml has it.
    sizes = dict(vocab_size=83, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    for case, (kind, classes) in CASES.items():
        fields = {**sizes, "max_position_embeddings": 64, "visual_size": 8, "acoustic_size": 6}
        config = cmsbert_fast.CMSBertConfig(**fields, num_labels=len(classes) or 1)
        found[case] = _keys(getattr(cmsbert_fast, kind)(config))
    return found


def _keys(model: torch.nn.Module) -> dict[str, str]:
    return {
        key: f"{str(value.dtype).removeprefix('torch.')} {'x'.join(map(str, value.shape))}".strip()
        for key, value in model.state_dict().items()
    }


def configuration() -> dict[str, Any]:
    """The fields of CMSBertConfig that BertConfig has not, or has with another default, and how they are saved."""
    ours, bert = cmsbert_fast.CMSBertConfig(), BertConfig()
    defaults, others = ours.to_dict(), bert.to_dict()
    changed = [name for name in defaults if name not in others or others[name] != defaults[name]]
    every = dict(visual_size=47, acoustic_size=74, gate_activation="tanh", cms_layers=[1], projection_size=6)
    every |= dict(temperature=0.2, smoothing=None, threshold=0.3, backend="torch", num_labels=2)
    saved = cmsbert_fast.CMSBertConfig(**_SMALL, **every).to_diff_dict()
    own = {name for name in vars(ours) if not hasattr(bert, name)}
    return {
        "saved": {name: defaults[name] for name in sorted(changed)},
        "not saved": {name: getattr(ours, name) for name in sorted(own - set(changed)) if not name.startswith("_")},
        "saved with every field": {name: saved.get(name, "absent") for name in sorted({*every, *changed})},
        "without None": {
            name: getattr(cmsbert_fast.CMSBertConfig(**_SMALL, **{name: None}), name)
            for name in ("visual_size", "acoustic_size", "cms_layers", "projection_size", "smoothing")
        },
    }


def operators() -> dict[str, str]:
    """The schema of every registered operator, once all public names were used."""
    outputs()
    schemas = (s for s in torch._C._jit_get_all_schemas() if s.name.startswith("cmsbert_fast::"))
    found = {s.name + (f".{s.overload_name}" if s.overload_name else ""): str(s) for s in schemas}
    for name in found:  # reachable as torch.ops.cmsbert_fast.NAME
        assert hasattr(torch.ops.cmsbert_fast, name.removeprefix("cmsbert_fast::").split(".")[0])
    return dict(sorted(found.items()))


def outputs() -> dict[str, list[str]]:
    """What the forward of each model returns, by name, in order; its backward runs too."""
    inputs = dict(
        input_ids=torch.tensor([[1, 2, 3], [4, 5, 0]]),
        attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]),
        visual=torch.ones(2, 4, 5),
        acoustic=torch.ones(2, 2, 3),
    )
    found = {}
    for name in MODELS:
        torch.manual_seed(0)
        model = getattr(cmsbert_fast, name)(cmsbert_fast.CMSBertConfig(**_SMALL, **_FRAMES))
        if name == MODELS[0]:
            output = model(**inputs, output_shift_maps=True, output_hidden_states=True)
            output.last_hidden_state.sum().backward()
        else:
            labels = torch.tensor([1.0, -1.0])
            output = model(**inputs, labels=labels, output_shift_maps=True, output_hidden_states=True)
            output.loss.backward()
        found[name] = list(output.keys())
    return found


def public_names() -> dict[str, Any]:
    """Every name of ``__all__`` that can be called, or what is in it, with its parameters and their defaults."""
    found: dict[str, Any] = dict.fromkeys(cmsbert_fast.__all__)
    for name in ("cms_attention", "pairwise_contrastive_loss"):
        found[name] = _parameters(getattr(cmsbert_fast, name))
    for name in MODELS:
        model_class = getattr(cmsbert_fast, name)
        found[name] = {"forward": _parameters(model_class.forward), "prefix": model_class.base_model_prefix}
    shift = cmsbert_fast.ModalityShift
    found["ModalityShift"] = {"fields": list(shift._fields), "defaults": shift._field_defaults}
    processor = cmsbert_fast.CMSBertProcessor
    methods = ("__init__", "__call__", "fit", "encode", "collate")
    found["CMSBertProcessor"] = {name: _parameters(getattr(processor, name)) for name in methods}
    functions = inspect.getmembers(cmsbert_fast.reference, inspect.isfunction)
    found["reference"] = {name: _parameters(function) for name, function in functions if name[0] != "_"}
    found["model type"] = cmsbert_fast.CMSBertConfig.model_type
    return found


def _parameters(function: Any) -> list[str]:
    # Without annotations, which newer versions of Python and PyTorch print differently.
    parameters = inspect.signature(function).parameters.values()
    kinds = {inspect.Parameter.KEYWORD_ONLY: "keyword ", inspect.Parameter.POSITIONAL_ONLY: "positional "}
    return [kinds.get(p.kind, "") + str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters]


def options() -> dict[str, Any]:
    """The options of every program as ``--help`` tells them, with their defaults, and the variants of ``train.py``."""
    programs = {
        "train.py": (TRAIN,),
        "cmsbert_fast.predict": ("cmsbert_fast.predict",),
        "cmsbert_fast.data convert": ("cmsbert_fast.data", "convert"),
        "cmsbert_fast.data inspect": ("cmsbert_fast.data", "inspect"),
        "cmsbert_fast.extract": ("cmsbert_fast.extract",),
    }
    found: dict[str, Any] = {name: _read_help(call(*command, "--help")[1]) for name, command in programs.items()}
    status, _, message = call(TRAIN, "--variant", "unknown")
    assert status == 2
    known = re.search(r"one of (.*)\.", message)
    assert known, message
    found["variants"] = dict.fromkeys(known[1].split(", "))
    return found


def _read_help(text: str) -> dict[str, str]:
    """Option or argument -> "several" if it takes several values, its other names, and "= default" if it tells one."""
    entries = re.findall(
        r"^  (?! )(\S.*(?:\n    +.*)*)", text.split("\n\n", 1)[1].split("\nexamples:\n")[0], flags=re.MULTILINE
    )
    found = {}
    for entry in entries:
        head, _, explained = re.sub(r"\n +", "  ", entry).partition("  ")
        names = re.findall(r"(?:^|, )(-*[\w-]+)", head)
        default = re.search(r"\(default: (.*?)\)$", explained)
        several, choices = "several" if "..." in head else "", "".join(re.findall(r"\{.*\}", head)[:1])
        parts = (*names[1:], choices, several, f"= {default[1]}" if default else "")
        found[names[0]] = " ".join(part for part in parts if part)
    found.pop("-h", None)
    return found
