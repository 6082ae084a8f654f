"""The C core on other systems: built for each platform of cross.py, and run where something here runs its programs.

It takes many minutes, so ``make cross`` asks for it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import gdm
from cbits import assert_same_hashes, bits_of, bits_program
from cross import PLATFORMS

if not os.environ.get("GDM_CROSS"):
    pytest.skip("NOT TESTED: the core on other systems; make cross", allow_module_level=True)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """The hashes of this machine, on the installed library."""
    library = Path(gdm.get_include()).parent / "lib/libgdm.a"
    return bits_of(bits_program("cc", library, tmp_path_factory.mktemp("bits")), isa=gdm.available_isas()[0])


# One process builds a platform, and runs it.
@pytest.fixture(
    scope="module", params=[pytest.param(p, id=p.name, marks=pytest.mark.xdist_group(p.name)) for p in PLATFORMS]
)
def built(request, tmp_path_factory):
    """A platform, and the folder of its programs."""
    folder = tmp_path_factory.mktemp("built")
    request.param.build(folder)
    return request.param, folder


@pytest.fixture(autouse=True, scope="module")
def _wine(tmp_path_factory):
    """Wine's files lie in a temporary folder, and it says nothing of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINEPREFIX", str(tmp_path_factory.mktemp("wine")))
        patch.setenv("WINEDEBUG", "-all")
        yield


def run(built, program: str, *arguments: str) -> str:
    """What the program prints."""
    platform, folder = built
    command = [*platform.command(folder, program), *arguments]
    env = {name: value for name, value in os.environ.items() if name != "GDM_ISA"} | {"GDM_NUM_THREADS": "4"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_bits_are_those_of_this_machine(built, wanted):
    """On each instruction set."""
    platform, folder = built
    command = platform.command(folder, "bits")
    for isa in platform.isas or gdm.available_isas():
        assert_same_hashes(bits_of(*command, isa=isa), wanted, f"on {platform.name}, {isa}")


def test_the_best_instruction_set_is_chosen(built):
    platform, _ = built
    assert run(built, "bits").split()[0] == (platform.isas or gdm.available_isas())[0]


def test_the_mode_of_a_thread_changes_no_bits(built):
    assert int(run(built, "fp_mode")) == built[0].modes


def test_plans_hold_what_the_layers_above_rely_on(built):
    run(built, "plan")


def test_the_pool_runs_each_task_once(built):
    """With threads if the platform has them, else by the caller alone."""
    assert int(run(built, "stress").split()[0]) > 100


def test_a_shared_library_can_be_unloaded(built):
    """On Windows it stays if it has threads."""
    platform, _ = built
    if not platform.library:
        pytest.skip("the platform is tested without a shared library")
    run(built, "unload", platform.library)
