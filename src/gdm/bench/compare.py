"""Two measurements of the same cases: what has become faster or slower, beyond the noise."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .report import FORMAT, seconds

PICTURE = "changes.png"

# A peer tells how the machine has changed only if its libraries are the same in both measurements.
LIBRARIES = {"NumPy": ("numpy",), "Numba": ("numba",), "torch": ("torch",), "optax": ("jax", "optax"), "limit": ()}


class BadReport(ValueError):
    """A file that is no bench.json, or one of another format."""


@dataclass(frozen=True)
class Times:
    """The seconds of a step: median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Report:
    """A bench.json."""

    machine: Mapping[str, Any]
    cases: Mapping[str, Mapping[str, Times]]  # by "group: label", then by the name of the peer


@dataclass(frozen=True)
class Change:
    """What has become of one time of gdm's.

    Attributes
    ----------
    case, name : str
        The case, and which of gdm's peers: ``"gdm"``, ``"gdm, int8 states"``, ...
    old, new : Times
        The two measurements.
    others : float
        The new time divided by the old one, for those beside gdm in the same case: the median of the limit and the
        libraries that have the same version in both. 1 if there are none. What they lost, the machine lost.
    """

    case: str
    name: str
    old: Times
    new: Times
    others: float

    @property
    def row(self) -> str:
        """What the table calls it."""
        return self.case if self.name == "gdm" else f"{self.case}, {self.name.removeprefix('gdm, ')}"

    @property
    def ratio(self) -> float:
        """The new time divided by the old one."""
        return self.new.median / self.old.median

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest ratio of the two measurements' middle halves."""
        return self.new.low / self.old.high, self.new.high / self.old.low

    @property
    def factor(self) -> float:
        """The part of the change that neither noise nor the machine explains: above 1 if gdm has become slower.

        It is 1 if the middle halves of the times overlap, with or without what the others have changed.
        """
        low, high = self.bounds
        if low > max(1.0, self.others):
            return min(self.ratio, self.ratio / self.others)
        if high < min(1.0, self.others):
            return max(self.ratio, self.ratio / self.others)
        return 1.0


def read(path: Path) -> Report:
    """Reads a bench.json.

    Raises
    ------
    BadReport
        If it is something else. The message names the file and what is wrong.
    OSError
        If it cannot be read.
    """
    try:
        return parse(json.loads(path.read_bytes()))
    except BadReport as reason:
        raise BadReport(f"{path}: {reason}") from None
    except ValueError:
        raise BadReport(f"{path}: must be a bench.json, is not JSON") from None


def parse(content: object) -> Report:
    """Takes over the content of a bench.json, and checks it."""
    if not isinstance(content, dict) or not {"machine", "results"} <= content.keys():
        raise BadReport("must be a bench.json, has no 'machine' and 'results'")
    if content.get("format") != FORMAT:
        raise BadReport(f"must have the format {FORMAT}, has {content.get('format')!r}: measure again with this gdm")
    machine, results = content["machine"], content["results"]
    if not isinstance(machine, dict) or not isinstance(results, list):
        raise BadReport("must have an object 'machine' and a list 'results'")
    cases = {}
    for i, result in enumerate(results):
        try:
            times = {name: Times(t, *result["quartiles"][name]) for name, t in result["seconds"].items()}
            is_good = all(0 < t.low <= t.median <= t.high and math.isfinite(t.high) for t in times.values())
            cases[f"{result['group']}: {result['label']}"] = times
        except (AttributeError, KeyError, TypeError, OverflowError) as error:
            raise BadReport(f"results[{i}] must be a result of gdm's benchmarks: {error!r}") from None
        if not is_good or not times:
            raise BadReport(f"results[{i}] must have times above 0, with each median between its quartiles")
    if not cases:
        raise BadReport("must have at least one result")
    return Report(machine, cases)


def differences(old: Report, new: Report) -> list[str]:
    """In what the machines and libraries differ. Then the times say little about gdm. gdm itself may differ."""
    before, after = _facts(old), _facts(new)
    return [
        f"{name}: {before.get(name) or 'none'} before, {after.get(name) or 'none'} now"
        for name in dict.fromkeys([*before, *after])
        if name != "gdm" and (before.get(name) or None) != (after.get(name) or None)
    ]


def changes(old: Report, new: Report) -> list[Change]:
    """Each time of gdm's that is in both."""
    return [
        Change(case, name, old.cases[case][name], times[name], _others(old, new, case))
        for case, times in new.cases.items()
        for name in times
        if name.startswith("gdm") and name in old.cases.get(case, {})
    ]


def table(found: Sequence[Change]) -> str:
    """One line for each change."""
    width = max((len(change.row) for change in found), default=0)
    head = f"{'':{width}}{'old':>9}{'new':>9}{'new/old':>9}{'bounds':>13}{'others':>8}"
    lines = [head, "-" * len(head)]
    for change in found:
        low, high = change.bounds
        mark = "" if change.factor == 1 else "  SLOWER" if change.factor > 1 else "  faster"
        lines.append(
            f"{change.row:{width}}{seconds(change.old.median):>9}{seconds(change.new.median):>9}{change.ratio:>9.3f}"
            f"{f'{low:.2f}-{high:.2f}':>13}{change.others:>8.3f}{mark}"
        )
    slower = sum(change.factor > 1 for change in found)
    faster = sum(change.factor < 1 for change in found)
    lines.append(f"{len(found)} times: {slower} slower and {faster} faster beyond the noise")
    return "\n".join(lines)


def draw(path: Path, found: Sequence[Change]) -> None:
    """Draws the ratios with their bounds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 1.2 + 0.19 * len(found)), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.axvline(1.0, color="0.5", linewidth=0.8)
    for place, change in enumerate(found):
        color = "#999999" if change.factor == 1 else "#D55E00" if change.factor > 1 else "#009E73"
        marker = "o" if change.factor == 1 else ">" if change.factor > 1 else "<"
        axes.plot(change.bounds, [place, place], color=color, linewidth=1.2)
        axes.plot(change.ratio, place, color=color, marker=marker, markersize=5)
        if change.others != 1:
            axes.plot(change.others, place, color="#000000", marker="|", markersize=6)
    axes.set_yticks(range(len(found)), [change.row for change in found], fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.5 / len(found))
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0) if high < 4 * low else [2.0**k for k in range(-9, 10)]
    ticks = [x for x in steps if low <= x <= high]
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="new time / old time, with the middle halves' bounds; |: the others'")
    axes.set_title("gdm, before and now: > slower, < faster, o within the noise", fontsize=10)
    axes.grid(axis="x", color="0.92")
    figure.savefig(path)


def _others(old: Report, new: Report, case: str) -> float:
    """How much longer those beside gdm take in this case."""
    before, after = old.cases.get(case, {}), new.cases[case]
    names = [name for name in after if name in before and _is_the_same(name, old, new)]
    return median(after[name].median / before[name].median for name in names) if names else 1.0


def _is_the_same(name: str, old: Report, new: Report) -> bool:
    libraries = LIBRARIES.get(name.split()[0].rstrip(","))
    before, after = _facts(old), _facts(new)
    return libraries is not None and all(before.get(library) == after.get(library) for library in libraries)


def _facts(report: Report) -> dict[str, Any]:
    """What is known of the machine, and the versions of the libraries, by name."""
    return dict(_flat(report.machine))


def _flat(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if name == "versions" and isinstance(value, Mapping):
            yield from value.items()
        elif name == "caches" and isinstance(value, Mapping):
            yield from ((f"{cache} cache", size) for cache, size in value.items())
        else:
            yield name, value
