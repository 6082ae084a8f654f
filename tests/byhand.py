"""The C library, compiled by hand: with the lines that docs/embedding.md shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from clibrary import EXHAUSTIVE

ROOT = Path(__file__).parent.parent


def compilers() -> list[str]:
    """GCC and Clang, and the other versions of them that are here."""
    names = ["gcc", "clang"]
    here = {os.path.realpath(path) for path in map(shutil.which, names) if path}
    for name in [f"{name}-{version}" for version in range(11, 25) for name in names]:
        path = shutil.which(name)
        if path and os.path.realpath(path) not in here:
            names.append(name)
    return names


COMPILERS = compilers()
NATIVE = "-march=native"
BUILDS = [*((name, "") for name in COMPILERS), ("gcc", NATIVE), ("clang", NATIVE)]


def lines() -> str:
    """The commands in the documentation."""
    return re.search(r"```sh\n(cc [^`]*csrc/isa/\*\.c\n[^`]*)```", (ROOT / "docs/embedding.md").read_text())[1]


def build(compiler: str, folder: Path, *, cflags: str = "") -> Path:
    """A copy of the sources in which these commands have been run by a shell, whose ``cc`` is the compiler."""
    if cflags == NATIVE and not EXHAUSTIVE:
        pytest.skip(f"takes half a minute, with {compiler} {NATIVE}: GDM_EXHAUSTIVE=1")
    if not shutil.which(compiler):
        pytest.skip(f"NOT TESTED: the library compiled by hand with {compiler}, which is not here")
    for name in ("csrc", "include"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "tests/embed/c/fit.c", folder)
    cc = folder / "bin/cc"
    cc.parent.mkdir()
    cc.write_text(f'#!/bin/sh\nexec {shutil.which(compiler)} {cflags} "$@"\n')
    cc.chmod(0o755)
    path = f"{cc.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", "-e", "-c", lines()], cwd=folder, env={**os.environ, "PATH": path}, check=True)
    return folder
