#!/usr/bin/env python3
"""Writes the whole C core as two files, out/amalgamation/gdm.c and gdm.h, and a zip archive of them.

gdm.h is the public header. gdm.c is tools/amalgamation.c.in with the sources in it: each #include of a file of the
project is replaced by that file. A file that is included several times (the table of rules, the kernels of an
instruction set) becomes a part: it stands at the end of gdm.c once, and gdm.c includes itself to read it:

    #define GDM_PART 2
    #include "gdm.c"

The same sources give the same bytes, in the archive too.
"""

from __future__ import annotations

import argparse
import re
import sys
import zipfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "tools/amalgamation.c.in"
SOURCES, INCLUDE = ROOT / "csrc", ROOT / "include"
WIDTH = 120
PUBLIC = "gdm/gdm.h"
OUR_INCLUDE = re.compile(r'^#include "([^"]+)".*\n', re.M)
SYSTEM_INCLUDE = re.compile(r"#include <(.+)>")
GUARD = re.compile(r"^#ifndef (GDM_\w+_H)\n#define \1\n", re.M)
# The first lines of the template define it, since it must come before all system headers.
FEATURE = re.compile(r"^#define _GNU_SOURCE.*\n", re.M)


def name_of(file: Path) -> str:
    """As the sources call it: plan.h, isa/avx2.c."""
    return str(file.relative_to(SOURCES))


def found(name: str, includer: Path) -> Path:
    """The file that an #include of a source names."""
    for folder in (includer.parent, SOURCES):
        if (folder / name).is_file():
            return (folder / name).resolve()
    sys.exit(f"{includer}: no such file: {name}")


def included(file: Path, text: str) -> list[Path]:
    """The project's files that this text includes, the public header apart."""
    return [found(name, file) for name in OUR_INCLUDE.findall(text) if name != PUBLIC]


def version() -> str:
    header = (INCLUDE / PUBLIC).read_text(encoding="utf-8")
    return re.search(r'^#define GDM_VERSION "(.*)"$', header, re.M)[1]


def template() -> str:
    """The template, with all C files that it does not name, in the order of their names."""
    text = TEMPLATE.read_text(encoding="utf-8")
    named = included(SOURCES / "gdm.c", text)
    rest = [file for file in sorted(SOURCES.rglob("*.c")) if file not in named]
    license_lines = (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()
    values = {
        "version": version(),
        "license": "\n".join(f" * {line}".rstrip() for line in license_lines),
        "files": "\n".join(f'#include "{name_of(file)}"\n' for file in rest).strip(),
    }
    return re.sub("@(version|license|files)@", lambda match: values[match[1]], text)


class Amalgamation:
    """gdm.c, while it is being written."""

    def __init__(self) -> None:
        self.texts: dict[Path, str] = {}
        self.parts: dict[Path, int] = {}  # the numbers of the files that are included several times
        self.done: set[Path] = set()  # the other files that have been written
        self.system_headers: set[str] = set()

    def read(self, file: Path, text: str, counts: Counter[Path]) -> None:
        """Reads the files that this text includes, and counts where each is included."""
        for other in included(file, text):
            counts[other] += 1
            if other not in self.texts:
                self.texts[other] = FEATURE.sub("", other.read_text(encoding="utf-8"))
                self.read(other, self.texts[other], counts)

    def resolved(self, file: Path, text: str, depth: int = 0) -> str:
        """The text with what it includes; it stands inside so many conditions."""
        lines: list[str] = []
        depth -= bool(GUARD.search(text))  # that is no condition
        for line in text.splitlines(keepends=True):
            depth += bool(re.match("#if", line)) - bool(re.match("#endif", line))
            if (ours := OUR_INCLUDE.match(line)) and ours[1] != PUBLIC:
                lines.append(self.replaced(found(ours[1], file), depth))
            elif ours:
                continue  # the template includes it
            elif (system := SYSTEM_INCLUDE.match(line)) and not depth:
                self.system_headers.add(system[1])
            else:
                lines.append(line)
        return re.sub(r"\n{3,}", "\n\n", "".join(lines))

    def replaced(self, file: Path, depth: int) -> str:
        """What stands in the place of an #include of this file."""
        if number := self.parts.get(file):
            return f'#define GDM_PART {number} /* {name_of(file)} */\n#include "gdm.c"\n'
        if file in self.done:
            return ""
        self.done.add(file)
        return self.section(file, depth)

    def section(self, file: Path, depth: int = 0) -> str:
        title = f"==== {name_of(file)} ".ljust(WIDTH - 6, "=")
        return f"/* {title} */\n{self.resolved(file, self.texts[file], depth)}"

    def written(self) -> str:
        counts: Counter[Path] = Counter()
        text = template()
        self.read(SOURCES / "gdm.c", text, counts)
        repeated = [file for file in self.texts if counts[file] > 1 and not GUARD.search(self.texts[file])]
        self.parts = {file: number for number, file in enumerate(repeated, 1)}
        text = self.resolved(SOURCES / "gdm.c", text, -1)  # all of it is in the condition that it is no part
        for file, number in self.parts.items():
            text += f"\n#elif GDM_PART == {number}\n#undef GDM_PART\n\n{self.section(file)}"
        headers = "".join(f"#include <{name}>\n" for name in sorted(self.system_headers))
        return text.replace("@headers@\n", headers + '\n#include "gdm.h"\n') + "\n#endif\n"


def archive(out: Path, files: list[Path]) -> None:
    """A zip archive of these files, which has the same bytes at all times."""
    name = f"gdm-amalgamation-{version()}"
    with zipfile.ZipFile(out / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in files:
            entry = zipfile.ZipInfo(f"{name}/{path.name}", (1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            file.writestr(entry, path.read_bytes())


def main() -> None:
    what, _, _ = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "out/amalgamation", help="the folder for the files")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    source, header = out / "gdm.c", out / "gdm.h"
    source.write_text(Amalgamation().written(), encoding="utf-8")
    header.write_bytes((INCLUDE / PUBLIC).read_bytes())
    archive(out, [source, header])


if __name__ == "__main__":
    main()
