"""MulT, small."""

from cmsbert_fast.reference import mult

FIELDS = dict(size=4, heads=2, layers=2, text_kernel_size=1, visual_kernel_size=3, acoustic_kernel_size=5)


def reference(model, text, frames, utterance):
    return {"logits": mult.logits(model.state_dict(), text, frames, model.config.heads)}
