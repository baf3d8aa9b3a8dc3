"""What other people's code and files hold on to has not changed; see ``interfaces.py`` for what that is."""

import subprocess
import sys

import pytest

import cmsbert_fast
from tests.frozen import golden, interfaces, programs


def test_state_dicts():
    found = interfaces.state_dicts()
    expected = golden.load("state_dicts")
    assert list(found) == list(expected)
    for case, keys in expected.items():
        # In order too: the optimiser's state in a checkpoint counts parameters, it does not name them.
        assert list(found[case].items()) == list(keys.items()), case


def test_contrastive_learning_needs_two_modalities():
    with pytest.raises(ValueError):
        cmsbert_fast.CMSBertCLRForSequenceClassification(cmsbert_fast.CMSBertConfig(num_hidden_layers=1))


def test_configuration():
    assert golden.plain(interfaces.configuration()) == golden.load("configuration")


def test_operators():
    golden.assert_unchanged(golden.load("operators"), interfaces.operators())


def test_outputs():
    assert interfaces.outputs() == golden.load("outputs")


def test_public_names():
    golden.assert_unchanged(golden.load("public_names"), golden.plain(interfaces.public_names()))


def test_options():
    golden.assert_unchanged(golden.load("options"), interfaces.options())


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, cmsbert_fast; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=programs.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
