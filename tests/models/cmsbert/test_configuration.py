"""The configuration: checked when it is made and when from_pretrained changes it."""

import pytest

from cmsbert_fast import CMSBertModel
from tests.models.small import config, lively


def test_settings_given_to_from_pretrained_are_checked_and_completed(tmp_path):
    CMSBertModel(config()).save_pretrained(tmp_path)
    assert CMSBertModel.from_pretrained(tmp_path, num_hidden_layers=1).config.cms_layers == [0]
    for message, fields in {
        "gate_activation='gelu' is unknown": dict(gate_activation="gelu"),
        r"cms_layers holds \[99\]": dict(cms_layers=[99]),
        "projection_size=3 cannot be split": dict(projection_size=3),
    }.items():
        with pytest.raises(ValueError, match=message):
            CMSBertModel.from_pretrained(tmp_path, **fields)


def test_layers_are_named_in_the_order_of_their_maps(batch):
    """However they are given: figures and pages take the k-th map for that of the k-th layer."""
    model = lively(CMSBertModel(config(cms_layers=[2, 0, 2])))
    assert model.config.cms_layers == [0, 2]
    assert len(model(**batch, output_shift_maps=True).shift_maps) == 2


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("visual_size=-1 is negative", dict(visual_size=-1)),
        ("gate_activation='gelu' is unknown", dict(gate_activation="gelu")),
        (r"cms_layers holds \[3\]", dict(cms_layers=[0, 3])),
        ("projection_size=3 cannot be split", dict(projection_size=3)),
        ("temperature=0", dict(temperature=0.0)),
        ("smoothing=1.5 is out of range", dict(smoothing=1.5)),
        ("threshold=-0.1 is negative", dict(threshold=-0.1)),
        ("backend='cuda' is unknown", dict(backend="cuda")),
        ("CMSBERT is an encoder", dict(is_decoder=True)),
    ],
)
def test_wrong_configurations_are_named(message, fields):
    with pytest.raises(ValueError, match=message):
        config(**fields)
