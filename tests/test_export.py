"""Exported programs compute what the models do, for batches, lengths and masks that they were not traced with."""

import json
import os

import numpy as np
import pytest
import torch

from cmsbert_fast import CMSBertConfig, CMSBertProcessor, export
from cmsbert_fast.data.embedded import embedded_tokenizer
from cmsbert_fast.models.registry import BASELINES, VARIANTS
from tests.models.baselines import systems
from tests.models.small import lively

OURS = ("bert", "cmsbert", "cmsbert-clr")  # the others are of these classes
SYSTEMS = (*OURS, *BASELINES)
VECTORS = [name for name in BASELINES if "vectors" in systems.texts(name) and name not in ("mfn", "raven")]
slow = pytest.mark.skipif("CMSBERT_SLOW_TESTS" not in os.environ, reason="set CMSBERT_SLOW_TESTS")
SIZES = dict(visual_size=5, acoustic_size=3)


def model_of(name: str, **changes):
    """A small model in float32, with one layer of BERT: what an export costs grows with the number of operators."""
    if name in BASELINES:
        return systems.system(name, num_hidden_layers=1, **changes).float()
    torch.manual_seed(0)
    fields = {**systems.BERT, **SIZES, "num_hidden_layers": 1, **VARIANTS[name].config, **changes}
    return lively(VARIANTS[name].model_class(CMSBertConfig(**fields))).float()


@pytest.fixture
def processor():
    return CMSBertProcessor(embedded_tokenizer(), [100.0] * 5, [50.0] * 5, [-1.0] * 3, [2.0] * 3)


def batches(program):
    """Inputs of other sizes than those of the trace; the last ones have masks with holes and no face."""
    for seed, (batch, lengths) in enumerate([(1, (6, 4, 3, 2)), (5, (11, 8, 2, 13)), (2, (8, 6, 9, 4))]):
        yield export.example_inputs(program, batch, lengths, seed)
    inputs = export.example_inputs(program, 4, (9, 6, 8, 5), 7)
    for name in ("attention_mask", "acoustic_mask"):
        if name in inputs and not {"token_words", "acoustic_words", "token_frames_acoustic"} & inputs.keys():
            inputs[name][:, 1] = 0
    if "visual_mask" in inputs:
        export._leave_out(inputs, "visual")
    yield inputs


def assert_same(program, computed_by):
    for inputs in batches(program):
        with torch.no_grad():
            expected, found = program(*inputs.values()), computed_by(inputs)
        for name, ours, theirs in zip(program.output_names, expected, found, strict=True):
            torch.testing.assert_close(torch.as_tensor(theirs), ours, rtol=1e-4, atol=1e-4, msg=f"{name}: {inputs}")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n not in ("mfn", "bert") else slow) for n in SYSTEMS])
def test_torch_export(name, processor):
    model = model_of(name)
    exported = export.export_program(model, processor)
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not any("cmsbert_fast" in target for target in called)  # it runs where the project is not installed
    assert_same(export.Program(model, processor), lambda inputs: exported.module()(*inputs.values()))


@slow
@pytest.mark.parametrize("name", VECTORS)
def test_torch_export_of_word_vectors(name, processor):
    model = model_of(name, text="vectors")
    exported = export.export_program(model, processor)
    assert_same(export.Program(model, processor), lambda inputs: exported.module()(*inputs.values()))


ORDINARY = ("cmsbert-clr", "raven")  # attention and the contrastive heads; a recurrence that starts anew at words


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in ORDINARY else slow) for n in SYSTEMS])
def test_onnx(name, processor, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, path = model_of(name), tmp_path / "model.onnx"
    differences = export.export_onnx(model, processor, path)
    program = export.Program(model, processor)
    assert list(differences) == program.output_names
    assert max(differences.values()) <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == program.input_names
    named = {one.name: dict(enumerate(one.shape)) for one in session.get_inputs()}
    for name_, axes in export.axes(program).items():
        assert {axis: named[name_][axis] for axis in axes} == axes
    assert [one.name for one in session.get_outputs()] == program.output_names
    found = session.get_modelmeta().custom_metadata_map
    assert found["cmsbert.system"] == type(model).__name__
    assert (json.loads(found["cmsbert.labels"]), found["cmsbert.max_length"]) == (None, "50")
    if name != "bert":
        frames = {m: {"size": size, "standardised": "in the graph"} for m, size in (("visual", 5), ("acoustic", 3))}
        assert json.loads(found["cmsbert.frames"]) == frames
    assert_same(program, lambda inputs: session.run(None, {n: x.numpy() for n, x in inputs.items()}))


def test_frames_are_treated_as_the_processor_does(processor):
    """The program takes the source's frames; the processor's inputs go to the model."""
    model = model_of("cmsbert-clr", visual_size=5, vocab_size=len(processor.tokenizer))
    random = np.random.default_rng(0)
    face, voice = random.normal(100, 50, (4, 5)).astype(np.float32), random.normal(-1, 2, (3, 3)).astype(np.float32)
    face[1, 2], voice[0, 0] = np.nan, np.inf
    inputs = processor(["good", "film"], face, voice)
    program = export.Program(model, processor)
    raw = {**inputs, "visual": torch.from_numpy(face)[None], "acoustic": torch.from_numpy(voice)[None]}
    with torch.no_grad():
        logits = program(*(raw[name] for name in program.input_names))[0]
        torch.testing.assert_close(logits, model(**inputs).logits, rtol=0, atol=1e-6)


def test_a_model_that_differs_leaves_no_file(processor, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(export, "compare", lambda program, path: {"logits": float("nan")})
    with pytest.raises(export.UsageError, match="something else than its checkpoint"):
        export.export_onnx(model_of("tfn", text="vectors"), processor, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_said(processor, tmp_path, capsys, monkeypatch):
    def said(*arguments):
        assert export.main([str(a) for a in arguments]) == 2
        return capsys.readouterr().err

    assert "does not end in .onnx" in said(tmp_path, tmp_path / "model.pt")
    (tmp_path / "model.onnx").touch()
    assert "exists; remove it" in said(tmp_path, tmp_path / "model.onnx")
    assert "There is no folder" in said(tmp_path, tmp_path / "nowhere" / "new.onnx")
    assert "no config.json" in said(tmp_path, tmp_path / "new.onnx")
    monkeypatch.setattr(export, "LIBRARIES", ("no_such_library",))
    with pytest.raises(export.UsageError, match=r"needs no_such_library; pip install 'cmsbert-fast\[export\]'"):
        export.export_onnx(model_of("bert"), processor, tmp_path / "new.onnx")
    monkeypatch.setattr(export, "LIBRARIES", ())
    monkeypatch.setattr(export, "LARGEST", 10)
    with pytest.raises(export.UsageError, match="one ONNX file holds 2"):
        export.export_onnx(model_of("bert"), processor, tmp_path / "new.onnx")


def test_word_vectors_may_be_padded():
    """(B, W, e), as programs take them, or packed (P, e)."""
    model = model_of("mfn")
    inputs = export.example_inputs(export.Program(model, CMSBertProcessor(embedded_tokenizer())), 3)
    ids = torch.zeros_like(inputs["token_words"])
    counts = (inputs["token_words"] + 1).amax(dim=1)
    valid = torch.arange(inputs["word_vectors"].shape[1]) < counts[:, None]
    given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        padded = model.rows(**given)["logits"]
        packed = model.rows(**{**given, "word_vectors": inputs["word_vectors"][valid]})["logits"]
    torch.testing.assert_close(padded, packed, rtol=0, atol=1e-6)
