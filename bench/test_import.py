"""What ``import gdm`` adds to ``import numpy``."""

from __future__ import annotations

import subprocess
import sys
from statistics import median
from time import perf_counter

from gdm.bench.timing import Timing


def start(code: str) -> float:
    begin = perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return perf_counter() - begin


def test_import_time(benchmark):
    """Pairs of interpreters, one after the other; the median of the differences."""
    start("import numpy, gdm")
    pairs = [(start("import numpy"), start("import numpy, gdm")) for _ in range(31)]
    added = Timing([both - alone for alone, both in pairs])
    benchmark.group = "import"
    benchmark.extra_info.update({"numpy": median(alone for alone, _ in pairs), "gdm adds": added.median})
    benchmark.pedantic(start, args=("import numpy, gdm",), rounds=3)
    print(f"\nimport: gdm adds {added.median * 1e3:.1f} ms to NumPy's {benchmark.extra_info['numpy'] * 1e3:.1f} ms")
    assert added.median < 0.1, "something heavy is imported"
