"""Collects what the benchmarks measured, and at the end prints the table, saves it, and draws the pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdm.bench import NOT_COMPARED, Case, Result, finish, measure, report

RESULTS = pytest.StashKey[list[Result]]()
MISSING = pytest.StashKey[dict[str, str]]()


def pytest_configure(config):
    config.stash[RESULTS] = []
    config.stash[MISSING] = dict(NOT_COMPARED)


@pytest.fixture
def compare(benchmark, request):
    """Measures a case. pytest-benchmark's own row is gdm's; all medians are in its extra_info."""

    def run(case: Case) -> Result:
        result = measure(case, missing=request.config.stash[MISSING].setdefault)
        request.config.stash[RESULTS].append(result)
        benchmark.group = case.group
        benchmark.extra_info.update(result.as_json())
        rounds = iter(result.ours.rounds)
        benchmark.pedantic(lambda: next(rounds), rounds=1)
        return result

    return run


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[RESULTS]
    if not results:
        return
    out = Path("out")
    out.mkdir(exist_ok=True)
    lines = [report.heading(), *(f"not compared: {name} ({why})" for name, why in config.stash[MISSING].items())]
    text = "\n".join([*lines, report.table(results)])
    terminalreporter.write_line(text)
    (out / "bench.txt").write_text(text + "\n")
    finish(out, results)
