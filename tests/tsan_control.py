"""A program with a race: two optimizers step one array at once. make test-tsan runs it, and expects a report in gdm."""

from __future__ import annotations

import threading

import numpy as np

import gdm

THREADS = 4
param, start = np.zeros(1000), threading.Barrier(THREADS)


def work() -> None:
    optimizer, grad = gdm.SGD([param], lr=1.0), np.ones(1000)
    start.wait()  # else one thread may be done before another begins
    for _ in range(20_000):
        optimizer.step([grad])


threads = [threading.Thread(target=work) for _ in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
