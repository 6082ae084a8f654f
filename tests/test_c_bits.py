"""The C core has the same bits under every compiler and on every machine: a hash of each case, by tests/c/bits.c."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import byhand
import gdm
from clibrary import EXACT, ROOT, SOURCES, STRICT
from support import DTYPES, RULES

BITS = ROOT / "tests/c/bits.c"
NATIVE = "-march=native"


def bits_program(compiler, library, folder):
    """tests/c/bits.c with this static library."""
    flags = ["-std=c11", "-O2", *EXACT, *STRICT, "-I", ROOT / "include", "-pthread"]
    subprocess.run([compiler, *flags, BITS, library, "-lm", "-o", folder / "bits"], check=True)
    return folder / "bits"


def bits_of(*command, isa: str) -> dict[str, str]:
    """What tests/c/bits.c prints, on this instruction set: a hash of the results, for each rule, dtype and options."""
    done = subprocess.run(
        command, env={**os.environ, "GDM_ISA": isa}, capture_output=True, text=True, timeout=300, check=True
    )
    found, *lines = done.stdout.splitlines()
    assert found == isa
    hashes = dict(line.rsplit(maxsplit=1) for line in lines)
    assert len(hashes) == len(lines) > 1000
    assert {tuple(case.split()[:2]) for case in hashes} == set(itertools.product(RULES, DTYPES))
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


@pytest.mark.parametrize(
    ("compiler", "cflags"), [*((name, "") for name in byhand.COMPILERS), ("gcc", NATIVE), ("clang", NATIVE)]
)
def test_a_library_compiled_by_hand_has_the_same_bits(compiler, cflags, installed_bits, tmp_path):
    """The documented lines: the library has the bits of the installed one, which test_kernels.py compares with the
    reference, on every instruction set; and the documented example runs."""
    folder = byhand.build(compiler, tmp_path, cflags=cflags)
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
    program = tmp_path_factory.mktemp("arm") / "bits"
    flags = ["-std=c11", "-O3", *EXACT, *STRICT, "-I", ROOT / "include", "-static", "-pthread"]
    subprocess.run([CROSS, *flags, *SOURCES, BITS, "-o", program], check=True)
    return program


@pytest.fixture(scope="module")
def neon_bits(arm_program):
    return bits_of(QEMU, arm_program, isa="neon")


def test_the_baseline_has_the_same_bits_on_aarch64(arm_program, neon_bits):
    assert_same_hashes(bits_of(QEMU, arm_program, isa="baseline"), neon_bits, "on the baseline of aarch64")


def test_this_machine_has_the_bits_of_aarch64(library, neon_bits, tmp_path):
    """On every instruction set."""
    here = tmp_path / "bits"
    flags = ["-std=c11", "-O2", *EXACT, *STRICT, "-I", ROOT / "include"]
    subprocess.run(["gcc", *flags, BITS, library._name, "-o", here], check=True)
    for isa in gdm.available_isas():
        assert_same_hashes(bits_of(here, isa=isa), neon_bits, f"on {isa}, other than on aarch64")


def test_neon_is_chosen(arm_program):
    done = subprocess.run([QEMU, arm_program], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.stdout.split()[0] == "neon"
