"""One rank against several: the same loss, the same gradients."""

import pytest

from .ranks import compare_ranks_with_oracle


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_agree_with_one(world, tmp_path):
    compare_ranks_with_oracle(world, tmp_path, "float64", ["reference", "chunked"], rtol=1e-10, atol=1e-12)


def test_ranks_agree_with_one_in_float32(tmp_path):
    compare_ranks_with_oracle(2, tmp_path, "float32", ["chunked"], rtol=2e-5, atol=1e-6)
