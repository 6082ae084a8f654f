"""Sphinx's configuration: ``make docs`` builds the site from these pages and from the docstrings into out/docs."""

from __future__ import annotations

import sys
from pathlib import Path

import gdm

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "gdm"
author = "the gdm authors"
version = release = gdm.__version__
html_title = f"gdm {release}"

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "c_header",
    "not_found",
    "repository_links",
]
exclude_patterns = ["_templates", "_extensions"]
templates_path = ["_templates"]

# ---- Markdown: anchors as code hosts make them ----
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

# ---- docstrings ----
autosummary_generate = True
autosummary_imported_members = True
# gdm.SGD and gdm.sgd need files whose names differ also where upper and lower case are the same.
_classes = {name.lower() for name in gdm.__all__ if name != name.lower()}
autosummary_filename_map = {f"gdm.{name}": f"gdm.{name}-function" for name in gdm.__all__ if name in _classes}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say the types, in words that read better
autodoc_inherit_docstrings = False  # else the pages of gdm.torch repeat PyTorch's
numpydoc_show_class_members = False  # the templates list them
add_module_names = False
highlight_language = "none"  # indented blocks are formulas
python_display_short_literal_types = True

# Every reference must lead somewhere, but for what has no page here: C's own types, and names of other libraries.
nitpicky = True
nitpick_ignore = [("c:identifier", name) for name in ("size_t", "uint16_t", "uint64_t")]
nitpick_ignore_regex = [("py:.*", r"(torch|thinc|sklearn|scipy|numpy)\..*")]

# ---- HTML: nothing is loaded from other sites ----
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["gdm.css"]
html_favicon = "_static/favicon.svg"
html_show_sourcelink = html_copy_source = False
html_show_sphinx = False
pygments_style, pygments_dark_style = "default", "monokai"  # no color of theirs is too faint: check_site.py
html_theme_options = {"navigation_with_keys": True}
