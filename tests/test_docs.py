"""What the documentation shows is true: examples run, figures are there, links lead somewhere."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
from pathlib import Path

import pytest

import gdm

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def python_examples():
    for page in PAGES:
        for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)):
            yield pytest.param(code, id=f"{page.name}-{i}")


@pytest.mark.parametrize("code", list(python_examples()))
def test_examples(code, tmp_path, monkeypatch):
    """Each example runs by itself; what a print line announces in its comment is what it prints."""
    monkeypatch.chdir(tmp_path)  # some write files
    announced = re.findall(r"^print\(.*?\)\s+# (.*)$", code, re.M)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "example", "exec"), {"__name__": "example"})
    assert printed.getvalue().splitlines() == announced


def test_there_are_examples():
    assert len(list(python_examples())) >= 3


@pytest.mark.parametrize("name", gdm.__all__)
def test_docstring_examples(name):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder(recurse=False).find(getattr(gdm, name), name, module=False):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("name", ["sgd", "momentum", "SGD"])
def test_main_entries_have_an_example(name):
    assert doctest.DocTestFinder(recurse=False).find(getattr(gdm, name), name, module=False)[0].examples


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_make_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"\.PHONY: (.*)", makefile)[1].split()
    assert sorted(re.findall(r"^([a-z-]+):.*## ", makefile, re.M)) == sorted(targets)
