"""Measures gdm among its peers on this machine: ``python -m gdm bench``, or ``make bench`` for all of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from .._output import make_folder
from . import report
from .cases import NOT_COMPARED, Case, Result, measure, suite

REPORT = "bench.json"


def run(out: Path, *, full: bool = False) -> int:
    """Measures, prints a table, and writes ``bench.json`` and, with matplotlib, pictures.

    Parameters
    ----------
    out : pathlib.Path
        The folder to write to; made if it does not exist.
    full : bool, default False
        All cases, for some minutes, and not only those that tell most, in less than one.

    Returns
    -------
    int
        An exit code, 0. A peer whose result is wrong raises AssertionError.
    """
    make_folder(out, (REPORT, *report.PICTURES))
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
        "\ngdm's time; bytes moved; the memory's limit as a share of gdm's time; the others' times as multiples of it"
    )
    finish(out, results)
    return 0


def finish(out: Path, results: list[Result]) -> None:
    """Writes JSON and pictures, and says where."""
    report.save(out / REPORT, results)
    written = [out / REPORT]
    try:
        written += report.draw(out, results)
    except ImportError as reason:
        print(f"no pictures: {reason}")
    print(*written)


def _say(text: str) -> None:
    """Progress: one line that is written over on a terminal, a line each elsewhere."""
    end = "\r" if sys.stderr.isatty() and not text.endswith("\n") else ""
    print(f"{text.rstrip():<70}", end=end or "\n", file=sys.stderr, flush=True)


__all__ = ["NOT_COMPARED", "Case", "Result", "finish", "measure", "run", "suite"]
