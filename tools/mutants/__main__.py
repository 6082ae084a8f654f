#!/usr/bin/env python3
"""Mutation testing: makes small changes to the code, one at a time, and looks whether a test fails for each.

    tools/mutants                 a sample of all files; continues where an interrupted run stopped
    tools/mutants --file '*.inc'  the sample's mutants of these files; several patterns are tried in this order
    tools/mutants --each 2        the first two mutants of each file in the sample
    tools/mutants --all           all mutants, not only the sample's; with --file, since there are thousands
    tools/mutants --id 1a2b3c4d   these mutants
    tools/mutants --few           one mutant of each of some files, to see that all this works
    tools/mutants --list          only shows the mutants
    tools/mutants --check         only checks that survivors.toml still matches the code

The sample is the same each time: it is drawn with a fixed seed, file by file. A change that does not compile, or that
gives the same machine code, is not counted; the next one takes its place. So another compiler may have a slightly
different sample. survivors.toml lists the mutants that no test can notice, each with the reason; they are not run.
Results are kept in out/mutants.jsonl, and in the end written to out/mutants.json. A killed mutant is run again if its
file changes, a surviving one always.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import itertools
import json
import math
import random
import sys
import tempfile
import time
import tomllib
from collections import Counter
from pathlib import Path

import c_code
import pytest
import python_code
from mutant import Mutant, mutants
from subjects import FEW, ROOT, Subject, subjects

OUT = ROOT / "out"
SEED = 1
LEAST, MOST = 3, 13  # mutants of one file
SHARE = 0.47  # of the square root of how many there could be


def mutants_of(file: str, subject: Subject) -> list[Mutant]:
    """All mutants of a file, in the order in which the sample takes them: kinds take turns."""
    text = (ROOT / file).read_text()
    changes = python_code.changes(text) if file.endswith(".py") else c_code.changes(text)
    found = mutants(file, text, changes, subject.left_out)
    shuffle = random.Random(f"{SEED} {file}")
    shuffle.shuffle(found)
    kinds: dict[str, list[Mutant]] = {}
    for mutant in found:
        kinds.setdefault(mutant.kind, []).append(mutant)
    rows = itertools.zip_longest(*kinds.values())
    return [mutant for row in rows for mutant in row if mutant]


def wanted(candidates: int) -> int:
    """How many of a file's mutants the sample has."""
    return min(max(round(SHARE * math.sqrt(candidates)), LEAST), MOST, candidates)


def known_survivors(everything: dict[str, list[Mutant]]) -> dict[str, str]:
    """Why no test notices these mutants, by their ids."""
    found = {}
    names = {(m.file, m.old, m.new, m.number): m.id for all_of_file in everything.values() for m in all_of_file}
    entries = tomllib.loads((Path(__file__).parent / "survivors.toml").read_text())["survivor"]
    for entry in entries:
        key = entry["file"], entry["old"], entry["new"], entry.get("number", 0)
        if key not in names:
            raise SystemExit(f"survivors.toml has a mutant that the code does not have:\n{describe(*key[:3])}")
        found[names[key]] = entry["why"]
    return found


def describe(file: str, old: str, new: str) -> str:
    return f"    {file}\n    - {old}\n    + {new}"


class Campaign:
    def __init__(self, everything: dict[str, list[Mutant]], table: dict[str, Subject], folder: Path) -> None:
        from workshop import Workshop

        self.table = table
        self.texts = {file: (ROOT / file).read_text() for file in table}  # they may be edited during the run
        self.known = known_survivors(everything)
        self.workshop = Workshop(folder)
        self.log = OUT / "mutants.jsonl"
        self.confirmed: set[str] = set()  # test functions that pass without any change
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.earlier = {entry["id"]: entry for entry in map(json.loads, lines)}

    def run(self, mutant: Mutant) -> dict[str, object]:
        """What becomes of a mutant: killed, timeout, survived, explained, or why it is none."""
        text = self.texts[mutant.file]
        version = hashlib.sha256(text.encode()).hexdigest()[:8]
        before = self.earlier.get(mutant.id)
        if mutant.id in self.known:
            return self.entry(mutant, version, "explained", why=self.known[mutant.id])
        if before and before["version"] == version and before["result"] not in ("survived", "explained"):
            return before
        begin = time.monotonic()
        why_none = self.workshop.change(mutant.file, mutant.apply(text), mutant.change.start)
        try:
            if why_none:
                entry = self.entry(mutant, version, why_none)
            else:
                result, by = self.try_to_kill(mutant)
                entry = self.entry(mutant, version, result, by=by, seconds=round(time.monotonic() - begin, 1))
        finally:
            self.workshop.restore(mutant.file, text)
        with self.log.open("a") as file:
            print(json.dumps(entry), file=file)
        return entry

    def entry(self, mutant: Mutant, version: str, result: str, **more: object) -> dict[str, object]:
        names = {"id": mutant.id, "file": mutant.file, "line": mutant.line, "kind": mutant.kind}
        group = self.table[mutant.file].group
        lines = {"old": mutant.old, "new": mutant.new, "number": mutant.number}
        return {**names, "group": group, **lines, "version": version, "result": result, **more}

    def try_to_kill(self, mutant: Mutant) -> tuple[str, str]:
        rule = Path(mutant.file).stem
        for tests in self.table[mutant.file].tests:
            run = self.workshop.test([part.format(rule=rule, word=rule.replace("_", "")) for part in tests])
            if run.status in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
                continue
            if run.late:
                return "timeout", run.failed
            self.confirm(mutant, run.failed)
            return "killed", run.failed
        return "survived", ""

    def confirm(self, mutant: Mutant, test: str) -> None:
        """Without any change, this test must pass. That is looked at once for each test function."""
        function = test.partition("[")[0]
        if "::" not in test or function in self.confirmed:
            return
        self.workshop.restore(mutant.file, self.texts[mutant.file])
        if self.workshop.test([test], writes_bytecode=True).status:
            raise SystemExit(f"without any change this test fails: {test}")
        self.confirmed.add(function)


def show_table(entries: list[dict[str, object]]) -> None:
    names = ("killed", "timeout", "survived", "explained")
    print(f"\n{'':34}" + "".join(f"{name:>10}" for name in names))
    for key in ("file", "group"):
        counts: dict[str, Counter[str]] = {}
        for entry in entries:
            counts.setdefault(str(entry[key]), Counter())[str(entry["result"])] += 1
        for name, count in counts.items():
            print(f"{name:34}" + "".join(f"{count[result]:10}" for result in names))
        print()
    total = Counter(str(entry["result"]) for entry in entries)
    killed = total["killed"] + total["timeout"]
    run = killed + total["survived"]
    print(f"{len(entries)} mutants; killed {killed} of the {run} that a test could notice ({killed / max(run, 1):.1%})")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--file", nargs="+", default=["*"], help="patterns of files, such as '*.inc'")
    parser.add_argument("--id", nargs="+", help="mutants by their names")
    parser.add_argument("--all", action="store_true", help="not only a sample")
    parser.add_argument("--each", type=int, default=MOST, help="at most so many mutants of each file")
    parser.add_argument("--few", action="store_true", help="one mutant of each of some files")
    parser.add_argument("--list", action="store_true", help="only show the mutants")
    parser.add_argument("--check", action="store_true", help="only check survivors.toml")
    options = parser.parse_args()
    table = subjects()
    everything = {file: mutants_of(file, subject) for file, subject in table.items()}
    known = known_survivors(everything)
    if options.check:
        print(f"{sum(map(len, everything.values()))} mutants can be made, {len(known)} are explained")
        return 0
    chosen = {file: everything[file] for one in options.file for file in everything if fnmatch.fnmatch(file, one)}
    if options.id:
        chosen = {file: [m for m in found if m.id in options.id] for file, found in chosen.items()}
    if options.few:
        chosen = {file: chosen[file] for file in FEW}
    everyone = options.all or options.id
    quotas = {file: len(found) if everyone else min(wanted(len(found)), options.each) for file, found in chosen.items()}
    if options.few:
        quotas = dict.fromkeys(quotas, 1)
    if options.list:
        for mutant in itertools.chain(*(found[: quotas[file]] for file, found in chosen.items())):
            print(f"{mutant.id} {mutant.kind}, line {mutant.line}\n{describe(mutant.file, mutant.old, mutant.new)}")
        return 0
    return campaign(everything, chosen, table, quotas)


def campaign(
    everything: dict[str, list[Mutant]],
    chosen: dict[str, list[Mutant]],
    table: dict[str, Subject],
    quotas: dict[str, int],  # how many of each file's mutants are run
) -> int:
    OUT.mkdir(exist_ok=True)
    folder = tempfile.TemporaryDirectory(prefix="mutants-", dir=OUT)
    state = Campaign(everything, table, Path(folder.name))
    begin, total, entries = time.monotonic(), sum(quotas.values()), []
    for file, found in chosen.items():
        count = 0
        for mutant in found:
            if count == quotas[file]:
                break
            entry = state.run(mutant)
            if entry["result"] not in ("killed", "timeout", "survived", "explained"):
                continue
            count += 1
            entries.append(entry)
            left = (time.monotonic() - begin) / len(entries) * (total - len(entries)) / 60
            print(f"{len(entries)}/{total} {entry['result']:9} {mutant.id} {file}:{mutant.line}, {left:.0f} min left")
            if entry["result"] == "survived":
                print(describe(mutant.file, mutant.old, mutant.new))
            sys.stdout.flush()
    (OUT / "mutants.json").write_text(json.dumps(entries, indent=1))
    show_table(entries)
    return int(any(entry["result"] == "survived" for entry in entries))


if __name__ == "__main__":
    sys.exit(main())
