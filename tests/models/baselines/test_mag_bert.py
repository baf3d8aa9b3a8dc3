"""MAG-BERT's own checks: the gate, and what is BERT's around it."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from cmsbert_fast import CMSBertConfig, CMSBertForSequenceClassification
from cmsbert_fast.data.embedded import embedded_tokenizer
from cmsbert_fast.data.example import Example, FrameWords
from cmsbert_fast.models.baselines.mag_bert import MagBertConfig, MagBertForSequenceClassification, frames_of_pieces
from cmsbert_fast.models.processing import CMSBertProcessor
from cmsbert_fast.training.batches import Batches
from tests.models.baselines.systems import BERT, config, system
from tests.models.baselines.utterances import SIZES, packed, padded, utterances

BATCH = utterances(True)


def logits(model, batch=BATCH, form=packed):
    return model.rows(**form(batch, model))["logits"]


def gated_pieces(model, batch=BATCH):
    """X, and f_m by modality, of a batch's pieces."""
    seen = []
    shifted, model.shifted = model.shifted, lambda *given: (seen.append(given), shifted(*given))[1]
    logits(model, batch)
    del model.shifted
    ((frames, hidden),) = seen
    return frames, hidden


def h_of(model, frames, hidden):
    return sum(getattr(model, f"{name}_gated")(values, hidden) for name, values in frames.items())


def zero_gates(model, value=0.0):
    for name in ("visual", "acoustic"):
        for parameter in getattr(model, f"{name}_gated").gate.parameters():
            parameter.data.fill_(value)


@pytest.mark.parametrize(("visual", "parameters"), [(47, 110_853_121), (35, 110_834_689)])
def test_size_of_the_published_model(visual, parameters):
    config = MagBertConfig(visual_size=visual, acoustic_size=74, vocab_size=30522)
    with torch.device("meta"):
        model = MagBertForSequenceClassification(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    with torch.device("meta"):
        mean = MagBertForSequenceClassification(MagBertConfig(visual_size=visual, acoustic_size=74, pooling="mean"))
    assert sum(p.numel() for p in mean.parameters()) == parameters - (768 * 768 + 768)


def test_zero_gates_give_a_second_layer_norm():
    model = system("mag-bert")
    zero_gates(model)
    model.shift_norm.reset_parameters()
    frames, hidden = gated_pieces(model)
    assert torch.equal(model.shifted(frames, hidden), torch.nn.functional.layer_norm(hidden, (8,)))
    assert not torch.allclose(model.shift_norm(hidden), hidden, atol=1e-3)


def test_without_that_layer_norm_they_give_bert():
    torch.manual_seed(0)
    model = system("mag-bert")
    zero_gates(model)
    model.shift_norm = torch.nn.Identity()
    frames, hidden = gated_pieces(model)
    assert torch.equal(model.shifted(frames, hidden), hidden)
    bert = BertForSequenceClassification(BertConfig(**BERT, num_labels=1, attn_implementation="eager")).double().eval()
    state = {name: value for name, value in model.state_dict().items() if name.startswith(("bert.", "classifier."))}
    bert.load_state_dict(state)
    for k, utterance in enumerate(BATCH):
        torch.testing.assert_close(logits(model)[k], bert(utterance.ids[None]).logits[0], rtol=0, atol=1e-12)
    ours = CMSBertForSequenceClassification(CMSBertConfig(**BERT, cms_layers=[])).double().eval()
    mean = system("mag-bert", pooling="mean")
    zero_gates(mean)
    mean.shift_norm = torch.nn.Identity()
    ours.load_state_dict({name: mean.state_dict()[name] for name in ours.state_dict()})
    inputs = {n: x for n, x in packed(BATCH, mean).items() if "visual" not in n and "acoustic" not in n}
    assert torch.equal(logits(mean), ours.rows(**inputs)["logits"])  # to the bit: the same layers and head


def test_the_shift_is_bounded():
    model = system("mag-bert", beta=0.3)
    model.shift_norm = torch.nn.Identity()
    frames, hidden = gated_pieces(model)
    shift = (model.shifted(frames, hidden) - hidden).norm(dim=1)
    free = h_of(model, frames, hidden).norm(dim=1)
    bound = 0.3 * hidden.norm(dim=1)
    assert (shift <= bound * (1 + 1e-12)).all()
    assert (free > bound).any()
    small = free < bound
    torch.testing.assert_close(shift[small], free[small])
    torch.testing.assert_close(shift[~small], bound[~small], rtol=1e-5, atol=0)


def test_beta_0_is_no_shift():
    model = system("mag-bert", beta=0.0)
    frames, hidden = gated_pieces(model)
    assert torch.equal(model.shifted(frames, hidden), model.shift_norm(hidden))
    with pytest.raises(ValueError, match=r"beta is -1[.]0 but must be at least 0"):
        config("mag-bert", beta=-1.0)


def test_gradient_where_h_is_0():
    model = system("mag-bert")
    zero_gates(model)
    frames, hidden = gated_pieces(model)
    hidden = hidden.detach().requires_grad_()
    model.shifted(frames, hidden).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in (hidden, *model.parameters()))
    # Just above 0 the gate opens: |h| = 0 counts as 1, so alpha is min(beta |X|, 1).
    model.zero_grad()
    for name in frames:
        getattr(model, f"{name}_gated").gate.bias.data.fill_(1e-12)
    model.shifted(frames, hidden).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in (hidden, *model.parameters()))


def test_alpha_where_h_is_0():
    """|h| = 0 counts as 1: h grows with alpha = min(beta |X| / (1 + 1e-6), 1), not with a huge one."""
    model = system("mag-bert", beta=1e-3)
    model.shift_norm = torch.nn.Identity()
    frames, hidden = gated_pieces(model)
    hidden = hidden.detach()
    for name in frames:
        gated = getattr(model, f"{name}_gated")
        gated.shift.weight.data.zero_()
        gated.shift.bias.data.zero_()
    bias = model.visual_gated.shift.bias
    (slope,) = torch.autograd.grad(model.shifted(frames, hidden).sum(), bias)
    gates = torch.relu(model.visual_gated.gate(torch.cat([frames["visual"], hidden], dim=1)))
    expected = (1e-3 * hidden.norm(dim=1) / (1 + 1e-6)) @ gates
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=0)


def test_frames_of_other_words_do_not_matter():
    model = system("mag-bert")
    frames, hidden = gated_pieces(model)
    expected = model.shifted(frames, hidden)
    changed = [dataclasses.replace(u, visual=torch.cat([u.visual[:1], u.visual[1:] + 1])) for u in BATCH]
    frames, same = gated_pieces(model, changed)
    assert torch.equal(same, hidden)
    found = model.shifted(frames, hidden)
    differs = (found != expected).any(dim=1)
    words = torch.cat([u.words if len(u.visual) else torch.full_like(u.words, -1) for u in BATCH])
    assert torch.equal(differs, words >= 1)


@pytest.mark.parametrize("form", [packed, padded])
def test_each_piece_has_the_frame_of_its_word(form):
    model = system("mag-bert")
    seen = []
    shifted, model.shifted = model.shifted, lambda *given: (seen.append(given[0]), shifted(*given))[1]
    logits(model, form=form)
    for name in ("visual", "acoustic"):
        expected = []
        for utterance in BATCH:
            own = getattr(utterance, name)
            expected += [
                own[w] if w >= 0 and len(own) else own.new_zeros(own.shape[1]) for w in utterance.words.tolist()
            ]
        assert torch.equal(seen[0][name], torch.stack(expected))


def test_frames_of_pieces():
    frames = torch.arange(6.0).view(3, 2)
    found = frames_of_pieces(frames, torch.tensor([-1, 2, 2, 0, -1]))
    assert found.tolist() == [[0, 0], [4, 5], [4, 5], [0, 1], [0, 0]]


def test_a_word_with_several_frames_has_their_mean():
    model = system("mag-bert", vocab_size=1000).float()
    visual, acoustic = (np.random.default_rng(0).normal(size=(4, size)).astype(np.float32) for size in SIZES.values())
    words = FrameWords(np.array([0, 0, -1, 1], np.int32), np.array([-1, 1, 1, 1], np.int32))
    example = Example("a", ("the", "the"), 0.5, visual, acoustic, frame_words=words)
    batches = Batches([example], CMSBertProcessor(embedded_tokenizer()), model, torch.device("cpu"))
    inputs = batches.load([0], labels=False)
    seen = []
    shifted, model.shifted = model.shifted, lambda *given: (seen.append(given[0]), shifted(*given))[1]
    assert model.rows(**inputs)["logits"].shape == (1, 1)
    assert inputs["input_ids"].shape == (1, 4)
    expected = np.stack([visual[0] * 0, visual[:2].mean(0), visual[3], visual[0] * 0])
    torch.testing.assert_close(seen[0]["visual"], torch.from_numpy(expected))
    expected = np.stack([acoustic[0] * 0, acoustic[0] * 0, acoustic[1:].mean(0), acoustic[0] * 0])
    torch.testing.assert_close(seen[0]["acoustic"], torch.from_numpy(expected))


def test_frames_need_their_pieces():
    model = system("mag-bert")
    inputs = packed(BATCH, model)
    with pytest.raises(ValueError, match="give token_frames_acoustic, the frame of each piece"):
        model.rows(**{n: x for n, x in inputs.items() if n != "token_frames_acoustic"})
    without = {n: x for n, x in inputs.items() if "visual" not in n}
    frameless = [dataclasses.replace(u, visual=u.visual[:0]) for u in BATCH]
    torch.testing.assert_close(model.rows(**without)["logits"], logits(model, frameless), rtol=0, atol=0)
    with pytest.raises(ValueError, match="MAG-BERT needs a second modality"):
        MagBertForSequenceClassification(config("mag-bert", **dict.fromkeys(SIZES, 0)))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling(pooling, tmp_path):
    """Both agree with the reference, and take BERT's weights from a checkpoint, the pooler's with "cls"."""
    from tests.models.baselines.cases import mag_bert

    model = system("mag-bert", pooling=pooling)
    for k, utterance in enumerate(BATCH):
        frames = {name: getattr(utterance, name) for name in ("visual", "acoustic")}
        with torch.no_grad():
            expected = mag_bert.reference(model, None, frames, utterance)["logits"]
        torch.testing.assert_close(logits(model)[k], expected, rtol=0, atol=1e-11)
    torch.manual_seed(1)
    bert = BertModel(BertConfig(**BERT))
    bert.save_pretrained(tmp_path)
    loaded = MagBertForSequenceClassification.from_pretrained(tmp_path, config=config("mag-bert", pooling=pooling))
    found = {name: value for name, value in loaded.bert.state_dict().items() if name.startswith("pooler.")}
    assert set(found) == ({"pooler.dense.weight", "pooler.dense.bias"} if pooling == "cls" else set())
    assert all(torch.equal(value, bert.state_dict()[name]) for name, value in found.items())
    with pytest.raises(ValueError, match="pooling is 'max'; choose one of cls, mean"):
        config("mag-bert", pooling="max")


def test_new_weights_start_as_berts():
    """N(0, 0.02) and biases of 0, as in the official code."""
    torch.manual_seed(0)
    model = MagBertForSequenceClassification(config("mag-bert", hidden_size=64))
    for gated in (model.visual_gated, model.acoustic_gated):
        for linear in (gated.gate, gated.shift):
            assert not linear.bias.any()
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert (model.shift_norm.weight == 1).all()
    assert not model.classifier.bias.any()


def test_two_dropouts_follow_each_other():
    for fields in (dict(hidden_dropout_prob=0.5), dict(shift_dropout=0.5), dict(classifier_dropout=0.5)):
        model = system("mag-bert", **fields)
        expected = logits(model)
        model.bert.encoder.eval()
        assert not torch.equal(logits(model.train()), expected), fields
    model = system("mag-bert", shift_dropout=0.5).train()
    frames, hidden = gated_pieces(model)
    dropped = model.shifted(frames, hidden) == 0
    assert 0.3 < dropped.double().mean() < 0.7
