"""The C core compiled by hand, without Python and CMake: a shared library for tests that call it through ctypes."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = [*(ROOT / "csrc").glob("*.c"), *(ROOT / "csrc/isa").glob("*.c")]
EXACT = ["-ffp-contract=off", "-fno-math-errno"]
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def compiled(compiler: str, out: Path) -> ctypes.CDLL:
    """A shared library of the C files, compiled warning-free into this folder."""
    flags = ["-std=c11", "-O2", "-fPIC", *EXACT, *STRICT, "-I", ROOT / "include"]
    subprocess.run([compiler, *flags, "-shared", "-pthread", *SOURCES, "-o", out / "libgdm.so"], check=True)
    lib = ctypes.CDLL(str(out / "libgdm.so"))
    for name in ("gdm_strerror", "gdm_version", "gdm_isa", "gdm_available_isa"):
        getattr(lib, name).restype = ctypes.c_char_p
    lib.gdm_available_isa.argtypes = [ctypes.c_size_t]
    return lib
