"""The installed gdm/gdm.h for tests that call the C functions through ctypes: its statuses, rules and structs."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import gdm

HEADER = Path(gdm.get_include(), "gdm/gdm.h").read_text()
STATUS = {int(number): name for name, number in re.findall(r"\bGDM_(OK|ERR_[A-Z_]+) = (\d+),", HEADER)}
RULE = {name.lower(): int(number) for name, number in re.findall(r"\bGDM_RULE_([A-Z]+) = (\d+),", HEADER)}


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


def args(rule: str, **options):
    return ARGS[rule](**{"size": ctypes.sizeof(ARGS[rule]), "lr": 0.1, **options})
