"""The product along an axis: what it computes, and that threads do not change a bit of it."""

import hashlib

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from helpers import linear


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", ["C", "F"])
def test_it_is_the_sum_over_the_lines_of_that_axis(axis, order):
    rng = np.random.default_rng(0)
    volume = np.asarray(rng.random((5, 6, 7), dtype=np.float32), order=order)
    matrix = rng.random((4, volume.shape[axis]))
    expected = np.apply_along_axis(lambda line: matrix @ line, axis, volume.astype(float))
    result = linear.along_axis(matrix, volume, axis)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_number_of_threads_changes_no_bit(axis):
    rng = np.random.default_rng(1)
    volume, matrix = rng.random((192, 224, 64), dtype=np.float32), rng.random((51, (192, 224, 64)[axis]))
    digests = set()
    for threads in (1, 2, 3, 5, 8):
        with threadpool_limits(threads):
            digests.add(hashlib.sha256(linear.along_axis(matrix, volume, axis).tobytes()).hexdigest())
    assert len(digests) == 1
