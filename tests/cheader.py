"""The installed gdm/gdm.h for tests that call the C functions through ctypes: its statuses, rules and structs."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import gdm

HEADER = Path(gdm.get_include(), "gdm/gdm.h").read_text()
STATUS = {int(number): name for name, number in re.findall(r"\bGDM_(OK|ERR_[A-Z0-9_]+) = (\d+),", HEADER)}
RULE = {name.lower(): int(number) for name, number in re.findall(r"\bGDM_RULE_([A-Z_]+) = (\d+),", HEADER)}


def args_struct(rule: str) -> type[ctypes.Structure]:
    """The rule's argument struct, as the header declares it."""
    kinds = {"size_t ": ctypes.c_size_t, "double ": ctypes.c_double, "int ": ctypes.c_int, "uint64_t ": ctypes.c_uint64}
    text = re.search(rf"typedef struct gdm_{rule}_args \{{(.*?)\}} gdm_{rule}_args;", HEADER, re.S)[1]
    fields = []
    for kind, name, count in re.findall(r"^    ([a-z0-9_ ]+[ *])([a-z0-9_]+)(?:\[(\d)\])?;", text, re.M):
        item = kinds.get(kind, ctypes.c_void_p)
        fields.append((name, item * int(count) if count else item))
    return type(f"{rule}_args", (ctypes.Structure,), {"_fields_": fields})


ARGS = {rule: args_struct(rule) for rule in RULE}


# What must be given, since 0 is not legal.
NEEDED = {"rprop": {"etas": (0.5, 1.2)}}


def args(rule: str, **options):
    return ARGS[rule](**{"size": ctypes.sizeof(ARGS[rule]), "lr": 0.1, **NEEDED.get(rule, {}), **options})


def parameters(function: str) -> list[str]:
    """The names of a function's parameters, as the header declares it."""
    text = re.search(rf"^gdm_status {function}\(([^)]*)\);", HEADER, re.M)[1]
    return [re.search(r"(\w+)\s*$", declaration)[1] for declaration in text.split(",")]


def update(library: ctypes.CDLL, rule: str, suffix: str, arrays: dict, options: dict) -> str:
    """Calls the rule's function as the Python one is called, with arrays and options by name. The status."""
    pointers = {name: ctypes.c_void_p(x.ctypes.data) for name, x in arrays.items()}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    if "form" in given:
        given["form"] = ("torch", "classic").index(given["form"])
    call = getattr(library, f"gdm_{rule}_{suffix}")
    positional = parameters(call.__name__)
    given |= {name: pointer for name, pointer in pointers.items() if name not in positional}
    known = {name for name, *_ in ARGS[rule]._fields_}
    assert given.keys() <= known, f"gdm_{rule}_args has no {given.keys() - known}"
    n = ctypes.c_size_t(arrays["param"].size)
    passed = {**pointers, "n": n, "args": ctypes.byref(args(rule, **given))}
    return STATUS[call(*(passed.get(name) for name in positional))]
