"""A product without products of weights in groups."""

import pytest

pytestmark = pytest.mark.npu_sim(soc="310P3")


def test_this_product_lacks_the_operators():
    from ascend_gguf.npu.linear import has_operators

    assert not has_operators()
