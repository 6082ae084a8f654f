"""What the documentation shows is true: examples run, figures are there, links lead somewhere."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import inspect
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gdm
from gdm._specification import Around
from gdm.optimizer.around import AROUND_NAMES, Storage

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG")),
]
PAGES = [page for page in PAGES if "generated" not in page.parts]
# A page whose programs are files: each is written to a folder, and then the commands are run there.
SESSIONS = [page for page in PAGES if "```console\n$" in page.read_text(encoding="utf-8")]


def name_of(page):
    return str(page.relative_to(ROOT))


# ---- examples --------------------------------------------------------------------------------------------------------


def python_examples():
    for page in PAGES:
        if page not in SESSIONS:
            for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)):
                yield pytest.param(code, id=f"{name_of(page)}-{i}")


def skip_without(library, code):
    if re.search(rf"^(import|from) .*\b{library}\b", code, re.M):
        pytest.importorskip(library, reason=f"NOT TESTED: the examples for {library}; there is no {library} here")


@pytest.mark.parametrize("code", list(python_examples()))
def test_examples_print_what_their_comments_say(code, tmp_path, monkeypatch):
    """Each example runs by itself; what a print line announces in its comment is what it prints."""
    for library in ("torch", "thinc"):
        skip_without(library, code)
    monkeypatch.chdir(tmp_path)  # some write files
    announced = re.findall(r"^print\(.*?\)\s+# (.*)$", code, re.M)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "example", "exec"), {"__name__": "example"})
    assert printed.getvalue().splitlines() == announced


@pytest.mark.parametrize("page", SESSIONS, ids=name_of)
def test_sessions_print_what_they_show(page, tmp_path):
    """What a user writes to files and types, in the order of the page. Each output is the one that is shown."""
    text = page.read_text(encoding="utf-8")
    skip_without("torch", text)
    if ".safetensors" in text:
        pytest.importorskip("safetensors", reason="NOT TESTED: a page that saves; there is no safetensors here")
    if "$ cc " in text and not shutil.which("cc"):
        pytest.skip("NOT TESTED: the programs in C; there is no cc here")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = 0
    for block in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.S | re.M):
        if block[1] in ("python", "c") and (
            names := re.findall(r"`(?:[\w/]+/)?(\w+\.(?:py|c))`", text[: block.start()])
        ):
            (tmp_path / names[-1]).write_text(block[2], encoding="utf-8")
        for command, shown in (
            re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block[2], re.M) if block[1] == "console" else []
        ):
            environment = {**os.environ, "PATH": path}
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
            )
            assert (done.stdout, done.stderr, done.returncode) == (shown, "", 0), command
            ran += 1
    assert ran == text.count("\n$ ")


def test_every_block_of_python_is_an_example():
    """The pattern above finds each, wherever it stands; and each guide has some."""
    shown = {page.stem: page.read_text(encoding="utf-8").count("```python") for page in PAGES if page not in SESSIONS}
    assert len(list(python_examples())) == sum(shown.values())
    guides = ["README", "optimizers", "precision", "pytorch", "schedules", "scipy", "sklearn", "thinc", "using"]
    assert [page for page in guides if not shown[page]] == []
    assert {page.stem for page in SESSIONS} >= {"numpy", "pytorch", "offload", "c", "embedding"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_shell_commands_can_be_read(page):
    """Those that install or download are not run."""
    for commands in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        subprocess.run(["bash", "-n", "-c", commands], check=True)


# ---- the API's reference ---------------------------------------------------------------------------------------------

LAZY = ("schedules", "torch", "torch.functional", "scipy", "thinc", "sklearn", "reference")
MODULES = {"gdm", *(f"gdm.{name}" for name in LAZY)}


def listed():
    """The names in the tables of the reference, by page."""
    tables = {page: page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.md"))}
    return {page.name: re.findall(r"^   (gdm\.[\w.]+)$", text, re.M) for page, text in tables.items()}


def found(name):
    """The object of a name; skips if its module needs a library that is not here."""
    module, _, attribute = name.rpartition(".")
    library = module.split(".")[1] if module.count(".") and module != "gdm.reference" else ""
    if library in ("torch", "scipy", "thinc", "sklearn"):
        pytest.importorskip(library, reason=f"NOT TESTED: the docstrings for {library}; there is no {library} here")
    return getattr(importlib.import_module(module), attribute)


NAMES = [name for names in listed().values() for name in names]


def test_the_reference_has_every_public_name_once():
    assert sorted(NAMES) == sorted(set(NAMES))
    more = {f"gdm.reference.{name}" for name in ("sum_of_squares", "largest_magnitude", "count_nonfinite")}
    shown = {name for name in NAMES if not name.startswith("gdm.optimizer.")} - more
    public = {f"gdm.{name}" for name in gdm.__all__} - MODULES
    for module in sorted(MODULES - {"gdm"}):
        try:
            public |= {f"{module}.{name}" for name in importlib.import_module(module).__all__} - MODULES
        except ImportError:  # its library is not here: what is listed cannot be compared
            shown = {name for name in shown if not name.startswith(f"{module}.")}
    assert shown == public


@pytest.mark.parametrize("name", NAMES)
def test_docstring_examples_run(name):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(found(name), name, module=False):
        if "._" not in test.name:  # else it is not on the site
            runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("name", ["sgd", "momentum", "SGD"])
def test_main_entries_have_an_example(name):
    assert doctest.DocTestFinder(recurse=False).find(getattr(gdm, name), name, module=False)[0].examples


# ---- links -----------------------------------------------------------------------------------------------------------


def anchors(page):
    """What headings can be linked by: lower case, no punctuation, a hyphen for each blank; a number if repeated."""
    seen = []
    for heading in re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S), re.M
    ):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        seen.append(anchor if anchor not in seen else f"{anchor}-{seen.count(anchor)}")
    return set(seen)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
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
    page = (DOCS / "schedules.md").read_text(encoding="utf-8")
    rows = re.search(r"^\| gdm.schedules .*?\n\n", page, re.M | re.S)[0]
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
