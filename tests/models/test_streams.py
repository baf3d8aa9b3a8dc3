"""Subnetworks beside BERT on a GPU's side streams, with a stand-in for streams: what waits for what."""

from contextlib import contextmanager

import pytest
import torch

from bench.workload import ModelBatch, make_config
from cmsbert_fast import CMSBertCLRForSequenceClassification
from cmsbert_fast.models import streams
from cmsbert_fast.models.cmsbert import modeling_cmsbert


class Stream:
    """Notes what it is asked for."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch):
    """What happens on streams, in order."""
    log = []
    stack = [Stream("main", log)]

    def make(device):
        return Stream(f"side {len(streams._streams)}", log)

    @contextmanager
    def on(stream):
        stack.append(stream)
        yield
        stack.pop()

    monkeypatch.setattr(streams, "_streams", {})
    monkeypatch.setattr(torch.cuda, "Stream", make)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stack[-1])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: log.append(f"kept for {stream.name}"))

    def note(name, function):
        def noted(*arguments, **options):
            log.append(f"{name} on {stack[-1].name}")
            return function(*arguments, **options)

        return noted

    for owner, name in (
        (modeling_cmsbert.CMSBertModel, "encode"),
        (modeling_cmsbert.CMSBertCLRForSequenceClassification, "_subnetwork"),
    ):
        monkeypatch.setattr(owner, name, note(name.strip("_"), getattr(owner, name)))
    return log


def test_faces_and_voices_run_beside_bert(log, monkeypatch):
    config = make_config("tiny")
    model = CMSBertCLRForSequenceClassification(config).eval()
    inputs = ModelBatch.draw(config, [5, 3], torch.device("cpu")).packed
    with torch.no_grad():
        expected = model.rows(**{name: x for name, x in inputs.items() if name != "labels"})
        assert [x for x in log if " on " in x] == ["encode on main", "subnetwork on main", "subnetwork on main"]
        log.clear()
        monkeypatch.setattr(modeling_cmsbert, "may_run_beside", lambda frames, backend: True)
        found = model.rows(**{name: x for name, x in inputs.items() if name != "labels"})
    begin = [[f"side {i} waits for main", f"subnetwork on side {i}", *[f"kept for side {i}"] * 2] for i in (0, 1)]
    end = [[f"main waits for side {i}", "kept for main", "kept for main"] for i in (0, 1)]
    assert log == [*begin[0], *begin[1], "encode on main", *end[0], *end[1]]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())


@pytest.mark.parametrize(("backend", "beside"), [("auto", False), ("torch", False), ("triton", True), ("varlen", True)])
def test_not_by_auto_and_never_on_a_cpu(backend, beside, monkeypatch):
    monkeypatch.delenv("CMSBERT_BACKEND", raising=False)
    frames = torch.zeros(3, 4)
    assert not streams.may_run_beside(frames, backend)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert streams.may_run_beside(frames, backend) == beside
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert not streams.may_run_beside(frames, backend)
