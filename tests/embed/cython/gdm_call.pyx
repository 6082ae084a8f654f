# cython: language_level=3
"""A second module in the process: bare steps, to time calls on small arrays and to share the work of large ones."""

from libc.string cimport memset

from gdm cimport import_gdm, momentum_args, momentum_f32

import_gdm()


def calls(float[::1] param not None, float[::1] velocity not None, const float[::1] grad not None, int count):
    """Makes so many steps of plain momentum; returns whether one failed."""
    cdef momentum_args args
    cdef int failed = 0, i
    memset(&args, 0, sizeof(args))
    args.size, args.lr, args.momentum = sizeof(args), 0.1, 0.9
    with nogil:
        for i in range(count):
            failed |= momentum_f32(&param[0], &velocity[0], &grad[0], param.shape[0], &args)
    return failed != 0
