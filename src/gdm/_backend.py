"""Chooses what runs: the compiled module with an instruction set and a number of threads, or the NumPy reference."""

from __future__ import annotations

import os
import sys
import warnings
from types import ModuleType
from typing import TYPE_CHECKING

from . import _checks, reference

__all__ = [
    "ArrayUpdateCore",
    "Engine",
    "OptimizerCore",
    "available_isas",
    "backend",
    "c_functions",
    "get_num_threads",
    "isa",
    "native",
    "set_backend",
    "set_isa",
    "set_num_threads",
    "threads",
    *reference.__all__,
]

_BACKENDS = ("native", "reference")

native: ModuleType | None
try:
    from . import _core

    native = _core
except ImportError as reason:
    native = None
    warnings.warn(
        f"gdm's compiled module does not load ({reason}); the NumPy reference runs instead: same results, but slow",
        RuntimeWarning,
        stacklevel=3,
    )


def backend() -> str:
    """The backend in use: ``"native"`` (the compiled kernels) or ``"reference"`` (NumPy)."""
    return "reference" if native is None or native.uses_reference() else "native"


def set_backend(name: str) -> None:
    """Runs everything on the compiled kernels (``"native"``) or on the NumPy rules (``"reference"``) from now on.

    Both give the same results, to the last bit. To check a training, run it with both. The environment variable
    ``GDM_BACKEND`` sets the backend that a program starts with.

    The compiled kernels always compute in the default floating-point mode. NumPy and schedules compute in the mode of
    their thread: where a library has set flush-to-zero or a rounding mode, their results may differ.

    Raises
    ------
    ValueError
        If the name is another one.
    RuntimeError
        If the name is ``"native"`` and the compiled module does not load.
    """
    if name not in _BACKENDS:
        raise ValueError(f"name must be 'native' or 'reference', got {name!r}")
    if native is not None:
        native.set_reference(name == "reference")
    elif name == "native":
        raise RuntimeError("gdm's compiled module does not load: only the backend 'reference' is available")


def available_isas() -> list[str]:
    """The instruction sets that this machine can run and gdm has kernels for, best first.

    They are some of ``"avx512"``, ``"avx2"``, ``"neon"`` and ``"baseline"``. The list is empty if the compiled module
    does not load.
    """
    return native.available_isas() if native is not None else []


def isa() -> str:
    """The instruction set that the native backend uses, or ``"none"`` if the compiled module does not load."""
    return native.isa() if native is not None else "none"


def set_isa(name: str) -> None:
    """Uses the kernels of this instruction set from now on, in every thread.

    All of them give the same results, to the last bit. The environment variable ``GDM_ISA`` sets the one that a program
    starts with. Without it, a program starts with the best one that the CPU and the operating system support.

    Raises
    ------
    ValueError
        If the name is unknown, or this machine cannot run that instruction set. The message lists those that it can.
    """
    if native is None or name not in native.available_isas() or not native.set_isa(str(name)):
        raise ValueError(f"name must be one that this machine can run, {_or(available_isas())}, got {name!r}")


def get_num_threads() -> int:
    """The number of threads that a step may use.

    It is the first of these: the number that :func:`set_num_threads` or :func:`threads` set; the environment variable
    ``GDM_NUM_THREADS``; ``OMP_NUM_THREADS``; the number of CPUs that this process may use (affinity, cgroup quota). It
    is 1 if the compiled module does not load.
    """
    return native.get_num_threads() if native is not None else 1


def set_num_threads(n: int) -> None:
    """Lets a step use up to ``n`` threads from now on, in the whole process. The results do not depend on it.

    Parameters
    ----------
    n : int
        From 1 to 256. Small updates still run in the calling thread only.

    Raises
    ------
    TypeError, ValueError
        If ``n`` is anything else.
    """
    n = _checks.thread_count("n", n)
    if native is not None:
        native.set_num_threads(n)


class threads:
    """``with gdm.threads(n):`` lets a step use up to ``n`` threads. At its end the former number is set again.

    Like :func:`set_num_threads`, it changes the number for the whole process.
    """

    def __init__(self, n: int) -> None:
        self._n = _checks.thread_count("n", n)
        self._former: list[int] = []  # a stack, because one object may be entered twice

    def __enter__(self) -> None:
        self._former.append(get_num_threads())
        set_num_threads(self._n)

    def __exit__(self, *error: object) -> None:
        set_num_threads(self._former.pop())


def c_functions() -> dict[str, tuple[int, str]]:
    """The functions of the C library inside this package, for ctypes, cffi, Numba and similar tools.

    Returns
    -------
    dict
        For the name of each function of ``gdm/gdm.h``, its address and its C prototype. The addresses are valid in this
        process, as long as it runs.

    Raises
    ------
    RuntimeError
        If the compiled module does not load.

    Examples
    --------
    >>> import gdm
    >>> address, prototype = gdm.c_functions()["gdm_set_num_threads"]
    >>> prototype
    'gdm_status gdm_set_num_threads(int n)'
    """
    if native is None:
        raise RuntimeError("gdm's compiled module does not load here, so there are no C functions")
    functions: dict[str, tuple[int, str]] = native.functions()
    return functions


def _or(names: list[str]) -> str:
    return " or ".join(repr(name) for name in names) or "(none: the compiled module does not load)"


def _read_environment() -> str:
    """Checks the environment variables, and returns the name of the backend to start with."""
    name = os.environ.get("GDM_BACKEND") or ("native" if native is not None else "reference")
    if name not in _BACKENDS:
        raise ValueError(f"the environment variable GDM_BACKEND must be 'native' or 'reference', got {name!r}")
    if native is not None and native.isa() is None:
        raise ValueError(
            f"the environment variable GDM_ISA must name an instruction set that this machine can run, "
            f"{_or(available_isas())}, got {os.environ['GDM_ISA']!r}"
        )
    count = os.environ.get("GDM_NUM_THREADS") or "1"
    if not (count.isdecimal() and 1 <= int(count) <= _checks.MAX_THREADS):
        raise ValueError(f"the environment variable GDM_NUM_THREADS must be from 1 to 256, got {count!r}")
    return name


def _is_command_line() -> bool:
    """Whether this process is ``gdm`` or ``python -m gdm``, and not another program that imports gdm."""
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # Python imports the package before it runs the module that is named after -m
        return sys.orig_argv[-len(sys.argv)].removeprefix("-m") in ("gdm", "gdm.__main__")
    return os.path.basename(program) in ("gdm", "gdm.exe")


def _start() -> None:
    try:
        set_backend(_read_environment())
    except (ValueError, RuntimeError) as error:
        if not _is_command_line():
            raise
        # The command line cannot catch this: Python imports the package before it runs __main__.py.
        print(f"gdm: error: {error}", file=sys.stderr)
        sys.exit(2)


_start()

if native is not None and not TYPE_CHECKING:
    from ._core import ArrayUpdateCore, Engine, OptimizerCore
else:
    from ._numpy_engine import ArrayUpdateCore, Engine, OptimizerCore

# The functions: one for each rule. The reference names them.
if TYPE_CHECKING:
    from .reference import *  # noqa: F403
else:
    globals().update({name: getattr(native or reference, name) for name in reference.__all__})
