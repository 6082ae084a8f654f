"""What builds releases: the workflows, the list of wheels, the bill of materials."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gdm

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = {path.name: path.read_text() for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
USES = [found for text in WORKFLOWS.values() for found in re.findall(r"uses: (\S+?)@(\S+)(?: # (\S+))?", text)]


def test_every_action_is_pinned_and_says_its_version():
    """A tag can come to mean other code. One action has one version."""
    assert len(USES) > 10
    for action, commit, version in USES:
        assert re.fullmatch("[0-9a-f]{40}", commit), action
        assert re.fullmatch(r"v\d+\.\d+\.\d+", version), action
    assert len(set(USES)) == len({action for action, _, _ in USES})


def test_workflows_call_targets_that_exist():
    targets = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()
    called = [found for text in WORKFLOWS.values() for found in re.findall(r"run: make (\S+)", text)]
    assert called
    assert set(called) <= set(targets)


def test_cibuildwheel_has_one_version():
    """The list of wheels is checked with the version that builds them."""
    (pinned,) = {version for action, _, version in USES if action == "pypa/cibuildwheel"}
    assert f"cibuildwheel=={pinned.removeprefix('v')}" in PYPROJECT["project"]["optional-dependencies"]["dist"]


def test_wheels_are_tested_with_files_that_exist():
    files = re.findall(r"\{project\}/(\S+)", PYPROJECT["tool"]["cibuildwheel"]["test-command"])
    assert len(files) > 1
    assert all((ROOT / file).is_file() for file in files)


PYTHONS = ("cp311", "cp312", "cp313", "cp314", "cp314t")
WHEELS = {
    ("linux", "x86_64"): [f"{python}-{libc}linux_x86_64" for libc in ("many", "musl") for python in PYTHONS],
    ("linux", "aarch64"): [f"{python}-{libc}linux_aarch64" for libc in ("many", "musl") for python in PYTHONS],
    ("macos", "x86_64"): [f"{python}-macosx_x86_64" for python in PYTHONS],
    ("macos", "arm64"): [f"{python}-macosx_arm64" for python in PYTHONS],
    ("windows", "AMD64"): [f"{python}-win_amd64" for python in PYTHONS],
    ("windows", "ARM64"): [f"{python}-win_arm64" for python in PYTHONS],
    ("pyodide", "wasm32"): [f"{python}-pyodide_wasm32" for python in ("cp313", "cp314")],
}


@pytest.mark.parametrize(("platform", "architecture"), WHEELS, ids="-".join)
def test_the_wheels_are_these(platform, architecture):
    pytest.importorskip("cibuildwheel", reason="NOT TESTED: the list of wheels; make check-dist tests it")
    arguments = ["--print-build-identifiers", "--platform", platform, "--archs", architecture, str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-m", "cibuildwheel", *arguments], capture_output=True, text=True, timeout=180
    )
    assert done.stdout.split() == WHEELS[platform, architecture], done.stderr


def test_each_platform_has_a_runner():
    """Whose own architecture the wheels are for."""
    names = re.findall(r"\{name: ([\w-]+), os: ", WORKFLOWS["wheels.yml"])
    expected = {"-".join(key).lower() for key in WHEELS}
    assert {name if name != "pyodide" else "pyodide-wasm32" for name in names} == expected


# ---- the bill of materials -------------------------------------------------------------------------------------------

SBOM = json.loads((ROOT / "tools/sbom.cdx.json").read_text())


def test_the_bill_of_materials_is_installed():
    """Where PEP 770 says, the same in every wheel."""
    distribution = importlib.metadata.distribution("gdm-optim")
    if json.loads(distribution.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"):
        pytest.skip("NOT TESTED: the installed bill of materials; this is an editable install")
    (path,) = [path for path in distribution.files if path.parent.name == "sboms"]
    assert path.name == "gdm.cdx.json"
    assert path.parent.parent.name == f"gdm_optim-{gdm.__version__}.dist-info"
    assert json.loads(path.read_text()) == SBOM


def test_the_bill_of_materials_names_what_is_in_the_wheel():
    """gdm itself, and what its modules are made with and need."""
    component = SBOM["metadata"]["component"]
    assert component["version"] == gdm.__version__
    assert component["purl"] == f"pkg:pypi/gdm-optim@{gdm.__version__}"
    assert component["licenses"] == [{"license": {"id": PYPROJECT["project"]["license"]}}]
    named = {part["purl"].removeprefix("pkg:pypi/") for part in SBOM["components"]}
    needed = {re.match(r"[\w.-]+", requirement)[0] for requirement in PYPROJECT["project"]["dependencies"]}
    assert named == needed | {"cython"}
    references = {part["bom-ref"] for part in [component, *SBOM["components"]]}
    assert {entry["ref"] for entry in SBOM["dependencies"]} == references


@pytest.mark.skipif(os.name != "posix", reason="the strings of the module are looked for in an ELF or Mach-O file")
def test_the_modules_name_the_version_of_cython():
    """So the bill of materials need not."""
    from gdm import _core

    assert re.search(rb"_cython_3_\d+_\d+", Path(_core.__file__).read_bytes())


def test_the_citation_has_the_version():
    assert re.findall("^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M) == [gdm.__version__]


def test_the_bill_of_materials_is_valid():
    """By the schema of CycloneDX."""
    validation = pytest.importorskip(
        "cyclonedx.validation.json", reason="NOT TESTED: the schema; make check-dist tests it"
    )
    from cyclonedx.schema import SchemaVersion

    text = (ROOT / "tools/sbom.cdx.json").read_text()
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"library"', '"pizza"'))
