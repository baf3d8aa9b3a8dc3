"""What computes a run, and what a user is told of it."""

import json

import pytest
import torch

from cmsbert_fast import CMSBertForSequenceClassification
from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.models.registry import VARIANTS, Variant
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.capability import why_slow_bfloat16
from cmsbert_fast.training import preflight, runs
from cmsbert_fast.training.backends import backend_report, chosen_backend
from cmsbert_fast.training.command import Command
from cmsbert_fast.training.distributed import Ranks
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.settings import TrainingSettings
from cmsbert_fast.training.signals import StopRequest
from tests.training.helpers import CPU


def test_which_backend_ran(train, short, tmp_path, monkeypatch, capsys):
    for given, missing, expected in (
        ("reference", None, "CMS attention: reference"),
        ("auto", "there is no C++ compiler", "CMS attention: torch (not cpu: there is no C++ compiler)"),
    ):
        monkeypatch.setattr(library, "why_not", lambda missing=missing: missing)
        out = tmp_path / given
        arguments = [*short, "--variant", "cmsbert", "--epochs", 1, "--device", "cpu", "--backend", given]
        assert runs.main([*map(str, arguments), "--seeds", "0", "1", "--output", str(out)], "none") == 0
        told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CMS attention")]
        assert told == [expected]
        for path in out.glob("*/*/results.json"):
            found = json.loads(path.read_text())
            assert (found["backend"], found["settings"]["backend"]) == (expected.split()[2], given)
    status, errors = train(*short, "--device", "cpu", "--backend", "cpu", "--output", tmp_path / "cpu")
    assert status == 2
    assert "there is no C++ compiler" in errors
    assert not (tmp_path / "cpu").exists()


def test_operators_that_no_run_uses_are_not_asked(monkeypatch):
    for name, operators in (("recurrent", ("lstm",)), ("both", ("attention", "lstm")), ("plain", ())):
        model = type(name, (CMSBertForSequenceClassification,), {"operators": operators, "__module__": __name__})
        monkeypatch.setitem(globals(), name, model)
        monkeypatch.setitem(VARIANTS, name, Variant(f"{__name__}:{name}"))
    monkeypatch.setattr(library, "why_not", lambda: "there is no C++ compiler")

    def of(variant: str, **changes: str) -> TrainingSettings:
        return TrainingSettings(variant=variant, **changes)

    lstm = "LSTM: torch (not cpu: there is no C++ compiler)"
    assert backend_report([of("recurrent"), of("recurrent", backend="torch")], CPU.device) == [lstm]
    assert backend_report([of("plain")], CPU.device) == []
    attention = "CMS attention: torch (not cpu: there is no C++ compiler)"
    linear = "linear layers: torch (not cpu: there is no C++ compiler)"
    assert backend_report([of("plain"), of("bert"), of("both")], CPU.device) == [attention, linear, lstm]
    assert chosen_backend(of("bert", backend="reference"), CPU.device) == "reference"  # linear layers are everywhere
    assert chosen_backend(of("plain", backend="cpu"), CPU.device) is None
    assert chosen_backend(of("recurrent", backend="cpu"), CPU.device) == "torch"
    assert chosen_backend(of("both", backend="reference"), CPU.device) == "reference, torch"
    with pytest.raises(UsageError, match="there is no C"):
        chosen_backend(of("both", backend="cpu"), CPU.device)


def test_bf16_on_a_cpu_that_is_slow_at_it_warns_once(train, short, tmp_path, monkeypatch):
    arguments = [*short, "--device", "cpu", "--variant", "bert", "--epochs", 1, "--seeds", 0, 1]
    for slow, precision, expected in (("slow", "bf16", 1), ("slow", "fp32", 0), (None, "bf16", 0)):
        monkeypatch.setattr("cmsbert_fast.training.precision.why_slow_bfloat16", lambda device, slow=slow: slow)
        status, errors = train(*arguments, "--precision", precision, "--output", tmp_path / f"{precision}-{slow}")
        assert status == 0
        told = [line for line in errors.splitlines() if line.startswith("warning")]
        assert len(told) == expected
        assert all(line == "warning: slow; use --precision fp32." for line in told)


def test_rank_0_alone_warns_of_bf16(monkeypatch, capsys):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(preflight, "read_corpus", lambda request: 1 / 0)
    command = Command(runs=(TrainingSettings(data="x", precision="bf16"),))
    for rank in (0, 1):
        with pytest.raises(ZeroDivisionError):  # reading began; it is told before
            runs.run_all(command, Ranks(rank, 2, torch.device("cpu")), StopRequest())
        assert ("warning" in capsys.readouterr().err) == (rank == 0)


@pytest.mark.parametrize(
    ("supported", "vendor", "features", "expected"),
    [
        (True, "AuthenticAMD", "avx512_bf16", None),
        (True, "GenuineIntel", "avx512_bf16 amx_bf16", None),
        (True, "GenuineIntel", "avx512_bf16", "no matrix unit"),
        (True, "", "bf16", None),
        (False, "AuthenticAMD", "avx2", "no bfloat16 instructions"),
        (False, "GenuineIntel", "avx2", "no bfloat16 instructions"),
    ],
)
def test_what_computes_slowly_in_bfloat16(monkeypatch, supported, vendor, features, expected):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported, raising=False)
    monkeypatch.setattr(capability, "_vendor", lambda: vendor)
    monkeypatch.setattr(capability, "_has_feature", lambda name: name in features.split())
    why = why_slow_bfloat16(torch.device("cpu"))
    assert why is None if expected is None else expected in why
    assert why_slow_bfloat16(torch.device("cuda")) is None


def test_nobody_is_warned_of_bfloat16_on_a_guess(monkeypatch):
    def missing() -> bool:
        raise AttributeError

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", missing)
    monkeypatch.setattr(capability, "_vendor", lambda: "")
    assert why_slow_bfloat16(torch.device("cpu")) is None
