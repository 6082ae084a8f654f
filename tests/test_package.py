"""What is installed: everything a user needs, and nothing else."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path, PurePath

import pytest

import gdm

ROOT = Path(__file__).parent.parent


def is_editable() -> bool:
    told = importlib.metadata.distribution("gdm").read_text("direct_url.json")
    return bool(json.loads(told or "{}").get("dir_info", {}).get("editable"))


def test_contents():
    if is_editable():
        pytest.skip("NOT TESTED: what is installed; an editable install has the sources instead")
    files = [PurePath(str(f)) for f in importlib.metadata.files("gdm") or []]
    package = {str(f.relative_to("gdm")) for f in files if f.parts[0] == "gdm" and f.suffix != ".pyc"}
    modules = {str(f.relative_to(ROOT / "src/gdm")) for f in (ROOT / "src/gdm").rglob("*.py")}
    assert modules <= package
    assert {"__init__.pxd", "_core.pyi", "py.typed", "include/gdm/gdm.h", "lib/libgdm.a"} <= package
    for module in ("_core", "bench/_limit", "schedules/_formulas"):
        assert any(re.fullmatch(module + r"\..*(so|pyd|dylib)", name) for name in package)
    headers = {"include/gdm/gdm.h", "include/gdm/import.h"}
    assert {name for name in package if PurePath(name).suffix == ".h"} == headers
    assert not [name for name in package if PurePath(name).suffix in (".pyx", ".pxi", ".c", ".inc", ".def", ".o")]


def test_dependencies():
    """NumPy at run time, and nothing else."""
    required = importlib.metadata.requires("gdm") or []
    assert [r for r in required if "extra ==" not in r] == ["numpy>=2"]


def test_versions_agree():
    assert importlib.metadata.version("gdm") == gdm.__version__
    assert f'#define GDM_VERSION "{gdm.__version__}"' in Path(gdm.get_include(), "gdm/gdm.h").read_text()
    assert f"## {gdm.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["project"]["license"] == "BSD-3-Clause"


def test_public_names():
    for name in gdm.__all__:
        assert getattr(gdm, name).__doc__, f"{name} has no docstring"
