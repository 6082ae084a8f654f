"""Measures gdm and its peers on this machine: ``python -m gdm bench``, or ``make bench`` for all cases."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

from .._output import make_folder
from . import compare, report
from .cases import NOT_COMPARED, Case, Result, measure, suite

REPORT = "bench.json"


def run(out: Path, *, full: bool = False, before: Path | None = None, fail_above: float = math.inf) -> int:
    """Measures, prints a table, and writes ``bench.json`` and, with matplotlib, pictures.

    Parameters
    ----------
    out : pathlib.Path
        The folder to write to. It is made if it does not exist.
    full : bool, default False
        Measure all cases, which takes some minutes. By default only the most important ones, in about a minute.
    before : pathlib.Path, optional
        A ``bench.json`` of an earlier run, which this one is compared with.
    fail_above : float, default inf
        Which slowdown is a failure: 1.1 means that a step takes a tenth longer.

    Returns
    -------
    int
        The exit code: 1 if gdm is slower than ``before`` by more than ``fail_above`` allows, else 0.

    Raises
    ------
    AssertionError
        If the result of a peer is wrong.
    OSError, gdm.bench.compare.BadReport
        If the files cannot be written or ``before`` cannot be read. This is known before anything is measured.
    """
    earlier = compare.read(before) if before is not None else None
    make_folder(out, (REPORT, *report.PICTURES, *([compare.PICTURE] if earlier else [])))
    print(report.heading())
    missing = dict(NOT_COMPARED)
    results = []
    cases = suite(quick=not full)
    begin = time.monotonic()
    for i, case in enumerate(cases, start=1):
        _say(f"[{i}/{len(cases)}] {case.id}")
        results.append(measure(case, missing=missing.setdefault))
    _say(f"{len(cases)} cases in {time.monotonic() - begin:.0f} s\n")
    for name, reason in missing.items():
        print(f"not compared: {name} ({reason})")
    print(report.table(results))
    print(
        "\nColumns: gdm's time; bytes moved; the limit's time in percent of gdm's; the others' times divided by gdm's"
    )
    finish(out, results)
    return show_changes(out, earlier, compare.parse(report.as_json(results)), fail_above) if earlier else 0


def show_changes(out: Path, old: compare.Report, new: compare.Report, fail_above: float = math.inf) -> int:
    """Compares two measurements: prints a table, writes a picture, and returns the exit code as `run` does.

    Raises
    ------
    gdm.bench.compare.BadReport
        If they have no time in common.
    """
    changes = compare.changes(old, new)
    if not changes:
        raise compare.BadReport("the two measurements must have a case in common, have none")
    print(f"\nold: gdm {old.machine.get('gdm')}; new: gdm {new.machine.get('gdm')}")
    for difference in compare.differences(old, new):
        print(f"WARNING: the measurements differ in more than gdm: {difference}")
    print(compare.table(changes))
    print(
        "\nColumns: gdm's times; new/old; its bounds, from the quartiles; new/old of the others in the same case, whose"
        "\ncode is the same. A change is marked if its bounds are on one side of both 1 and the others."
    )
    try:
        compare.draw(out / compare.PICTURE, changes)
        print(out / compare.PICTURE)
    except ImportError as reason:
        print(f"no picture: {reason}")
    failures = [change for change in changes if change.factor > fail_above]
    for change in failures:
        print(f"FAILED: {change.row} takes {change.factor:.2f} times as long, more than {fail_above:g}")
    return 1 if failures else 0


def finish(out: Path, results: list[Result]) -> None:
    """Writes the JSON file and the pictures, and prints their paths."""
    report.save(out / REPORT, results)
    written = [out / REPORT]
    try:
        written += report.draw(out, results)
    except ImportError as reason:
        print(f"no pictures: {reason}")
    print(*written)


def _say(text: str) -> None:
    """Shows the progress: on a terminal each message overwrites the one before, otherwise each has its own line."""
    end = "\r" if sys.stderr.isatty() and not text.endswith("\n") else ""
    print(f"{text.rstrip():<70}", end=end or "\n", file=sys.stderr, flush=True)


__all__ = ["NOT_COMPARED", "Case", "Result", "finish", "measure", "run", "show_changes", "suite"]
