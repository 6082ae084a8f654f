"""examples/distributed/train.py: it trains with each engine, and goes on from checkpoints."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="NOT TESTED: examples/distributed; there is no torch here")
pytest.importorskip("sklearn", reason="NOT TESTED: examples/distributed; there is no scikit-learn here")
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("NOT TESTED: examples/distributed; this torch has no gloo", allow_module_level=True)

EXAMPLE = Path(__file__).parent.parent / "examples/distributed/train.py"
SECONDS, SECONDS_TO_END = 100, 40
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}


def train(*options: str) -> str:
    """The output of the example on two ranks."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2")
    environment = {**os.environ, **LOOPBACK, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as output:  # a pipe would be open as long as any of torchrun's processes runs
        process = subprocess.Popen(
            [sys.executable, *torchrun, EXAMPLE, *options], stdout=output, stderr=output, env=environment
        )
        try:
            status = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            status = -1
        finally:
            process.terminate()  # torchrun then ends the processes that it has started
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        output.seek(0)
        text = output.read()
    assert status == 0, text
    return text


def losses(output: str) -> list[float]:
    return [float(x) for x in re.findall(r"^step +\d+ +loss (\S+)", output, re.M)]


def bytes_of_states(output: str) -> list[int]:
    found = re.search(r"^states, in bytes for each rank: (.*)$", output, re.M)
    return [int(x.replace(",", "")) for x in found[1].split(", ")]


def test_one_engine_goes_on_where_another_one_stopped(tmp_path):
    """In the end the training is where an uninterrupted one is, with a third engine."""
    checkpoint = ("--checkpoint", str(tmp_path), "--steps", "15")
    first = train("--engine", "zero", *checkpoint)
    assert "gdm.torch.AdamW, zero, 2 ranks" in first
    second = train("--engine", "fsdp", "--cpu-offload", *checkpoint)
    assert f"goes on from {tmp_path / 'step-15'}" in second
    assert (tmp_path / "step-30" / ".metadata").exists()
    uninterrupted = train("--engine", "ddp", "--steps", "30")
    assert 2.0 > losses(first)[-1] > losses(second)[-1]
    assert losses(second)[-1] == pytest.approx(losses(uninterrupted)[-1], abs=0.001)

    here, there = bytes_of_states(second)
    assert here == there
    assert bytes_of_states(uninterrupted) == pytest.approx([2 * here] * 2, rel=0.001)


# ---- without other processes ----


@pytest.fixture(scope="module")
def example():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parts of torch.distributed warn of other parts of torch
        return runpy.run_path(str(EXAMPLE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--engine ddp", "started by torchrun"),
        ("--engine ddp --cpu-offload", "--cpu-offload needs --engine fsdp"),
        ("--engine ddp --steps 0", "--steps must be 1 or more, not 0"),
        ("", "required: --engine"),
    ],
)
def test_wrong_use_is_explained(example, monkeypatch, capsys, options, message):
    monkeypatch.setattr("sys.argv", ["train.py", *options.split()])
    with pytest.raises(SystemExit, match="2"):
        example["main"]()
    assert message in capsys.readouterr().err


def test_help(example, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        example["main"]()
    help = capsys.readouterr().out
    assert all(option in help for option in ("--engine", "--optimizer", "--steps", "--cpu-offload", "--checkpoint"))


def test_the_optimizers_are_gdms(example):
    for optimizer, settings in example["OPTIMIZERS"].values():
        assert optimizer([torch.zeros(1)], **settings).__module__.startswith("gdm.torch")


def test_an_incomplete_checkpoint_is_passed_over(example, tmp_path):
    for name in ("step-5/.metadata", "step-10/.metadata", "step-20/__0_0.distcp"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert example["last_checkpoint"](tmp_path) == (tmp_path / "step-10", 10)
    assert example["last_checkpoint"](tmp_path / "none") == (None, 0)
