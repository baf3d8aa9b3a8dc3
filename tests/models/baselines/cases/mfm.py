"""MFM, small."""

from cmsbert_fast.reference import mfm
from tests.models.baselines.cases import mfn
from tests.models.baselines.words import frame_of_each_word

FIELDS = {name: size for name, size in mfn.FIELDS.items() if name != "output_size"} | dict(
    text_code_size=3,
    acoustic_code_size=2,
    visual_code_size=4,
    shared_code_size=5,
    text_factor_size=4,
    acoustic_factor_size=3,
    visual_factor_size=2,
    shared_factor_size=6,
)


def reference(model, text, frames, utterance):
    return mfm.rows(model.state_dict(), text, frame_of_each_word(frames, len(text)))
