"""Benchmarks: each times gdm among its peers, in turn in one run, asserts the results, and records all medians."""

from __future__ import annotations

import pytest

from gdm.bench.peers import Limit, enter
from gdm.bench.timing import Contestant, Timing, interleave


@pytest.fixture
def compare(benchmark, record_missing):
    """Times peers on the same work and returns name → Timing; pytest-benchmark reports gdm's, and keeps the others."""

    def run(group: str, shapes, peers, *, seconds: float = 2.0) -> dict[str, Timing]:
        entered = enter(shapes, peers, missing=record_missing)
        contestants: dict[str, Contestant] = {}
        for name, peer in entered.items():
            if isinstance(peer, Limit):
                contestants |= {f"limit {i}": variant for i, variant in enumerate(peer.variants())}
            else:
                contestants[name] = peer.contestant()
        timings = interleave(contestants, seconds=seconds)
        limits = [timings.pop(name) for name in list(timings) if name.startswith("limit ")]
        if limits:
            timings["limit"] = min(limits, key=lambda timing: timing.median)
        first, *others = timings
        benchmark.group = group
        benchmark.extra_info.update({name: timing.median for name, timing in timings.items()})
        timer = contestants[first].timer()
        repeats = max(1, int(1e-4 / timings[first].median))
        benchmark.pedantic(lambda: timer.timeit(repeats), rounds=5)
        print(f"\n{group}: {first} {_time(timings[first].median)}", end="")
        print(
            *(f", {name} {_time(timings[name].median)} ({ratio(timings, name, first):.2f}x)" for name in others), sep=""
        )
        return timings

    return run


@pytest.fixture
def record_missing(request):
    """Names each library that is not here, once a run."""
    seen = request.config.stash.setdefault(MISSING, set())

    def missing(name: str, reason: str) -> None:
        if name not in seen:
            seen.add(name)
            print(f"\nNOT COMPARED: {name} ({reason})")

    return missing


MISSING = pytest.StashKey[set]()


def ratio(timings: dict[str, Timing], name: str, base: str) -> float:
    return timings[name].median / timings[base].median


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
