"""What is installed: everything a user needs, and nothing else."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import tomllib
from pathlib import Path, PurePath

import pytest

import gdm

ROOT = Path(__file__).parent.parent
DISTRIBUTION = "gdm-optim"  # on PyPI, gdm is another project
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]


def is_editable() -> bool:
    text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    return bool(json.loads(text or "{}").get("dir_info", {}).get("editable"))


def test_the_package_has_what_users_need():
    if is_editable():
        pytest.skip("NOT TESTED: what is installed; an editable install has the sources instead")
    files = [PurePath(str(f)) for f in importlib.metadata.files(DISTRIBUTION) or []]
    package = {str(f.relative_to("gdm")) for f in files if f.parts[0] == "gdm" and f.suffix != ".pyc"}
    modules = {str(f.relative_to(ROOT / "src/gdm")) for f in (ROOT / "src/gdm").rglob("*.py")}
    assert modules <= package
    assert {"__init__.pxd", "_core.pyi", "py.typed", "include/gdm/gdm.h", "lib/libgdm.a"} <= package
    for module in ("_core", "bench/_limit", "schedules/_formulas"):
        assert any(re.fullmatch(module + r"\..*(so|pyd|dylib)", name) for name in package)
    headers = {"include/gdm/gdm.h", "include/gdm/import.h"}
    assert {name for name in package if PurePath(name).suffix == ".h"} == headers
    assert not [name for name in package if PurePath(name).suffix in (".pyx", ".pxi", ".c", ".inc", ".def", ".o")]


def test_numpy_is_the_only_dependency():
    """NumPy at run time, and nothing else."""
    required = importlib.metadata.requires(DISTRIBUTION) or []
    assert [r for r in required if "extra ==" not in r] == ["numpy>=2"]


def test_versions_agree():
    assert importlib.metadata.version(DISTRIBUTION) == gdm.__version__
    assert f'#define GDM_VERSION "{gdm.__version__}"' in Path(gdm.get_include(), "gdm/gdm.h").read_text()
    assert f"## {gdm.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert PYPROJECT["project"]["license"] == "BSD-3-Clause"


def test_every_public_name_has_a_docstring():
    for name in gdm.__all__:
        assert getattr(gdm, name).__doc__, f"{name} has no docstring"


# ---- the name of the distribution ------------------------------------------------------------------------------------

GENERATED = {
    ".git",
    ".venv",
    ".venvs",
    ".hypothesis",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "build",
    "dist",
    "out",
}


def source_files():
    """Every text file of the source tree, as paths relative to it."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(set(folders) - GENERATED - {"__pycache__"})
        for name in sorted(names):
            if not name.endswith((".png", ".pyc", ".so", ".zip")):
                yield str(Path(folder, name).relative_to(ROOT))


def asks_for_gdm(text: str) -> list[str]:
    """The places in a text that make pip or importlib.metadata look for a distribution with the name ``gdm``."""
    found = re.findall(r"(?<![\w.-])gdm\[\w.*", text)  # with an extra
    for command in re.findall(r"\bpip3? +(?:install|download|wheel)\b[^`\n]*", text):
        found += [command for word in command.split()[2:] if re.fullmatch(r"gdm([<>=!~;@].*)?", word.strip("'\",.;:)"))]
    return found + re.findall(r"\b(?:version|distribution|files|requires|metadata)\([\"']gdm[\"'].*", text)


def requirements(project: dict) -> list[str]:
    """Every requirement that a pyproject.toml names."""
    found = [*project.get("build-system", {}).get("requires", []), *project.get("project", {}).get("dependencies", [])]
    for extra in project.get("project", {}).get("optional-dependencies", {}).values():
        found += extra
    return found


def names_of(required: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0] for requirement in required}


def test_nothing_asks_for_the_distribution_gdm():
    found = {}
    for file in source_files():
        text = (ROOT / file).read_text(encoding="utf-8")
        projects = [text] if file.endswith("pyproject.toml") else re.findall(r"```toml\n(.*?)```", text, re.S)
        wrong = [project for project in projects if "gdm" in names_of(requirements(tomllib.loads(project)))]
        if wrong or asks_for_gdm(text):
            found[file] = wrong + asks_for_gdm(text)
    assert found == {}


REQUESTS = [
    "pip install NAME",
    "pip install -U 'NAME>=1'",
    "'NAME[torch]'",
    "run: pip install numpy NAME.",
    "version('NAME')",
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_for_the_distribution_gdm_is_found(request_):
    assert asks_for_gdm(request_.replace("NAME", "gdm"))
    assert not asks_for_gdm(request_.replace("NAME", DISTRIBUTION))


def test_requirements_name_the_distribution():
    assert PYPROJECT["project"]["name"] == DISTRIBUTION
    example = tomllib.loads((ROOT / "tests/embed/cython/pyproject.toml").read_text())
    for required in (example["build-system"]["requires"], example["project"]["dependencies"]):
        assert DISTRIBUTION in names_of(required)
    assert DISTRIBUTION in names_of(requirements(PYPROJECT))  # an extra that contains another one


def test_users_may_have_any_supported_torch_and_the_tests_have_one_version():
    assert EXTRAS["torch"] == ["torch>=2.10"]
    pinned = [name for name, extra in EXTRAS.items() if "torch==2.13.0" in extra]
    assert sorted(pinned) == ["bench", "bench-deepspeed", "bench-torch", "docs", "test-torch"]
