"""What ``import gdm`` adds to ``import numpy``, and what the package takes on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import gdm
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


def test_size(benchmark):
    """The installed package, and in it the compiled module."""
    package = Path(gdm.__file__).parent
    sizes = {p: p.stat().st_size for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    module = sum(size for p, size in sizes.items() if p.name.startswith("_core."))
    benchmark.group = "size"
    benchmark.extra_info.update({"package": sum(sizes.values()), "module": module})
    benchmark.pedantic(lambda: None, rounds=1)
    print(f"\nsize: the package {sum(sizes.values()) / 1024:.0f} KiB, its compiled module {module / 1024:.0f} KiB")
    assert sum(sizes.values()) < 2 << 20
