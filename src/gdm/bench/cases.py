"""The cases that are measured, and how one case is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import gdm

from .peers import (
    METHODS,
    PEERS,
    SGD,
    Gdm,
    GdmAround,
    GdmBfloat16,
    GdmBfloat16States,
    GdmFunction,
    GdmInt8States,
    GdmStochastic,
    GdmStochasticStates,
    GdmUnbound,
    Limit,
    Method,
    Numba,
    NumPyOut,
    Optax,
    Peer,
    TorchAround,
    TorchForeach,
    TorchFused,
    enter,
)
from .timing import Contestant, Timing, interleave
from .workloads import MODELS, SMALL_NETWORK, Shapes, elements

ALL = PEERS
COMMON = 5  # the first methods are measured at more sizes
LEAN = (Gdm, Limit, NumPyOut, Numba, TorchFused, Optax)

# Libraries that are not compared, and why. The report prints this.
NOT_COMPARED = {
    "thinc": "its SGD has no momentum; make bench-thinc compares Adam",
    "DeepSpeed": "has no SGD for the CPU, only Adam, Adagrad and Lion",
}


@dataclass(frozen=True)
class Case:
    """One row of the report."""

    group: str
    label: str
    shapes: Shapes
    peers: tuple[type[Peer], ...] = ALL
    threads: int = 1
    seconds: float = 1.0
    busy: bool = False  # other processes keep the other CPUs busy meanwhile
    sample: float = 1e-3
    method: Method = SGD

    @property
    def id(self) -> str:
        return f"{self.group}: {self.label}"

    @property
    def elements(self) -> int:
        return elements(self.shapes)


@dataclass
class Result:
    """The result of a case: how many seconds one step of each peer took."""

    case: Case
    timings: dict[str, Timing] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        """This peer's time divided by gdm's."""
        return self.timings[name].median / self.ours.median

    @property
    def ours(self) -> Timing:
        return next(iter(self.timings.values()))

    @property
    def gigabytes_per_second(self) -> float:
        return self.case.elements * self.case.method.moved_bytes / self.ours.median * 1e-9

    def as_json(self) -> dict[str, Any]:
        return {
            "group": self.case.group,
            "method": self.case.method.name,
            "label": self.case.label,
            "tensors": len(self.case.shapes),
            "elements": self.case.elements,
            "threads": self.case.threads,
            "busy": self.case.busy,
            "seconds": {name: timing.median for name, timing in self.timings.items()},
            "quartiles": {name: [timing.quantile(q) for q in (0.25, 0.75)] for name, timing in self.timings.items()},
            "ratios": {name: self.ratio(name) for name in self.timings},
            "p95": {name: timing.quantile(0.95) for name, timing in self.timings.items()},
        }


CALL, SMALL, SIZE, MODEL, FAMILY, STORAGE, AROUND, THREADS, BUSY = (
    "call overhead",
    "many small tensors",
    "one tensor",
    "models",
    "other methods",
    "narrow storage",
    "clipped and averaged",
    "threads",
    "a busy machine",
)


def suite(*, quick: bool = False) -> list[Case]:
    """All cases. With ``quick`` only the most important ones, which take about a minute."""
    threads = min(2, len(_cpus()))
    everybody: tuple[type[Peer], ...] = tuple(p for p in ALL if p is not Limit)
    cases = [Case(CALL, "1 x 64", [(64,)], (Gdm, GdmUnbound, GdmFunction, *everybody[1:]))]
    for count in (1000,) if quick else (10, 100, 1000, 10_000, 100_000):
        seconds = 1.0 if count < 10_000 else 4.0
        # JAX would need minutes to compile optax's step for more tensors.
        others = (peer for peer in everybody[1:] if peer is not Optax or count <= 1000)
        cases.append(Case(SMALL, f"{count} x 64", [(64,)] * count, (Gdm, GdmUnbound, *others), seconds=seconds))
    sizes = (10, 14, 18, 22) if quick else (4, 6, 8, 10, 12, 14, 16, 17, 18, 19, 20, 21, 22, 23, 24, 26)
    for exponent in sizes:
        seconds = 0.7 if exponent < 20 else 2.0 if exponent < 24 else 8.0
        # For data in L1, a call of memcpy costs so much that the loops are no limit.
        peers = ALL if exponent >= 16 else everybody
        cases.append(Case(SIZE, f"2^{exponent}", [(1 << exponent,)], peers, seconds=seconds))
    for name, shapes in MODELS.items():
        if not quick or name == "MLP":
            cases += [
                Case(MODEL, f"{name}, {n} thread{'s' * (n > 1)}", shapes(), LEAN, n, seconds=10 if name != "MLP" else 2)
                for n in range(1, threads + 1)
            ]
    for method in METHODS[1 : COMMON if quick else None]:
        peers = (Gdm, Limit, TorchForeach, TorchFused, Optax)
        cases.append(Case(FAMILY, f"{method.name}, 1000 x 64", [(64,)] * 1000, (Gdm, *peers[2:]), method=method))
        common = METHODS.index(method) < COMMON
        for exponent in (20,) if quick else (6, 10, 14, 18, 20, 22, 24, 26) if common else (14, 20, 24):
            seconds = 0.7 if exponent < 20 else 2.0 if exponent < 24 else 8.0
            peers_here = peers if exponent >= 16 else (Gdm, *peers[2:])
            label = f"{method.name}, 2^{exponent}"
            cases.append(Case(FAMILY, label, [(1 << exponent,)], peers_here, seconds=seconds, method=method))
    cases += _around(threads, quick)
    if threads > 1:
        for exponent in (18, 22) if quick else (*range(14, 25), 26):
            seconds = 1.0 if exponent < 22 else 4.0
            cases.append(
                Case(THREADS, f"2^{exponent}", [(1 << exponent,)], (Gdm2, Gdm, TorchFused), 2, seconds, sample=0.02)
            )
        for n in (1, 2):
            label = f"2^22, {n} thread{'s' * (n > 1)}"
            cases.append(Case(BUSY, label, [(1 << 22,)], (Gdm, TorchFused), n, 2.0 if quick else 10.0, True, 0.0))
    return cases


def _around(threads: int, quick: bool) -> Iterator[Case]:
    """Narrow storage, and what is done around the rule."""
    adamw = next(method for method in METHODS if method.name == "AdamW")
    states = (Gdm, GdmBfloat16States, GdmStochasticStates, GdmInt8States)
    for n in range(1, threads + 1):
        for exponent in (20,) if quick else (14, 20, 26):
            many = f"2^{exponent}, {n} thread{'s' * (n > 1)}"
            seconds = 0.5 if exponent < 20 else 1.0 if exponent < 24 else 15.0
            shapes: Shapes = [(1 << exponent,)]
            yield Case(STORAGE, f"AdamW, {many}", shapes, states, n, seconds, method=adamw)
            yield Case(STORAGE, f"SGD, {many}", shapes, (Gdm, GdmBfloat16, GdmStochastic), n, seconds)
    for label, shapes in {"50,000 in 6": SMALL_NETWORK, "GPT-2 small": MODELS["GPT-2 small"]()}.items():
        if not quick or shapes is SMALL_NETWORK:
            seconds = 1.0 if shapes is SMALL_NETWORK else 15.0
            peers = (GdmAround, Gdm, TorchAround)
            yield Case(AROUND, f"AdamW, {label}", shapes, peers, seconds=seconds, method=adamw)


class Gdm2(Gdm):
    """gdm with the number of threads of the case, beside ``Gdm``, which uses one thread in these cases."""

    name = "gdm, 2 threads"


def measure(
    case: Case,
    *,
    missing: Callable[[str, str], object] = lambda name, reason: None,
) -> Result:
    """Sets up the case, checks the result of every peer, and times the peers in turn."""
    with ExitStack() as stack:
        if case.busy:
            stack.enter_context(_busy_neighbours())
        entered = enter(case.shapes, case.peers, case.method, missing=missing)
        stack.enter_context(_threads(case.threads))
        if case.group == THREADS:
            entered[Gdm.name].optimizer.threads = 1  # type: ignore[attr-defined]
        contestants = _in_turn(entered)
        # After a step, OpenMP's threads spin for some milliseconds, on cores that the next peer needs.
        rest = 0.01 if case.threads > 1 or case.busy else 0.0
        timings = interleave(contestants, seconds=case.seconds, sample=case.sample, rest=rest)
    limits = [timings.pop(name) for name in list(timings) if name.startswith("limit ")]
    if limits:
        timings[Limit.name] = min(limits, key=lambda timing: timing.median)
    return Result(case, timings)


def _in_turn(entered: dict[str, Peer]) -> dict[str, Contestant]:
    """The order of timing: each peer is followed by one variant of the limit.

    If the variants followed each other, they would find their own data in the caches, and the peers would not.
    """
    limit = entered.get(Limit.name)
    variants = limit.variants() if isinstance(limit, Limit) else []
    contestants: dict[str, Contestant] = {}
    for i, peer in enumerate(peer for peer in entered.values() if peer is not limit):
        contestants[peer.name] = peer.contestant()
        if i < len(variants):
            contestants[f"limit {i}"] = variants[i]
    for i in range(len(entered) - 1, len(variants)):
        contestants[f"limit {i}"] = variants[i]
    return contestants


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Lets every peer use n threads, by its own setting. For n = 1, this whole process also runs on one CPU only."""
    cpus = _cpus()
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(n)
    if n == 1:
        _pin({min(cpus)})
    try:
        with gdm.threads(n):
            yield
    finally:
        _pin(cpus)
        if torch:
            torch.set_num_threads(before)


def _cpus() -> set[int]:
    return os.sched_getaffinity(0) if sys.platform == "linux" else set(range(os.cpu_count() or 1))


def _pin(cpus: set[int]) -> None:
    if sys.platform != "linux":
        return
    for task in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(task), cpus)
        except ProcessLookupError:  # a thread that has just ended
            continue


@contextmanager
def _busy_neighbours() -> Iterator[None]:
    """Keeps every CPU but the first one busy: a process on each computes without end."""
    others = sorted(_cpus())[1:]
    pin = "import os, sys; os.sched_setaffinity(0, [int(sys.argv[1])])\n" if sys.platform == "linux" else ""
    code = pin + "while True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(cpu)]) for cpu in others]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
