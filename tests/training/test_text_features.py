"""Features of frozen text: computed once, equal to the bit to those computed anew, in memory and in a file."""

import os
import threading

import pytest
import torch
from safetensors.numpy import load_file

from cmsbert_fast.data import read_corpus
from cmsbert_fast.models.baselines.base import Baseline
from cmsbert_fast.models.baselines.text import TextBert
from cmsbert_fast.training import batches, evaluate, lock, text_features
from cmsbert_fast.training.batches import Batches
from cmsbert_fast.training.build import build
from cmsbert_fast.training.errors import Interrupted, UsageError
from cmsbert_fast.training.settings import TrainingSettings
from cmsbert_fast.training.signals import StopRequest
from cmsbert_fast.training.text_features import TextFeatures
from tests.training.helpers import CPU

# MKL's products of these sizes, no multiples of 64, round differently with other numbers of rows.
WIDE = {"hidden_size": 200, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 800}


@pytest.fixture(scope="module")
def wide():
    """Corpus, model and processor."""
    corpus = read_corpus("embedded")
    return corpus, *build(TrainingSettings(variant="tfn", architecture=WIDE), corpus)


@pytest.fixture
def make(wide):
    corpus, model, processor = wide
    return lambda examples=corpus.splits["valid"]: Batches(examples, processor, model, CPU.device)


def features(batches, indices):
    return batches.load(indices)["text_features"][0]


@pytest.fixture
def alone(wide, make):
    """The features of each of the first utterances, from a batch of its own."""
    return [features(make(), [k]) for k in range(12)]


def test_equal_to_the_bit_whatever_the_batch(wide, make, alone):
    corpus, model, _ = wide
    in_batches = make()
    for order in ([3, 1, 2], range(12), [11, 3, 0, 5]):
        assert torch.equal(features(in_batches, order), torch.cat([alone[k] for k in order]))
    # In another split, in bfloat16, in training mode.
    others = [*corpus.splits["test"][:5], *corpus.splits["valid"][:3]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.train()
        assert torch.equal(features(make(others), range(4, 8)[1:]), torch.cat(alone[:3]))
        model.eval()


def test_read_one_by_one(wide, make, monkeypatch):
    """Whatever the machine's products do."""
    shapes, known = [], Baseline.text_features
    monkeypatch.setattr(
        Baseline,
        "text_features",
        lambda self, input_ids: (shapes.append(len(input_ids)), known(self, input_ids=input_ids))[1],
    )
    make().load(range(5))
    assert shapes == [1] * 5


def test_in_a_file(make, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "FILE_BYTES", 1000)
    kept = make()
    kept.keep_text_features(tmp_path / "run", CPU, StopRequest())
    (path,) = (tmp_path / "run").glob("*.safetensors")
    assert torch.equal(torch.from_numpy(load_file(path)["text_features"])[: sum(map(len, alone))], torch.cat(alone))
    monkeypatch.setattr(TextFeatures, "compute", None)  # from now on they are read
    again = make()
    again.keep_text_features(tmp_path / "run", CPU, StopRequest())
    assert [*(tmp_path / "run").glob("*.safetensors")] == [path]
    for found in (kept, again):
        for order in ([3, 1, 2], range(12)):
            assert torch.equal(features(found, order), torch.cat([alone[k] for k in order]))


def test_a_file_is_of_one_bert_and_one_text(wide, make, tmp_path, monkeypatch):
    corpus, model, processor = wide
    monkeypatch.setattr(batches, "FILE_BYTES", 1000)
    few = corpus.splits["valid"][:6]

    def count():
        make(few).keep_text_features(tmp_path / "run", CPU, StopRequest())
        return len([*(tmp_path / "run").glob("*.safetensors")])

    assert [count(), count()] == [1, 1]
    monkeypatch.setattr(processor, "max_length", 6)
    assert count() == 2
    weight = model.bert.encoder.layer[1].output.dense.weight
    with torch.no_grad():
        weight[0, 0] += 1
    assert count() == 3
    with torch.no_grad():
        weight[0, 0] -= 1
    monkeypatch.setattr(model.config, "layer_norm_eps", 1e-3)
    assert count() == 4


def test_no_file_for_few(wide, make, tmp_path, monkeypatch):
    corpus, model, processor = wide
    size = sum(len(processor.input_ids(e.words)) for e in corpus.splits["valid"]) * model.config.hidden_size * 4
    for limit, files in ((size, 0), (size - 1, 1)):
        monkeypatch.setattr(batches, "FILE_BYTES", limit)
        make().keep_text_features(tmp_path / str(files), CPU, StopRequest())
        assert (tmp_path / str(files)).exists() == bool(files)


def test_memory_has_a_limit(make, alone, monkeypatch):
    """Beyond it they are computed again."""
    computed, compute = [], TextFeatures.compute
    monkeypatch.setattr(TextFeatures, "compute", lambda self, k: (computed.append(k), compute(self, k))[1])
    monkeypatch.setattr(batches, "CACHE_BYTES", alone[0].nbytes + 1)
    limited = make()
    for _ in range(2):
        assert torch.equal(features(limited, range(4)), torch.cat(alone[:4]))
    assert computed == [0, 1, 2, 3, 2, 3]


def test_stopped_or_killed_while_writing(make, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "FILE_BYTES", 1000)
    stop, compute = StopRequest(), TextFeatures.compute

    def signalled(self, index):
        if index == 3:
            stop.signal = 15
        return compute(self, index)

    monkeypatch.setattr(TextFeatures, "compute", signalled)
    with pytest.raises(Interrupted, match="add --resume"):
        make().keep_text_features(tmp_path / "run", CPU, stop)
    assert not [*(tmp_path / "run").glob("[!.]*")]  # the draft is no file of features
    monkeypatch.setattr(TextFeatures, "compute", compute)
    kept = make()
    kept.keep_text_features(tmp_path / "run", CPU, StopRequest())
    assert len([*(tmp_path / "run").glob("*.safetensors")]) == 1
    assert torch.equal(features(kept, range(12)), torch.cat(alone))


@pytest.mark.parametrize("place", [-3, 0, 300])
def test_a_damaged_file_is_written_anew(make, alone, tmp_path, monkeypatch, place):
    monkeypatch.setattr(batches, "FILE_BYTES", 1000)
    make().keep_text_features(tmp_path / "run", CPU, StopRequest())
    (path,) = (tmp_path / "run").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    kept = make()
    kept.keep_text_features(tmp_path / "run", CPU, StopRequest())
    assert torch.equal(features(kept, range(12)), torch.cat(alone))


def test_the_file_used_least_recently_goes(wide, make, tmp_path, monkeypatch):
    corpus = wide[0]
    monkeypatch.setattr(batches, "FILE_BYTES", 1000)
    monkeypatch.setattr(text_features, "KEPT", 2)

    def keep(count):
        """The names there, and the batches."""
        kept = make(corpus.splits["valid"][:count])
        kept.keep_text_features(tmp_path / "run", CPU, StopRequest())
        return {path.name for path in (tmp_path / "run").glob("*.safetensors")}, kept

    (first,), kept = keep(6)
    (second,) = keep(7)[0] - {first}
    os.utime(tmp_path / "run" / second, (1, 1))
    assert keep(6)[0] == {first, second}
    last = keep(8)[0]
    assert len(last) == 2
    assert first in last
    assert second not in last
    assert len([*(tmp_path / "run").iterdir()]) == 4  # with their checksums
    assert len(features(kept, range(6)))


def test_another_process_is_waited_for(make, alone, tmp_path, monkeypatch):
    """One that writes the same file; a signal ends the wait."""
    monkeypatch.setattr(batches, "FILE_BYTES", 1000)
    kept, folder, stop = make(), tmp_path / "run", StopRequest()
    with lock.turn(tmp_path):
        stop.signal = 15
        with pytest.raises(Interrupted):
            make().keep_text_features(folder, CPU, stop)
        waiting = threading.Thread(target=lambda: kept.keep_text_features(folder, CPU, StopRequest()))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        assert not folder.exists()
    waiting.join(300)
    assert torch.equal(features(kept, range(12)), torch.cat(alone))


def test_a_full_disk_is_said_in_one_sentence(make, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "FILE_BYTES", 1000)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(text_features.os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot be written \(No space left on device\); free space for it"):
        make().keep_text_features(tmp_path / "run", CPU, StopRequest())


def test_only_frozen_text_is_kept(wide, make):
    corpus, _, processor = wide
    tuned, _ = build(TrainingSettings(variant="tfn", text="bert", architecture=WIDE), corpus)
    assert "text_features" not in Batches(corpus.splits["valid"], processor, tuned, CPU.device).load([0, 1])


def test_predictions_are_those_of_features_computed_anew(wide, make):
    _, model, _ = wide
    batches = make()
    first, second = (evaluate.predict(model, each, CPU, 7).logits for each in (batches, batches))
    assert torch.equal(first, second)
    assert torch.equal(evaluate.predict(model, make(), CPU, 7).logits, first)


@pytest.fixture
def of_tfn(corpus_folder, bert):
    """Arguments of two epochs of three steps."""
    fields = ["text_hidden_size=6", "text_output_size=5", "fusion_size=4"]
    drops = [f"{name}_dropout=0" for name in ("text", "visual", "acoustic", "fusion")]
    given = ["--data", corpus_folder, "--model", bert, "--variant", "tfn", "--epochs", 2, "--batch-size", 9]
    return [*given, "--architecture", *fields, *drops]


def written(folder):
    return [next(folder.glob(f"*/*/{name}")).read_text() for name in ("log.jsonl", "predictions.csv")]


def test_a_run_computes_them_once(train, of_tfn, tmp_path, monkeypatch):
    read, count = TextBert.read, []
    monkeypatch.setattr(TextBert, "read", lambda self, *a, **k: (count.append(1), read(self, *a, **k))[1])
    assert train(*of_tfn, "--output", tmp_path)[0] == 0
    assert len(count) == 25 + 7 + 9


def test_a_run_with_a_file_is_that_without(train, of_tfn, tmp_path, monkeypatch):
    assert train(*of_tfn, "--output", tmp_path / "memory")[0] == 0
    monkeypatch.setattr(batches, "FILE_BYTES", 0)
    seen, predict = [], evaluate.predict

    def watched(*arguments, **more):
        seen.append(sorted(path.name for path in (tmp_path / "file").glob("features/*.safetensors")))
        return predict(*arguments, **more)

    monkeypatch.setattr(evaluate, "predict", watched)
    assert train(*of_tfn, "--output", tmp_path / "file")[0] == 0
    assert [len(names) for names in seen] == [2, 2, 2, 2]  # train and valid, all the time
    assert not (tmp_path / "file" / "features").exists()  # a finished command needs them no more
    assert written(tmp_path / "file") == written(tmp_path / "memory")


def test_seeds_share_them(train, of_tfn, tmp_path, monkeypatch):
    """Training and validation are computed once for both, the test set by each."""
    monkeypatch.setattr(batches, "FILE_BYTES", 0)
    read, count = TextBert.read, []
    monkeypatch.setattr(TextBert, "read", lambda self, *a, **k: (count.append(1), read(self, *a, **k))[1])
    assert train(*of_tfn, "--seeds", 0, 1, "--output", tmp_path)[0] == 0
    assert len(count) == 25 + 7 + 2 * 9


@pytest.mark.parametrize("limit", [0, 2**20])
def test_ranks_share_them(start_run, of_tfn, tmp_path, limit):
    before = f"from cmsbert_fast.training import batches\nbatches.FILE_BYTES = {limit}"
    run = start_run(tmp_path, of_tfn, ranks=2, before=before)
    assert run.wait() == [0, 0], run.errors()
    alone = start_run(tmp_path / "alone", of_tfn)
    assert alone.wait() == [0]
    found, expected = ([r["mae"] for r in each.records("valid")] for each in (run, alone))
    assert found == pytest.approx(expected, abs=1e-4)


def test_killed_while_it_trains_from_a_file(start_run, of_tfn, tmp_path):
    before = "from cmsbert_fast.training import batches\nbatches.FILE_BYTES = 0"
    given = [*of_tfn, "--checkpoint-every-steps", 1]
    whole = start_run(tmp_path / "whole", given, before=before)
    assert whole.wait() == [0]
    run = start_run(tmp_path / "killed", given, before=before)
    run.kill_after(lines=3)
    again = start_run(tmp_path / "killed", [*given, "--resume"], before=before)
    assert again.wait() == [0], again.errors()
    assert written(tmp_path / "killed" / "out") == written(tmp_path / "whole" / "out")
