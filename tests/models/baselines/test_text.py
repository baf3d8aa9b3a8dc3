"""Text of the baselines: BERT packed, frozen in whole or in part, and words."""

import pytest
import torch
from transformers import BertConfig, BertModel

from cmsbert_fast.models.baselines.text import TextBert
from cmsbert_fast.models.baselines.words import WordInputs, pack_words
from cmsbert_fast.models.inputs import Frames, Inputs
from cmsbert_fast.packing import Packing, cumulative
from tests.models.baselines.systems import BERT, config, system
from tests.models.baselines.utterances import packed, padded, utterances


def text_of(model, batch, **more):
    return model.utterances(**packed(batch, model), **more).text


@pytest.mark.parametrize("text", ["bert", "bert-frozen"])
def test_bert_is_hugging_faces(text):
    torch.manual_seed(0)
    model, batch = system("tfn", text=text), utterances(False)
    theirs = BertModel(BertConfig(**BERT), add_pooling_layer=False).double().eval()
    theirs.load_state_dict(model.bert.state_dict())
    values, packing = text_of(model, batch)
    for k, utterance in enumerate(batch):
        rows = values[packing.cu_seqlens[k] : packing.cu_seqlens[k + 1]]
        torch.testing.assert_close(rows, theirs(utterance.ids[None]).last_hidden_state[0], rtol=0, atol=1e-12)


def test_frozen_bert_has_no_dropout_from_the_start():
    model = type(system("tfn"))(config("tfn", text="bert-frozen", hidden_dropout_prob=0.5))
    assert model.training
    assert not any(module.training for module in model.bert.modules())


def test_frozen_bert_has_no_gradient_and_no_dropout():
    model, batch = system("tfn", text="bert-frozen", dropout=True), utterances(False)
    expected = text_of(model, batch).values
    model.train()
    assert model.text_lstm.training
    values = text_of(model, batch).values
    assert torch.equal(values, expected)
    assert not values.requires_grad
    tuned = system("tfn", text="bert", dropout=True).train()
    assert not torch.equal(text_of(tuned, batch).values, expected)


def test_first_layers_may_be_frozen(tmp_path):
    model = system("tfn", text="bert", frozen_layers=1)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("bert.encoder.layer.0.")}
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert {name for name, p in loaded.named_parameters() if not p.requires_grad} == frozen


def test_a_shift_acts_after_the_embeddings():
    bert = system("tfn", text="bert").bert
    model = system("tfn", text="bert")
    inputs = model.pack(Inputs(**{n: x for n, x in packed(utterances(False), model).items() if n in Inputs._fields}))
    seen = []
    plain = bert.read(inputs)
    assert torch.equal(bert.read(inputs, lambda x: (seen.append(x), x)[1]), plain)
    torch.testing.assert_close(seen[0], bert.embeddings(**inputs.tokens.embeddings)[0])
    assert not torch.equal(bert.read(inputs, lambda x: x + 1), plain)


def test_impossible_combinations():
    with pytest.raises(ValueError, match="frozen_layers is for text 'bert', not 'bert-frozen'; leave it out"):
        config("tfn", text="bert-frozen", frozen_layers=1)
    with pytest.raises(ValueError, match="frozen_layers is 3 of 2 layers"):
        config("tfn", text="bert", frozen_layers=3)
    with pytest.raises(ValueError, match="pooling is 'cls'; this system has none"):
        config("tfn", pooling="cls")
    assert system("tfn", text="vectors").bert is None
    assert isinstance(system("tfn").bert, TextBert)
    model = system("tfn", text="bert")
    with pytest.raises(ValueError, match="features of text are not fixed"):
        model.text_features(**packed(utterances(False), model))


@pytest.mark.parametrize("form", [packed, padded])
def test_words(form):
    """Mean over the pieces of each word, and the frame of each."""
    model, batch = system("tfn", text="vectors"), utterances(True)
    given = form(batch, model)
    of_words = WordInputs(**{n: x for n, x in given.items() if n in WordInputs._fields})
    inputs = model.pack(Inputs(**{n: x for n, x in given.items() if n in Inputs._fields}))
    words = pack_words(of_words, inputs)
    assert words.total == sum(len(u.vectors) for u in batch)
    assert words.packing.lengths.tolist() == [len(u.vectors) for u in batch]
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(len(u.ids), 4, generator=generator, dtype=torch.float64) for u in batch]
    values = torch.cat(parts).requires_grad_()
    means = [
        rows[u.words == k].mean(0)
        for u, rows in zip(batch, values.split([len(u.ids) for u in batch]), strict=True)
        for k in range(len(u.vectors))
    ]
    found = words.mean_of_pieces(values)
    torch.testing.assert_close(found, torch.stack(means), rtol=0, atol=1e-13)
    assert torch.equal(*(torch.autograd.grad(x.sum(), values, retain_graph=True)[0] != 0 for x in (found, sum(means))))
    frames = words.frames(inputs.batch.visual)
    expected = [u.visual if len(u.visual) else torch.zeros(len(u.vectors), 5, dtype=torch.float64) for u in batch]
    assert torch.equal(frames, torch.cat(expected))


def test_no_frame_in_the_whole_batch():
    model, batch = system("tfn", text="vectors"), utterances(True)[:2]
    words = model.utterances(**packed(batch, model)).words
    frames = words.frames(Frames(torch.zeros(0, 5), Packing(cumulative(torch.tensor([0, 0])), 0)))
    assert torch.equal(frames, torch.zeros(6, 5))


def test_words_must_be_given():
    model, batch = system("tfn", text="vectors"), utterances(True)
    given = packed(batch, model)
    with pytest.raises(ValueError, match="give word_vectors of shape"):
        model.rows(**{n: x for n, x in given.items() if n != "word_vectors"})
    with pytest.raises(ValueError, match="give token_words"):
        model.rows(**{n: x for n, x in given.items() if n != "token_words"})
