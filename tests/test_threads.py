"""Threads: how many, the same bits whatever their number, forks, signals, exit."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import gdm
from support import (
    DTYPES,
    RULES,
    assert_all_same_bits,
    assert_same_bits,
    at_once,
    buffers,
    call,
    expected,
    full,
    numbers,
    python,
)
from test_c import SOURCES

ROOT = Path(__file__).parent.parent
LARGE = 1_000_003  # enough for several threads, and not a multiple of anything


@pytest.fixture(autouse=True)
def _restore_threads():
    before = gdm.get_num_threads()
    yield
    gdm.set_num_threads(before)


# ---- how many ----


def test_default_number():
    show = "import gdm; print(gdm.get_num_threads())"
    cpus = len(os.sched_getaffinity(0))
    assert 1 <= int(python(show)) <= cpus
    assert python(show, GDM_NUM_THREADS="3") == "3"
    assert python(show, OMP_NUM_THREADS="5") == "5"
    assert python(show, OMP_NUM_THREADS="5,2") == "5"
    assert python(show, GDM_NUM_THREADS="3", OMP_NUM_THREADS="5") == "3"
    assert int(python(show, OMP_NUM_THREADS="many")) <= cpus
    assert python("import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); " + show) == "1"


@pytest.mark.parametrize("value", ["0", "-1", "two", "257", "2.0"])
def test_wrong_environment(value):
    done = subprocess.run(
        [sys.executable, "-c", "import gdm"],
        env={**os.environ, "GDM_NUM_THREADS": value},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert f"GDM_NUM_THREADS must be from 1 to 256, got '{value}'" in done.stderr


def test_setting_the_number():
    gdm.set_num_threads(3)
    with gdm.threads(2):
        assert gdm.get_num_threads() == 2
        with gdm.threads(5):
            assert gdm.get_num_threads() == 5
        assert gdm.get_num_threads() == 2
    assert gdm.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError), gdm.threads(7):
        raise ZeroDivisionError
    assert gdm.get_num_threads() == 3
    optimizer = gdm.SGD(np.ones(3), threads=4)
    assert optimizer.threads == 4
    optimizer.threads = None
    assert optimizer.threads is None


def test_one_context_entered_more_than_once():
    """Each exit sets the number that was there before its own entry."""
    gdm.set_num_threads(3)
    two = gdm.threads(2)
    with two:
        gdm.set_num_threads(4)
        with two, two:
            assert gdm.get_num_threads() == 2
        assert gdm.get_num_threads() == 4
    assert gdm.get_num_threads() == 3
    with two:
        assert gdm.get_num_threads() == 2
    assert gdm.get_num_threads() == 3


@pytest.mark.parametrize(
    "set_to", [gdm.set_num_threads, gdm.threads, lambda n: gdm.SGD(np.ones(2), threads=n)], ids=["set", "with", "SGD"]
)
def test_wrong_numbers(set_to):
    before = gdm.get_num_threads()
    for n in (0, -1, 257):
        with pytest.raises(ValueError, match=r"must be from 1 to 256, got"):
            set_to(n)
    for n in (1.5, "two", [1]):
        with pytest.raises(TypeError, match=r"must be a whole number"):
            set_to(n)
    assert gdm.get_num_threads() == before


def test_threadpoolctl():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    gdm.set_num_threads(2)
    (info,) = [i for i in threadpoolctl.threadpool_info() if i["internal_api"] == "gdm"]
    assert info["num_threads"] == 2
    assert info["version"] == gdm.__version__
    with threadpoolctl.threadpool_limits(1):
        assert gdm.get_num_threads() == 1
    assert gdm.get_num_threads() == 2
    with threadpoolctl.threadpool_limits({"gdm": 1}):
        assert gdm.get_num_threads() == 1


@pytest.mark.parametrize("first", ["threadpoolctl", "gdm"])
def test_threadpoolctl_in_either_order(first):
    pytest.importorskip("threadpoolctl")
    second = "gdm" if first == "threadpoolctl" else "threadpoolctl"
    code = f"import {first}, {second}; print([i['internal_api'] for i in threadpoolctl.threadpool_info()])"
    assert "'gdm'" in python(code)


# ---- the same bits ----


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("rule", list(RULES))
def test_functions_with_any_number_of_threads(rule, dtype, isa):
    options = full(rule)
    arrays = buffers(rule, options, dtype, LARGE)
    wanted = expected(rule, arrays, options)
    for n in range(1, 9):
        copies = {name: x.copy() for name, x in arrays.items()}
        with gdm.threads(n):
            call(rule, copies, options)
        assert_all_same_bits(copies, wanted, f"{n} threads")


SIZES = {
    "one": [LARGE],
    "a few": [LARGE, 0, 3, 70_000, 16_384, 16_385, 200_000],
    "many small": [64] * 12_000,
    "uneven": [1 + (k * 7919) % 3000 for k in range(800)],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
def test_optimizers_with_any_number_of_threads(sizes, isa):
    """Two groups, both dtypes, the first step and later ones."""

    def train(threads, backend="native"):
        params = [numbers(np.float64 if k % 3 == 1 else np.float32, n, k) for k, n in enumerate(sizes)]
        grads = [numbers(p.dtype, p.size, k + 1) for k, p in enumerate(params)]
        half = len(params) // 2
        gdm.set_backend(backend)
        optimizer = gdm.SGD(
            [{"params": params[:half], "weight_decay": 0.01}, {"params": params[half:]}],
            lr=0.1,
            momentum=0.9,
            threads=threads,
        )
        optimizer.bind([grads[:half], grads[half:]])
        for _ in range(2):
            optimizer.step()
        return params

    expected = train(1, "reference")
    for threads in (1, 2, 3, 8):
        for after, wanted in zip(train(threads), expected, strict=True):
            assert_same_bits(after, wanted, f"{threads} threads")


def test_optimizers_side_by_side():
    """Python threads that step at the same time: one has the pool, the others work alone."""
    gdm.set_num_threads(4)
    results = {}

    def work(k):
        param = np.full(LARGE, float(k), np.float32)
        optimizer = gdm.SGD(param, lr=0.1, momentum=0.9)
        optimizer.bind(np.full(LARGE, 0.5, np.float32))
        for _ in range(20):
            optimizer.step()
        results[k] = param

    at_once(work, 3)
    for k, param in results.items():
        work(k)
        np.testing.assert_array_equal(param, results[k])


# ---- forks, signals, exit ----

WORKERS = """
    import os, pathlib, time
    import numpy as np
    import gdm

    gdm.set_num_threads(3)
    def workers():
        names = [(t / "comm").read_text().strip() for t in pathlib.Path("/proc/self/task").iterdir()]
        return names.count("gdm")
    def make(n=1 << 21):
        optimizer = gdm.SGD(np.zeros(n, np.float32), lr=1.0)
        optimizer.bind(np.full(n, -1.0, np.float32))
        return optimizer
    def steps(optimizer):
        before = optimizer._snapshot.params[0][0]
        for _ in range(3):
            optimizer.step()
        assert np.all(optimizer._snapshot.params[0] == before + 3)
"""
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: threads are counted through /proc")


@only_linux
def test_threads_start_when_needed():
    code = """
    print(workers(), end=" ")
    small = make(1000); steps(small); print(workers(), end=" ")
    steps(make()); print(workers(), end=" ")
    gdm.set_num_threads(5)
    end = time.monotonic() + 100  # where threads kept a step waiting, gdm does without them for a while
    while workers() < 4 and time.monotonic() < end:
        steps(make())
    print(workers())
    """
    assert python(textwrap.dedent(WORKERS) + textwrap.dedent(code)) == "0 0 2 4"


@only_linux
def test_workers_take_no_signals():
    code = """
    steps(make())
    for task in pathlib.Path("/proc/self/task").iterdir():
        status = dict(line.split(":\\t") for line in (task / "status").read_text().splitlines() if ":\\t" in line)
        if status["Name"] == "gdm":
            blocked = int(status["SigBlk"], 16)
            print(all(blocked >> signal - 1 & 1 for signal in (1, 2, 3, 10, 14, 15, 17)), end=" ")
    """
    assert python(textwrap.dedent(WORKERS) + textwrap.dedent(code)) == "True True"


FORKS = """
    import sys, threading, multiprocessing

    def fork_and_step(child_optimizer):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                steps(child_optimizer())
                code = 0 if workers() == 2 else 2
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    optimizer = make()
    idle = [fork_and_step(make) for _ in range(TRIALS)]
    steps(optimizer)
    after_a_step = [fork_and_step(lambda: optimizer) for _ in range(TRIALS)]
    second_thread = []
    stop = threading.Event()
    def keep_stepping():
        mine = make()
        while not stop.is_set():
            mine.step()
    threading.Thread(target=keep_stepping).start()
    forker = threading.Thread(target=lambda: second_thread.extend(fork_and_step(make) for _ in range(TRIALS)))
    forker.start(); forker.join(); stop.set()
    steps(optimizer)
    print(*({code: codes.count(code) for code in set(codes)} for codes in (idle, after_a_step, second_thread)))
"""


@only_linux
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forks():
    """From an idle process, after steps, and from a second thread in the middle of another's step: no child hangs."""
    trials = 100
    code = textwrap.dedent(WORKERS) + textwrap.dedent(FORKS).replace("TRIALS", str(trials))
    assert python(code, timeout=300) == " ".join([f"{{0: {trials}}}"] * 3)


def _step_in_pool(k: int) -> bool:
    param = np.zeros(LARGE, np.float32)
    gdm.sgd(param, np.full(LARGE, -1.0, np.float32), lr=float(k))
    return bool(np.all(param == k))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_multiprocessing_pool():
    gdm.set_num_threads(2)
    assert _step_in_pool(1)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(pool.map_async(_step_in_pool, range(1, 41)).get(timeout=300))


@pytest.mark.parametrize("end", ["", "sys.exit()", "os._exit(0)", "os.kill(os.getpid(), 15)"])
def test_exit(end):
    """At once, with idle workers, and while a daemon thread is still stepping."""
    code = f"""
    import os, sys, threading, time
    steps(make())
    def forever():
        optimizer = make()
        while True:
            optimizer.step()
    threading.Thread(target=forever, daemon=True).start()
    time.sleep(0.05)
    print("end", flush=True)
    {end}
    """
    begin = textwrap.dedent(WORKERS) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", begin], capture_output=True, text=True, timeout=180)
    assert done.stdout.strip() == "end"
    assert done.returncode == (-15 if "kill" in end else 0), done.stderr


# ---- the C code under the sanitizers ----


@pytest.fixture(scope="module", params=["thread", "address,undefined"])
def sanitized(request, tmp_path_factory):
    """Compiles a program of tests/c with the core, under a sanitizer."""
    if not shutil.which("gcc"):
        pytest.skip("NOT TESTED: the core under sanitizers; needs gcc")
    folder = tmp_path_factory.mktemp("sanitized")
    flags = ["-std=gnu11", "-g", "-O1", "-ffp-contract=off", "-fno-math-errno", "-pthread"]
    common = ["gcc", *flags, f"-fsanitize={request.param}", "-fno-sanitize-recover=all", "-I", ROOT / "include"]
    objects = []
    for source in SOURCES:
        objects.append(folder / f"{source.stem}.o")
        subprocess.run([*common, "-c", source, "-o", objects[-1]], check=True, timeout=120)

    def build(name: str):
        command = [*common, ROOT / f"tests/c/{name}.c", *objects, "-lm", "-o", folder / name]
        linked = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if "cannot find" in linked.stderr:
            pytest.skip(f"NOT TESTED: the core under -fsanitize={request.param}; its run-time library is not here")
        assert linked.returncode == 0, linked.stderr
        return folder / name

    return build


def test_stress(sanitized):
    """Many callers, nested runs, every number of threads: each task once, no race, no report."""
    env = {"GDM_NUM_THREADS": "4"}
    done = subprocess.run([sanitized("stress")], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 100


def test_plans_in_c(sanitized):
    """What the layers above rely on in a plan's table, and no report."""
    done = subprocess.run([sanitized("plan")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
