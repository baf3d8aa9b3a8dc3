"""MFN, small."""

from cmsbert_fast.reference import mfn
from tests.models.baselines.words import frame_of_each_word

FIELDS = dict(
    text_hidden_size=4,
    acoustic_hidden_size=3,
    visual_hidden_size=2,
    memory_size=5,
    attention_size=6,
    proposal_size=4,
    retain_size=7,
    update_size=3,
    output_size=4,
)


def reference(model, text, frames, utterance):
    return {"logits": mfn.logits(model.state_dict(), text, frame_of_each_word(frames, len(text)))}
