"""The core as two files, by tools/amalgamate.py: written, and compiled without any option that keeps the bits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from built_once import built_once

ROOT = Path(__file__).parent.parent
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
# Functions of the core that are not public, for the programs in tests/c.
INTERNALS_VISIBLE = ["-DGDM_INTERNAL=", "-DGDM_INTERNAL_TABLE=extern"]


def write(folder: Path) -> Path:
    """Writes the two files and the archive into this folder."""
    subprocess.run([sys.executable, ROOT / "tools/amalgamate.py", folder], check=True)
    return folder


def compiled(tmp_path_factory, name: str, command: list[str]) -> Path:
    """A folder with libgdm.a, made by this compiler with these options, and with the header as gdm/gdm.h."""
    if not shutil.which(command[0]):
        pytest.skip(f"NOT TESTED: the amalgamation compiled by {command[0]}, which is not here")

    def make(out: Path) -> None:
        (out / "gdm").mkdir()
        shutil.copy(write(out) / "gdm.h", out / "gdm")
        subprocess.run([*command, *WARNINGS, "-c", "gdm.c"], cwd=out, check=True, timeout=900)
        subprocess.run(["ar", "rcs", "libgdm.a", "gdm.o"], cwd=out, check=True)

    return built_once(tmp_path_factory, f"amalgamation-{name}", make)
