"""The pool of threads in C under the sanitizers."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from clibrary import ROOT, objects


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_pool_runs_each_task_once_without_a_race(sanitizer, tmp_path):
    """Many callers, nested runs, every number of threads: no report of a sanitizer."""
    if not shutil.which("gcc"):
        pytest.skip("NOT TESTED: the pool under sanitizers; needs gcc")
    kind = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    command = ["gcc", "-std=gnu11", "-g", "-O1", "-fno-math-errno", "-pthread", *kind]
    files, program = objects(command, tmp_path), tmp_path / "stress"
    command = [*command, "-I", ROOT / "include", ROOT / "tests/c/stress.c", *files, "-o", program]
    linked = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if "cannot find" in linked.stderr:
        pytest.skip(f"NOT TESTED: the pool under -fsanitize={sanitizer}; its run-time library is not here")
    assert linked.returncode == 0, linked.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=300, env={"GDM_NUM_THREADS": "4"})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 100
