"""Hashes of the results of all cases, which tests/c/bits.c prints: the same under every compiler, on every machine."""

from __future__ import annotations

import itertools
import os
import re
import subprocess

from clibrary import EXACT, ROOT, STRICT
from support import DTYPES, RULES

BITS = ROOT / "tests/c/bits.c"

# The fields of `struct isa` that are tables of stages.
STAGES = set(re.findall(r"^    stage_\w+ \*(\w+)", (ROOT / "csrc/core.h").read_text(), re.M))
STAGES = {f"{name}{kind}" for name in STAGES for kind in (("_plain", "_square") if "int8" in name else ("",))}


def bits_program(compiler, library, folder, *options):
    """tests/c/bits.c with this static library."""
    flags = ["-std=c11", "-O2", *EXACT, *STRICT, "-I", ROOT / "include", "-pthread"]
    subprocess.run([compiler, *options, *flags, BITS, library, "-lm", "-o", folder / "bits"], check=True)
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
