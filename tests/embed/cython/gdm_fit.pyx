# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Finds a signal on a ring from a blurred measurement of it: least squares by gradient descent with momentum."""

from libc.string cimport memset

from gdm cimport OK, import_gdm, momentum_args, momentum_f32, status, strerror

import numpy as np

import_gdm()


cdef void blur(const float *x, float *out, Py_ssize_t n) noexcept nogil:
    """A linear map that is its own transpose."""
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = <float>0.25 * x[(i + n - 1) % n] + x[i] + <float>0.25 * x[(i + 1) % n]


def fit(Py_ssize_t n=64, int steps=50):
    """The parameters, and the loss at every tenth step."""
    cdef float[::1] signal = np.arange(n, dtype=np.float32) % 7
    cdef float[::1] measured = np.empty(n, np.float32), residual = np.empty(n, np.float32)
    cdef float[::1] param = np.zeros(n, np.float32), velocity = np.zeros(n, np.float32), grad = np.empty(n, np.float32)
    cdef double[::1] losses = np.zeros(steps + 1)
    cdef momentum_args args
    cdef status failed = OK
    cdef Py_ssize_t i
    cdef int step
    memset(&args, 0, sizeof(args))  # options that are 0 are off
    args.size, args.lr, args.momentum, args.weight_decay, args.nesterov = sizeof(args), 0.1, 0.9, 1e-4, 1
    with nogil:
        blur(&signal[0], &measured[0], n)
        for step in range(steps + 1):
            blur(&param[0], &residual[0], n)
            for i in range(n):
                residual[i] -= measured[i]
                losses[step] += 0.5 * <double>residual[i] * residual[i]
            blur(&residual[0], &grad[0], n)
            failed = momentum_f32(&param[0], &velocity[0], &grad[0], n, &args)
            if failed != OK:
                break
    if failed != OK:
        raise ValueError(strerror(failed).decode())
    return np.asarray(param), np.asarray(losses)[::10]
