"""The command line: ``python -m gdm``, or ``gdm``."""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gdm

from . import _backend, _embedding
from ._output import make_folder

_CONFIG = {
    "cflags": "the compiler's options",
    "libs": "the linker's options",
    "cmakedir": "the folder for gdm_DIR",
    "version": "the version",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 2 after an error of the operating system, which is one line."""
    parser = argparse.ArgumentParser(
        prog="gdm", description="Gradient descent with momentum, in place: as fast as memory moves, bit for bit."
    )
    parser.add_argument("--version", action="version", version=f"gdm {gdm.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    info = commands.add_parser(
        "info",
        help="show what is installed, and what it uses on this machine",
        description="Prints version, backend, instruction sets, threads, and how the compiled module was built.",
    )
    info.set_defaults(run=lambda options: _info())

    demo = commands.add_parser(
        "demo",
        help="train a network on real data and draw two pictures",
        description="Trains a small network on the UCI handwritten digits with gradient descent, momentum, Nesterov, a "
        "schedule and adaptive methods, compares the time of the step with NumPy's, checks two of the runs against the "
        "NumPy reference bit for bit, and draws digits.png and landscapes.png. It needs the extra 'demo': "
        "pip install 'gdm-optim[demo]'.",
    )
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures (default: %(default)s)")
    demo.add_argument("--seed", type=_count, default=0, help="for weights, split and batches (default: %(default)s)")
    demo.add_argument("--epochs", type=_positive, default=40, help="passes over the data (default: %(default)s)")
    demo.set_defaults(run=_demo)

    bench = commands.add_parser(
        "bench",
        help="measure gdm and its peers on this machine",
        description="Times one momentum step of gdm, of NumPy, and of Numba, PyTorch and optax if they are installed, "
        "and a loop that only moves the same bytes (the limit). It checks every result, prints a table of ratios, and "
        "writes bench.json and pictures. The times are meaningful only on a quiet machine.",
    )
    bench.add_argument("--out", type=Path, default=Path("out"), help="folder for the results (default: %(default)s)")
    bench.add_argument(
        "--full",
        action="store_true",
        help="all cases, which takes some minutes (default: a few cases, in about a minute)",
    )
    bench.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="the bench.json of an earlier run, which this one is compared with; with the path of a second one, it is "
        "compared with that, and nothing is measured. Writes changes.png",
    )
    bench.add_argument(
        "--fail-above",
        type=_ratio,
        default=math.inf,
        metavar="RATIO",
        help="exit code 1 if a time of gdm's has grown by more than this factor, beyond the noise: for example 1.1",
    )
    bench.set_defaults(run=lambda options: _bench(options, bench))

    config = commands.add_parser(
        "config",
        help="show how to compile and link with the C library",
        description="Prints the values that a C compiler or CMake needs, in the order of the options.",
    )
    for option, text in _CONFIG.items():
        config.add_argument(f"--{option}", action="append_const", dest="names", const=option, help=text)
    config.set_defaults(
        run=lambda options: _config(options.names or config.error("name at least one value: see --help"))
    )

    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        print(f"gdm: error: {reason}", file=sys.stderr)
        return 2
    return code


def _info() -> int:
    build = _backend.native.build_info() if _backend.native is not None else None
    rows = {
        "gdm": gdm.__version__,
        "backend": gdm.backend(),
        "isa": f"{gdm.isa()} (available: {', '.join(gdm.available_isas()) or 'none'})",
        "threads": f"{gdm.get_num_threads()} for large updates",
        "compiler": build["compiler"] if build else "none: the compiled module does not load",
        "flags": build["flags"] if build else "none",
        "NumPy": np.__version__,
        "products": f"of Muon's matrices: by {_blas()}, whose bits differ between machines; gdm's own do not",
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }
    for name, value in rows.items():
        print(f"{name:9} {value}")
    return 0


def _blas() -> str:
    """The library that NumPy multiplies matrices with."""
    built: Any = np.show_config(mode="dicts") or {}
    return str(built.get("Build Dependencies", {}).get("blas", {}).get("name", "NumPy's library"))


def _config(names: Sequence[str]) -> int:
    values: dict[str, Callable[[], str]] = {
        "cflags": lambda: f"-I{gdm.get_include()}",
        "libs": _embedding.get_libraries,
        "cmakedir": gdm.get_cmake_dir,
        "version": lambda: gdm.__version__,
    }
    print(" ".join(values[name]() for name in names))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from . import demo

    return demo.run(options.out, seed=options.seed, epochs=options.epochs)


def _bench(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from . import bench

    files: list[Path] = options.compare or []
    if len(files) > 2:
        parser.error(f"argument --compare: expected one or two files, got {len(files)}")
    if options.fail_above < math.inf and not files:
        parser.error("argument --fail-above: needs --compare")
    if len(files) == 1 and files[0].resolve() == (options.out / bench.REPORT).resolve():
        parser.error(
            f"argument --compare: {files[0]} would be overwritten: rename it, or give another folder with --out"
        )
    try:
        if len(files) == 2:
            old, new = map(bench.compare.read, files)
            make_folder(options.out, [bench.compare.PICTURE])
            return bench.show_changes(options.out, old, new, options.fail_above)
        return bench.run(options.out, full=options.full, before=next(iter(files), None), fail_above=options.fail_above)
    except bench.compare.BadReport as error:
        print(f"gdm: error: {error}", file=sys.stderr)
        return 2


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return number


def _positive(text: str) -> int:
    if (number := _count(text)) == 0:
        raise argparse.ArgumentTypeError("must be at least 1, got 0")
    return number


def _ratio(text: str) -> float:
    if not 1.0 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least 1 and finite, got {text}")
    return number


_ratio.__name__ = "number"
_count.__name__ = _positive.__name__ = "whole number"  # as argparse calls them

if __name__ == "__main__":
    sys.exit(main())
