"""What the tests share: the cases that the table of rules spans, numbers to feed them, and comparison bit for bit."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
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
ALL_CLASSES = [x for x in map(gdm.__dict__.get, gdm.__all__) if isinstance(x, type) and hasattr(x, "load_state_dict")]
CLASSES = [cls for cls in ALL_CLASSES if cls is not gdm.Muon]  # its parameters are matrices: see test_muon.py
DTYPES = {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}
LARGE = 1_000_003  # elements enough for several threads, and not a multiple of anything


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
# lr_scale stands for whether there is one.
VALUES: dict[str, list] = {
    "lr": [0.0123],
    "momentum": [0.87, 0.0],
    "dampening": [0.0, 0.3],
    "weight_decay": [0.0, 0.037],
    "nesterov": [False, True],
    "maximize": [False, True],
    "decoupled_weight_decay": [False, True],
    "form": ["torch", "classic"],
    "lr_scale": [False, True],
    "step": [3, 1, 1000],
    "eps": [1e-6, 0.0, 1.0],
    "betas": [(0.9, 0.999), (0.0, 0.0), (0.5, 0.25)],
    "alpha": [0.99, 0.9],
    "centered": [False, True],
    "amsgrad": [False, True],
    "adapt": [False, True],
    "trust_coefficient": [0.001, 0.0, 2.0],
    "lr_decay": [0.0, 0.1],
    "momentum_decay": [0.004, 0.0, 100.0],
    "rho": [0.9, 0.0, 1.0],
    "etas": [(0.5, 1.2), (0.25, 1.75)],
    "step_sizes": [(1e-6, 50.0), (0.0, 0.02), (0.5, 0.5)],
    "lambd": [1e-4, 0.0, 0.5],
    "t0": [1e6, 0.0, 1.5],
    "t_alpha": [0.0, 50.0],
    "t_beta3": [0.0, 70.0],
    "warmup_steps": [0.0, 10.0],
    "r": [0.0, 1.5],
    "weight_lr_power": [2.0, 0.5, 0.0],
    "prepare": [False, True],
}
# Options that have another meaning in these rules.
OWN_VALUES: dict[tuple[str, str], list] = {
    ("asgd", "alpha"): [0.75, 0.0, 2.5],
    ("ademamix", "alpha"): [5.0, 0.0],
    ("ademamix", "betas"): [(0.9, 0.999, 0.9999), (0.0, 0.0, 0.0), (0.5, 0.25, 0.75), (0.0, 0.5, 0.9)],
}
# These change numbers, and not which kernel runs: each case has one of their values, in turn.
IN_TURN = (
    *("maximize", "step", "eps", "betas", "alpha", "lr_decay", "momentum_decay", "rho", "trust_coefficient"),
    *("etas", "step_sizes", "lambd", "t0", "t_alpha", "t_beta3", "warmup_steps", "r", "weight_lr_power"),
)


def values(rule: str, option: str) -> list:
    return [x for x in OWN_VALUES.get((rule, option)) or VALUES[option] if is_legal(rule, option, x)]


def has(rule: str, option: str) -> bool:
    return option in RULES[rule]["options"]


def is_legal(rule: str, name: str, value) -> bool:
    """Schedule-Free needs an average: what is called momentum or the first beta may not be 0."""
    return not has(rule, "weight_lr_power") or (value[0] > 0 if name == "betas" else name != "momentum" or value > 0)


def option_cases(rule: str) -> list[dict]:
    """Every combination of the rule's options that is legal, but for those taken in turn."""
    names = list(RULES[rule]["options"])
    crossed = [name for name in names if name not in IN_TURN]
    cases = []
    for chosen_values in itertools.product(*(values(rule, name) for name in crossed)):
        chosen = dict(zip(crossed, chosen_values, strict=True))
        for k, name in enumerate(IN_TURN):
            if name in names:
                chosen[name] = values(rule, name)[(len(cases) // 3 + k) % len(values(rule, name))]
        scaled = chosen.pop("lr_scale")
        try:
            cases.append(
                {**_checks.options(rule, {name: chosen[name] for name in names if name in chosen}), "lr_scale": scaled}
            )
        except ValueError:
            continue
    if rule == "radam":  # with these it is rectified, which is another loop
        cases += [{**case, "betas": (0.9, 0.999), "step": 1000} for case in cases]
    return cases


def plain(rule: str) -> dict:
    """The options that must be given."""
    return {"lr": 0.1, **({"step": 2} if has(rule, "step") else {})}


def full(rule: str) -> dict:
    """Options with which every buffer is in use that can be."""
    switches = {needs for needs in RULES[rule]["states"].values() if needs}
    return {**plain(rule), **{name: 0.9 if name == "momentum" else True for name in switches}, "lr_scale": True}


def describe(options: dict) -> str:
    """A short test id: what is switched on."""
    on = [name if value is True else f"{name}={value}" for name, value in options.items() if value]
    return ",".join(on)


def function(rule: str, *, native: bool = True):
    return getattr(gdm if native else gdm.reference, rule)


def names(rule: str, options: dict) -> list[str]:
    """The buffers of a call with these options: those that are positional, in order, then the others."""
    states = RULES[rule]["states"]
    optional = [name for name, needs in states.items() if needs and options.get(needs)]
    always = [name for name, needs in states.items() if not needs]
    return ["param", *always, "grad", *optional, *(["lr_scale"] if options.get("lr_scale") else [])]


def written(rule: str, options: dict) -> set[str]:
    """The buffers that a call with these options changes."""
    work = set(RULES[rule]["work"])
    return work if options.get("prepare") else set(names(rule, options)) - work - {"grad", "lr_scale"}


def call(rule: str, arrays: dict, options: dict, *, native: bool = True) -> None:
    """An update of these buffers."""
    given = {name: value for name, value in options.items() if name != "lr_scale"}
    given = {**{name: np.array([0.7]) for name in RULES[rule]["scalars"]}, **given}
    function(rule, native=native)(**arrays, **given)


def expected(rule: str, arrays: dict, options: dict) -> dict:
    """The buffers after one update by the reference; those given are left alone."""
    copies = {name: x.copy() for name, x in arrays.items()}
    call(rule, copies, options, native=False)
    return copies


def takes_norms(rule: str, options: dict) -> bool:
    """Whether the result of an element depends on all others."""
    return has(rule, "adapt") and options.get("adapt", True)


def start_and_end(rule: str, options: dict, dtype, n: int) -> tuple[dict, dict]:
    """buffers() and expected(), which nobody may write to; kept for the next instruction set."""
    return _start_and_end(rule, tuple(options.items()), dtype, n)


@functools.lru_cache(maxsize=4)
def _start_and_end(rule: str, options: tuple, dtype, n: int) -> tuple[dict, dict]:
    arrays = buffers(rule, dict(options), dtype, n)
    wanted = expected(rule, arrays, dict(options))
    for x in (*arrays.values(), *wanted.values()):
        x.flags.writeable = False
    return arrays, wanted


def numbers(dtype, n: int, seed: int) -> np.ndarray:
    """Numbers of many magnitudes, none of them 0."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(n) * 10.0 ** rng.integers(-3, 4, n)).astype(dtype)


def buffers(rule: str, options: dict, dtype, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The buffers of a call, by name. What is a sum of squares or a magnitude is not negative."""
    arrays = {name: numbers(dtype, n, 100 * seed + k) for k, name in enumerate(names(rule, options))}
    for name in arrays.keys() & {*RULES[rule]["squares"], "lr_scale"}:
        np.abs(arrays[name], out=arrays[name])
    if "grad_avg" in arrays:
        arrays["grad_avg"] *= np.float32(0.001)
    return arrays


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


def assert_same_bits(actual, wanted, message: str = "") -> None:
    assert actual.dtype == wanted.dtype
    integer = f"u{actual.itemsize}"
    if not np.array_equal(actual.view(integer), wanted.view(integer)):  # which is seen in less time
        np.testing.assert_array_equal(bits(actual), bits(wanted), err_msg=message)


def assert_all_same_bits(actual: dict, wanted: dict, message: str = "") -> None:
    for name, x in actual.items():
        assert_same_bits(x, wanted[name], f"{name} {message}")


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


HAS_SAFETENSORS = importlib.util.find_spec("safetensors") is not None
NO_SAFETENSORS = "NOT TESTED: checkpoint files; there is no safetensors here"
needs_safetensors = pytest.mark.skipif(not HAS_SAFETENSORS, reason=NO_SAFETENSORS)


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
