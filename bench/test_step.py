"""What one step costs: for a small array, where it is all overhead, and for a large one, where it is all memory."""

from __future__ import annotations

from gdm.bench.peers import PEERS, Gdm, GdmFunction, GdmUnbound, Limit, NumPyNaive, NumPyOut


def test_call_overhead(compare):
    """1 x 64: function and bound optimizer against everybody."""
    peers = (GdmFunction, Gdm, GdmUnbound, *(peer for peer in PEERS if peer not in (Gdm, Limit)))
    compare("call overhead, 1 x 64", [(64,)], peers)


def test_large_array(compare):
    """16 M elements, one thread: NumPy, and the limit of the memory."""
    compare("16 M elements, one thread", [(1 << 24,)], (GdmFunction, Limit, NumPyOut, NumPyNaive), seconds=20)
