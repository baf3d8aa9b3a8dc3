"""What the benchmarks compare with computes what it says it does."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.rivals.attention import bucketed_attention, lean_attention, make_buckets, text_attention
from bench.rivals.losses import inf_cl_loss, open_clip_loss
from bench.rivals.models import MagBert, TextBert, padded_clr
from bench.steps import mag, of_pieces
from bench.workload import AttentionBatch, ModelBatch, attention_flops, make_config, step_flops
from cmsbert_fast import (
    CMSBertCLRForSequenceClassification,
    CMSBertForSequenceClassification,
    cms_attention,
    pairwise_contrastive_loss,
)

LENGTHS = [3, 9, 1, 6]


def double(inputs):
    return {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


@pytest.fixture(scope="module")
def batch():
    drawn = ModelBatch.draw(make_config("tiny"), LENGTHS, torch.device("cpu"), pad_to=12)
    return ModelBatch(double(drawn.packed), double(drawn.padded))


def test_padded_model_is_the_model(batch):
    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(make_config("tiny")).double().eval()
    expected = model(**batch.packed)
    logits, loss = padded_clr(model, batch.padded)
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(loss, expected.loss, rtol=0, atol=1e-10)


def test_text_bert_is_our_variant_without_shifting(batch):
    config = make_config("tiny", cms_layers=[])
    text = TextBert(config).double().eval()
    ours = CMSBertForSequenceClassification(config).double().eval()
    ours.load_state_dict(text.state_dict())
    torch.testing.assert_close(ours(**batch.packed).logits, text(batch.padded)[0], rtol=0, atol=1e-10)


def test_mag_bert_is_our_variant(batch):
    """Logits and gradients, whatever the padding."""
    model = mag(make_config("tiny"), torch.device("cpu")).double().eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1)
    rival = MagBert(model).double().eval()
    output = model(**of_pieces(batch.packed))
    alone = ModelBatch.draw(make_config("tiny"), LENGTHS, torch.device("cpu"))  # padded to the longest only
    for padded in (batch.padded, double(alone.padded)):
        logits, loss = rival(padded)
        torch.testing.assert_close(logits, output.logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(loss, output.loss, rtol=0, atol=1e-10)
    output.loss.backward()
    loss.backward()
    same = {"visual": "visual_gated", "acoustic": "acoustic_gated", "norm": "shift_norm"}
    for name, parameter in rival.named_parameters():
        first, _, rest = name.partition(".")
        ours = model.get_parameter(f"{same.get(first, first)}.{rest}")
        torch.testing.assert_close(parameter.grad, ours.grad, rtol=0, atol=1e-10, msg=name)
    changed = dict(batch.padded, acoustic=batch.padded["acoustic"] + 1)
    assert (rival(changed)[0] - output.logits).abs().min() > 1e-6


@pytest.mark.parametrize("loss", [open_clip_loss, lambda z, t: inf_cl_loss(z, t, tile=4)], ids=["open_clip", "Inf-CL"])
@pytest.mark.parametrize("n", [2, 11])
def test_contrastive_rivals_equal_the_loss_without_smoothing(loss, n):
    torch.manual_seed(0)
    embeddings = [torch.randn(n, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    value = loss(embeddings, 0.2)
    expected = pairwise_contrastive_loss(*embeddings, temperature=0.2, smoothing=None)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)
    for got, wanted in zip(
        torch.autograd.grad(value, embeddings), torch.autograd.grad(expected, embeddings), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def test_packed_and_padded_attention_batches_hold_the_same():
    batch = AttentionBatch.draw(LENGTHS, [2, 5, 1, 4], torch.device("cpu"), torch.float64, 2, 4, (3, 5))
    (arguments, options), (padded_arguments, padded_options) = batch.packed, batch.padded
    z = cms_attention(*arguments, **options, backend="torch")
    padded = cms_attention(*padded_arguments, **padded_options, backend="reference")
    torch.testing.assert_close(z, padded[padded_options["attention_mask"]], rtol=0, atol=1e-12)
    lean = lean_attention(*padded_arguments, **padded_options)
    torch.testing.assert_close(lean[padded_options["attention_mask"]], z, rtol=0, atol=1e-12)


def test_buckets_and_text_only_attention_are_the_operator():
    batch = AttentionBatch.draw(LENGTHS, LENGTHS, torch.device("cpu"), torch.float64, 2, 4, (3, 5))
    arguments, options = batch.padded
    mask = options["attention_mask"]
    buckets = make_buckets(LENGTHS, torch.device("cpu"), 2)
    assert [longest for _, longest in buckets] == [3, 9]
    z = bucketed_attention(*arguments, **options, buckets=buckets)
    expected = cms_attention(*arguments, **options, backend="reference")
    torch.testing.assert_close(z[mask], expected[mask], rtol=0, atol=1e-12)
    expected = cms_attention(*arguments[:3], **options, backend="reference")
    for eager in (False, True):
        z = text_attention(*arguments[:3], mask, eager)
        torch.testing.assert_close(z[mask], expected[mask], rtol=0, atol=1e-12)


@pytest.mark.parametrize("backward", [False, True])
def test_operations_are_those_that_pytorch_counts(backward):
    lengths, frames = [7, 7], [4, 4]
    batch = AttentionBatch.draw(lengths, frames, torch.device("cpu"), torch.float32)
    arguments, options = batch.padded
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(backward):
        z = cms_attention(*arguments, **options, backend="torch")
        if backward:
            z.sum().backward()
    assert counter.get_total_flops() == attention_flops(lengths, frames, backward)


def test_operations_of_a_step_are_those_that_pytorch_counts():
    """Gates, classifier and the loss are left out of the formula: a percent at this size."""
    config = make_config("MiniLM", backend="torch")
    lengths = [50] * 4
    drawn = ModelBatch.draw(config, lengths, torch.device("cpu"))
    model = CMSBertCLRForSequenceClassification(config)
    no_mkldnn = torch.backends.mkldnn.flags(enabled=False)  # its LSTM is one operation, which nobody counts
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), no_mkldnn:
        padded_clr(model.eval(), drawn.padded)[1].backward()
    assert counter.get_total_flops() == pytest.approx(step_flops(config, lengths, True), rel=0.015)
