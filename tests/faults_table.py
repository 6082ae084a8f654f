"""A table of how many failures have been tested, at the end of `make faults`: a plugin of pytest.

A test calls `counted(operation, kind, count)`. The numbers travel in the test's report, so that they also come from
other processes of pytest-xdist.
"""

from __future__ import annotations

import os

import pytest

FULL = "GDM_FAULTS" in os.environ  # all of it; else what takes seconds


@pytest.fixture
def counted(record_property):
    """Notes how many failures of one kind an operation has gone through."""

    def note(operation: str, kind: str, count: int, remark: str = "") -> None:
        assert count > 0, f"{operation}: {kind} have not been tested"
        record_property("faults", (operation, kind, count, remark))

    return note


def pytest_terminal_summary(terminalreporter) -> None:
    if not FULL:
        return
    rows = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "faults"
    ]
    widths = [max((len(str(row[k])) for row in rows), default=0) for k in range(3)]
    terminalreporter.section("what has failed, and how often")
    for operation, kind, count, remark in sorted(map(tuple, rows)):
        line = f"{operation:<{widths[0]}}  {kind:<{widths[1]}}  {count:>{widths[2]}}  {remark}"
        terminalreporter.write_line(line.rstrip())
