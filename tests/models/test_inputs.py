"""Inputs: every form of a batch is understood, and what does not fit is named."""

import pytest
import torch

from cmsbert_fast import CMSBertModel
from tests.models.small import config, lively, packed


def test_the_real_padding_free_collator_is_understood(batch):
    """All that Hugging Face's DataCollatorWithFlattening says of a batch when asked, and single utterances agree."""
    from transformers import DataCollatorWithFlattening

    model = CMSBertModel(config()).eval()
    masks = batch["attention_mask"].bool()
    rows = [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], masks, strict=True)]
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    collated = collate([{"input_ids": row, "labels": row} for row in rows])
    collated.pop("labels")
    assert {"seq_idx", "cu_seq_lens_k", "max_length_k"} <= set(collated)
    expected = torch.cat([model(torch.tensor([row])).last_hidden_state[0] for row in rows])
    torch.testing.assert_close(model(**collated).last_hidden_state[0], expected, rtol=1e-4, atol=1e-5)


def test_position_ids_of_packed_input_may_be_left_out(batch):
    model = lively(CMSBertModel(config()))
    inputs = packed(batch)
    expected = model(**inputs).last_hidden_state
    del inputs["position_ids"]
    assert torch.equal(model(**inputs).last_hidden_state, expected)


def test_position_ids_that_start_anew_are_utterances(batch):
    """What Hugging Face's DataCollatorWithFlattening gives by default: position_ids and nothing else."""
    model = lively(CMSBertModel(config()))
    inputs = packed(batch)
    frameless = {name: inputs[name] for name in ("input_ids", "position_ids")}
    lengths = {name: inputs[name] for name in ("cu_seq_lens_q", "max_length_q")}
    expected = model(**frameless, **lengths).last_hidden_state
    assert torch.equal(model(**frameless).last_hidden_state, expected)
    one = {"input_ids": frameless["input_ids"], "position_ids": torch.arange(frameless["input_ids"].shape[1])[None]}
    assert not torch.equal(model(**one).last_hidden_state, expected)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(**frameless).last_hidden_state, expected, rtol=0, atol=1e-12)


def test_masks_with_holes_equal_the_tokens_left(batch):
    model = lively(CMSBertModel(config()))
    batch["attention_mask"] = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 0, 1]]).expand(4, -1)
    output = model(**batch).last_hidden_state
    keep = batch["attention_mask"][0].bool()
    alone = {name: tensor for name, tensor in batch.items() if name != "attention_mask"}
    alone |= dict(input_ids=batch["input_ids"][:, keep], position_ids=torch.arange(9)[keep].expand(4, -1))
    torch.testing.assert_close(output[:, keep], model(**alone).last_hidden_state, rtol=0, atol=1e-12)


def test_wrong_inputs_are_named(batch):
    model = CMSBertModel(config())
    flat = packed(batch)
    for message, inputs in {
        "either input_ids or inputs_embeds": {},
        "attention_mask has shape": batch | dict(attention_mask=batch["attention_mask"][:, :4]),
        "visual_mask has shape": batch | dict(visual_mask=batch["visual_mask"][:, :4]),
        "frames of size 3, but the model has visual_size=5": batch | dict(visual=batch["acoustic"]),
        "acoustic has 3 utterances but the tokens have 4": batch
        | dict(acoustic=batch["acoustic"][:3], acoustic_mask=None),
        "leave it out": flat | dict(attention_mask=batch["attention_mask"]),
        r"shape \(1, T\) and max_length_q": {n: t for n, t in flat.items() if n != "max_length_q"},
        "needs cu_seq_lens_visual": {n: t for n, t in flat.items() if n != "cu_seq_lens_visual"},
        "visual_mask is for padded visual": flat | dict(visual_mask=batch["visual_mask"]),
        "self-attention needs them equal": flat | dict(cu_seq_lens_k=flat["cu_seq_lens_k"][:-1]),
        "cu_seq_lens_k differs from cu_seq_lens_q; self-attention needs them equal": flat
        | dict(cu_seq_lens_k=flat["cu_seq_lens_k"] - 1),
        "A packed batch needs cu_seq_lens_q; ": {"input_ids": flat["input_ids"], "seq_idx": torch.zeros(1, 22).int()},
        "cu_seq_lens_k or seq_idx alone is not enough": {name: flat[name] for name in ("input_ids", "cu_seq_lens_k")},
        r"visual has shape \(\)": batch | dict(visual=torch.tensor(1.0), visual_mask=None),
        r"token_type_ids has shape \(4, 4\)": batch | dict(token_type_ids=batch["attention_mask"][:, :4]),
        "token_type_ids has shape": flat | dict(token_type_ids=batch["attention_mask"]),
        r"position_ids has shape \(3,\)": batch | dict(position_ids=torch.arange(3)),
        "position_ids has shape": flat | dict(position_ids=flat["position_ids"][:, 1:]),
        r"input_ids has shape \(5,\); give \(B, N\)": {"input_ids": torch.zeros(5, dtype=torch.int64)},
        "inputs_embeds has shape": {"inputs_embeds": torch.zeros(5, 8)},
        r"visual has shape \(5,\)": batch | dict(visual=torch.zeros(5), visual_mask=None),
        "cu_seq_lens_visual is for packed": batch | dict(cu_seq_lens_visual=flat["cu_seq_lens_visual"]),
        "rows of 600 pieces, but the model has": {"input_ids": torch.zeros(1, 600, dtype=torch.int64)},
    }.items():
        with pytest.raises(ValueError, match=message):
            model(**inputs)


def test_what_only_looks_wrong_is_not_refused(batch):
    """Counts of a modality left out, a looser bound for keys, padding beyond the last position."""
    model = CMSBertModel(config()).double().eval()
    flat = packed(batch)
    without = {name: value for name, value in flat.items() if name != "visual"}
    expected = model(**{name: value for name, value in without.items() if not name.endswith("_visual")})
    torch.testing.assert_close(model(**without).last_hidden_state, expected.last_hidden_state)
    expected = model(**flat).last_hidden_state
    torch.testing.assert_close(model(**flat | dict(max_length_k=100)).last_hidden_state, expected)
    longer = model.config.max_position_embeddings + 1 - 9
    widened = {name: torch.nn.functional.pad(batch[name], (0, longer)) for name in ("input_ids", "attention_mask")}
    valid = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**batch | widened).last_hidden_state[:, :9][valid], expected[0])
