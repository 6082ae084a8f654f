"""The C core compiled by hand, without Python and CMake: a shared library for tests that call it through ctypes."""

from __future__ import annotations

import ctypes
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = [*(ROOT / "csrc").glob("*.c"), *(ROOT / "csrc/isa").glob("*.c")]
EXACT = ["-ffp-contract=off", "-fno-math-errno"]
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
EXHAUSTIVE = os.environ.get("GDM_EXHAUSTIVE") == "1"  # also what takes some minutes more: .ci/run does it


def objects(command: list, folder: Path) -> list[Path]:
    """All C files of the core, compiled by this command, as many at once as there are CPUs."""

    def compile_one(source: Path) -> Path:
        out = folder / f"{source.parent.name}-{source.stem}.o"
        subprocess.run([*command, "-I", ROOT / "include", "-c", source, "-o", out], check=True, timeout=300)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, SOURCES))


def compile_shared(compiler: str, folder: Path) -> None:
    """Makes a shared library of the C files in this folder, without a warning."""
    files = objects([compiler, "-std=c11", "-O2", "-fPIC", *EXACT, *STRICT, "-pthread"], folder)
    subprocess.run([compiler, "-shared", "-pthread", *files, "-o", folder / "libgdm.so"], check=True)


def loaded(folder: Path) -> ctypes.CDLL:
    """The library that compile_shared() made there."""
    lib = ctypes.CDLL(str(folder / "libgdm.so"))
    for name in ("gdm_strerror", "gdm_version", "gdm_isa", "gdm_available_isa"):
        getattr(lib, name).restype = ctypes.c_char_p
    lib.gdm_available_isa.argtypes = [ctypes.c_size_t]
    return lib
