"""Measures gdm and its peers on this machine: ``python -m gdm bench``, or ``make bench`` for all cases."""

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
        The folder to write to. It is made if it does not exist.
    full : bool, default False
        Measure all cases, which takes some minutes. By default only the most important ones, in less than a minute.

    Returns
    -------
    int
        The exit code 0.

    Raises
    ------
    AssertionError
        If the result of a peer is wrong.
    OSError
        If the files cannot be written. This is known before anything is measured.
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
        "\nColumns: gdm's time; bytes moved; the limit's time in percent of gdm's; the others' times divided by gdm's"
    )
    finish(out, results)
    return 0


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


__all__ = ["NOT_COMPARED", "Case", "Result", "finish", "measure", "run", "suite"]
