"""Results that Keras 3.15.1 pins in its own tests (keras/src/optimizers/*_test.py, Apache License 2.0), as numbers.

Keras gives them with four decimals. Options are mapped as the tables in docs/optimizers.md say. LAMB's are rougher than
that; Keras itself, run in float64 with JAX, agrees with gdm.LAMB to 2.5e-10 after these five steps.
"""

from __future__ import annotations

import numpy as np
import pytest

import gdm

# One value in each step where all ten elements have the same; else the ten elements.
CASES = {
    "Lion": (gdm.Lion, {"lr": 0.001}, [0.999, 0.998, 0.997, 0.996, 0.995]),
    "Adadelta": (
        gdm.Adadelta,
        {"lr": 1.0, "rho": 0.8, "eps": 1e-6},
        [0.9978, 0.9947, 0.9915, 0.9882, 0.9849],
    ),
    "LAMB": (gdm.LAMB, {"eps": 1e-7}, [0.999, 0.9982, 0.9974, 0.9965, 0.9955]),
    "NAdam": (
        gdm.NAdam,
        {"lr": 0.5, "betas": (0.5, 0.67), "eps": 1e-5, "momentum_decay": 1.0},
        [
            0.4281,
            [-0.1738, -0.1731, -0.1726, -0.1723, -0.1721, -0.1720, -0.1719, -0.1718, -0.1718, -0.1717],
            [-0.7115, -0.7103, -0.7096, -0.7092, -0.7090, -0.7088, -0.7086, -0.7085, -0.7085, -0.7084],
            [-1.2335, -1.2322, -1.2313, -1.2309, -1.2306, -1.2304, -1.2302, -1.2301, -1.2300, -1.2299],
            [-1.7492, -1.7478, -1.7469, -1.7464, -1.7461, -1.7459, -1.7457, -1.7456, -1.7455, -1.7454],
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_values_that_keras_pins(name, dtype):
    """The first gradient is 0.01 everywhere, the others are 0.1, 0.2, ..., 1."""
    make, options, wanted = CASES[name]
    theta = np.ones(10, dtype)
    optimizer = make(theta, **options)
    for step, values in enumerate(wanted):
        optimizer.step(np.full(10, 0.01, dtype) if not step else np.linspace(0.1, 1.0, 10, dtype=dtype))
        rtol, atol = (5e-4, 5e-4) if name == "LAMB" else (0, 1.01e-4)  # the former are Keras' own
        np.testing.assert_allclose(theta, np.broadcast_to(values, 10), rtol, atol, err_msg=f"step {step + 1}")


def test_lambs_weight_decay_alone_as_in_keras():
    """Without a gradient Keras multiplies by 1 - lr * weight_decay; here that is the trust ratio's part left out."""
    theta = np.array([2.0])
    gdm.LAMB(theta, lr=1.0, weight_decay=0.004, adapt=False).step(np.zeros(1))
    np.testing.assert_allclose(theta, 2.0 * (1 - 0.004))
