"""What the documentation shows is true: examples run, figures are there, links lead somewhere."""

from __future__ import annotations

import contextlib
import doctest
import inspect
import io
import re
import runpy
from pathlib import Path

import pytest

import gdm
from gdm._specification import Around
from gdm.optimizer.around import AROUND_NAMES, Storage

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def python_examples():
    for page in PAGES:
        for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)):
            yield pytest.param(code, id=f"{page.name}-{i}")


@pytest.mark.parametrize("code", list(python_examples()))
def test_examples_print_what_their_comments_say(code, tmp_path, monkeypatch):
    """Each example runs by itself; what a print line announces in its comment is what it prints."""
    for library in ("torch", "thinc"):
        if re.search(rf"^(import|from) .*\b{library}\b", code, re.M):
            pytest.importorskip(library, reason=f"NOT TESTED: the examples for {library}; there is no {library} here")
    monkeypatch.chdir(tmp_path)  # some write files
    announced = re.findall(r"^print\(.*?\)\s+# (.*)$", code, re.M)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "example", "exec"), {"__name__": "example"})
    assert printed.getvalue().splitlines() == announced


def test_there_are_examples():
    assert len(list(python_examples())) >= 3


@pytest.mark.parametrize("name", gdm.__all__)
def test_docstring_examples_run(name):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder(recurse=False).find(getattr(gdm, name), name, module=False):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("name", ["sgd", "momentum", "SGD"])
def test_main_entries_have_an_example(name):
    assert doctest.DocTestFinder(recurse=False).find(getattr(gdm, name), name, module=False)[0].examples


def anchors(page):
    """What headings can be linked by: lower case, no punctuation, a hyphen for each blank; a number if repeated."""
    found = []
    for heading in re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S), re.M
    ):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(anchor if anchor not in found else f"{anchor}-{found.count(anchor)}")
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", page.read_text(encoding="utf-8")):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


# ---- docs/optimizers.md ----------------------------------------------------------------------------------------------

SECTIONS = {
    "SGD with momentum, and Nesterov's": gdm.SGD,
    "Adagrad": gdm.Adagrad,
    "RMSprop": gdm.RMSprop,
    "Adam": gdm.Adam,
    "AdamW": gdm.AdamW,
    "NAdam": gdm.NAdam,
    "RAdam": gdm.RAdam,
    "Adamax": gdm.Adamax,
    "Adadelta": gdm.Adadelta,
    "Lion": gdm.Lion,
    "LARS": gdm.LARS,
    "LAMB": gdm.LAMB,
    "Signum, and signSGD": gdm.Signum,
    "Rprop": gdm.Rprop,
    "ASGD": gdm.ASGD,
    "AdEMAMix": gdm.AdEMAMix,
    "Schedule-Free SGD": gdm.ScheduleFreeSGD,
    "Schedule-Free AdamW": gdm.ScheduleFreeAdamW,
    "Muon, for matrices": gdm.Muon,
}
EVERYWHERE = {"params", "maximize", "lr_scale", "threads", "around"}  # said once for all
SCHEDULES = set(gdm.schedules.__all__) - {"Schedule", "from_dict", "plot", "to_dict"}


def optimizers_page():
    return (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("section", SECTIONS)
def test_tables_have_every_option_and_its_default(section):
    rows = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", optimizers_page(), re.M | re.S)[1].splitlines()
    firsts = [match[1] for row in rows if (match := re.match(r"\| `(\w+=[^`]+)`", row))]
    table = {name: eval(value) for name, value in (first.split("=") for first in firsts)}
    parameters = inspect.signature(SECTIONS[section]).parameters
    defaults = {name: x.default for name, x in parameters.items() if name not in EVERYWHERE}
    if section == "AdamW":  # all others are Adam's
        assert table == {"weight_decay": defaults.pop("weight_decay")}
        adam = inspect.signature(gdm.Adam).parameters
        assert all(value == adam[name].default for name, value in defaults.items())
    else:
        assert table == defaults


def test_the_table_of_common_options_has_each_and_its_default():
    section = optimizers_page().split("## Storage, and what is done around the rule")[1].split("\n## ")[0]
    table = {name: eval(value) for name, value in re.findall(r"^\| `(\w+)=([^`]+)`", section, re.M)}
    defaults = dict.fromkeys(AROUND_NAMES) | {"split_masters": Storage().split_masters} | Around()._asdict()
    assert table == defaults


def test_every_common_option_is_described():
    text = (ROOT / "docs" / "precision.md").read_text(encoding="utf-8")
    assert [name for name in AROUND_NAMES if f"`{name}" not in text] == []


def test_every_optimizer_and_schedule_has_its_place():
    optimizers = {name for name in gdm.__all__ if hasattr(getattr(gdm, name), "add_group")}
    assert optimizers == {cls.__name__ for cls in SECTIONS.values()}
    rows = re.search(r"^\| gdm.schedules .*?\n\n", optimizers_page(), re.M | re.S)[0]
    assert set(re.findall(r"^\| `(\w+)`", rows, re.M)) == SCHEDULES


def test_images_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    script = runpy.run_path(str(ROOT / "docs" / "images.py"))
    assert {schedule.kind for schedule in script["SCHEDULES"]} == SCHEDULES
    for name, options in {
        "forms": {},
        "schedules": {},
        "precision": {"epochs": 1},
        "bytes": {},
        "methods": {"epochs": 1, "rates": [0.01], "seeds": [0]},
    }.items():
        script[f"draw_{name}"](tmp_path / f"{name}.png", **options)
        kept, drawn = (folder / f"{name}.png" for folder in (ROOT / "docs" / "images", tmp_path))
        assert drawn.read_bytes()[:24] == kept.read_bytes()[:24]  # a PNG of the same size


def test_images_are_shown():
    shown = {Path(link).name for page in PAGES for link in re.findall(r"!\[[^]]*\]\(([^)]*)\)", page.read_text())}
    assert shown == {path.name for path in (ROOT / "docs" / "images").iterdir()}


def test_the_forms_part_as_the_page_says():
    pytest.importorskip("matplotlib")
    path = runpy.run_path(str(ROOT / "docs" / "images.py"))["path"]
    falls, rises = ({form: path(form, values) for form in ("torch", "classic")} for values in ((1.0, 0.1), (0.1, 1.0)))
    assert abs(falls["classic"]).max() > 1 > 0.4 > abs(falls["torch"][6:]).max()
    assert falls["torch"][:7] == pytest.approx(falls["classic"][:7])
    assert rises["torch"].min() < 2 * rises["classic"].min() < 0


# ---- make ------------------------------------------------------------------------------------------------------------


def test_make_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"\.PHONY: (.*)", makefile)[1].split()
    assert sorted(re.findall(r"^([a-z-]+):.*## ", makefile, re.M)) == sorted(targets)
