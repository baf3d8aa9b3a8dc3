"""TFN, small."""

from cmsbert_fast.reference import tfn

FIELDS = dict(text_hidden_size=4, text_output_size=3, visual_hidden_size=6, acoustic_hidden_size=5, fusion_size=6)


def reference(model, text, frames, utterance):
    return {"logits": tfn.logits(model.state_dict(), text, frames)}
