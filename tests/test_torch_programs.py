"""The programs that show and measure gdm.torch run: the example, and the comparison with torch.optim."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("torch", reason="NOT TESTED: programs for PyTorch; there is no torch here")


def run(*arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_trains_with_both_alike_and_draws(tmp_path):
    printed = run(ROOT / "examples/torch/digits.py", "--epochs", 2, "--out", tmp_path)
    (line,) = [line for line in printed.splitlines() if line.startswith("epoch")]
    theirs, ours = (float(x) for x in re.findall(r"\d+\.\d+", line))
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours < 1.0
    assert (tmp_path / "torch-digits.png").read_bytes().startswith(b"\x89PNG")


def test_the_offload_example_learns_with_both_alike():
    printed = run(ROOT / "examples/torch/offload.py", "--steps", 60, "--device", "cpu").splitlines()
    numbers = {line[:12].strip(): [float(x) for x in re.findall(r"\d+\.\d+", line)] for line in printed}
    assert list(numbers) == ["torch.optim", "gdm.torch"]
    theirs, ours = numbers["torch.optim"], numbers["gdm.torch"]
    assert ours[0] == theirs[0]
    assert ours[1] < 0.5 * ours[0]
    assert ours[1] == pytest.approx(theirs[1], rel=0.2)
    assert ours[2] > 80


def test_the_comparison_checks_and_reports(tmp_path):
    case = ("--only", "1 x 64", "--methods", "SGD", "AdamW", "--threads", "1", "--seconds", "0.05", "--out", tmp_path)
    assert run(ROOT / "bench/compare_torch.py", *case).count("torch fused") == 2
    results = json.loads((tmp_path / "bench-torch.json").read_text())["results"]
    assert [x["method"] for x in results] == ["SGD", "AdamW"]
    assert all(x["seconds"]["gdm.torch"] > 0 for x in results)


def test_clipping_and_averaging_by_pytorch_is_compared_for_parameters_of_any_shape():
    from gdm.bench import cases

    (case,) = (case for case in cases.suite(quick=True) if case.group == cases.AROUND)
    assert any(len(shape) > 1 for shape in case.shapes)
    result = cases.measure(dataclasses.replace(case, seconds=0.01))
    assert set(result.timings) >= {"gdm, clip and average", "torch, clip and average"}
