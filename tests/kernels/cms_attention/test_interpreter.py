"""Without a GPU the tests of this folder run in Triton's interpreter, started here."""

import pytest

from tests.interpreter import INTERPRETED, run_in_the_interpreter
from tests.kernels.cms_attention.cases import DEVICE


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the kernels run in this process already")
def test_in_the_interpreter() -> None:
    run_in_the_interpreter("tests/kernels/cms_attention", at_least=100)
