"""Finds a signal on a ring from a blurred measurement of it: least squares by gradient descent with momentum."""

import ctypes

import numpy as np

import gdm


class MomentumArgs(ctypes.Structure):
    """The fields of gdm_momentum_args, in the header's order."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("lr", ctypes.c_double),
        ("momentum", ctypes.c_double),
        ("dampening", ctypes.c_double),
        ("weight_decay", ctypes.c_double),
        ("nesterov", ctypes.c_int),
        ("maximize", ctypes.c_int),
        ("decoupled_weight_decay", ctypes.c_int),
        ("form", ctypes.c_int),
        ("lr_scale", ctypes.c_void_p),
    )


functions = gdm.c_functions()  # name: (address, C prototype)
FLOATS = np.ctypeslib.ndpointer(np.float32, flags="C_CONTIGUOUS")
MOMENTUM = ctypes.CFUNCTYPE(ctypes.c_int, FLOATS, FLOATS, FLOATS, ctypes.c_size_t, ctypes.POINTER(MomentumArgs))
momentum = MOMENTUM(functions["gdm_momentum_f32"][0])
strerror = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)(functions["gdm_strerror"][0])


def blur(x):
    """A linear map that is its own transpose."""
    return np.float32(0.25) * np.roll(x, 1) + x + np.float32(0.25) * np.roll(x, -1)


measured = blur(np.arange(64, dtype=np.float32) % 7)
param, velocity = np.zeros_like(measured), np.zeros_like(measured)
args = MomentumArgs(ctypes.sizeof(MomentumArgs), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=1)
for step in range(51):
    residual = blur(param) - measured
    if step % 10 == 0:
        print("loss", sum(0.5 * float(r) * float(r) for r in residual))
    status = momentum(param, velocity, blur(residual), param.size, args)
    if status:
        raise ValueError(strerror(status).decode())
for p in param:
    print("param", p)
