"""Programs of the C core under the sanitizers: its pool of threads, its plans, and memory that runs out."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from clibrary import ROOT, objects


@pytest.fixture(scope="module", params=["thread", "address,undefined"])
def sanitized(request, tmp_path_factory):
    """Compiles a program of tests/c with the core, under a sanitizer."""
    if not shutil.which("gcc"):
        pytest.skip("NOT TESTED: the core under sanitizers; needs gcc")
    folder = tmp_path_factory.mktemp("sanitized")
    kind = [f"-fsanitize={request.param}", "-fno-sanitize-recover=all"]
    command = ["gcc", "-std=gnu11", "-g", "-O1", "-ffp-contract=off", "-fno-math-errno", "-pthread", *kind]
    files = objects(command, folder)

    def build(name: str, *flags: str):
        program = folder / name
        line = [*command, "-I", ROOT / "include", ROOT / f"tests/c/{name}.c", *files, *flags, "-lm", "-o", program]
        linked = subprocess.run(line, capture_output=True, text=True, timeout=300)
        if "cannot find" in linked.stderr:
            pytest.skip(f"NOT TESTED: the core under -fsanitize={request.param}; its run-time library is not here")
        assert linked.returncode == 0, linked.stderr
        return program

    return build


def test_the_pool_runs_each_task_once_without_a_race(sanitized):
    """Many callers, nested runs, every number of threads: no report of a sanitizer."""
    env = {"GDM_NUM_THREADS": "4"}
    done = subprocess.run([sanitized("stress")], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 100


def test_plans_hold_what_the_layers_above_rely_on(sanitized):
    """And no report of a sanitizer."""
    done = subprocess.run([sanitized("plan")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_memory_or_threads_that_are_not_to_be_had(sanitized, counted):
    """A call fails with GDM_ERR_MEMORY and changes nothing; a step does without threads that do not start."""
    wrapped = ("malloc", "calloc", "realloc", "free", "pthread_create")
    program = sanitized("memory", *(f"-Wl,--wrap={name}" for name in wrapped))
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        operation, count = line.split(": ")
        counted(f"C: {operation}", "calls that fail", int(count))
