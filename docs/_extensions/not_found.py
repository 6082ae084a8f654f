"""The page 404.html, which a web server shows for a wrong address, at any depth: its links must not be relative.

They begin with the site's path on the server, ``GDM_SITE_PATH``, by default ``/``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx


def make_absolute(app: Sphinx, error: Exception | None) -> None:
    page = Path(app.outdir) / "404.html"
    if error is None and page.exists():
        root = os.environ.get("GDM_SITE_PATH", "/").rstrip("/") + "/"
        text = page.read_text(encoding="utf-8")
        text = re.sub(r'\b(href|src|action)="(?![a-z]+:|#|/)', rf'\1="{root}', text)
        page.write_text(text.replace('data-content_root="./"', f'data-content_root="{root}"'), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", make_absolute)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
