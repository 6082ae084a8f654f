"""The C core compiled by hand, without Python and CMake: a shared library for tests that call it through ctypes."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from pathlib import Path

import gdm

ROOT = Path(__file__).parent.parent
# All but the table of the functions, whose rows are made when the package is built.
SOURCES = [path for path in (ROOT / "csrc").glob("*.c") if path.name != "table.c"]
EXACT = ["-ffp-contract=off", "-fno-math-errno"]
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
X86 = {"avx2": ["-mavx2"], "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]}
ARCHITECTURE = {"x86_64": ["baseline", *X86], "aarch64": ["baseline", "neon"]}.get(platform.machine(), ["baseline"])


def compiled(compiler: str, out: Path) -> ctypes.CDLL:
    """A shared library of the C files, compiled warning-free into this folder."""
    flags = ["-std=c11", "-O2", "-fPIC", *EXACT, *STRICT, "-I", gdm.get_include()]
    objects = []
    for source in [*SOURCES, *(ROOT / f"csrc/isa/{isa}.c" for isa in ARCHITECTURE)]:
        objects.append(out / f"{source.stem}.o")
        subprocess.run([compiler, *flags, *X86.get(source.stem, []), "-c", source, "-o", objects[-1]], check=True)
    subprocess.run([compiler, "-shared", "-pthread", *objects, "-o", out / "libgdm.so"], check=True)
    lib = ctypes.CDLL(str(out / "libgdm.so"))
    for name in ("gdm_strerror", "gdm_version", "gdm_isa", "gdm_available_isa"):
        getattr(lib, name).restype = ctypes.c_char_p
    lib.gdm_available_isa.argtypes = [ctypes.c_size_t]
    return lib
