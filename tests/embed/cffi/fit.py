"""Finds a signal on a ring from a blurred measurement of it: least squares by gradient descent with momentum."""

import numpy as np
from cffi import FFI

import gdm

ffi = FFI()
ffi.cdef("""
    typedef int gdm_status;
    typedef struct gdm_momentum_args {
        size_t size;
        double lr, momentum, dampening, weight_decay;
        int nesterov, maximize, decoupled_weight_decay, form;
        const void *lr_scale;
    } gdm_momentum_args;
""")


def function(name):
    address, prototype = gdm.c_functions()[name]
    return ffi.cast(prototype.replace(name, "(*)"), address)


momentum, strerror = function("gdm_momentum_f32"), function("gdm_strerror")


def floats(x):
    return ffi.from_buffer("float[]", x)


def blur(x):
    """A linear map that is its own transpose."""
    return np.float32(0.25) * np.roll(x, 1) + x + np.float32(0.25) * np.roll(x, -1)


measured = blur(np.arange(64, dtype=np.float32) % 7)
param, velocity = np.zeros_like(measured), np.zeros_like(measured)
args = ffi.new("gdm_momentum_args *", {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": 1})
args.size = ffi.sizeof("gdm_momentum_args")
for step in range(51):
    residual = blur(param) - measured
    if step % 10 == 0:
        print("loss", sum(0.5 * float(r) * float(r) for r in residual))
    status = momentum(floats(param), floats(velocity), floats(blur(residual)), param.size, args)
    if status:
        raise ValueError(ffi.string(strerror(status)).decode())
for p in param:
    print("param", p)
