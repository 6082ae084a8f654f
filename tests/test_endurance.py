"""Many steps, and many calls that fail: neither memory nor counts of references grow.

`make faults` makes 10^6 steps and 10^5 failing calls of each kind; without it there are fewer.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from faults_table import FULL
from support import python

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="NOT TESTED: flat memory, without /proc")
STEPS, FAILURES = (1_000_000, 100_000) if FULL else (20_000, 2_000)
LIMIT = 256  # KiB that the process may grow by: a call that leaks 16 bytes leaks more in 20,000 calls

# What is repeated, and what is looked at before and after: resident memory, blocks of Python's, references. Whatever is
# made once, as the threads or a schedule's first learning rates, has been made before the first look.
COMMON = """
    import gc, os, sys
    import numpy as np
    import gdm
    import gdm.schedules

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)

    def references(objects):
        return [sys.getrefcount(x) for x in objects]

    def warm_up(times):  # Python needs more memory in the first some hundred calls
        return max(times // 10, 500)

    def repeat(act, times, watched=()):
        watched = [*watched, None, True, False, 0, 1, (), ""] if sys.version_info < (3, 12) else [*watched]
        for _ in range(warm_up(times)):
            act()
        gc.collect()
        before, blocks, counts = resident(), sys.getallocatedblocks(), references(watched)
        for _ in range(times):
            act()
        gc.collect()
        grown, more, after = resident() - before, sys.getallocatedblocks() - blocks, references(watched)
        assert grown < {limit}, f"{{grown}} KiB more after {{times}} calls"
        assert more < 500 + times // 1000, f"{{more}} more blocks after {{times}} calls"
        changed = [(type(x).__name__, a - b) for x, a, b in zip(watched, after, counts) if abs(a - b) > 20]
        assert not changed, f"references after {{times}} calls: {{changed}}"
"""


def run(code: str, **environment: str) -> str:
    return python(textwrap.dedent(COMMON.format(limit=LIMIT)) + textwrap.dedent(code), timeout=3000, **environment)


STEPPED = {
    "bound": "optimizer = gdm.Adam(params, lr=1e-3); optimizer.bind(grads)\nact = optimizer.step",
    "given": "optimizer = gdm.Adam(params, lr=1e-3)\nact = lambda: optimizer.step(grads)",
    "given, one None": "optimizer = gdm.Adam(params, lr=1e-3)\nact = lambda: optimizer.step([grads[0], None])",
    "scaled": "optimizer = gdm.SGD(params, lr=1e-3, momentum=0.9)\nact = lambda: optimizer.step(grads, scale=0.5)",
    "a function": "optimizer = None\nact = lambda: gdm.momentum(params[0], states[0], grads[0], lr=1e-3, momentum=0.9)",
    "a schedule": (
        "optimizer = gdm.SGD(params, lr=gdm.schedules.cosine(0.1, steps=2_000_000, warmup=1000))\n"
        "optimizer.bind(grads)\nact = optimizer.step"
    ),
    "a learning rate that is set": (
        "optimizer = gdm.AdamW(params, lr=1e-3); optimizer.bind(grads); rates = [1e-3, 2e-3] * 10\n"
        "def act(k=[0]):\n    k[0] += 1\n    optimizer.lr = rates[k[0] % 2]\n    optimizer.step()"
    ),
    "clipping, an average, copies, int8, stochastic rounding": (
        "params = [x.astype('f2') for x in params]; copies = [x.astype('f4') for x in params]\n"
        "optimizer = gdm.AdamW(params, lr=1e-3, max_grad_norm=1.0, average=0.9, copies=copies, state_dtype='int8', "
        "rounding='stochastic', nonfinite='skip')\noptimizer.bind(grads)\nact = optimizer.step"
    ),
    "two modes": "optimizer = gdm.ScheduleFreeSGD(params, lr=1e-3)\n"
    "def act():\n    optimizer.step(grads)\n    optimizer.eval()\n    optimizer.train()",
    "reductions": "optimizer = None\ndef act():\n    gdm.grad_norm(grads)\n    gdm.count_nonfinite(grads)\n"
    "    gdm.accumulate(states, grads, scale=1e-6)",
}


@pytest.mark.parametrize("kind", STEPPED)
def test_steps_leave_memory_and_references_as_they_are(kind, counted):
    run(
        f"""
        params, grads, states = ([np.full(n, x, "f4") for n in (7, 33)] for x in (1.0, 0.25, 0.0))
        copies = []
        {STEPPED[kind].replace(chr(10), chr(10) + " " * 8)}
        repeat(act, {STEPS}, [optimizer, *params, *grads, *copies, *states, params, grads])
        """
    )
    counted(f"steps: {kind}", "calls with flat memory", STEPS)


# Calls that must fail, and with what.
FAILING = {
    "a wrong dtype": "optimizer.step([np.ones(7, int), grads[1]])",
    "a wrong shape": "optimizer.step([np.ones(8, 'f4'), grads[1]])",
    "too few gradients": "optimizer.step(grads[:1])",
    "no array": "optimizer.step([3, 'x'])",
    "shared memory": "optimizer.step([params[0], grads[1]])",
    "not contiguous": "optimizer.step([np.ones(14, 'f4')[::2], grads[1]])",
    "a gradient that is not finite": "picky.step([np.full(7, np.nan, 'f4'), grads[1]])",
    "an option out of range": "optimizer.lr = -1.0",
    "an option of a wrong type": "optimizer.lr = 'fast'",
    "an unknown option": "gdm.SGD(params, speed=3)",
    "a bad parameter": "gdm.SGD([np.ones(3, int)])",
    "parameters that share memory": "gdm.SGD([params[0], params[0]])",
    "a function's wrong dtype": "gdm.sgd(params[0], np.ones(7), lr=0.1)",
    "a function's unknown argument": "gdm.sgd(params[0], grads[0], lr=0.1, speed=3)",
    "a function's missing argument": "gdm.sgd(params[0], lr=0.1)",
    "a function's shared memory": "gdm.sgd(params[0], params[0], lr=0.1)",
    "a bad state": "optimizer.load_state_dict(bad)",
    "a bad group": "optimizer.add_group({'params': [np.ones(3, int)]})",
    "a group that is not there": "optimizer.groups[9]",
    "a bad schedule": "gdm.schedules.cosine(-1.0, steps=3)",
    "a bad reduction": "gdm.grad_norm([3])",
    "a missing file": "optimizer.load('/nowhere/at/all')",
    "a file that cannot be written": "optimizer.save('/nowhere/at/all')",
    "a step before bind": "picky.step()",
}


@pytest.mark.parametrize("kind", FAILING)
def test_failing_calls_leave_memory_and_references_as_they_are(kind, counted):
    times = FAILURES // (10 if "file" in kind else 1)
    run(
        f"""
        params, grads = ([np.full(n, x, "f4") for n in (7, 33)] for x in (1.0, 0.25))
        others = [x.copy() for x in params]
        optimizer, picky = gdm.Adam(params, lr=1e-3), gdm.Adam(others, lr=1e-3, nonfinite="raise")
        optimizer.step(grads)
        bad = optimizer.state_dict()
        bad["groups"][0]["params"][1]["state"]["exp_avg"] = np.ones(3)
        before = [x.tobytes() for x in params + others]
        failed = 0

        def act():
            global failed
            try:
                {FAILING[kind]}
            except Exception:
                failed += 1

        repeat(act, {times}, [optimizer, picky, *params, *others, *grads, params, grads, bad])
        assert failed == {times} + warm_up({times}), failed
        assert [x.tobytes() for x in params + others] == before
        """
    )
    counted(f"failing calls: {kind}", "calls with flat memory", times)
