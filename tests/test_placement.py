"""Where states lie in memory: in their cache lines as their parameters do, and apart from each other."""

from __future__ import annotations

import numpy as np
import pytest

import gdm

LINE = 64


def address(x):
    return x.__array_interface__["data"][0]


def placed(n, offset):
    """An array that begins this many bytes into a page."""
    memory = np.zeros(4 * n + 8192, np.uint8)
    start = (offset - address(memory)) % 4096
    return memory[start : start + 4 * n].view(np.float32)


@pytest.mark.parametrize("offset", [0, 4, 16, 60])
@pytest.mark.parametrize("n", [1, 15, 64, 1000, 8192, 100_000, 262_144, 300_001])
def test_states_lie_in_their_cache_lines_as_their_parameter_does(n, offset):
    params = [placed(n, offset), placed(n, 0)]
    optimizer = gdm.Adam(params, amsgrad=True)
    for states in (optimizer.exp_avg, optimizer.exp_avg_sq, optimizer.max_exp_avg_sq):
        for state, param in zip(states, params, strict=True):
            assert address(state) % LINE == address(param) % LINE


def apart(x, y, period):
    """The distance of two addresses modulo a period, the shorter way around."""
    distance = (address(x) - address(y)) % period
    return min(distance, period - distance)


@pytest.mark.parametrize("offset", [0, 16])
@pytest.mark.parametrize(("n", "period", "distance"), [(8192, 4096, 1024), (262_144, 1 << 17, 1 << 14)])
def test_written_streams_are_apart(n, offset, period, distance):
    """Modulo a page, and for large states modulo much more. See docs/decisions.md."""
    others = [np.ones(100, np.float32), np.ones(n, np.float32)]
    param = placed(n, offset)
    optimizer = gdm.Adam([others[0], param, others[1]], amsgrad=True)
    streams = [param, optimizer.exp_avg[1], optimizer.exp_avg_sq[1], optimizer.max_exp_avg_sq[1]]
    for i, x in enumerate(streams):
        for y in streams[:i]:
            assert apart(x, y, period) >= distance


def test_small_states_lie_side_by_side():
    params = [np.ones(16, np.float32) for _ in range(1000)]
    optimizer = gdm.Adam(params)
    states = [address(x) for x in (*optimizer.exp_avg, *optimizer.exp_avg_sq)]
    assert max(states) - min(states) < 1000 * 2 * 2 * LINE
