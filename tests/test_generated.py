"""What tools/generate.py writes into the repository: fresh, complete, and the defaults those of the reference."""

from __future__ import annotations

import ast
import ctypes
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gdm
from cheader import ARGS
from support import RULES

ROOT = Path(__file__).parent.parent
HEADER = (ROOT / "include/gdm/gdm.h").read_text()
WRITTEN = ("include/gdm/gdm.h", "include/gdm/import.h", "csrc/functions.inc", "src/gdm/__init__.pxd")
# Options without a default in Python: that of torch.optim.SGD, and what says that the option has not been given.
REQUIRED = {"lr": 0.001, "step": 0, "mu_product": None, "eta": None, "mu": None}


def generate(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, root / "tools/generate.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_nothing_is_stale():
    checked = generate(ROOT, "--check")
    assert checked.returncode == 0, checked.stderr


@pytest.fixture
def tree(tmp_path):
    """A copy of what the generator reads and writes."""
    for file in [*WRITTEN, "src/gdm/__init__.py", "csrc/rules.def", "tools/generate.py"]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    shutil.copytree(ROOT / "csrc/rules", tmp_path / "csrc/rules")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "old", "new", "stale"),
    [
        ("csrc/rules.def", "OPTION(R, alpha, 0.99)", "OPTION(R, alpha, 0.5)", ["include/gdm/gdm.h"]),
        ("csrc/rules.def", "GDM_RULE(lion, 1, 0)", "", WRITTEN),
        ("csrc/rules.def", ", 25, ", ", 33, ", ["include/gdm/gdm.h", "src/gdm/__init__.pxd"]),
        ("csrc/rules/adam.inc", "/* Adam;", "/* Adam,", ["include/gdm/gdm.h"]),
        ("src/gdm/__init__.py", '__version__ = "', '__version__ = "9.', ["include/gdm/gdm.h"]),
        ("include/gdm/gdm.h", "unsigned gdm_abi(void);", "", WRITTEN[1:]),
        ("include/gdm/import.h", "X(adam_f32, status)", "X(adam_f32, number)", ["include/gdm/import.h"]),
        ("csrc/functions.inc", "gdm_sgd_f32, ", "gdm_sgd_f64, ", ["csrc/functions.inc"]),
        ("src/gdm/__init__.pxd", "double lr\n", "float lr\n", ["src/gdm/__init__.pxd"]),
    ],
)
def test_what_is_stale_is_found_and_mended(tree, source, old, new, stale):
    text = (tree / source).read_text()
    assert old in text
    (tree / source).write_text(text.replace(old, new, 1))
    checked = generate(tree, "--check")
    assert checked.returncode == 1
    assert checked.stderr == f"stale: {', '.join(stale)}. Run make generate (or python tools/generate.py).\n"
    assert generate(tree).returncode == 0
    assert generate(tree, "--check").returncode == 0


def test_a_comment_that_is_too_long_is_refused(tree):
    table = tree / "csrc/rules.def"
    table.write_text(table.read_text().replace('"the learning rate, >= 0"', f'"{"the learning rate " * 6}"'))
    assert "too long" in generate(tree).stderr


def test_all_rules_are_there():
    for rule, table in RULES.items():
        section = re.search(rf"typedef struct gdm_{rule}_args \{{(.*?)\}} gdm_{rule}_args;", HEADER, re.S)[1]
        fields = re.findall(r"^    [^/;]*?(\w+)(?:\[\d\])?;", section, re.M)
        assert fields == ["size", *table["options"], *table["scalars"]]
        for suffix in ("f32", "f64"):
            assert f"gdm_status gdm_{rule}_{suffix}(" in HEADER
            assert f"X({rule}_{suffix}, status)" in (ROOT / "include/gdm/import.h").read_text()


# ---- the defaults ----------------------------------------------------------------------------------------------------

PRINTER = "\n".join(
    [
        "#include <gdm/gdm.h>\n#include <stdio.h>",
        "static void bytes(const void *p, size_t n) {",
        '    for (size_t i = 0; i < n; i++) printf("%02x", ((const unsigned char *)p)[i]);',
        '    printf("\\n");',
        "}",
        "int main(void) {",
        *(
            f"    gdm_{rule}_args {rule} = GDM_{rule.upper()}_DEFAULTS;\n    bytes(&{rule}, sizeof {rule});"
            for rule in RULES
        ),
        "    return 0;",
        "}\n",
    ]
)


@pytest.mark.parametrize(
    ("compiler", "standard"), [("gcc", "c11"), ("clang", "c11"), ("g++", "c++17"), ("clang++", "c++17")]
)
def test_defaults_of_the_header_are_those_of_python(compiler, standard, tmp_path):
    """The GDM_<RULE>_DEFAULTS, with every compiler and without a warning, are those of the functions in Python."""
    if not shutil.which(compiler):
        pytest.skip(f"NOT TESTED: the defaults under {compiler}, which is not here")
    source = tmp_path / ("print.c" if standard == "c11" else "print.cpp")
    source.write_text(PRINTER)
    flags = [f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", f"-I{ROOT / 'include'}"]
    subprocess.run([compiler, *flags, source, "-o", tmp_path / "print"], check=True)
    printed = subprocess.run([tmp_path / "print"], capture_output=True, text=True, check=True).stdout.split()
    for (rule, table), line in zip(RULES.items(), printed, strict=True):
        args = ARGS[rule].from_buffer_copy(bytes.fromhex(line))
        assert args.size == ctypes.sizeof(args)
        parameters = inspect.signature(getattr(gdm.reference, rule)).parameters
        for option, kind in table["options"].items():
            wanted = parameters[option].default
            if wanted is inspect.Parameter.empty:
                wanted = REQUIRED[option]
            if kind == "form":
                wanted = ["torch", "classic"].index(wanted)
            found = getattr(args, option)
            assert (tuple(found) if isinstance(wanted, tuple) else found) == wanted, f"{rule}: {option}"


@pytest.mark.parametrize("rule", RULES)
def test_defaults_are_written_as_python_writes_them(rule):
    """A reader of the header finds as many values as fields, with the numbers as Python has them."""
    text = re.search(rf"#define GDM_{rule.upper()}_DEFAULTS(?: +\\\n   )? \{{(.*)\}}", HEADER)[1]
    values = re.findall(r"\{.*?\}|[^,{} ][^,]*", text)
    assert values[0] == f"sizeof(gdm_{rule}_args)"
    assert len(values) == 1 + len(RULES[rule]["options"]) + len(RULES[rule]["scalars"])
    parameters = inspect.signature(getattr(gdm.reference, rule)).parameters
    for option, value in zip(RULES[rule]["options"], values[1:], strict=False):
        if isinstance(parameters[option].default, float):
            assert ast.literal_eval(value) == parameters[option].default
