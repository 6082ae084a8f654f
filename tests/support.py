"""What the tests share: the cases that the table of rules spans, numbers to feed them, and comparison bit for bit."""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import platform
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

import gdm
from gdm import _checks
from gdm._backend import native

RULES = native.rules() if native is not None else json.loads(os.environ["GDM_TEST_RULES"])
DTYPES = {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}


def isas_of_this_cpu() -> list[str]:
    """What must be exercised here, found without gdm's own detection."""
    if platform.machine() in ("aarch64", "arm64"):
        return ["baseline", "neon"]
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    needs = {"baseline": set(), "avx2": {"avx2"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}
    return [isa for isa, needed in needs.items() if needed <= flags]


ISAS = isas_of_this_cpu()

# For every option a value for each way the arithmetic can go. An option without an entry here fails every test.
VALUES = {
    "lr": [0.0123],
    "momentum": [0.87, 0.0],
    "dampening": [0.0, 0.3],
    "weight_decay": [0.0, 0.037],
    "nesterov": [False, True],
    "maximize": [False, True],
    "decoupled_weight_decay": [False, True],
    "form": ["torch", "classic"],
}


def option_cases(rule: str) -> list[dict]:
    """Every combination of the rule's options that is legal."""
    names = [*RULES[rule]["reals"], *RULES[rule]["flags"]]
    cases = []
    for values in itertools.product(*(VALUES[name] for name in names)):
        options = dict(zip(names, values, strict=True))
        try:
            cases.append(_checks.options(options))
        except ValueError:
            continue
    return cases


def describe(options: dict) -> str:
    """A short test id: what is switched on."""
    on = [name if value is True else f"{name}={value}" for name, value in options.items() if value]
    return ",".join(on)


def function(rule: str, *, native: bool = True):
    return getattr(gdm if native else gdm.reference, rule)


def in_call_order(rule: str, param, grad, states) -> tuple:
    """The positional arguments of the rule's function."""
    return (param, *states, grad)


def numbers(dtype, n: int, seed: int) -> np.ndarray:
    """Numbers of many magnitudes, none of them 0."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(n) * 10.0 ** rng.integers(-3, 4, n)).astype(dtype)


def buffers(rule: str, dtype, n: int, seed: int = 0) -> list[np.ndarray]:
    """param, states..., grad: the positional arguments of the rule's function."""
    return [numbers(dtype, n, 100 * seed + k) for k in range(2 + len(RULES[rule]["states"]))]


def special_values(dtype) -> np.ndarray:
    """Zeros, subnormals, the ends of the range, infinities, NaN: each with both signs."""
    info = np.finfo(dtype)
    positive = [
        0.0,
        info.smallest_subnormal,
        info.smallest_normal,
        info.smallest_normal / 2,
        1.0,
        1.5,
        info.max,
        np.inf,
    ]
    with np.errstate(all="ignore"):
        return np.array([*positive, *(-x for x in positive), np.nan], dtype=dtype)


def bits(x: np.ndarray) -> np.ndarray:
    """The bit patterns, with every NaN made the same one."""
    x = np.where(np.isnan(x), x.dtype.type(np.nan), x)
    return x.view(f"u{x.itemsize}")


def assert_same_bits(actual, expected, message: str = "") -> None:
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(bits(actual), bits(expected), err_msg=message)


def python(code: str, *, timeout: float = 300, **environment: str) -> str:
    """The output of the code in a fresh interpreter, which must end well and in time; gdm is there as it is here."""
    without = "import sys, warnings; sys.modules['gdm._core'] = None; warnings.simplefilter('ignore')\n"
    env = {name: value for name, value in os.environ.items() if name not in ("GDM_NUM_THREADS", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", (without if native is None else "") + textwrap.dedent(code)],
        env={**env, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"
    return done.stdout.strip()


# Code of a user's that runs while gdm looks at an argument: ``act()`` is to do what one should not. For python().
HOOKS = """
    import array
    import numpy as np
    import gdm

    N = 1_000_000  # memory that is given back when it shrinks

    class ByClass(array.array):  # isinstance() looks at this attribute
        @property
        def __class__(self):
            act()
            return array.array

    class ByBuffer:  # from Python 3.12 on
        def __buffer__(self, flags):
            act()
            return memoryview(np.ones(N))

    def hook(how):
        return ByClass("d", bytes(8 * N)) if how == "class" else ByBuffer()

    def attempt(call, *args, **options):
        try:
            call(*args, **options)
        except Exception as error:
            print(type(error).__name__, error)
"""
NEEDS_BUFFER = pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ came with Python 3.12")
every_hook = pytest.mark.parametrize("how", ["class", pytest.param("buffer", marks=NEEDS_BUFFER)])


def at_once(work, count: int) -> None:
    """work(0), work(1), ... in threads of their own."""
    threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Guarded:
    """Memory between two pages that nobody may touch: one byte too far ends the test run."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        self.size = -(-size // page) * page
        self.map = mmap.mmap(-1, self.size + 2 * page)
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.whole = np.frombuffer(self.map, np.uint8)
        start = self.whole.__array_interface__["data"][0]
        self.guards = (start, start + page + self.size)
        self.memory = self.whole[page : page + self.size]
        self.protect(0)  # PROT_NONE, for which mmap has no name

    def protect(self, mode: int) -> None:
        for guard in self.guards:
            assert self.libc.mprotect(guard, mmap.PAGESIZE, mode) == 0

    def at_start(self, dtype, n: int) -> np.ndarray:
        return self.memory[: n * dtype.itemsize].view(dtype)

    def at_end(self, dtype, n: int) -> np.ndarray:
        return self.memory[self.size - n * dtype.itemsize :].view(dtype)
