"""The sign of a zero, where a result shows it."""

from __future__ import annotations

import numpy as np
import pytest

import gdm
from support import DTYPES


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_a_variance_of_zero_is_positive(backend, dtype):
    """RMSprop's s - a * a is +0 where both are equal, and not -(a * a - s): divided by its root, infinity tells."""
    n = 33
    param, grad = np.zeros(n, dtype), np.ones(n, dtype)
    gdm.rmsprop(
        param, np.zeros(n, dtype), grad, lr=0.5, alpha=0.0, eps=-0.0, centered=True, grad_avg=np.zeros(n, dtype)
    )
    np.testing.assert_array_equal(param, np.full(n, -np.inf, dtype))
