"""Steps as CUDA graphs, as far as a CPU can show: sizes, filling, control flow with a stand-in for the capture."""

import functools
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.utils._pytree import tree_map_only

from cmsbert_fast.data import read_corpus
from cmsbert_fast.models.cmsbert.fused_layer import FusedLayers
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.lstm import api as lstm
from cmsbert_fast.ops.lstm.torch import padded_cudnn_lstm
from cmsbert_fast.training import checkpoint, graphs
from cmsbert_fast.training.backward import StepLosses
from cmsbert_fast.training.batches import Batches
from cmsbert_fast.training.build import build
from cmsbert_fast.training.distributed import Gradients, Ranks
from cmsbert_fast.training.graphs import GraphedUpdate, bucket_of, filled, why_not
from cmsbert_fast.training.optimiser import parameter_groups
from cmsbert_fast.training.settings import TrainingSettings
from cmsbert_fast.training.update import Update, Updated
from tests.kernels.launches import Operators
from tests.training.helpers import CPU, records

NARROW = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
NARROW |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
# Two of four; of three, the last has fewer rows than the one before it in the same graph.
ORDER = [[0, 1, 2, 3], [1, 2, 6], [3, 1, 0, 2], [1, 2, 10], [1, 3, 4], [1, 2, 11], [1, 2, 10]]


embedded = functools.cache(lambda: read_corpus("embedded"))


def make_update(variant: str = "cmsbert-clr") -> Update:
    """In float64, so that what rounding would hide is seen."""
    settings = TrainingSettings(data="embedded", variant=variant, architecture=NARROW, max_grad_norm=0.5)
    corpus = embedded()
    checkpoint.seed_everything(0)
    model, processor = build(settings, corpus)
    model.double().train()
    batches = Batches(corpus.splits["train"], processor, model, CPU.device)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), lr=1e-3, fused=True)
    state = model.training_state(len(batches))
    return Update(model, batches, Gradients(model, CPU), optimizer, CPU, settings, state)


def run(step, update: Update) -> list[Updated]:
    found = []
    for number, indices in enumerate(ORDER):
        for group in update.optimizer.param_groups:
            group["lr"] = (number + 1) / 1024  # exact in float32, as graphs have it
        found.append(step(indices))
    return found


@pytest.mark.parametrize("variant", ["bert", "cmsbert-clr"])
def test_steps_of_filled_batches_are_those_of_the_batches(variant, monkeypatch):
    """The same losses, gradient norms, rows and model, whatever is captured, replayed or neither."""
    plain, graphed = make_update(variant), make_update(variant)
    captured, replayed = [], []

    def capture(compute, pool):
        captured.append(1)

        def replay():
            replayed.append(1)
            return compute()

        return replay

    monkeypatch.setattr(graphs, "capture", capture)
    expected, found = run(plain, plain), run(GraphedUpdate(graphed), graphed)
    sizes = {}
    for indices in ORDER:
        bucket = bucket_of(plain.batches.load(indices))
        sizes[bucket] = sizes.get(bucket, 0) + 1
    assert len(captured) == sum(count > 1 for count in sizes.values()) > 0
    assert len(replayed) == sum(count - 1 for count in sizes.values())
    for (losses, norm), (wanted, wanted_norm) in zip(found, expected, strict=True):
        assert losses.values.keys() == wanted.values.keys()
        torch.testing.assert_close(losses.values, wanted.values, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(losses.rows, wanted.rows, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(norm, wanted_norm, rtol=1e-9, atol=1e-11)
    for a, b in zip(graphed.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_optimisers_groups_are_those_of_a_run_without_graphs(monkeypatch):
    monkeypatch.setattr(graphs, "capture", lambda compute, pool: compute)
    update = make_update()
    run(GraphedUpdate(update), update)
    for group in update.optimizer.param_groups:
        assert type(group["lr"]) is float
        assert group["lr"] == 7 / 1024
        assert group["capturable"] is False


def test_rows_and_lengths_are_rounded_up():
    def bucket(rows, longest):
        inputs = dict(input_ids=torch.zeros(1, rows), max_length_q=longest, labels=torch.zeros(3))
        return bucket_of(inputs | dict(visual=torch.zeros(rows, 2), max_length_visual=longest))

    assert bucket(473, 50) == ((3,), (512, 64), (("visual", 512, 64),))
    assert bucket(512, 64) == bucket(449, 49) == bucket(473, 50)
    assert bucket(0, 0).frames == (("visual", 64, 16),)
    assert len({bucket(64, longest) for longest in range(1, 20_000, 7)}) < 80
    sizes = {bucket(rows, 16).tokens[0] for rows in range(1, 20_000, 7)}
    assert len(sizes) < 60
    assert all(bucket(rows, 16).tokens[0] <= max(1.125 * rows + 1, rows + 63) for rows in range(1, 20_000, 7))


def test_filled_rows_belong_to_no_utterance():
    inputs = make_update().batches.load(range(4))
    bucket = bucket_of(inputs)
    batch = filled(inputs, bucket, CPU.device)
    assert bucket_of(batch) == bucket
    assert batch["input_ids"].shape == batch["position_ids"].shape == (1, bucket.tokens[0])
    assert torch.equal(batch["cu_seq_lens_q"], inputs["cu_seq_lens_q"])
    for name in ("visual", "acoustic"):
        rows = len(inputs[name])
        assert torch.equal(batch[name][:rows], inputs[name])
        assert not batch[name][rows:].any()
        assert batch[f"cu_seq_lens_{name}"][-1] == rows


def test_further_sizes_take_their_steps_without_a_graph_and_say_so(monkeypatch):
    """Sizes that came once take no graph's place."""
    captured = []
    monkeypatch.setattr(graphs, "MOST", 1)
    monkeypatch.setattr(graphs, "capture", lambda compute, pool: captured.append(compute) or compute)
    step = GraphedUpdate(make_update())
    step([0])
    step([0, 1, 2])
    step([0, 1])
    step([0, 1, 2])
    assert len(captured) == 1
    with pytest.warns(UserWarning, match="more than 1 sizes"):
        step([0, 1])
    step([0, 1])
    assert len(captured) == 1


def test_a_step_launches_its_graph_and_the_copies_of_its_batch(monkeypatch):
    update, result = make_update(), []
    inputs = update.batches.load(ORDER[0])
    monkeypatch.setattr(update.batches, "load", lambda indices: inputs)
    monkeypatch.setattr(graphs, "capture", lambda compute, pool: lambda: result)
    step = GraphedUpdate(update)
    step(ORDER[0])
    assert step(ORDER[0]) is result
    with Operators() as operators:
        step(ORDER[0])
    of_k = 1  # offsets of keys, which are those of the queries
    tensors = sum(isinstance(value, torch.Tensor) for value in inputs.values()) - of_k
    assert operators.kernels == {"copy_": tensors, "fill_": len(update.optimizer.param_groups)}


def test_a_capture_runs_once_and_its_results_are_copied(monkeypatch):
    events = []
    norm = torch.zeros(())

    class Graph:
        def replay(self):
            events.append("replay")
            norm.add_(1)

    @contextmanager
    def graph(made, pool):
        assert isinstance(made, Graph)
        events.append(pool)
        yield
        events.append("captured")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)

    def compute():
        events.append("computed")
        return Updated(StepLosses({"task": norm}, {"task": 1.0}, {"logits": norm}), norm)

    replay = graphs.capture(compute, "pool")
    assert events == ["pool", "computed", "captured"]
    first, second = replay(), replay()
    assert events[3:] == ["replay", "replay"]
    assert [float(x) for x in (first.norm, second.norm, first.losses.rows["logits"])] == [1, 2, 1]
    assert first.losses.weights == {"task": 1.0}


@pytest.mark.parametrize("variant", ["bert", "cmsbert-clr"])
def test_nothing_of_a_step_is_read_on_the_host(variant, monkeypatch):
    """The meta device stands in for a GPU: its tensors have no numbers, so that reading one fails. Fused layers, and
    the LSTMs as a GPU runs them that alone knows the lengths; without AdamW, which PyTorch has no such form of."""
    update = make_update(variant)
    inputs = update.batches.load(ORDER[0])
    batch = filled(inputs, bucket_of(inputs), CPU.device)
    update.model.float().to("meta")
    update.gradients = Gradients(update.model, CPU)
    update.model.config.backend = "triton"
    layers, run_layer = [], FusedLayers._run
    monkeypatch.setattr(capability, "why_not_triton", lambda *_: None)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # has no meta device
    monkeypatch.setattr(update.optimizer, "step", lambda: None)
    monkeypatch.setattr(lstm.PackedLSTM, "forward", as_on_a_gpu)
    monkeypatch.setattr(FusedLayers, "_run", lambda self, layer: layers.append(layer) or run_layer(self, layer))
    losses, norm = update.of_inputs(tree_map_only(torch.Tensor, lambda x: x.to("meta"), batch))
    assert {x.device.type for x in (norm, *losses.values.values(), *losses.rows.values())} == {"meta"}
    assert len(layers) == 1
    with pytest.raises((NotImplementedError, RuntimeError)):
        float(norm)


def as_on_a_gpu(self, frames, packing, backend="auto"):
    """PackedLSTM's way where the lengths are on a GPU."""
    return padded_cudnn_lstm(frames, packing, *self.parameters())


@pytest.mark.parametrize(
    ("ranks", "changes", "reason"),
    [
        (CPU, {}, "a CUDA graph needs a GPU, and this run is on the CPU"),
        (Ranks(0, 2, torch.device("cuda")), {}, "several ranks"),
        (Ranks(0, 1, torch.device("cuda")), dict(accumulation=2), "--accumulation divides it"),
        (Ranks(0, 1, torch.device("cuda")), dict(variant="tfn"), "what tfn launches depends"),
        *((Ranks(0, 1, torch.device("cuda")), dict(variant=v), None) for v in ("bert", "cmsbert", "cmsbert-clr")),
    ],
)
def test_where_there_are_no_graphs(ranks, changes, reason):
    found = why_not(TrainingSettings(data="embedded", **changes), ranks)
    assert found is None if reason is None else reason in found


def test_a_run_without_a_gpu_refuses(train, short, tmp_path):
    status, said = train(*short, "--device", "cpu", "--cuda-graphs", "true", "--output", tmp_path / "out")
    assert status == 2
    assert (
        "--cuda-graphs does not work here: a CUDA graph needs a GPU, and this run is on the CPU; leave it out." in said
    )
    assert not (tmp_path / "out").exists()


def test_a_run_takes_its_steps_as_graphs_where_it_can(train, short, tmp_path, monkeypatch):
    captured = []
    monkeypatch.setattr(graphs, "why_not", lambda *_: None)
    monkeypatch.setattr(graphs, "capture", lambda compute, pool: captured.append(1) or compute)
    losses = []
    for chosen in ("false", "true"):
        assert train(*short, "--epochs", 2, "--cuda-graphs", chosen, "--output", tmp_path / chosen)[0] == 0
        losses.append([record["loss"] for record in records(tmp_path / chosen, "train")])
        assert bool(captured) == (chosen == "true")
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("variant", ["cmsbert-clr"])
def test_replays_are_the_steps(variant):
    """On a GPU: the losses of graphs against those of steps without."""
    device = Ranks(0, 1, torch.device("cuda", 0))
    found = []
    for wrap in (lambda update: update, GraphedUpdate):
        update = make_update(variant)
        update.model.float().to(device.device)
        update.ranks, update.batches._device = device, device.device
        update.optimizer = torch.optim.AdamW(parameter_groups(update.model, update.settings), lr=1e-3, fused=True)
        found.append(run(wrap(update), update))
    for (losses, norm), (wanted, wanted_norm) in zip(*found, strict=True):
        torch.testing.assert_close(losses.values, wanted.values, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(norm, wanted_norm, rtol=1e-2, atol=1e-4)
