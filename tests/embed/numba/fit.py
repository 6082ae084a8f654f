"""Finds a signal on a ring from a blurred measurement of it: least squares by gradient descent with momentum."""

import ctypes

import numpy as np
from numba import njit

import gdm

# The fields of gdm_momentum_args, in the header's order.
momentum_args = np.dtype(
    [
        ("size", np.uintp),
        *((name, np.float64) for name in ("lr", "momentum", "dampening", "weight_decay")),
        *((name, np.int32) for name in ("nesterov", "maximize", "decoupled_weight_decay", "form")),
        ("lr_scale", np.uintp),
    ],
    align=True,
)
POINTER = ctypes.c_void_p
MOMENTUM = ctypes.CFUNCTYPE(ctypes.c_int, POINTER, POINTER, POINTER, ctypes.c_size_t, POINTER)
momentum = MOMENTUM(gdm.c_functions()["gdm_momentum_f32"][0])


@njit
def blur(x, out):
    """A linear map that is its own transpose."""
    n = x.size
    for i in range(n):
        out[i] = np.float32(0.25) * x[i - 1] + x[i] + np.float32(0.25) * x[(i + 1) % n]


@njit
def fit(measured, steps, args):
    param, velocity = np.zeros_like(measured), np.zeros_like(measured)
    residual, grad = np.empty_like(measured), np.empty_like(measured)
    losses = np.zeros(steps + 1)
    for step in range(steps + 1):
        blur(param, residual)
        for i in range(residual.size):
            residual[i] -= measured[i]
            losses[step] += 0.5 * np.float64(residual[i]) * np.float64(residual[i])
        blur(residual, grad)
        if momentum(param.ctypes.data, velocity.ctypes.data, grad.ctypes.data, param.size, args.ctypes.data):
            raise ValueError("gdm: bad arguments")
    return param, losses


if __name__ == "__main__":
    args = np.zeros(1, momentum_args)
    args["size"] = momentum_args.itemsize
    args["lr"], args["momentum"], args["weight_decay"], args["nesterov"] = 0.1, 0.9, 1e-4, 1
    signal = np.arange(64, dtype=np.float32) % 7
    measured = np.empty_like(signal)
    blur(signal, measured)
    param, losses = fit(measured, 50, args)
    for loss in losses[::10]:
        print("loss", loss)
    for p in param:
        print("param", p)
