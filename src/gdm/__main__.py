"""The command line: ``python -m gdm``, or ``gdm``."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import gdm

from . import _backend, _embedding

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
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    info = commands.add_parser(
        "info",
        help="what is installed, and what it uses here",
        description="Prints version, backend, instruction sets, threads, and how the compiled module was built.",
    )
    info.set_defaults(run=lambda options: _info())

    demo = commands.add_parser(
        "demo",
        help="train a network on real data and draw two pictures",
        description="Trains a small network on the UCI handwritten digits with gradient descent, momentum, Nesterov, a "
        "schedule and adaptive methods, compares the time of the step with NumPy's, checks two of the runs against the "
        "NumPy reference bit for bit, and draws digits.png and landscapes.png. Needs the extra 'demo': "
        "pip install 'gdm-optim[demo]'.",
    )
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures (default: %(default)s)")
    demo.add_argument("--seed", type=_count, default=0, help="for weights, split and batches (default: %(default)s)")
    demo.add_argument("--epochs", type=_positive, default=40, help="passes over the data (default: %(default)s)")
    demo.set_defaults(run=_demo)

    bench = commands.add_parser(
        "bench",
        help="measure gdm and its peers on this machine",
        description="Times one momentum step of gdm, the memory's limit, NumPy, and of Numba, PyTorch and optax as far "
        "as they are installed; checks every result; prints a table of ratios and writes bench.json and pictures. "
        "Needs a quiet machine to mean much.",
    )
    bench.add_argument(
        "--out", type=Path, default=Path("out"), help="folder for what is written (default: %(default)s)"
    )
    bench.add_argument("--full", action="store_true", help="all cases, for some minutes; without it, under one")
    bench.set_defaults(run=_bench)

    config = commands.add_parser(
        "config",
        help="how to compile and link against the C library",
        description="Prints what a C compiler or CMake needs to know, in the order asked for.",
    )
    for option, text in _CONFIG.items():
        config.add_argument(f"--{option}", action="append_const", dest="asked", const=option, help=text)
    config.set_defaults(run=lambda options: _config(options.asked or config.error("say which: see --help")))

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
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }
    for name, value in rows.items():
        print(f"{name:9} {value}")
    return 0


def _config(asked: Sequence[str]) -> int:
    values: dict[str, Callable[[], str]] = {
        "cflags": lambda: f"-I{gdm.get_include()}",
        "libs": _embedding.get_libraries,
        "cmakedir": gdm.get_cmake_dir,
        "version": lambda: gdm.__version__,
    }
    print(" ".join(values[name]() for name in asked))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from . import demo

    return demo.run(options.out, seed=options.seed, epochs=options.epochs)


def _bench(options: argparse.Namespace) -> int:
    from . import bench

    return bench.run(options.out, full=options.full)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return number


def _positive(text: str) -> int:
    if (number := _count(text)) == 0:
        raise argparse.ArgumentTypeError("must be at least 1, got 0")
    return number


_count.__name__ = _positive.__name__ = "whole number"  # as argparse calls them

if __name__ == "__main__":
    sys.exit(main())
