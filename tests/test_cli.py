"""The command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gdm
from gdm.__main__ import main


def test_info_prints_what_is_in_use(capsys, backend):
    assert main(["info"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["gdm"] == gdm.__version__
    assert rows["backend"] == backend
    assert rows["isa"] == f"{gdm.isa()} (available: {', '.join(gdm.available_isas())})"
    assert rows["NumPy"] == np.__version__
    assert "-ffp-contract=off" in rows["flags"]
    assert rows.keys() >= {"threads", "compiler", "Python", "machine"}
    assert "Muon" in rows["products"]
    assert "differ between machines" in rows["products"]


@pytest.mark.parametrize("arguments", [["--help"], ["info", "--help"], ["demo", "--help"], ["--version"]])
def test_help_is_printed(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert "gdm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        ([], "{info,demo,bench,config}"),  # which commands there are
        (["fly"], "invalid choice: 'fly'"),
        (["demo", "--epochs", "0"], "argument --epochs: must be at least 1, got 0"),
        (["demo", "--seed", "-1"], "argument --seed: must not be negative, got -1"),
        (["demo", "--seed", "x"], "argument --seed: invalid"),
    ],
)
def test_wrong_arguments_of_the_command_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "gdm", "--version"], capture_output=True, text=True, timeout=180)
    assert done.stdout == f"gdm {gdm.__version__}\n"


# ---- errors are one line ---------------------------------------------------------------------------------------------

COMMANDS = {"module": [sys.executable, "-m", "gdm"], "script": [str(Path(sys.executable).with_name("gdm"))]}


def run(command: list[str], *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("GDM_ISA", "foo", "must name an instruction set that this machine can run"),
        ("GDM_BACKEND", "torch", "must be 'native' or 'reference', got 'torch'"),
        ("GDM_NUM_THREADS", "0", "must be from 1 to 256, got '0'"),
        ("GDM_NUM_THREADS", "²", "must be from 1 to 256, got '²'"),
    ],
)
def test_a_wrong_environment_variable_is_one_line(command, name, value, message):
    done = run(COMMANDS[command], "info", **{name: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"gdm: error: the environment variable {name} {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("code", ["import gdm", "import gdm.__main__", "import sys; sys.argv = []; import gdm"])
def test_a_wrong_environment_variable_is_an_exception_for_a_program(code):
    done = run([sys.executable, "-c", code, "-m", "gdm"], GDM_BACKEND="torch")
    assert done.returncode == 1
    assert "ValueError: the environment variable GDM_BACKEND" in done.stderr


@pytest.fixture(params=["demo", "bench"])
def long_command(request, monkeypatch):
    """A command whose long work fails the test."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("gdm.demo.load_digits", lambda seed: pytest.fail("the training has begun"))
    monkeypatch.setattr("gdm.bench.measure", lambda case, missing: pytest.fail("the measurement has begun"))
    return request.param


WRITTEN = {"demo": "landscapes.png", "bench": "busy.png"}  # the last file that is written


@pytest.mark.parametrize("obstacle", ["a file", "below a file", "a folder in the place of a file", "no permission"])
def test_an_unwritable_out_is_one_line_before_the_work(long_command, obstacle, tmp_path, capsys, monkeypatch):
    out = wrong = tmp_path / "out"
    if obstacle == "a file":
        out.write_text("")
    elif obstacle == "below a file":
        out.write_text("")
        out = wrong = out / "below"
    elif obstacle == "a folder in the place of a file":
        wrong = out / WRITTEN[long_command]
        wrong.mkdir(parents=True)
    else:
        monkeypatch.setattr(Path, "mkdir", lambda self, **kwargs: os.close(os.open("/", os.O_RDWR)))
        wrong = "/"  # root may write anywhere but to a folder
    before = sorted(tmp_path.rglob("*"))
    assert main([long_command, "--out", str(out)]) == 2
    done = capsys.readouterr()
    assert done.out == ""
    assert done.err.startswith(f"gdm: error: {wrong}: ")
    assert done.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_files_of_an_earlier_run_stay_until_they_are_written_again(long_command, tmp_path):
    old = tmp_path / WRITTEN[long_command]
    old.write_text("old")
    with pytest.raises(pytest.fail.Exception, match="has begun"):
        main([long_command, "--out", str(tmp_path)])
    assert old.read_text() == "old"
    assert os.listdir(tmp_path) == [old.name]


def test_any_other_oserror_is_one_line(tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no filename")

    monkeypatch.setattr("gdm.demo.run", full)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "gdm: error: no filename\n"
