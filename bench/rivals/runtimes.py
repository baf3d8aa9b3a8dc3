"""Text-only BERT, padded, in the runtimes that people take for inference on CPUs: onnxruntime and OpenVINO.

Both read the same ONNX file, which PyTorch writes from :class:`bench.rivals.models.TextBert`. They are no dependency:
``pip install -e ".[bench]"`` installs them, and without them the race says so.
"""

import atexit
import functools
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import measure, names
from bench.rivals.models import TextBert

INPUTS = ("input_ids", "attention_mask")
Run = Callable[[dict[str, Tensor]], Tensor]


def why_not(package: str, device: torch.device) -> str | None:
    """Why a runtime cannot run here, or None: package is "onnxruntime" or "openvino"."""
    if device.type != "cpu":
        return "raced on CPUs only"
    for name in (package, "onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    return None


class _Logits(torch.nn.Module):
    def __init__(self, model: TextBert):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model({"input_ids": input_ids, "attention_mask": attention_mask})[0]


def write_onnx(model: TextBert, path: Path) -> None:
    """Writes the model for any number of utterances of any length."""
    example = tuple(torch.ones(2, 7, dtype=torch.int64) for _ in INPUTS)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=512)}
    torch.onnx.export(
        _Logits(model).eval(),
        example,
        path,
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamic_shapes=(sizes, sizes),
        dynamo=True,
        verbose=False,
    )


def contenders(model: TextBert, device: torch.device, bfloat16: bool) -> tuple[dict[str, Run], dict[str, str]]:
    """Each runtime's model by the contender's name; and why the others are missing.

    Args:
        model: Whose weights they have.
        device: Where the others run.
        bfloat16: Whether this CPU has instructions for it.
    """
    made: dict[str, Callable[[Path], Run]] = {
        names.ONNXRUNTIME: _in_onnxruntime,
        names.OPENVINO: functools.partial(_in_openvino, precision="f32"),
        names.OPENVINO_BFLOAT16: functools.partial(_in_openvino, precision="bf16"),
    }
    packages = {name: "onnxruntime" if name == names.ONNXRUNTIME else "openvino" for name in made}
    missing = {name: why for name in made if (why := why_not(packages[name], device)) is not None}
    if not bfloat16:
        missing.setdefault(names.OPENVINO_BFLOAT16, measure.NO_BFLOAT16)
    if len(missing) == len(made):
        return {}, missing
    folder = Path(tempfile.mkdtemp(prefix="cmsbert-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # OpenVINO may read weights from the file later on
    write_onnx(model, folder / "bert.onnx")
    return {name: make(folder / "bert.onnx") for name, make in made.items() if name not in missing}, missing


def _in_onnxruntime(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, _arrays(batch))[0])


def _in_openvino(path: Path, precision: str) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    return lambda batch: torch.from_numpy(compiled(_arrays(batch))[0].copy())


def _arrays(batch: dict[str, Tensor]) -> dict[str, Any]:
    return {name: batch[name].numpy() for name in INPUTS}


def by_length(run: Run, batch: dict[str, Tensor], parts: int) -> Callable[[], Tensor]:
    """The run on utterances sorted by length, in parts that are each padded to their own longest."""
    lengths = batch["attention_mask"].sum(dim=1)
    order = lengths.argsort(stable=True)
    groups = [
        {name: batch[name][rows, : int(lengths[rows].max())].contiguous() for name in INPUTS}
        for rows in order.tensor_split(min(parts, len(order)))
    ]
    back = order.argsort()
    return lambda: torch.cat([run(group) for group in groups]).index_select(0, back)
