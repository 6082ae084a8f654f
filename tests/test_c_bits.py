"""The C core has the same bits under every compiler and on every machine: a hash of each case, by tests/c/bits.c."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import gdm
from byhand import BUILDS
from cbits import BITS, assert_same_hashes, bits_of, bits_program, printed
from clibrary import EXACT, EXHAUSTIVE, ROOT, STRICT, objects


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
def arm_programs(tmp_path_factory):
    """A folder with tests/c/bits.c and fp_mode.c, with the core, for aarch64."""
    if not EXHAUSTIVE:
        pytest.skip("takes a minute, in QEMU: GDM_EXHAUSTIVE=1")
    if not (shutil.which(CROSS) and shutil.which(QEMU)):
        pytest.skip(
            f"NOT TESTED: the same bits on aarch64; needs {CROSS} and {QEMU} "
            "(Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)"
        )
    folder = tmp_path_factory.mktemp("arm")
    command = [CROSS, "-std=c11", "-O3", *EXACT, *STRICT, "-pthread"]
    files = objects(command, folder)
    for program in (BITS, ROOT / "tests/c/fp_mode.c"):
        flags = ["-I", ROOT / "include", program, *files, "-static", "-lm", "-o", folder / program.stem]
        subprocess.run([*command, *flags], check=True)
    return folder


@pytest.fixture(scope="module")
def arm_bits(arm_programs):
    """What bits.c prints where no instruction set is asked for."""
    return printed(QEMU, arm_programs / "bits")


def test_neon_is_chosen(arm_bits):
    assert arm_bits[0] == "neon"


def test_the_baseline_has_the_same_bits_on_aarch64(arm_programs, arm_bits):
    found = bits_of(QEMU, arm_programs / "bits", isa="baseline")
    assert_same_hashes(found, arm_bits[1], "on the baseline of aarch64")


@pytest.mark.parametrize("isa", ["neon", "baseline"])
def test_the_mode_of_a_thread_changes_no_bits_on_aarch64(arm_programs, isa):
    """Three rounding modes, and flush-to-zero; test_c_fp_mode.py tests more of this on the machine itself."""
    command = [QEMU, "-E", f"GDM_ISA={isa}", arm_programs / "fp_mode"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr


def test_this_machine_has_the_bits_of_aarch64(library, arm_bits, tmp_path):
    """On every instruction set."""
    here = tmp_path / "bits"
    flags = ["-std=c11", "-O2", *EXACT, *STRICT, "-I", ROOT / "include"]
    subprocess.run(["gcc", *flags, BITS, library._name, "-o", here], check=True)
    for isa in gdm.available_isas():
        assert_same_hashes(bits_of(here, isa=isa), arm_bits[1], f"on {isa}, other than on aarch64")
