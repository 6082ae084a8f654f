"""tools/mutants: what it changes and what it leaves alone, and that its list of survivors matches the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOL = ROOT / "tools/mutants"
sys.path.append(str(TOOL))

import c_code  # noqa: E402
import python_code  # noqa: E402
from mutant import mutants  # noqa: E402
from subjects import SUBJECTS, subjects  # noqa: E402


def new_lines(language, text: str, left_out: str = "") -> set[str]:
    return {mutant.new for mutant in mutants("file", text, language.changes(text), left_out)}


C = """/* a + b */
#define LIMIT 4
#define CLAMP(x) ((x) < LIMIT ? (x) : LIMIT)
_Static_assert(LIMIT < 5, "a < b");
static int f(const float *a, size_t n, int *out) {
    const char *text = "1 + 1";
    if (!a || !n) return GDM_ERR_NULL;
    for (size_t i = 0; i < n; i++) {
        if (i == 7) continue;
        out[i] = (int)a[i] * 2;
    }
    g(n, 0.5);
    return GDM_OK;
}
"""


def test_each_kind_of_change_is_made_in_c():
    assert {
        "#define LIMIT 5",
        "#define CLAMP(x) ((x) <= LIMIT ? (x) : LIMIT)",
        "if (!a && !n) return GDM_ERR_NULL;",
        "if (!(!a || !n)) return GDM_ERR_NULL;",
        "if (0) return GDM_ERR_NULL;",
        "if (!a || !n) return GDM_ERR_MEMORY;",
        "if (!a || !n) return GDM_OK;",
        "for (size_t i = 1; i < n; i++) {",
        "for (size_t i = 0; i <= n; i++) {",
        "if (i == 7) break;",
        "if (i != 7) continue;",
        "if (i == 8) continue;",
        "out[i] = (int)a[i] / 2;",
        "out[i] = a[i] * 2;",
        "(void)0;",
        "g(0.5, n);",
        "g(n, (2 * 0.5));",
        "return GDM_ERR_NULL;",
    } <= new_lines(c_code, C)


def test_comments_text_declarations_and_static_asserts_stay_in_c():
    for mutant in mutants("file", C, c_code.changes(C)):
        assert mutant.old not in ("/* a + b */", '_Static_assert(LIMIT < 5, "a < b");', 'const char *text = "1 + 1";')
        assert "float /" not in mutant.new
        assert "int /" not in mutant.new


def test_lines_can_be_left_out():
    assert "#define LIMIT 5" not in new_lines(c_code, C, r"#define LIMIT")
    assert "if (i == 7) break;" in new_lines(c_code, C, r"#define LIMIT")


PYTHON = '''
def f(a: int = 3, *rest) -> int:
    """Returns 1."""
    assert a > 2
    if a < 1 and not rest:
        raise ValueError(f"{a + 1} is 1")
    for x in rest:
        if x is None:
            continue
        a += x * 0.5
    g(a, rest)
    rest[0].done = True
    return a
'''


def test_each_kind_of_change_is_made_in_python():
    assert {
        "def f(a: int = 4, *rest) -> int:",
        "if a <= 1 and not rest:",
        "if a < 1 or not rest:",
        "if a < 1 and bool(rest):",
        "if not (a < 1 and not rest):",
        "if False:",
        "if x is not None:",
        "break",
        "pass",
        "a += x / 0.5",
        "a += x * 1.0",
        "g(rest, a)",
        "rest[0].done = False",
        "return None",
    } <= new_lines(python_code, PYTHON)


def test_messages_docstrings_annotations_and_asserts_stay_in_python():
    for mutant in mutants("file", PYTHON, python_code.changes(PYTHON)):
        assert "assert" not in mutant.old
        assert '"""' not in mutant.old
        assert "raise" not in mutant.old or mutant.new == "pass"


def test_a_removed_raise_is_one_change():
    found = [m for m in mutants("file", PYTHON, python_code.changes(PYTHON)) if "raise" in m.old]
    assert [m.new for m in found] == ["pass"]


def test_a_mutant_keeps_its_name_when_lines_move():
    names = [{m.id for m in mutants("file", text, c_code.changes(text))} for text in (C, "\n\n" + C)]
    assert names[0] == names[1]
    assert len(names[0]) == len(mutants("file", C, c_code.changes(C)))


@pytest.mark.parametrize("file", sorted(subjects()))
def test_every_change_of_a_file_is_one_change(file):
    """One in ten is looked at: it differs from the file in its own lines only, and in Python it is still a program."""
    text = (ROOT / file).read_text()
    language = python_code if file.endswith(".py") else c_code
    found = mutants(file, text, language.changes(text), subjects()[file].left_out)
    assert len({m.id for m in found}) == len(found)
    for mutant in found[::10]:
        changed = mutant.apply(text)
        assert changed != text
        assert changed[: mutant.change.start] == text[: mutant.change.start]
        assert changed.endswith(text[mutant.change.end :])
        if file.endswith(".py"):
            ast.parse(changed)


def test_the_tests_that_are_run_exist():
    for subject in SUBJECTS:
        for run in subject.tests:
            for argument in run:
                assert argument.startswith("-k ") or (ROOT / argument).is_file(), argument


def test_the_sample_covers_every_file_and_is_the_same_each_time():
    command = [sys.executable, TOOL, "--list"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == second
    for file in subjects():
        assert f"    {file}\n" in first


def test_the_explained_survivors_are_in_the_code():
    checked = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_an_explanation_of_a_mutant_that_is_not_there_is_an_error(tmp_path):
    """The tool in a copy of the tree, with an entry that no code matches."""
    for name in ("csrc", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    copy = tmp_path / "tools/mutants"
    copy.mkdir(parents=True)
    for path in TOOL.glob("*.py"):
        (copy / path.name).write_text(path.read_text())
    entry = '[[survivor]]\nfile = "csrc/plan.c"\nold = "x"\nnew = "y"\nwhy = ""\n'
    (copy / "survivors.toml").write_text(entry)
    checked = subprocess.run([sys.executable, copy, "--check"], capture_output=True, text=True)
    assert checked.returncode == 1
    assert "that the code does not have" in checked.stderr
