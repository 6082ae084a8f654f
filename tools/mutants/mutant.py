"""A mutant: a small change of one file."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple


class Change(NamedTuple):
    """Characters of a file, from start to end - 1, and what is put in their place."""

    start: int
    end: int
    new: str
    kind: str


class Mutant(NamedTuple):
    """A change, and the lines that show it. They and the file name it, so that it keeps its name when lines move."""

    file: str
    kind: str
    line: int
    old: str  # the changed lines, each run of white space a blank
    new: str
    number: int  # among the mutants of the file with the same lines
    change: Change

    @property
    def id(self) -> str:
        text = "\0".join((self.file, self.old, self.new, str(self.number)))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def apply(self, text: str) -> str:
        return text[: self.change.start] + self.change.new + text[self.change.end :]


def mutants(file: str, text: str, changes: list[Change], left_out: str = "") -> list[Mutant]:
    """The mutants that these changes make, in the order of their places. Lines that match `left_out` stay."""
    found: list[Mutant] = []
    seen: dict[tuple[str, str], int] = {}
    for change in sorted(set(changes)):
        begin = text.rfind("\n", 0, change.start) + 1
        end = text.find("\n", change.end)
        end = len(text) if end < 0 else end
        old = " ".join(text[begin:end].split())
        new = " ".join((text[begin : change.start] + change.new + text[change.end : end]).split())
        if old == new or (left_out and re.search(left_out, old)):
            continue
        number = seen.get((old, new), 0)
        seen[old, new] = number + 1
        line = text.count("\n", 0, change.start) + 1
        found.append(Mutant(file, change.kind, line, old, new, number, change))
    return found
