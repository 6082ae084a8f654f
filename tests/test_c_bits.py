"""The C core has the same bits under every compiler and on every machine: a hash of each case, by tests/c/bits.c."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import gdm
from byhand import BUILDS
from clibrary import EXACT, ROOT, STRICT, objects
from support import DTYPES, RULES

BITS = ROOT / "tests/c/bits.c"


# The fields of `struct isa` that are tables of stages.
STAGES = set(re.findall(r"^    stage_\w+ \*(\w+)", (ROOT / "csrc/core.h").read_text(), re.M))
STAGES = {f"{name}{kind}" for name in STAGES for kind in (("_plain", "_square") if "int8" in name else ("",))}


def bits_program(compiler, library, folder):
    """tests/c/bits.c with this static library."""
    flags = ["-std=c11", "-O2", *EXACT, *STRICT, "-I", ROOT / "include", "-pthread"]
    subprocess.run([compiler, *flags, BITS, library, "-lm", "-o", folder / "bits"], check=True)
    return folder / "bits"


def printed(*command, **environment: str) -> tuple[str, dict[str, str]]:
    """What tests/c/bits.c prints: the instruction set, and a hash of the results for each rule, dtype and options."""
    env = {name: value for name, value in os.environ.items() if name != "GDM_ISA"}
    done = subprocess.run(command, env={**env, **environment}, capture_output=True, text=True, timeout=300, check=True)
    isa, *lines = done.stdout.splitlines()
    hashes = dict(line.rsplit(maxsplit=1) for line in lines)
    assert len(hashes) == len(lines) > 1000
    assert {tuple(case.split()[:2]) for case in hashes if not case.startswith("stage ")} == set(
        itertools.product(RULES, DTYPES)
    )
    assert {case.split()[1] for case in hashes if case.startswith("stage ")} == STAGES
    return isa, hashes


def bits_of(*command, isa: str) -> dict[str, str]:
    """The hashes of this instruction set."""
    found, hashes = printed(*command, GDM_ISA=isa)
    assert found == isa
    return hashes


def assert_same_hashes(found: dict[str, str], wanted: dict[str, str], where: str) -> None:
    """If any differ, the message names them."""
    assert found.keys() == wanted.keys()
    differ = [case for case in wanted if found[case] != wanted[case]]
    assert not differ, f"{len(differ)} of {len(wanted)} cases have other bits {where}: " + "; ".join(differ[:20])


@pytest.fixture(scope="module")
def installed_bits(tmp_path_factory):
    """What the installed library computes, on the best instruction set."""
    library = Path(gdm.get_include()).parent / "lib/libgdm.a"
    return bits_of(bits_program("cc", library, tmp_path_factory.mktemp("bits")), isa=gdm.available_isas()[0])


@pytest.mark.parametrize(("compiler", "cflags"), BUILDS)
def test_a_library_compiled_by_hand_has_the_same_bits(compiler, cflags, by_hand, installed_bits, tmp_path):
    """The documented lines: the library has the bits of the installed one, which test_kernels.py compares with the
    reference, on every instruction set; and the documented example runs."""
    folder = by_hand(compiler, cflags)
    assert "param" in subprocess.run([folder / "fit"], capture_output=True, text=True, check=True).stdout
    program = bits_program(compiler, folder / "libgdm.a", tmp_path)
    for isa in gdm.available_isas():
        assert_same_hashes(bits_of(program, isa=isa), installed_bits, f"with {compiler} {cflags} on {isa}")


CROSS, QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64"


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory):
    """tests/c/bits.c and the core for aarch64."""
    if not (shutil.which(CROSS) and shutil.which(QEMU)):
        pytest.skip(
            f"NOT TESTED: the same bits on aarch64; needs {CROSS} and {QEMU} "
            "(Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)"
        )
    folder = tmp_path_factory.mktemp("arm")
    command = [CROSS, "-std=c11", "-O3", *EXACT, *STRICT, "-pthread"]
    files = objects(command, folder)
    subprocess.run([*command, "-I", ROOT / "include", BITS, *files, "-static", "-o", folder / "bits"], check=True)
    return folder / "bits"


@pytest.fixture(scope="module")
def arm_bits(arm_program):
    """What it prints where no instruction set is asked for."""
    return printed(QEMU, arm_program)


def test_neon_is_chosen(arm_bits):
    assert arm_bits[0] == "neon"


def test_the_baseline_has_the_same_bits_on_aarch64(arm_program, arm_bits):
    assert_same_hashes(bits_of(QEMU, arm_program, isa="baseline"), arm_bits[1], "on the baseline of aarch64")


def test_this_machine_has_the_bits_of_aarch64(library, arm_bits, tmp_path):
    """On every instruction set."""
    here = tmp_path / "bits"
    flags = ["-std=c11", "-O2", *EXACT, *STRICT, "-I", ROOT / "include"]
    subprocess.run(["gcc", *flags, BITS, library._name, "-o", here], check=True)
    for isa in gdm.available_isas():
        assert_same_hashes(bits_of(here, isa=isa), arm_bits[1], f"on {isa}, other than on aarch64")
