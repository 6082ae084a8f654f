"""Files outside docs/: the pages that show them, and links to them.

So that pages are right on a code host, too, they link to each other and to files of the repository by relative paths.
Sphinx knows only the files in docs/. So a link to a file that a page shows leads to that page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# The paths are those from the root of the repository. The text of these files is the text of these pages:
SHOWN = {
    "CHANGELOG.md": "docs/changelog.md",
    "CONTRIBUTING.md": "docs/contributing.md",
    "SECURITY.md": "docs/security.md",
    "examples/distributed/README.md": "docs/distributed.md",
}
# These are shown by pages with a text of their own:
PAGES = SHOWN | {
    "README.md": "docs/index.md",
    "examples/distributed/train.py": "docs/gallery.md#training-in-several-processes",
    "examples/torch/digits.py": "docs/gallery.md#digits-with-pytorch",
    "examples/torch/offload.py": "docs/gallery.md#master-weights-in-host-memory",
    "include/gdm/gdm.h": "docs/api/c.md",
    "src/gdm/reference": "docs/api/reference.md",
}


def rewrite(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts the text of a shown file in its page, and changes the targets of links, before a page is parsed."""
    here = posixpath.dirname(f"docs/{docname}")
    folder, text = here, source[0]
    for file, page in SHOWN.items():
        if page == f"docs/{docname}.md":
            folder, text = posixpath.dirname(file), (Path(app.srcdir).parent / file).read_text(encoding="utf-8")

    def target(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        if not path.startswith("docs/"):
            if path not in PAGES:
                raise ExtensionError(f"{docname}: no page shows {path}; see {__name__}.py")
            path = PAGES[path]
        return f"]({posixpath.relpath(path, here)}{match[2] or ''})"

    code = r"```.*?```|`[^`\n]*`"
    source[0] = re.sub(
        rf"({code})|\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)",
        lambda match: match[1] or target(re.match(r"\]\(([^)#\s]+)(#[^)\s]*)?\)", match[0])),
        text,
        flags=re.S,
    )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True}
