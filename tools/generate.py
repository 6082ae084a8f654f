#!/usr/bin/env python3
"""Writes what the repository holds that follows from the table of rules, csrc/rules.def.

That is: the rules' sections of include/gdm/gdm.h, which begin with the opening comments of csrc/rules/*.inc; the lists
of functions in include/gdm/import.h and csrc/functions.inc; and src/gdm/__init__.pxd. Only the text between a pair of
marks, ">>> name" and "<<< name", is rewritten.

    tools/generate.py           write the files that are stale
    tools/generate.py --check   write nothing; name the files that are stale, and fail if there are any
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 120
# For each kind of option its declaration in an argument struct. A scalar is a number that a rule keeps.
DECLARATIONS = {
    "not_negative": "double {}",
    "below_one": "double {}",
    "up_to_one": "double {}",
    "betas": "double {}[2]",
    "three_betas": "double {}[3]",
    "etas": "double {}[2]",
    "step_sizes": "double {}[2]",
    "flag": "int {}",
    "form": "int {}",
    "count": "uint64_t {}",
    "factors": "const void *{}",
    "scalar": "double *{}",
    "phase": "int {}",
}


class Field(NamedTuple):
    """An option or a scalar: a field of an argument struct."""

    kind: str
    status: int  # of a call with a value that is not legal; 0 if every value is
    must: str
    meaning: str


class Rule(NamedTuple):
    name: str
    states: list[str]
    defaults: dict[str, str]  # of the options and scalars, in order, as C text
    rows: dict[str, str]  # the row of each


class Function(NamedTuple):
    """A prototype in gdm.h."""

    result: str
    name: str  # without gdm_
    parameters: str


# ---- the table -------------------------------------------------------------------------------------------------------


def read_table(text: str) -> tuple[dict[str, Field], list[Rule]]:
    """The fields and the rules that csrc/rules.def declares."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"\s*\\\n\s*", " ", text)
    strings = r'"([^"]*)",\s*"([^"]*)"\)'
    fields = {
        name: Field(kind, int(status), must, meaning)
        for name, kind, status, must, meaning in re.findall(rf"\bGDM_OPTION\((\w+), (\w+), (\d+), {strings}", text)
    }
    for name, status, must, meaning in re.findall(rf"\bGDM_SCALAR\((\w+), [^,]+, \w+, (\d+), {strings}", text):
        fields[name] = Field("scalar", int(status), must, meaning)
    rules = []
    for name in re.findall(r"^GDM_RULE\((\w+),", text, re.M):
        lists = {
            kind: re.search(rf"#define GDM_{kind}_{name}\(.*?\)(.*)", text)[1]
            for kind in ("STATES", "OPTIONS", "SCALARS")
        }
        several = r"(?:PAIR|TRIPLE)\((.*?)\)"
        options = re.findall(rf"\bOPTION\(R, (\w+), ({several}|[^(),]*)(?:, (\w+))?\)", lists["OPTIONS"])
        scalars = re.findall(r"\bSCALAR\(R, (\w+)\)", lists["SCALARS"])
        defaults = {option: f"{{{numbers}}}" if numbers else default for option, default, numbers, _ in options}
        rows = {option: row or option for option, _, _, row in options}
        rules.append(
            Rule(
                name,
                re.findall(r"\((\w+)", lists["STATES"]),
                defaults | dict.fromkeys(scalars, "NULL"),
                rows | dict(zip(scalars, scalars, strict=True)),
            )
        )
    return fields, rules


# ---- gdm.h -----------------------------------------------------------------------------------------------------------


def commented(rows: list[tuple[str, str]]) -> str:
    """Lines of C with a comment each, all in one column, as clang-format has it."""
    column = max(len(code) for code, _ in rows)
    lines = [f"    {code:{column}} /* {comment} */\n" for code, comment in rows]
    for line in lines:
        if len(line) > WIDTH + 1:
            sys.exit(f"csrc/rules.def: this line of gdm.h would be too long, say it in fewer words:\n{line}")
    return "".join(lines)


def prototype(head: str, parameters: list[str]) -> str:
    """A declaration, broken where clang-format breaks it."""
    lines = [head]
    for k, parameter in enumerate(parameters):
        text = parameter + (");" if k == len(parameters) - 1 else ",")
        if k and len(lines[-1]) + 1 + len(text) > WIDTH:
            lines.append(" " * len(head) + text)
        else:
            lines[-1] += text if lines[-1].endswith("(") else " " + text
    return "\n".join(lines) + "\n"


def macro(name: str, value: str) -> str:
    """A definition, broken where clang-format breaks it."""
    line = f"#define {name} {value}\n\n"
    return line if len(line) <= WIDTH + 2 else f"#define {name}".ljust(WIDTH - 1) + f"\\\n    {value}\n\n"


def section(rule: Rule, fields: dict[str, Field]) -> str:
    """What gdm.h says of a rule: formula, argument struct, its defaults, and the functions."""
    source = (ROOT / f"csrc/rules/{rule.name}.inc").read_text()
    title, comment = re.match(r"/\* (.*?)\n(.*?) \*/\n", source, re.S).groups()
    struct = f"gdm_{rule.name}_args"
    rows = [("size_t size;", f"sizeof({struct})")]
    for name, row in rule.rows.items():
        rows.append((DECLARATIONS[fields[row].kind].format(name) + ";", fields[row].meaning))
    text = f"/* ---- {title} ".ljust(WIDTH - 1, "-") + f"\n{comment} */\n"
    text += f"typedef struct {struct} {{\n{commented(rows)}}} {struct};\n\n"
    text += macro(
        f"GDM_{rule.name.upper()}_DEFAULTS", f"{{{', '.join([f'sizeof({struct})', *rule.defaults.values()])}}}"
    )
    for suffix, type in (("f32", "float"), ("f64", "double")):
        buffers = [f"{type} *{name}" for name in ("param", *rule.states)]
        parameters = [*buffers, f"const {type} *grad", "size_t n", f"const {struct} *args"]
        text += prototype(f"gdm_status gdm_{rule.name}_{suffix}(", parameters)
    return text


def statuses(fields: dict[str, Field]) -> str:
    legal = sorted((field.status, name, field.must) for name, field in fields.items() if field.status)
    return commented([(f"GDM_ERR_{name.upper()} = {status},", f"{name} {must}") for status, name, must in legal])


# ---- what follows from gdm.h -----------------------------------------------------------------------------------------


def without_comments(header: str) -> str:
    """The header's C on one line."""
    return re.sub(r"\s+", " ", re.sub(r"/\*.*?\*/", "", header, flags=re.S))


def functions(code: str) -> list[Function]:
    """All functions but gdm_get_table, which gives the table of the others."""
    types = r"(?<!typedef )\b(const char \*|gdm_status |unsigned |int |void )"
    return [Function(*found) for found in re.findall(types + r"gdm_(\w+)\(([^()]*)\);", code)]


def before_import(function: Function) -> str:
    """Which function of import.h stands for this one until gdm_import() has been called."""
    return "status" if function.result == "gdm_status " else "pointer" if "*" in function.result else "number"


def cython(code: str) -> str:
    """The declarations for Cython: the names without their prefix."""

    def plain(text: str) -> str:
        return text.replace("gdm_", "").replace("*const *", "**")

    lines = ['cdef extern from "gdm/import.h" nogil:']
    for name, items in re.findall(r"typedef enum gdm_(\w+) \{(.*?)\}", code):
        lines += [f'    ctypedef enum {name} "gdm_{name}":']
        lines += [f'        {item} "GDM_{item}"' for item in re.findall(r"\bGDM_(\w+) =", items)] + [""]
    for name, items in re.findall(r"typedef struct gdm_(\w+) \{ (.*?); \}", code):
        if name in ("function", "table"):
            continue  # of gdm_get_table
        lines += [f'    ctypedef struct {name} "gdm_{name}":']
        lines += [f"        {plain(item)}" for item in items.split("; ")] + [""]
    for name in re.findall(r"typedef struct gdm_(\w+) gdm_\1;", code):
        lines += [f'    ctypedef struct {name} "gdm_{name}":', "        pass", ""]
    for name, parameters in re.findall(r"typedef void gdm_(\w+)\((.*?)\);", code):
        lines += [f'    ctypedef void {name} "gdm_{name}"({plain(parameters)}) noexcept']
    lines += [""]
    for result, name, parameters in functions(code):
        given = "" if parameters == "void" else plain(parameters)
        lines += [f'    {plain(result)}{name} "gdm_{name}"({given}) noexcept']
    return "\n".join(lines) + "\n"


# ---- the files -------------------------------------------------------------------------------------------------------


def replaced(path: str, text: str, parts: dict[str, str]) -> str:
    """The file's text, with each part between its marks."""
    for name, part in parts.items():
        marks = rf"([^\n]*>>> {name}: .*?\n).*?([^\n]*<<< {name}\b)"
        text, count = re.subn(marks, lambda found, part=part: found[1] + part + found[2], text, flags=re.S)
        if count != 1:
            sys.exit(f"{path}: there is not one pair of marks '>>> {name}: ' and '<<< {name}'")
    return text


def generated() -> dict[str, str]:
    """What the files must hold, by path."""
    paths = ("include/gdm/gdm.h", "include/gdm/import.h", "csrc/functions.inc", "src/gdm/__init__.pxd")
    files = {path: (ROOT / path).read_text() for path in paths}
    fields, rules = read_table((ROOT / "csrc/rules.def").read_text())
    version = re.search(r'^__version__ = "(.*)"', (ROOT / "src/gdm/__init__.py").read_text(), re.M)[1]
    files["include/gdm/gdm.h"] = replaced(
        "include/gdm/gdm.h",
        files["include/gdm/gdm.h"],
        {
            "version": f'#define GDM_VERSION "{version}"\n',
            "statuses": statuses(fields),
            "rules": "\n".join(section(rule, fields) for rule in rules),
            "rule numbers": "".join(f"    GDM_RULE_{rule.name.upper()} = {k},\n" for k, rule in enumerate(rules)),
        },
    )
    code = without_comments(files["include/gdm/gdm.h"])
    names = functions(code)
    entries = [f"X({function.name}, {before_import(function)})" for function in names]
    lines = [
        line.ljust(WIDTH - 1) + "\\\n"
        for line in ("#define GDM_IMPORTED_FUNCTIONS(X)", *(f"    {e}" for e in entries[:-1]))
    ]
    lists = {
        "functions": "".join(lines) + f"    {entries[-1]}\n",
        "macros": "".join(f"#define gdm_{function.name} gdm_imported.{function.name}\n" for function in names),
        "table": "".join(
            f'GDM_FUNCTION(gdm_{name}, "{result}gdm_{name}({parameters})")\n' for result, name, parameters in names
        ),
        "declarations": cython(code),
    }
    for path, parts in {
        "include/gdm/import.h": ("functions", "macros"),
        "csrc/functions.inc": ("table",),
        "src/gdm/__init__.pxd": ("declarations",),
    }.items():
        files[path] = replaced(path, files[path], {name: lists[name] for name in parts})
    return files


def main() -> None:
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    stale = {path: text for path, text in generated().items() if (ROOT / path).read_text() != text}
    if check and stale:
        sys.exit(f"stale: {', '.join(stale)}. Run make generate (or python tools/generate.py).")
    for path, text in stale.items():
        (ROOT / path).write_text(text)
        print(f"{path} written")


if __name__ == "__main__":
    main()
