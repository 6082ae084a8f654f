"""The threads of gdm and the process: when they start, signals, forks, exit."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import gdm
from support import LARGE, python

# Code for processes of their own.
WORKERS = """
    import os, pathlib, time
    import numpy as np
    import gdm

    gdm.set_num_threads(3)
    def workers():
        names = [(t / "comm").read_text().strip() for t in pathlib.Path("/proc/self/task").iterdir()]
        return names.count("gdm")
    def worked():
        clocks = [~int(t.name) << 3 | 6 for t in pathlib.Path("/proc/self/task").iterdir()
                  if (t / "comm").read_text() == "gdm\\n"]  # the CPU times of threads: see clock_getcpuclockid(3)
        return sum(map(time.clock_gettime, clocks))
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
def test_threads_that_sleep_are_woken():
    """A while after a step they sleep. In a later step they do a part of the work again."""
    code = """
    optimizer = make(1 << 23)
    optimizer.step()
    end = time.monotonic() + 100  # where threads kept a step waiting, gdm does without them for a while
    share = 0
    while share < 0.001 and time.monotonic() < end:
        time.sleep(0.05)
        before = worked()
        optimizer.step()
        share = worked() - before
    print(share >= 0.001)
    """
    assert python(textwrap.dedent(WORKERS) + textwrap.dedent(code)) == "True"


@only_linux
def test_threads_use_no_time_between_steps():
    code = """
    steps(make())
    time.sleep(0.1)
    before = worked()
    time.sleep(0.5)
    print(workers(), worked() - before < 0.01)
    """
    assert python(textwrap.dedent(WORKERS) + textwrap.dedent(code)) == "2 True"


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
def test_no_child_of_a_fork_hangs():
    """From an idle process, after steps, and from a second thread in the middle of another's step: no child hangs."""
    trials = 100
    code = textwrap.dedent(WORKERS) + textwrap.dedent(FORKS).replace("TRIALS", str(trials))
    assert python(code, timeout=300) == " ".join([f"{{0: {trials}}}"] * 3)


def _step_in_pool(k: int) -> bool:
    param = np.zeros(LARGE, np.float32)
    gdm.sgd(param, np.full(LARGE, -1.0, np.float32), lr=float(k))
    return bool(np.all(param == k))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_pool_of_processes_steps():
    gdm.set_num_threads(2)
    assert _step_in_pool(1)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(pool.map_async(_step_in_pool, range(1, 41)).get(timeout=300))


@pytest.mark.parametrize("end", ["", "sys.exit()", "os._exit(0)", "os.kill(os.getpid(), 15)"])
def test_a_process_ends_at_once_whatever_the_threads_do(end):
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
