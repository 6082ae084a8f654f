"""Trains a network on handwritten digits with several methods, and shows why one uses momentum and adaptive methods.

It needs scikit-learn, for the digits, and matplotlib: ``pip install 'gdm-optim[demo]'``. Run it with
``python -m gdm demo``.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path

from .._output import make_folder
from . import report
from .methods import CHECKED, METHODS
from .pictures import draw_digits, draw_landscapes
from .training import load_digits, train, train_on_reference

MISSING = 2  # the exit code when a library is not installed
PICTURES = ("digits.png", "landscapes.png")


def run(out: Path, *, seed: int = 0, epochs: int = 40) -> int:
    """Trains with every method, prints a table, checks the bits against the reference, and draws two pictures.

    Parameters
    ----------
    out : pathlib.Path
        The folder for ``digits.png`` and ``landscapes.png``. It is made if it does not exist.
    seed : int, default 0
        Determines the split into training and test images, the initial weights, and the order of the images.
    epochs : int, default 40
        How often each training goes through the images; at least 1.

    Returns
    -------
    int
        The exit code: 1 if gdm and its reference did not give the same bits, 2 if a library is missing, 0 otherwise.

    Raises
    ------
    OSError
        If the files cannot be written. This is known before the training.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if reason := _missing():
        print(f"the demo needs scikit-learn and matplotlib: pip install 'gdm-optim[demo]' ({reason})", file=sys.stderr)
        return MISSING
    make_folder(out, PICTURES)
    digits = load_digits(seed)
    print(report.heading(digits, seed, epochs))
    with _one_thread():
        runs = [train(method, digits, seed=seed, epochs=epochs) for method in METHODS]
        again = [train_on_reference(method, digits, seed=seed, epochs=epochs) for method in CHECKED]
    print(report.table(runs))
    first = [next(run.params for run in runs if run.method is method) for method in CHECKED]
    different = [report.different_bits(a, b) for a, b in zip(first, again, strict=True)]
    print(report.verdict(different, total=sum(p.size for p in first[0])))
    digits_png, landscapes_png = (out / name for name in PICTURES)
    draw_digits(digits_png, runs)
    draw_landscapes(landscapes_png)
    print(f"pictures: {digits_png}, {landscapes_png}")
    return 1 if any(different) else 0


def _missing() -> str:
    """The error of a library that cannot be imported, or an empty string."""
    try:
        import matplotlib.figure  # noqa: F401
        import sklearn.datasets  # noqa: F401
    except ImportError as error:
        return str(error)
    return ""


def _one_thread() -> AbstractContextManager[object]:
    """Computes the matrix products in this thread only.

    They are too small to become faster with more threads. With one thread, the gradients are in the cache of the core
    that makes the step, and sums are rounded in the same order each time. scikit-learn installs threadpoolctl.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits
