"""Timing that two noisy, shared cores cannot fool: contestants in turn, many rounds, medians."""

from __future__ import annotations

import gc
import timeit
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep


@dataclass(frozen=True)
class Contestant:
    """A statement to time, and the names it uses."""

    statement: str
    names: Mapping[str, object]

    def timer(self) -> timeit.Timer:
        return timeit.Timer(self.statement, globals=dict(self.names))


@dataclass(frozen=True)
class Timing:
    """Seconds that one execution took, in each round."""

    rounds: list[float]

    @property
    def median(self) -> float:
        return median(self.rounds)

    def quantile(self, q: float) -> float:
        ordered = sorted(self.rounds)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def interleave(
    contestants: Mapping[str, Contestant],
    *,
    seconds: float = 1.0,
    least: int = 7,
    sample: float = 1e-3,
    rest: float = 0.0,
) -> dict[str, Timing]:
    """Times the contestants in turn: one sample of each, then the next of each.

    Parameters
    ----------
    contestants : mapping of str to Contestant
        What to time. Each runs once before, so that nobody pays for a first time.
    seconds : float
        About how long all rounds together may take.
    least : int
        How many rounds there are at least, however long they take.
    sample : float
        How long a sample should be, in seconds: what is faster is repeated inside it, after as many repetitions that
        are not timed, since the others have been in the caches.
    rest : float
        How long to sleep before each sample, so that the threads of the one before have gone to sleep.
    """
    timers = {name: contestant.timer() for name, contestant in contestants.items()}
    repeats = {name: _repeats(timer, sample) for name, timer in timers.items()}
    rounds: dict[str, list[float]] = {name: [] for name in timers}
    with _no_garbage_collection():
        end = perf_counter() + seconds
        while perf_counter() < end or len(next(iter(rounds.values()))) < least:
            for name, timer in timers.items():
                if rest:
                    sleep(rest)
                timer.timeit(repeats[name])
                rounds[name].append(timer.timeit(repeats[name]) / repeats[name])
    return {name: Timing(times) for name, times in rounds.items()}


def _repeats(timer: timeit.Timer, sample: float) -> int:
    timer.timeit(1)
    number = 1
    while (taken := timer.timeit(number)) < sample / 2:
        number = max(number * 2, min(number * 100, int(number * sample / max(taken, 1e-9))))
    return number


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
