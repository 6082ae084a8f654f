"""What the compiler made of the kernels: every loop works on whole vectors of its instruction set."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import gdm
from byhand import COMPILERS, NATIVE
from support import RULES

ROOT = Path(__file__).parent.parent
WIDEST = {"avx2": "%ymm", "avx512": "%zmm"}
KERNEL = re.compile(r"^[0-9a-f]+ <((\w+?)_(f32|f64)_\d+_[a-z0-9]+)>:\n(.*?)(?=^[0-9a-f]+ <|\Z)", re.M | re.S)
LINE = re.compile(r"^ +([0-9a-f]+):\t(\S+) *(.*)$", re.M)


def loops(code: str) -> list[str]:
    """The bodies of a function's loops: from where a jump leads back to, up to the jump."""
    lines = [(int(address, 16), f"{name} {operands}") for address, name, operands in LINE.findall(code)]
    found = []
    for address, text in lines:
        jump = re.match(r"j\w+ ([0-9a-f]+) ", text)
        if jump and int(jump[1], 16) < address:
            found.append("\n".join(t for a, t in lines if int(jump[1], 16) <= a <= address))
    return found


@pytest.fixture(scope="module", params=["installed", *COMPILERS])
def objects(request, by_hand, tmp_path_factory):
    """The object files of the installed library; and of one compiled by hand, with each compiler."""
    if platform.machine() != "x86_64" or not (shutil.which("ar") and shutil.which("objdump")):
        pytest.skip("NOT TESTED: whether the kernels are vectorised; needs an x86-64, ar and objdump")
    folder = tmp_path_factory.mktemp("objects")
    library = Path(gdm.get_include()).parent / "lib/libgdm.a"
    if request.param != "installed":
        library = by_hand(request.param) / "libgdm.a"
    subprocess.run(["ar", "x", library], cwd=folder, check=True)
    return {file.name.split(".")[0]: file for file in folder.iterdir()}


def assert_vectorised(file: Path, isa: str, register: str) -> None:
    """Each kernel of this instruction set in an object file has a loop of arithmetic in these registers without any on
    single elements; roots and quotients, where the rule has them, are in that loop too. (What is left at the end may be
    done one by one.)"""
    command = ["objdump", "-d", "--no-show-raw-insn", file]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernels = [
        (name, rule, body) for name, rule, _, body in KERNEL.findall(code) if rule in RULES and name.endswith(f"_{isa}")
    ]
    switches = {
        rule: int(n)
        for rule, n in re.findall(r"^GDM_RULE\((\w+), \d, (\d)\)", (ROOT / "csrc/rules.def").read_text(), re.M)
    }
    assert len(kernels) == sum(2 * 2 ** (1 + n) for n in switches.values())
    assert switches.keys() == RULES.keys()
    names = {name for name, _, _ in kernels}
    for name, rule, body in kernels:
        loop = (ROOT / f"csrc/rules/{rule}.inc").read_text().split("BODY(")[1]
        needed = {"mul", *(name for name, sign in (("sqrt", "SQRT("), ("div", " / ")) if sign in loop)}
        same = re.match(r"[^\n]*\tjmp +[0-9a-f]+ <(\w+)>", body)  # GCC found it to be another one's code
        if same and same[1] in names - {name}:
            continue
        whole = [
            loop
            for loop in loops(body)
            if not re.search(r"^v(add|sub|mul|div|sqrt)s[sd] ", loop, re.M)
            and needed <= set(re.findall(rf"^v(add|sub|mul|div|sqrt)p[sd] .*{register}", loop, re.M))
        ]
        assert whole, f"{name} has no loop over whole vectors"


@pytest.mark.parametrize("isa", WIDEST)
def test_every_kernel_is_vectorised(objects, isa):
    assert_vectorised(objects[isa], isa, WIDEST[isa])


def test_no_kernel_is_made_for_the_machine_that_compiles(by_hand):
    """GCC forgets -march=native where the source sets the target. (Clang does not: CMakeLists.txt names the target.)"""
    if platform.machine() != "x86_64" or not shutil.which("objdump"):
        pytest.skip("NOT TESTED: a target in the source against -march=native; needs an x86-64 and objdump")
    folder = by_hand("gcc", NATIVE)
    for isa, wider in (("baseline", r"%[yz]mm|\tv"), ("avx2", "%zmm")):
        code = subprocess.run(["objdump", "-d", folder / f"{isa}.o"], capture_output=True, text=True, check=True).stdout
        assert "%xmm" in code
        assert not re.search(wider, code)
