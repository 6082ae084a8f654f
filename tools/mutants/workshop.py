"""A copy of the repository and of the installed package, in which one file at a time is changed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies  # noqa: F401
import numpy as np  # noqa: F401
import pytest
from subjects import ROOT

EXACT = ["-std=c11", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
# In seconds. A mutant may hang. The machine may be busy, so these are far above what tests need.
LONGEST_TEST, LONGEST_RUN = 120, 1200
# What takes seconds to import, and the word in the names of the tests that need it.
HEAVY = {"torch": "torch", "scipy": "scipy.optimize", "thinc": "spacy"}
OPTIONS = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist"]
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of modules that this process has imported
OPTIONS += ["-o", f"faulthandler_timeout={LONGEST_TEST}", "-o", "faulthandler_exit_on_timeout=true"]


class Run(NamedTuple):
    """How a run of the tests ended."""

    status: int  # of pytest; negative if a signal ended it
    late: bool  # whether it was ended since it took too long
    failed: str  # the first test that failed
    seconds: float


class Workshop:
    def __init__(self, folder: Path) -> None:
        folder = folder.resolve()
        self.tree, self.site, self.objects = folder / "tree", folder / "site", folder / "objects"
        for path in (self.tree, self.site, self.objects):
            path.mkdir()
        self._copy_tree()
        package = Path(importlib.util.find_spec("gdm").origin).parent
        shutil.copytree(package, self.site / "gdm", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(self.tree / "src/gdm", self.site / "gdm", dirs_exist_ok=True)
        self.module = self.site / "gdm" / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
        self.compiler = [*(["ccache"] if shutil.which("ccache") else []), "cc"]
        self.sources: list[Path] = []  # once they have been compiled

    def _compile_all(self) -> None:
        """All of the core as it is. The other instruction sets are never changed."""
        self.binding = Path(shutil.copy2(self._find_binding(), self.objects))
        self.sources = sorted([*(self.tree / "csrc").glob("*.c"), *(self.tree / "csrc/isa").glob("*.c")])
        for source in self.sources:
            if not self._compile(source, self._object(source)):
                raise SystemExit(f"{source} does not compile")
        self.users = self._find_users()

    def _copy_tree(self) -> None:
        command = ["git", "ls-files", "-co", "--exclude-standard"]
        for name in subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n"):
            if name and (ROOT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.tree / name)

    def _find_binding(self) -> Path:
        """The object file of the Python module, which the installation has left."""
        tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
        found = list(ROOT.glob(f"build/{tag}-*/CMakeFiles/_core.dir/**/_core.c.o"))
        sources = [ROOT / "src/gdm/_core.pyx", *(ROOT / "src/gdm/_native").glob("*.pxi"), *ROOT.glob("csrc/*.h")]
        if not found or found[0].stat().st_mtime < max(path.stat().st_mtime for path in sources):
            raise SystemExit("build/ does not hold the compiled module of these sources: install the package again")
        return found[0]

    def _object(self, source: Path) -> Path:
        return self.objects / f"{source.parent.name}-{source.stem}.o"

    def _compile(self, source: Path, out: Path) -> bool:
        # Unoptimised, kernels are compiled in half of the time, and tests run on few elements.
        optimisation = "-O0" if source.parent.name == "isa" else "-O1"
        command = [*self.compiler, *EXACT, optimisation, "-w", "-I", "include", "-I", "csrc"]
        command += ["-c", str(source.relative_to(self.tree)), "-o", str(out)]
        return subprocess.run(command, cwd=self.tree, capture_output=True).returncode == 0

    def _link(self, **instead: Path) -> None:
        """Links the module. `instead` has other object files by the names of the sources."""
        objects = [instead.get(source.stem, self._object(source)) for source in self.sources]
        self.module.unlink(missing_ok=True)
        command = ["cc", "-shared", "-pthread", str(self.binding), *map(str, objects), "-lm", "-o", str(self.module)]
        subprocess.run(command, check=True)

    def _find_users(self) -> dict[str, list[Path]]:
        """The C files that include a file, by its name; of the instruction sets the baseline only."""
        command = ["cc", "-MM", "-I", "include", "-I", "csrc", *(str(s.relative_to(self.tree)) for s in self.sources)]
        output = subprocess.run(command, cwd=self.tree, check=True, capture_output=True, text=True).stdout
        found: dict[str, list[Path]] = {}
        for rule in output.replace("\\\n", " ").splitlines():
            source, *included = (os.path.normpath(name) for name in rule.partition(":")[2].split())
            if not source.startswith("csrc/isa/") or source.endswith("baseline.c"):
                for name in (source, *included):
                    found.setdefault(name, []).append(self.tree / source)
        return found

    def _users_of(self, file: str, place: int) -> list[Path]:
        """The C files that are compiled again after a change at this place of a file."""
        users, text = self.users[file], (self.tree / file).read_text()
        if "#ifdef GDM_HOST" not in text:
            return users
        in_host_part = place < text.index("#else")
        return [source for source in users if in_host_part == (source.parent.name != "isa")]

    def change(self, file: str, text: str, place: int) -> str:
        """Changes a file, and builds what it is part of. Returns "" or why this is no mutant."""
        if file.endswith(".py"):
            changed = self.site / file.removeprefix("src/")
            changed.write_text(text)
            for path in (changed.parent / "__pycache__").glob(f"{changed.stem}.*.pyc"):
                path.unlink()
            (self.tree / file).write_text(text)
            return ""
        if not self.sources:
            self._compile_all()
        users = self._users_of(file, place)
        (self.tree / file).write_text(text)
        instead = {}
        for source in users:
            out = self.objects / f"mutant-{source.stem}.o"
            if not self._compile(source, out):
                return "does not compile"
            if out.read_bytes() != self._object(source).read_bytes():
                instead[source.stem] = out
        if not instead:
            return "the same machine code"
        self._link(**instead)
        return ""

    def restore(self, file: str, text: str) -> None:
        if file.endswith(".py"):
            self.change(file, text, 0)
        else:
            (self.tree / file).write_text(text)
            self._link()

    def test(self, arguments: list[str], *, writes_bytecode: bool = False) -> Run:
        """Runs pytest in a fork of this process, which has imported what all tests need: that takes half of the time
        of most runs. This process itself never imports gdm."""
        shutil.rmtree(self.tree / ".hypothesis", ignore_errors=True)
        for word, module in HEAVY.items():
            if word in " ".join(arguments):
                importlib.import_module(module)
        begin, output = time.monotonic(), self.objects / "output.txt"
        child = os.fork()
        if not child:
            self._be_pytest(arguments, output, writes_bytecode)
        status, late = wait(child, begin + LONGEST_RUN)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what a test has started, if it hangs: faulthandler ends pytest only
        text = output.read_text(errors="replace")
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.M)
        by = failed[1] if failed else f"signal {-status}" if status < 0 else text.strip().rpartition("\n")[2][:200]
        late = late or re.search(r"^Timeout \(", text, re.M) is not None
        return Run(status, late, by if status else "", time.monotonic() - begin)

    def _be_pytest(self, arguments: list[str], output: Path, writes_bytecode: bool) -> None:
        status = 99
        try:
            os.setsid()
            os.chdir(self.tree)
            file = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.path[0] = str(self.site)
            sys.dont_write_bytecode = not writes_bytecode
            sys.argv = ["pytest"]
            os.environ |= {"PYTHONPATH": str(self.site), "GDM_ISA": "baseline"}
            if not writes_bytecode:
                os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            status = int(pytest.main([*OPTIONS, *arguments]))
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)


def wait(child: int, deadline: float) -> tuple[int, bool]:
    """The exit status of a process, negative if a signal ended it; and whether it was ended since it took too long."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), False
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGKILL, True
        time.sleep(0.02)
