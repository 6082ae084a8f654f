"""Makes the text of the page api/c, the reference of the C functions, from the comments and declarations of gdm.h.

The header has sections, ``/* ---- Title ----``, with text. A comment before a declaration describes it. Indented lines
of a comment are formulas or code. The structs and enums are shown as they are, since comments beside the fields say
what these mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

HEADER = Path(__file__).parents[2] / "include" / "gdm" / "gdm.h"
PAGE = """\
# C functions

These are the declarations of `#include <gdm/gdm.h>`, with the texts of that file.
[gdm in other programs](../embedding.md) shows how to compile, link and use them from C and other languages, and says
[what stays the same in later versions](../embedding.md#what-is-promised).

```{eval-rst}
%s
```
"""
# What is of use to the C compiler only.
SKIPPED = re.compile(r'#(include|if|endif|define GDM_GDM_H)|extern "C"|}$')


def comments_and_declarations(text: str) -> Iterator[str]:
    """The pieces of the header in order: each comment that starts a line, and each declaration."""
    kinds = (
        r"/\*.*?\*/",  # a comment
        r"#define(?:[^\n]*\\\n)*[^\n]*",
        r"typedef (?:enum|struct) \w+ \{.*?\}[^\n}]*;",
        r"[^\n#}][^{};]*;",
        r"[^\n]+",  # what is skipped
    )
    for match in re.finditer(rf"^(?:{'|'.join(kinds)})$", text, re.M | re.S):
        piece = re.sub(r"^ +/\* (>>>|<<<).*\*/\n", "", match[0], flags=re.M)
        if not SKIPPED.match(piece) and not re.match(r"/\* (>>>|<<<)", piece):
            yield piece


def prose(text: str, names: set[str]) -> str:
    """Words of a comment in reStructuredText; the names that the header declares become references."""

    def marked(match: re.Match[str]) -> str:
        if match[1] or match[0] not in names:
            return f"``{match[1] or match[0]}``"
        return f":c:expr:`{match[0]}`"

    found = re.compile(r"`([^`]+)`|\b(?:gdm|GDM)_\w+\b(?!>)")
    plain = [re.sub(r"([\\*|_<>])", r"\\\1", part) for part in found.sub("\0", text).split("\0")]
    marks = [marked(match) for match in found.finditer(text)]
    return "".join(part for pair in zip(plain, [*marks, ""], strict=True) for part in pair)


def described(comment: list[str], names: set[str]) -> Iterator[str]:
    """The text of a comment: paragraphs, indented blocks, and terms with what is said of each."""
    for block in re.split(r"\n{2,}", "\n".join(comment).strip("\n")):
        lines = block.splitlines()
        if block.startswith("    "):
            yield from ("::", "", *lines)
        for line in [] if block.startswith("    ") else lines:
            if term := re.match(r"  (\w+) {2,}(.*)", line):
                yield from ("", term[1], f"   {prose(term[2], names)}")
            else:
                yield "   " * line.startswith("   ") + prose(line.strip(), names)
        yield ""


def comment_lines(comment: str) -> list[str]:
    """A comment without its stars."""
    return re.sub(r"^ \* ?", "", comment.removeprefix("/*").removesuffix("*/"), flags=re.M).rstrip().splitlines()


def directive(code: str) -> tuple[str, list[str]]:
    """The directive for a declaration, and the lines that show it, where the directive itself does not."""
    lines = [".. code-block:: c", "", *(f"   {line}" for line in code.splitlines()), ""]
    if name := re.match(r"typedef (enum|struct) (\w+)", code):
        for enumerator in re.findall(r"\b(GDM_\w+) =", code):
            lines += [f".. c:enumerator:: {enumerator}", "   :no-typesetting:", ""]
        return f".. c:{name[1]}:: {name[2]}", lines
    if name := re.match(r"#define (\w+)", code):
        return f".. c:macro:: {name[1]}", lines
    if name := re.match(r"typedef (.*);", code, re.S):
        return f".. c:type:: {' '.join(name[1].split())}", []
    if code.endswith(");"):
        return f".. c:function:: {' '.join(code[:-1].split())}", []
    raise ExtensionError(f"{HEADER.name}: c_header.py knows no declaration such as: {code}")


def reference(text: str) -> str:
    """The reference of a header, in reStructuredText."""
    names = set(re.findall(r"\b(gdm_\w+)\(|\b(GDM_\w+) =|^typedef \w+ (\w+)|^#define (\w+)", text, re.M))
    names = {name for found in names for name in found if name} - {"gdm_import"}
    lines, comment = list[str](), list[str]()
    for piece in comments_and_declarations(text):
        if not piece.startswith("/*"):
            head, shown = directive(piece)
            lines += [head, "", *(f"   {line}" for line in (*described(comment, names), *shown)), ""]
            comment = []
            continue
        comment = comment_lines(piece)
        title = re.match(r" ?-{4} (.*?) -{4,}", comment[0])
        if title or comment[0].startswith(" gdm: "):
            heading = title[1] if title else "What holds for all of them"
            lines += [heading, "-" * len(heading), "", *described(comment[1:], names)]
            comment = []
    return "\n".join(line.rstrip() for line in lines) + "\n"


def write(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == "api/c":
        source[0] = PAGE % reference(HEADER.read_text(encoding="utf-8"))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", write)
    return {"parallel_read_safe": True}
