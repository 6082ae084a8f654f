"""Timing for noisy machines: the contestants run in turn, in many rounds, and the median of the rounds is used."""

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
    """How many seconds one execution took, for each round."""

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
    """Times the contestants in turn: one sample of each, then the next sample of each, and so on.

    Parameters
    ----------
    contestants : mapping of str to Contestant
        What to time. Each runs before the first round, so that the costs of a first run are not measured.
    seconds : float
        About how long all rounds together may take.
    least : int
        The smallest number of rounds, however long they take.
    sample : float
        The length of a sample in seconds. A faster statement is repeated until a sample is that long. Before a sample
        the same number of repetitions runs untimed, because the other contestants have filled the caches.
    rest : float
        How many seconds to sleep before each sample, so that the threads of the contestant before have stopped.
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
