"""A trained model as a program of its own: ``python -m cmsbert_fast.export CHECKPOINT OUT.onnx``.

The program takes padded inputs of any batch size and lengths; frames are standardised inside. :func:`export_program`
makes one for PyTorch (torch.export), :func:`export_onnx` one for ONNX runtimes. Only the operators of the backend
"torch" are in them.
"""

import argparse
import importlib.util
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmsbert_fast.threads import wait_without_spinning

if __name__ == "__main__":
    wait_without_spinning()

import numpy as np
import torch
from torch import Tensor, nn

from cmsbert_fast import __version__, atomic
from cmsbert_fast.commandline import examples
from cmsbert_fast.data.example import MODALITIES
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.encoding import FrameLevel
from cmsbert_fast.models.processing import CMSBertProcessor
from cmsbert_fast.training.build import load_trained
from cmsbert_fast.training.command import Parser
from cmsbert_fast.training.errors import UsageError, os_reason
from cmsbert_fast.training.exits import exit_status

_PROG = "python -m cmsbert_fast.export"
OPSET = 20
TOLERANCE = 1e-4  # of the largest output, or of 1 if that is more
LARGEST = 2 * 1024**3 - 2**24  # bytes of weights; an ONNX file holds 2 GiB
CHECKS = 6  # random batches
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
FORMAT = "1"  # of the metadata
Batch = dict[str, Tensor]  # inputs of a program, by name


class Program(nn.Module):
    """A model on padded inputs, given by position, with frames as they come from their source.

    Frames are treated as :class:`~cmsbert_fast.models.processing.CMSBertProcessor` does: what is not finite becomes 0,
    then they are standardised, in float64. The caller makes word pieces, at most ``max_length`` an utterance.

    Attributes:
        input_names: Of the arguments of :meth:`forward`, in order.
        output_names: Of what it returns.
    """

    def __init__(self, model: Classifier, processor: CMSBertProcessor):
        super().__init__()
        self.model = model
        self.input_names = input_names(model)
        self.output_names: list[str] = []
        for name in MODALITIES:
            mean, std = (getattr(processor, f"{name}_{part}") for part in ("mean", "std"))
            if name in self.input_names and mean is not None:
                self.register_buffer(f"{name}_mean", torch.tensor(mean, dtype=torch.float64))
                self.register_buffer(f"{name}_std", torch.tensor(std, dtype=torch.float64))
        self.eval()
        with torch.no_grad():
            rows = self._rows(*example_inputs(self).values())
        self.output_names = [name for name in rows if name == "logits" or name.endswith("_embeds")]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs in the order of ``input_names`` -> outputs in that of ``output_names``."""
        rows = self._rows(*inputs)
        return tuple(rows[name].float() for name in self.output_names)

    def _rows(self, *inputs: Tensor) -> dict[str, Tensor]:
        given: dict[str, Any] = dict(zip(self.input_names, inputs, strict=True))
        for name in MODALITIES:
            if name in given:
                given[name] = self._standardised(name, given[name])
        if "input_ids" not in given:  # no piece is read: only the words' numbers of pieces
            given["input_ids"] = torch.zeros_like(given["token_words"])
            given["attention_mask"] = torch.ones_like(given["token_words"])
        return self.model.rows(**given)

    def _standardised(self, name: str, frames: Tensor) -> Tensor:
        frames = torch.where(frames.isfinite(), frames, 0)
        mean: Tensor | None = getattr(self, f"{name}_mean", None)
        if mean is None:
            return frames
        return ((frames.double() - mean) / getattr(self, f"{name}_std")).float()


def input_names(model: Classifier) -> list[str]:
    """The padded inputs that a model's program has, in order; docs/export.md says what they are."""
    config: Any = model.config
    vectors = getattr(config, "text", "bert") == "vectors"
    names = ["token_words", "word_vectors"] if vectors else ["input_ids", "attention_mask"]
    if "token_words" in model.inputs and "token_words" not in names:
        names.append("token_words")
    for modality in MODALITIES:
        if getattr(config, f"{modality}_size") and _reads_frames(model):
            names += [modality, f"{modality}_mask"]
            more = {FrameLevel.PIECES: f"token_frames_{modality}", FrameLevel.OF_WORDS: f"{modality}_words"}
            names += [more[model.frame_level]] if model.frame_level in more else []
    return names


def _reads_frames(model: Classifier) -> bool:
    """Whether any layer does: BERT of Table II has none that does."""
    return getattr(model.config, "cms_layers", None) != [] or hasattr(model, "modalities")


def axes(program: Program) -> dict[str, dict[int, str]]:
    """The names of the axes that may have any size, at least 1, by input."""
    found = {}
    for name in program.input_names:
        of = next((m for m in MODALITIES if name in (m, f"{m}_mask", f"{m}_words")), None)
        found[name] = {0: "batch", 1: f"{of}_frames" if of else "words" if name == "word_vectors" else "pieces"}
    return found


def example_inputs(program: Program, batch: int = 3, lengths: Sequence[int] = (9, 5, 6, 7), seed: int = 0) -> Batch:
    """Random inputs of a program, with padding, and in a batch of several one utterance without any frame.

    Args:
        program: Says which.
        batch: Utterances.
        lengths: Longest of pieces, words, visual frames and acoustic frames; pieces exceed words by 2 or more.
        seed: Of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    config: Any = program.model.config
    pieces, words, *most = lengths

    def counts(longest: int, least: int = 1) -> Tensor:
        found = torch.randint(least, longest + 1, (batch,), generator=generator)
        found[0] = longest
        return found

    def valid(count: Tensor, longest: int) -> Tensor:
        return torch.arange(longest) < count[:, None]

    of_words = counts(words)
    own = torch.arange(pieces) - 1  # one piece a word, the last word has the others
    token_words = own.clamp(max=words - 1).expand(batch, -1).minimum(of_words[:, None] - 1)
    of_pieces = (of_words + 2).clamp(max=pieces)
    inside = valid(of_pieces - 1, pieces) & (own >= 0)
    inputs: Batch = {
        "input_ids": torch.randint(0, config.vocab_size, (batch, pieces), generator=generator),
        "attention_mask": valid(of_pieces, pieces).long(),
        "token_words": torch.where(inside, token_words, -1),
        "word_vectors": torch.randn(batch, words, getattr(config, "word_size", 1), generator=generator),
    }
    for name, longest in zip(MODALITIES, most, strict=True):
        count = (
            of_words.clamp(max=longest) if program.model.frame_level is not FrameLevel.UTTERANCE else counts(longest)
        )
        if batch > 1:
            count[-1] = 0
        mask, size = valid(count, longest), getattr(config, f"{name}_size")
        mean, std = (getattr(program, f"{name}_{part}", fill) for part, fill in (("mean", 0.0), ("std", 1.0)))
        frames = torch.randn(batch, longest, size, generator=generator, dtype=torch.float64) * std + mean
        inputs |= {name: frames.float(), f"{name}_mask": mask.long()}
        order = torch.arange(longest)
        inputs[f"{name}_words"] = torch.where(mask, (order // 2).minimum(of_words[:, None] - 1), -1)
        has = inside & (token_words < count[:, None])
        inputs[f"token_frames_{name}"] = torch.where(has, token_words, -1)
    return {name: inputs[name] for name in program.input_names}


def export_program(model: Classifier, processor: CMSBertProcessor) -> torch.export.ExportedProgram:
    """The program of a model for PyTorch: ``export_program(...).module()(*inputs)``, or torch.export.save.

    Args:
        model: In float32. It is in eval mode afterwards.
        processor: Its statistics of frames go into the program.
    """
    program = Program(model, processor)
    shapes = tuple(dict.fromkeys(names, torch.export.Dim.DYNAMIC) for names in axes(program).values())
    with torch.no_grad():
        return torch.export.export(program, tuple(example_inputs(program).values()), dynamic_shapes=(shapes,))


def export_onnx(model: Classifier, processor: CMSBertProcessor, path: Path) -> dict[str, float]:
    """Writes the program of a model as an ONNX file, which appears once it was checked in onnxruntime.

    Args:
        model: In float32. It is in eval mode afterwards.
        processor: Its statistics of frames go into the program, what else it does into the metadata.
        path: The new file.

    Returns:
        By output, the largest difference to the model over random batches, relative to the largest number or 1.

    Raises:
        UsageError: A library of the extra "export" is missing, the weights are too large for one file, or the file
            computes something else than the model.
    """
    _check_possible(model)
    import onnx_ir  # of onnxscript

    program = Program(model, processor)
    shapes = tuple(axes(program).values())
    with torch.no_grad():
        converted = torch.onnx.export(
            program,
            tuple(example_inputs(program).values()),
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=program.input_names,
            output_names=program.output_names,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert converted is not None
    for value in converted.model.graph.outputs:
        value.shape = onnx_ir.Shape(["batch", *list(value.shape or ())[1:]])
    converted.model.metadata_props.update(metadata(program, processor))
    differences: dict[str, float] = {}

    def write(draft: Path) -> None:
        converted.save(draft, external_data=False)
        differences.update(compare(program, draft))
        if not all(gap <= TOLERANCE for gap in differences.values()):
            raise UsageError(
                f"The exported model computes something else than its checkpoint ({_shown(differences)}); please "
                "report it with the versions of torch, onnxscript and onnxruntime."
            )

    atomic.replace_file(path, write)
    return differences


def _check_possible(model: Classifier) -> None:
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"Export needs {', '.join(missing)}; pip install 'cmsbert-fast[export]'.")
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > LARGEST:
        raise UsageError(f"The weights have {size / 1e9:.1f} GB, and one ONNX file holds 2; export a smaller model.")


def metadata(program: Program, processor: CMSBertProcessor) -> dict[str, str]:
    """What a reader of the file needs to know, as ONNX metadata: texts, those of several values in JSON."""
    config: Any = program.model.config
    classes = [config.id2label[k] for k in sorted(config.id2label)] if config.num_labels > 1 else None
    frames = {
        name: {
            "size": getattr(config, f"{name}_size"),
            "standardised": "in the graph" if hasattr(program, f"{name}_mean") else "no",
        }
        for name in MODALITIES
        if name in program.input_names
    }
    tokenizer = processor.tokenizer
    special = {part: getattr(tokenizer, f"{part}_token_id") for part in ("cls", "sep", "pad", "unk")}
    return {
        "cmsbert.format": FORMAT,
        "cmsbert.version": __version__,
        "cmsbert.system": type(program.model).__name__,
        "cmsbert.task": config.problem_type or "single_label_classification",
        "cmsbert.labels": json.dumps(classes),
        "cmsbert.max_length": str(processor.max_length),
        "cmsbert.tokenizer": json.dumps({"class": type(tokenizer).__name__, "vocabulary": len(tokenizer), **special}),
        "cmsbert.frames": json.dumps(frames),
        "cmsbert.not_finite": "becomes 0 in the graph",
    }


def compare(program: Program, path: Path) -> dict[str, float]:
    """The largest difference of each output between a file in onnxruntime and the model, as :func:`export_onnx` says.

    Random batches of one utterance and of several, of many lengths, with padding and absent modalities.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    most: int = program.model.config.max_position_embeddings
    found = dict.fromkeys(program.output_names, 0.0)
    generator = np.random.default_rng(0)
    for k in range(CHECKS):
        words = int(generator.integers(1, min(30, most - 2) + 1))
        lengths = (words + 2, words, *(int(n) for n in generator.integers(1, 40, size=2)))
        inputs = example_inputs(program, (1, 2, 4)[k % 3], lengths, seed=k)
        absent = MODALITIES[k % 2] if k >= CHECKS // 2 else None
        if f"{absent}_mask" in inputs:
            _leave_out(inputs, str(absent))
        with torch.no_grad():
            expected = program(*inputs.values())
        computed = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        for name, ours, theirs in zip(program.output_names, expected, computed, strict=True):
            gap = float(np.abs(ours.numpy() - theirs).max()) / max(1.0, float(ours.abs().max()))
            found[name] = max(found[name], gap) if gap == gap else float("nan")
    return found


def _leave_out(inputs: Batch, modality: str) -> None:
    """Marks all frames of a modality as padding."""
    inputs[f"{modality}_mask"] = torch.zeros_like(inputs[f"{modality}_mask"])
    for name in (f"token_frames_{modality}", f"{modality}_words"):
        if name in inputs:
            inputs[name] = torch.full_like(inputs[name], -1)


def main(arguments: Sequence[str], prog: str = _PROG) -> int:
    """Runs the command line; the exit status is that of :func:`~cmsbert_fast.training.exits.exit_status`."""
    return exit_status(lambda: _run(command_parser(prog).parse_args(arguments)))


def command_parser(prog: str = _PROG) -> Parser:
    """The parser of the command line."""
    parser = Parser(
        prog=prog,
        description="Writes a trained model as an ONNX file, checked in onnxruntime against the model. docs/export.md "
        "has its inputs and outputs.",
        epilog=examples("%(prog)s runs/mine/cmsbert-clr/seed-0 model.onnx"),
    )
    parser.add_argument("checkpoint", help="folder of a trained model, or of the run that trained it")
    parser.add_argument("output", type=Path, metavar="OUT.onnx", help="the new file")
    return parser


def _run(given: argparse.Namespace) -> None:
    if given.output.suffix != ".onnx":
        raise UsageError(f"{given.output} does not end in .onnx; choose a name that does.")
    if given.output.exists():
        raise UsageError(f"{given.output} exists; remove it or choose another name.")
    if not given.output.parent.is_dir():
        raise UsageError(f"There is no folder {given.output.parent}; make it or choose another name.")
    model, processor = load_trained(given.checkpoint)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is missing, which nothing needs
    try:
        differences = export_onnx(model.float(), processor, given.output)
    except OSError as error:
        raise UsageError(f"{given.output} cannot be written ({os_reason(error)}); choose another name.") from None
    print(f"{given.output}: {given.output.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    print(f"largest relative difference to the model in onnxruntime: {_shown(differences)}", file=sys.stderr)


def _shown(differences: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {gap:.1g}" for name, gap in differences.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
