"""The amalgamation: two files that are the whole core, and give the same bits without any option of the compiler.

GDM_EVERY_BUILD=1 (`make test-amalgamation`) tests more compilers, machines and sanitizers, for some minutes more.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gdm
from amalgamation import INTERNALS_VISIBLE, WARNINGS, compiled, write
from byhand import COMPILERS
from cbits import assert_same_hashes, bits_of, bits_program, printed
from clibrary import EXHAUSTIVE
from test_disassembly import WIDEST, assert_vectorised
from test_embed import EMBED, STRICT, assert_fits, need, run

ROOT = Path(__file__).parent.parent
EVERY_BUILD = os.environ.get("GDM_EVERY_BUILD") == "1"
CROSS = "aarch64-linux-gnu-gcc"
NATIVE = ["-O2", "-march=native"]
# As many options as can change the bits of other programs.
BUILDS = {"clang": ["clang", *NATIVE]}
if EVERY_BUILD or EXHAUSTIVE or not shutil.which("clang"):
    BUILDS |= {"gcc": ["gcc", *NATIVE]}  # which takes three times as long
if EVERY_BUILD:
    BUILDS |= {
        "gcc-fast-contract": ["gcc", "-O3", "-std=gnu11", "-ffp-contract=fast", "-march=native"],
        "gcc-unoptimised": ["gcc"],
        "gcc-undefined": ["gcc", "-O2", "-fsanitize=undefined", "-fno-sanitize-recover=all"],
        "clang-undefined": ["clang", "-O2", "-fsanitize=undefined", "-fno-sanitize-recover=all"],
        "musl": ["musl-gcc", "-O2", "-march=native", "-static"],
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("amalgamation"))


# ---- the files --------------------------------------------------------------------------------------------------


def test_they_are_the_same_each_time(files, tmp_path):
    names = {file.name for file in files.iterdir()}
    assert names == {"gdm.c", "gdm.h", f"gdm-amalgamation-{gdm.__version__}.zip"}
    for name in names:
        assert (write(tmp_path) / name).read_bytes() == (files / name).read_bytes()
    assert (files / "gdm.h").read_bytes() == (ROOT / "include/gdm/gdm.h").read_bytes()


def test_the_archive_has_them(files):
    folder = f"gdm-amalgamation-{gdm.__version__}"
    with zipfile.ZipFile(files / f"{folder}.zip") as archive:
        assert archive.testzip() is None
        found = {name: archive.read(name) for name in archive.namelist()}
    assert found == {f"{folder}/{name}": (files / name).read_bytes() for name in ("gdm.c", "gdm.h")}


def test_help_writes_nothing(tmp_path):
    script = ROOT / "tools/amalgamate.py"
    done = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "the folder for the files" in done.stdout
    wrong = subprocess.run([sys.executable, script, "--out", "x"], cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_each_source_is_in_it_once(files):
    text = (files / "gdm.c").read_text()
    sections = re.findall(r"^/\* ==== (\S+) =+ \*/$", text, re.M)
    csrc = ROOT / "csrc"
    assert sorted(sections) == sorted(str(f.relative_to(csrc)) for f in csrc.rglob("*") if f.is_file())
    assert set(re.findall(r'^#include "(.*)"', text, re.M)) == {"gdm.c", "gdm.h"}
    assert f"gdm {gdm.__version__}:" in text.splitlines()[0]
    assert "BSD 3-Clause License" in text
    assert "\n#line" not in text


# ---- what compilers say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("standard", ["c11", "gnu17"])
@pytest.mark.parametrize("compiler", [*COMPILERS, CROSS, "musl-gcc", "x86_64-w64-mingw32-gcc"])
def test_no_compiler_warns(files, compiler, standard):
    need(compiler)
    run(compiler, "-fsyntax-only", f"-std={standard}", "-D_GNU_SOURCE=1", *WARNINGS, files / "gdm.c")


def test_clang_for_windows_does_not_warn(files):
    """With the headers of MinGW."""
    need("clang", "x86_64-w64-mingw32-gcc")
    run("clang", "--target=x86_64-w64-windows-gnu", "-fsyntax-only", *WARNINGS, files / "gdm.c")


@pytest.mark.parametrize(
    ("compiler", "flag"),
    [
        *((compiler, flag) for compiler in COMPILERS for flag in ("-ffast-math", "-Ofast", "-ffinite-math-only")),
        ("gcc", "-funsafe-math-optimizations"),
        ("gcc", "-freciprocal-math"),
    ],
)
def test_inexact_arithmetic_is_refused(files, compiler, flag):
    need(compiler)
    done = subprocess.run([compiler, "-fsyntax-only", flag, files / "gdm.c"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "compile it without -ffast-math" in done.stderr


# ---- as a user compiles it --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Compiled with -O2 and nothing else; by Clang if it is here, since GCC takes twice as long."""
    compiler = "clang" if shutil.which("clang") else "cc"
    return compiled(tmp_path_factory, "plain", [compiler, "-O2"])


@pytest.fixture
def flags(plain):
    return [f"-I{plain}", plain / "libgdm.a", "-lm", "-pthread"]


def test_only_public_functions_are_visible(plain):
    need("nm")
    names = set(re.findall(r"^\S+ [A-Z] (\S+)$", run("nm", "--extern-only", "--defined-only", plain / "gdm.o"), re.M))
    header = re.sub(r"/\*.*?\*/", "", (plain / "gdm.h").read_text(), flags=re.S)
    assert names == set(re.findall(r"^(?!typedef)\w[\w *]*?\b(gdm_\w+)\(", header, re.M))
    assert "gdm_momentum_f32" in names


def test_c(flags, tmp_path):
    need("cc")
    run("cc", EMBED / "c/fit.c", *STRICT, *flags, "-o", tmp_path / "fit")
    assert_fits(run(tmp_path / "fit"))


def test_a_plan_in_c(flags, tmp_path):
    need("cc")
    run("cc", EMBED / "c/plan.c", *STRICT, *flags, "-o", tmp_path / "plan")
    assert_fits(run(tmp_path / "plan"))


def test_cpp(flags, tmp_path):
    need("c++")
    run("c++", EMBED / "cpp/fit.cpp", "-std=c++20", *STRICT, *flags, "-o", tmp_path / "fit")
    *output, _ = run(tmp_path / "fit").splitlines()
    assert_fits("\n".join(output), 1 << 20, 20)


def test_fortran(plain, flags, tmp_path):
    need("gfortran")
    run("gfortran", EMBED / "fortran/fit.f90", "-O2", *flags[1:], "-J", tmp_path, "-o", tmp_path / "fit")
    assert_fits(run(tmp_path / "fit"))


def test_rust(plain, tmp_path):
    need("rustc")
    run("rustc", EMBED / "rust/fit.rs", "--edition=2021", "-O", "-L", f"native={plain}", "-o", tmp_path / "fit")
    assert_fits(run(tmp_path / "fit"))


# ---- the bits, whatever the compiler's options ------------------------------------------------------------------


@pytest.fixture(scope="module", params=BUILDS)
def build(request, tmp_path_factory):
    """A library with its internal functions visible, and the command that made it."""
    command = BUILDS[request.param]
    return compiled(tmp_path_factory, request.param, [*command, *INTERNALS_VISIBLE]) / "libgdm.a", command


@pytest.fixture(scope="module")
def installed_bits(tmp_path_factory):
    """Those of the installed library, which test_kernels.py compares with the reference."""
    library = Path(gdm.get_include()).parent / "lib/libgdm.a"
    return bits_of(bits_program("cc", library, tmp_path_factory.mktemp("bits")), isa=gdm.available_isas()[0])


def test_the_same_bits(build, installed_bits, tmp_path):
    """On every instruction set, though nobody forbade fused multiply-add."""
    library, command = build
    program = bits_program(command[0], library, tmp_path, *command[1:])
    for isa in gdm.available_isas():
        assert_same_hashes(bits_of(program, isa=isa), installed_bits, f"with {' '.join(command)} on {isa}")


@pytest.mark.parametrize("name", ["plan", "stress"])
def test_the_programs_of_the_core(build, name, tmp_path):
    library, command = build
    source = ROOT / f"tests/c/{name}.c"
    run(*command, "-std=gnu11", "-I", ROOT / "include", source, library, "-lm", "-pthread", "-o", tmp_path / name)
    run(tmp_path / name, GDM_NUM_THREADS="4")


@pytest.mark.parametrize("isa", WIDEST)
def test_every_kernel_is_vectorised(build, isa):
    """Though nobody asked for -O3, -fno-math-errno or -fno-trapping-math."""
    library, command = build
    if platform.machine() != "x86_64" or "-fsanitize=undefined" in command:
        pytest.skip("sanitizers check every operation" if "-fsanitize=undefined" in command else "needs an x86-64")
    need("objdump")
    # Clang adds what this machine has to the target of a function.
    register = "%[yz]mm" if command == BUILDS.get("clang") else WIDEST[isa]
    assert_vectorised(library.parent / "gdm.o", isa, register)


@pytest.mark.skipif(not EVERY_BUILD, reason="takes a minute: GDM_EVERY_BUILD=1")
def test_the_same_bits_on_aarch64(installed_bits, tmp_path, tmp_path_factory):
    need(CROSS, "qemu-aarch64")
    command = [CROSS, "-O2", "-static"]
    library = compiled(tmp_path_factory, "aarch64", [*command, *INTERNALS_VISIBLE]) / "libgdm.a"
    isa, hashes = printed("qemu-aarch64", bits_program(command[0], library, tmp_path, *command[1:]))
    assert isa == "neon"
    assert_same_hashes(hashes, installed_bits, "on aarch64")
