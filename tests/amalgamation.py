"""The core as two files, by tools/amalgamate.py: written, and compiled without any option that keeps the bits."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
# Functions of the core that are not public, for the programs in tests/c.
INTERNALS_VISIBLE = ["-DGDM_INTERNAL=", "-DGDM_INTERNAL_TABLE=extern"]


def write(folder: Path) -> Path:
    """Writes the two files and the archive into this folder."""
    subprocess.run([sys.executable, ROOT / "tools/amalgamate.py", folder], check=True)
    return folder


def shared_folder(tmp_path_factory) -> Path:
    """A folder that the processes of a test run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def compiled(folder: Path, name: str, command: list[str]) -> Path:
    """A folder with libgdm.a, made by this compiler with these options, and with the header as gdm/gdm.h. The first
    process that asks for it makes it."""
    if not shutil.which(command[0]):
        pytest.skip(f"NOT TESTED: the amalgamation compiled by {command[0]}, which is not here")
    out = folder / f"amalgamation-{name}"
    out.mkdir(exist_ok=True)
    with open(out / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "libgdm.a").exists():
            (out / "gdm").mkdir()
            shutil.copy(write(out) / "gdm.h", out / "gdm")
            subprocess.run([*command, *WARNINGS, "-c", "gdm.c"], cwd=out, check=True, timeout=900)
            subprocess.run(["ar", "rcs", "libgdm.a", "gdm.o"], cwd=out, check=True)
    return out
