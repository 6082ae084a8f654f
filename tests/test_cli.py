"""The command line."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import gdm
from gdm.__main__ import main


def test_info(capsys, backend):
    assert main(["info"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["gdm"] == gdm.__version__
    assert rows["backend"] == backend
    assert rows["isa"] == f"{gdm.isa()} (available: {', '.join(gdm.available_isas())})"
    assert rows["NumPy"] == np.__version__
    assert "-ffp-contract=off" in rows["flags"]
    assert rows.keys() >= {"threads", "compiler", "Python", "machine"}


@pytest.mark.parametrize("arguments", [["--help"], ["info", "--help"], ["demo", "--help"], ["--version"]])
def test_help(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert "gdm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        (["fly"], "invalid choice: 'fly'"),
        (["demo", "--epochs", "0"], "argument --epochs: must be at least 1, got 0"),
        (["demo", "--seed", "-1"], "argument --seed: must not be negative, got -1"),
        (["demo", "--seed", "x"], "argument --seed: invalid"),
    ],
)
def test_wrong_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "gdm", "--version"], capture_output=True, text=True, timeout=180)
    assert done.stdout == f"gdm {gdm.__version__}\n"
