"""Parameters, states and gradients of an optimizer that share memory."""

from __future__ import annotations

import numpy as np
import pytest

import gdm
from classes import three_arrays
from support import DTYPES, assert_same_bits, numbers


@pytest.mark.parametrize("started", [False, True])
def test_what_is_written_may_share_no_memory(backend, started):
    params = three_arrays()
    with pytest.raises(gdm.OverlapError, match=r"params\[\d\] and params\[\d\] share memory"):
        gdm.SGD([*params, params[0]])
    with pytest.raises(gdm.OverlapError, match=r"params\[\d\] and params\[\d\] share memory"):
        gdm.SGD([*params, params[1][3:9]])
    optimizer = gdm.SGD(params, lr=0.1, momentum=0.9)
    if started:
        optimizer.step(three_arrays())
    snapshot = [x.tobytes() for x in (*params, *optimizer.velocity)]
    n = params[2].size
    for grad, other in [
        (params[2], r"params\[2\]"),
        (params[2].view(), r"params\[2\]"),
        (optimizer.velocity[2], r"the velocity of params\[2\]"),
    ]:
        with pytest.raises(gdm.OverlapError, match=other):
            optimizer.step([*three_arrays()[:2], grad])
        assert [x.tobytes() for x in (*params, *optimizer.velocity)] == snapshot
    # Another parameter's memory, and only in part.
    memory = np.zeros(100, np.float32)
    optimizer = gdm.SGD([memory[:n], memory[n : 2 * n]], lr=0.1)
    with pytest.raises(gdm.OverlapError, match=r"params\[1\] and grads\[0\]"):
        optimizer.step([memory[2 * n - 1 : 3 * n - 1], np.ones(n, np.float32)])
    optimizer.step([memory[2 * n : 3 * n], memory[2 * n : 3 * n]])  # gradients may share memory


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_every_place_of_a_gradient_is_judged_as_by_brute_force(backend, dtype):
    """A gradient for each of twelve parameters at every place in the memory they lie in."""
    memory = numbers(dtype, 100, 1)
    before = memory.copy()
    spans, end = [], 5
    for n, gap in [(1, 0), (9, 1), (2, 0), (6, 3), (1, 1), (1, 0), (12, 0), (3, 7), (4, 2), (1, 12), (7, 0), (2, 9)]:
        spans.append((end, n))
        end += n + gap
    spans = spans[::2] + spans[::-2]  # not in the order of their addresses
    owner = np.full(memory.size, -1)
    for k, (start, n) in enumerate(spans):
        owner[start : start + n] = k
    optimizer = gdm.SGD([memory[start : start + n] for start, n in spans], lr=0.0)
    apart = [np.ones(n, dtype) for _, n in spans]
    outcomes = set()
    for k, (_, n) in enumerate(spans):
        for start in range(memory.size - n + 1):
            grads = [*apart[:k], memory[start : start + n], *apart[k + 1 :]]
            shared = set(owner[start : start + n]) - {-1}
            outcomes.add(bool(shared))
            if shared:
                with pytest.raises(gdm.OverlapError) as caught:
                    optimizer.step(grads)
                assert any(f"params[{i}] and grads[{k}]" in str(caught.value) or
                           f"grads[{k}] and params[{i}]" in str(caught.value) for i in shared)  # fmt: skip
            else:
                optimizer.step(grads)
    assert outcomes == {False, True}
    assert_same_bits(memory, before)


def test_the_end_of_a_parameter_is_protected(backend):
    """Lengths in bytes are those of the dtype, also where dtypes are mixed."""
    memory = np.zeros(32)
    optimizer = gdm.SGD([np.ones(8, np.float32), memory[:8], memory[8:9]], lr=0.1)
    for start, shared in [(7, True), (4, True), (9, False), (16, False)]:
        grads = [np.ones(8, np.float32), memory[start : start + 8], np.ones(1)]
        if shared:
            with pytest.raises(gdm.OverlapError, match=r"params\[1\] and grads\[1\]"):
                optimizer.step(grads)
        else:
            optimizer.step(grads)
    with pytest.raises(gdm.OverlapError, match=r"params\[1\] and grads\[0\]"):
        optimizer.step([memory[7:11].view(np.float32), np.ones(8), np.ones(1)])


def test_gradients_may_share_memory(backend):
    """With each other, whole and in part; and one of length 0 lies nowhere."""
    a, b, memory = np.zeros(8), np.zeros(8), np.arange(1.0, 13.0)
    memory.flags.writeable = False
    optimizer = gdm.SGD([a, b, np.zeros(0)], lr=1.0)
    optimizer.step([memory[:8], memory[:8], a[3:3]])
    optimizer.step([memory[:8], memory[4:], memory[2:2]])
    optimizer.bind([memory[4:], memory[:8], b[:0]])
    optimizer.step()
    optimizer.step([memoryview(memory[4:]), memoryview(memory[:8]), memoryview(a[3:3])])  # checked in Python
    np.testing.assert_array_equal(a, -2 * (memory[:8] + memory[4:]))
    np.testing.assert_array_equal(b, -(3 * memory[:8] + memory[4:]))


def test_a_new_group_may_not_overlap():
    x = np.ones(4)
    optimizer = gdm.Adam([x[:3]])
    with pytest.raises(gdm.OverlapError, match="share memory"):
        optimizer.add_group({"params": [x[2:]]})
    with pytest.raises(gdm.OverlapError, match="the exp_avg of params"):
        optimizer.add_group({"params": [optimizer.exp_avg[0]]})
