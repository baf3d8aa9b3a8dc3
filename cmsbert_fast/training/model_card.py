"""The model card of a run's best model: ``best/README.md``, with metadata as the Hugging Face hub reads it."""

import math
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache, utils
from transformers.utils import CONFIG_NAME

from cmsbert_fast import atomic
from cmsbert_fast.data.example import MODALITIES
from cmsbert_fast.data.text import printable
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.encoding import FrameLevel
from cmsbert_fast.models.model_card import CARD, DIGEST, PICTURE, weights_digest
from cmsbert_fast.training import best
from cmsbert_fast.training.figures import FIGURES

_TYPES = {"mae": "mae", "corr": "pearsonr", "acc": "accuracy", "f1": "f1", "wa": "accuracy", "ua": "recall"}
_PATHS = ("data", "model", "word_vectors", "folds")  # settings that may be paths of the machine
_LINE = 400  # characters of an untrusted text
_OURS = """\
CMSBERT-CLR (Kim & Kim, IJCNN 2022, arXiv:2209.07424). In the self-attention of layers {layers}, with X_i the hidden
state of word piece i, V_j and A_j the frames of face and voice of the utterance:

    g^v_ij = {act}(W_gv [X_i; V_j] + b_v), the same for A                                       (Eq. 1, 2)
    a_i = 1/N_v sum_j g^v_ij (W_v V_j) + 1/N_a sum_j g^a_ij (W_a A_j)                           (Eq. 3, 4)
    q = X W_Q + b_Q + a, k = X W_K + b_K + a, v = X W_V + b_V + a; z = softmax(q k^T / sqrt(d_h)) v   (Eq. 5-7)
"""
_CLR = """
    u_l = mean of the last hidden states, u_m = mean of LSTM(frames of m), z_m = projector(u_m)     (Eq. 8-13)
    y = predictor(Transformer layer over the z'_m)                                               (Eq. 14-16)
    loss = task + nu * contrastive loss over the pairs of z_m (six directions for three modalities), (Eq. 17-20, 23)
    nu follows validation losses by a moving average                                             (Eq. 21, 22)
"""
_POOL = "\n    y = W mean(last hidden states) + b\n"
_PLAIN = "BERT on text alone: y = W mean(last hidden states) + b.\n"
_CITATION = """\
```bibtex
@inproceedings{kim2022cmsbertclr,
  title     = {CMSBERT-CLR: Context-driven Modality Shifting BERT with Contrastive Learning for linguistic, visual,
               acoustic Representations},
  author    = {Kim, Junghun and Kim, Jihie},
  booktitle = {2022 International Joint Conference on Neural Networks (IJCNN)},
  year      = {2022},
  doi       = {10.1109/IJCNN55064.2022.9892785}
}
```

The paper's authors were not involved in this software.
"""


def write_card(folder: Path, model: Classifier, outcome: Mapping[str, Any], classes: tuple[str, ...]) -> None:
    """Writes the card of the best model in the folder of a run, and copies the CMS map that it shows.

    It lies beside the weights that were tested: those before the best, if the best is lost.

    Args:
        folder: Of the run; its figures are drawn.
        model: The best one.
        outcome: The contents of ``results.json``, with "test".
        classes: The classes that it predicts; none: a score.
    """
    where, picture = best.find(folder).folder, folder / FIGURES / PICTURE
    if picture.is_file():
        atomic.replace_file(where / PICTURE, lambda draft: shutil.copyfile(picture, draft))
    text = card_text(model, outcome, classes, weights_digest(where), picture.is_file())
    atomic.replace_file(where / CARD, lambda draft: draft.write_text(text, encoding="utf-8"))


def card_text(
    model: Classifier, outcome: Mapping[str, Any], classes: tuple[str, ...], digest: str | None, picture: bool
) -> str:
    """The card, metadata first. No path of the machine is in it.

    Args:
        digest: SHA-256 of the weights.
        picture: Whether the CMS map is beside it.
    """
    settings, data = outcome["settings"], _line(outcome["data"]["name"])
    parts = {
        "": f"# {settings['variant']} on {data}\n\n{_purpose(model, classes)}\n",
        "Results": _results(outcome),
        "Data": _data(outcome),
        "Model": equations(model) + (f"\n![The gates of a test utterance (Eq. 1, 2)]({PICTURE})\n" if picture else ""),
        "Use": _use(model),
        "Settings": f"```yaml\n{yaml.safe_dump(_shareable(settings), allow_unicode=True, sort_keys=False)}```\n",
        "Limits": _limits(model, outcome, data),
        "Licence": _licence(settings),
        "Citation": _CITATION,
    }
    text = "\n".join(f"## {title}\n\n{part}" if title else part for title, part in parts.items())
    found = ModelCard(f"---\n{card_data(outcome, data, digest).to_yaml()}\n---\n\n{text}", ignore_metadata_errors=False)
    return str(found)


def card_data(outcome: Mapping[str, Any], data: str, digest: str | None) -> ModelCardData:
    """The metadata."""
    settings = outcome["settings"]
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "unnamed",
            dataset_name=data,
            dataset_split="test",
            metric_type=_metric_type(name),
            metric_name=name,
            metric_value=round(value, 4),
        )
        for name, value in outcome["test"].items()
        if value is not None and math.isfinite(value)
    ]
    embedded = settings["data"] == "embedded" and settings["model"] is None
    more: dict[str, Any] = {"license": "apache-2.0" if embedded else "other"}
    if not embedded:
        more["license_name"] = "base-model-and-data"
    if digest:
        more[DIGEST] = digest
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["cmsbert-fast", settings["variant"], "multimodal", "sentiment-analysis"],
        base_model=_hub_name(settings["model"]),
        model_name=f"{settings['variant']} on {data}",
        eval_results=results or None,
        **more,
    )


def _metric_type(name: str) -> str:
    """The hub's name for a metric."""
    found = re.search(rf"(?:^|_)({'|'.join(_TYPES)})", name)
    return _TYPES[found[1]] if found else name


def equations(model: Classifier) -> str:
    """What the model computes, equation by equation: ours, or the head of a baseline's module."""
    config: Any = model.config
    if hasattr(config, "cms_layers"):
        if not config.cms_layers:
            return _PLAIN
        layers = ", ".join(str(layer + 1) for layer in config.cms_layers)
        text = _OURS.format(layers=layers, act=config.gate_activation)
        return text + (_CLR.lstrip("\n") if hasattr(model, "fusion") else _POOL.lstrip("\n"))
    described = sys.modules[type(model).__module__].__doc__ or f"{type(model).__name__}.\n"
    return described.split("\nDifferences from published code")[0].strip() + "\n"


def _purpose(model: Classifier, classes: tuple[str, ...]) -> str:
    what = f"the classes {', '.join(map(_line, classes))}" if classes else "a score"
    seen = [name for name in MODALITIES if getattr(model.config, f"{name}_size")]
    inputs = " and ".join(["the words", *(f"{name} frames" for name in seen)])
    return f"Predicts {what} for an utterance from {inputs}. Trained with cmsbert-fast."


def _results(outcome: Mapping[str, Any]) -> str:
    lines = ["| metric | test | validation |", "| --- | --- | --- |"]
    for name, value in outcome["test"].items():
        lines.append(f"| {_line(name)} | {_number(value)} | {_number(outcome['valid'].get(name))} |")
    notes = [
        f"One run with seed {outcome['settings']['seed']}; epoch {outcome['best_epoch'] or 'unknown'} of "
        f"{outcome['epochs']} was chosen on the validation split."
    ]
    if "lost" in outcome:
        notes.append("A damaged disk took the best model; this is the best before it.")
    notes.append("All but mae and corr are percentages; f1 is weighted.")
    if "acc2_positive" in outcome["test"]:
        notes.append("non_negative: negative against the rest; positive: without the label 0.")
    return "\n".join(lines) + f"\n\n{' '.join(notes)}\n"


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _data(outcome: Mapping[str, Any]) -> str:
    """The first line of the report on the data has no path: its name, format and numbers of examples."""
    report = outcome["data"]["report"].splitlines() or [outcome["data"]["name"]]
    return f"{_line(report[0])}. Fingerprint: {outcome['data']['fingerprint']}.\n"


def _use(model: Classifier) -> str:
    sizes = {name: size for name in MODALITIES if (size := getattr(model.config, f"{name}_size"))}
    given = ["words", *(f"{name}={name}" for name in sizes)]
    notes = [f"# {name}: array of shape (frames, {size})\n" for name, size in sizes.items()]
    if not hasattr(model.config, "cms_layers"):  # what the processor makes by itself is for CMSBERT
        if model.frame_level is not FrameLevel.UTTERANCE:
            given.append("aligned=True")
            notes.append("# aligned: frame k belongs to word k; or give visual_words and acoustic_words\n")
        given.append("model=model")
    name, module = type(model).__name__, type(model).__module__
    return (
        f"```python\nfrom {module} import {name}\nfrom cmsbert_fast import CMSBertProcessor\n\n"
        f"model = {name}.from_pretrained(FOLDER_OR_NAME).eval()\n"
        "processor = CMSBertProcessor.from_pretrained(FOLDER_OR_NAME)\n"
        f"{''.join(notes)}inputs = processor({', '.join(given)})\n"
        "output = model(**inputs)\n```\n\nOr `cmsbert predict FOLDER_OR_NAME DATA`.\n"
    )


def _shareable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, without folders of the machine."""
    plain: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()
    }
    named = {name: Path(plain[name]).name for name in _PATHS if isinstance(plain.get(name), str)}
    return {**plain, **{name: _hub_name(plain[name]) or short for name, short in named.items()}}


def _hub_name(name: str | None) -> str | None:
    """The name of a model on the hub; None for a folder of the machine.

    A relative path may look like a name, and its folder may be gone. What came from the hub is in its cache.
    """
    if name is None or Path(name).exists():
        return None
    try:
        return name if isinstance(try_to_load_from_cache(name, CONFIG_NAME), str) else None
    except utils.HFValidationError:
        return None


def _limits(model: Classifier, outcome: Mapping[str, Any], data: str) -> str:
    lines = [
        f"- It was trained on {data} alone. Other speakers, languages, cameras or microphones were not tried.",
        "- Labels of sentiment and emotion are what annotators saw in a recording, not what a person felt. Do not use "
        "it to decide about people.",
    ]
    if any(getattr(model.config, f"{name}_size") for name in MODALITIES):
        lines.append("- Frames must be the same features, from the same extractor, as in training.")
    if outcome["settings"]["data"] == "embedded":
        lines.append("- The embedded corpus is made up: it shows the mechanism and is no benchmark.")
    lines.append("- The metrics are of one run; another seed gives others.")
    return "\n".join(lines) + "\n"


def _licence(settings: Mapping[str, Any]) -> str:
    if settings["data"] == "embedded" and settings["model"] is None:
        return "Weights and code: Apache-2.0.\n"
    base = _hub_name(settings["model"]) or (Path(settings["model"]).name if settings["model"] else "none")
    return (
        f"The code is under Apache-2.0. The weights come from the base model ({_line(base)}) and the data, whose "
        "licences apply to them; this card does not know these.\n"
    )


def _line(text: str) -> str:
    """Text of a file as one harmless line of Markdown; what is cut ends in an ellipsis."""
    plain = printable(" ".join(str(text).split()))
    plain = plain if len(plain) <= _LINE else plain[: _LINE - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", plain)
