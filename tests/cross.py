"""The platforms for which the C core is built here, and what runs their programs.

The first ones are built by zig, from the package ziglang: Clang with the C libraries of many systems. The others need a
compiler or its libraries from the system.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from clibrary import EXACT, ROOT, SOURCES, STRICT

WINE = shutil.which("wine64") or shutil.which("wine64", path="/usr/lib/wine")
# What a command of each runner begins with, and what it needs. Without one a platform is only built.
RUNNERS = {
    "native": ([], True, ""),
    "wine": ([WINE], WINE, "wine64"),
    "qemu": (["qemu-aarch64"], shutil.which("qemu-aarch64"), "qemu-aarch64 (Debian: qemu-user)"),
    "node": (["node"], shutil.which("node"), "node"),
    "wasmtime": (
        [sys.executable, str(ROOT / "tests/wasi.py")],
        importlib.util.find_spec("wasmtime"),
        "the package wasmtime",
    ),
    "": ([], False, "such a machine"),
}


@dataclass(frozen=True)
class Platform:
    name: str
    compiler: tuple[str, ...]
    needs: str  # what to install for it
    runner: str = ""
    isas: tuple[str, ...] = ("baseline",)  # which it must find, best first; empty: those of this CPU
    suffix: str = ""  # of programs
    library: str = ""  # the path of a shared library that is loaded and unloaded
    modes: int = 4  # of floating-point: three of rounding, and flush-to-zero
    linked_with: tuple[str, ...] = ("-lm",)
    is_zig: bool = False

    def build(self, folder: Path) -> None:
        """The core and the programs of tests/c in this folder; skips if there is no compiler."""
        flags = ["-std=c11", "-O2", *EXACT, *STRICT, "-I", ROOT / "include"]
        self._check_compiler(folder)
        if self.is_zig:
            core = SOURCES  # zig keeps what it compiles, and compiles nothing twice
        else:
            self._compile(folder, *flags, "-c", *SOURCES)
            core = sorted(folder.glob("*.o"))
            assert len(core) == len(SOURCES)
        for program in ("bits", "fp_mode", "plan", "stress"):
            self._compile(
                folder, *flags, ROOT / f"tests/c/{program}.c", *core, *self.linked_with, "-o", program + self.suffix
            )
        if self.library:
            self._compile(folder, *flags, "-shared", *core, *self.linked_with, "-o", self.library)
            self._compile(folder, *flags, ROOT / "tests/c/unload.c", *self.linked_with, "-o", "unload" + self.suffix)

    def command(self, folder: Path, program: str) -> list[str]:
        """What runs this program; skips if nothing here does."""
        begin, found, needs = RUNNERS[self.runner]
        if not found:
            pytest.skip(f"NOT TESTED: {self.name} has been built, but not run; needs {needs}")
        return [*begin, str(folder / (program + self.suffix))]

    def _check_compiler(self, folder: Path) -> None:
        """Skips if the compiler, or the headers of its C library, are not here."""
        program = '#include <stdio.h>\nint main(void) { return puts("") < 0; }\n'
        (folder / "empty.c").write_text(program)
        try:
            self._compile(folder, "-O2", "empty.c", "-o", "empty" + self.suffix)
        except (FileNotFoundError, AssertionError) as error:
            pytest.skip(f"NOT TESTED: {self.name}; needs {self.needs} ({str(error)[-200:]})")

    def _compile(self, folder: Path, *arguments: object) -> None:
        done = subprocess.run([*self.compiler, *arguments], cwd=folder, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr[-3000:]


def zig(target: str, *more: str, **others: object) -> Platform:
    compiler = (sys.executable, "-m", "ziglang", "cc", "-target", target, *more)
    return Platform(target, compiler, "the package ziglang: make cross", is_zig=True, **others)


PLATFORMS = [
    zig("x86_64-windows-gnu", runner="wine", isas=(), suffix=".exe", library="gdm.dll"),
    zig("aarch64-windows-gnu", suffix=".exe", library="gdm.dll"),
    zig("x86_64-macos", library="libgdm.dylib"),
    zig("aarch64-macos", library="libgdm.dylib"),
    zig("x86_64-linux-gnu.2.17", "-fPIC", runner="native", isas=(), library="./libgdm.so", linked_with=("-lm", "-ldl")),
    zig("x86_64-linux-musl", runner="native", isas=()),
    zig("aarch64-linux-musl", runner="qemu", isas=("neon", "baseline")),
    zig("wasm32-wasi", runner="wasmtime", suffix=".wasm", modes=0),
    Platform(
        "x86_64-w64-mingw32-gcc",
        ("x86_64-w64-mingw32-gcc",),
        "gcc-mingw-w64-x86-64",
        runner="wine",
        suffix=".exe",
        library="gdm.dll",
    ),
    Platform("musl-gcc", ("musl-gcc", "-static"), "musl-tools", runner="native", isas=()),
    Platform(
        "i386",
        ("gcc", "-m32", "-msse2", "-mfpmath=sse", "-pthread", "-idirafter", "/usr/include/x86_64-linux-gnu"),
        "gcc-12-multilib",
        runner="native",
    ),
    Platform("GDM_NO_THREADS", ("gcc", "-DGDM_NO_THREADS"), "gcc", runner="native", isas=()),
    Platform(
        "emscripten",
        ("emcc",),
        "emscripten and node-acorn",
        runner="node",
        suffix=".js",
        modes=0,
        # Without asynchronous compilation, which in Debian 12's Emscripten does not work with Node 18 and later.
        linked_with=("-sINITIAL_MEMORY=128MB", "-sEXIT_RUNTIME=1", "-sWASM_ASYNC_COMPILATION=0"),
    ),
]
