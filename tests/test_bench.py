"""The benchmarks measure what they say: the right shapes, checked results, a limit that moves every byte."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gdm import bench
from gdm.bench import cases, peers, report, workloads
from gdm.bench.timing import Contestant, Timing, interleave


@pytest.mark.parametrize(
    ("model", "tensors", "elements"),
    [("MLP", 6, 535_818), ("ResNet-50", 161, 25_557_032), ("GPT-2 small", 148, 124_439_808)],
)
def test_models_are_as_large_as_the_published_ones(model, tensors, elements):
    """As many tensors and elements as the published models have."""
    shapes = workloads.MODELS[model]()
    assert len(shapes) == tensors
    assert workloads.elements(shapes) == elements


def test_samples_are_interleaved():
    """One sample of each in turn, after as many untimed; fast statements repeated, slow ones not."""
    order = []
    names = {"a": order.append, "b": lambda _: [order.append(2), sum(range(200_000))]}
    timings = interleave(
        {"a": Contestant("f(1)", {"f": names["a"]}), "b": Contestant("f(2)", {"f": names["b"]})}, seconds=0, least=3
    )
    assert [len(t.rounds) for t in timings.values()] == [3, 3]
    assert 0 < timings["a"].median < timings["b"].median
    changes = [x for x, y in zip(order, [*order[1:], 0], strict=True) if x != y]
    assert changes[-6:] == [1, 2, 1, 2, 1, 2]


def test_quantiles_are_of_the_sorted_times():
    timing = Timing([5.0, 1.0, 2.0, 4.0, 3.0])
    assert timing.median == 3.0
    assert timing.quantile(0.0) == 1.0
    assert timing.quantile(0.95) == 5.0


@pytest.mark.parametrize("peer", [peers.Gdm, peers.GdmUnbound, peers.GdmFunction, peers.NumPyNaive, peers.NumPyOut])
def test_peers_step_right(peer):
    assert set(peers.enter([(64,), (3, 5)], [peer])) == {peer.name}


@pytest.mark.parametrize("wrong", ["lr", "lazy"])
def test_a_wrong_result_is_not_timed(wrong, monkeypatch):
    """A peer that steps wrongly, or not at all, is found."""

    class Wrong(peers.NumPyOut):
        def contestant(self):
            if wrong == "lazy":
                return Contestant("pass", {})
            monkeypatch.setattr(peers, "LR", 2e-3)
            return super().contestant()

    with pytest.raises(AssertionError, match="NumPy out= differs from the reference"):
        peers.enter([(64,)], [Wrong])


def test_the_limit_moves_every_byte(monkeypatch):
    entered = peers.enter([(100_003,)], [peers.Limit])
    assert len(entered["limit"].variants()) >= 4
    monkeypatch.setattr(peers.Limit, "contestant", lambda self, variant=0: Contestant("pass", {}))
    with pytest.raises(AssertionError):
        peers.enter([(100_003,)], [peers.Limit])


def test_the_limit_refuses_what_it_cannot_move():
    from gdm.bench._limit import move_bytes

    x = np.zeros(8)
    assert move_bytes(0, x, x.copy())
    for arrays in ([x], [x] * 9, [x, np.zeros(9)], [x, np.zeros(16)[::2]]):
        with pytest.raises(ValueError, match="arrays"):
            move_bytes(0, *arrays)
    with pytest.raises(TypeError):
        move_bytes(0, x, memoryview(bytearray(64)))


def test_missing_peers_are_named():
    class Absent(peers.Peer):
        name = "absent"

        def prepare(self):
            raise ImportError("No module named 'absent'")

        def contestant(self):
            raise NotImplementedError

    told = {}
    assert peers.enter([(8,)], [Absent, peers.Gdm], missing=told.__setitem__).keys() == {"gdm"}
    assert told == {"absent": "No module named 'absent'"}


def test_the_quick_suite_has_the_groups_of_the_full_one():
    """Full and quick ask the same groups of questions; gdm comes first in each, and no name twice."""
    full, quick = bench.suite(), bench.suite(quick=True)
    assert {case.group for case in full} == {case.group for case in quick}
    assert len({case.id for case in full}) == len(full)
    assert all(case.peers[0].name.startswith("gdm") for case in full)


def test_on_a_busy_machine_every_peer_has_one_thread_too(monkeypatch):
    """One who wants to know what a second thread is worth there needs both times of each."""
    monkeypatch.setattr(cases, "_cpus", lambda: {0, 1})
    for quick in (False, True):
        busy = [case for case in bench.suite(quick=quick) if case.group == cases.BUSY]
        assert [case.threads for case in busy] == [1, 2]
        assert busy[0].peers == busy[1].peers
        assert len(busy[0].peers) > 1


def _small(group, label, shapes, **more):
    some = (peers.Gdm, peers.Limit, peers.NumPyOut)
    return bench.measure(bench.Case(group, label, shapes, some, seconds=0.01, **more))


def _stored(method, threads):
    method = next(x for x in peers.METHODS if x.name == method)
    some = (peers.Gdm, peers.GdmInt8States)
    case = bench.Case(cases.STORAGE, f"{method.name}, {threads}", [(1 << 12,)], some, threads, 0.01, method=method)
    return bench.measure(case)


@pytest.mark.parametrize("peer", peers.GdmStored.__subclasses__(), ids=lambda x: x.name)
def test_each_narrow_storage_is_checked_against_the_reference(peer, monkeypatch):
    """A peer that stores something else than it says fails before it is timed."""
    assert peers.enter([(300,), (5, 7)], [peer]).keys() == {peer.name}
    monkeypatch.setattr(peer, "contestant", lambda self: Contestant("step()", {"step": lambda: None}))
    with pytest.raises(AssertionError, match=f"{peer.name} differs from the reference"):
        peers.enter([(300,), (5, 7)], [peer])


def test_a_measurement_becomes_a_table_json_and_pictures(tmp_path):
    """From measuring to table, JSON and pictures, on small cases."""
    results = [
        _small(cases.SIZE, "2^16", [(1 << 16,)]),
        _small(cases.SIZE, "2^18", [(1 << 18,)]),
        _small(cases.SMALL, "10 x 64", [(64,)] * 10),
        _small(cases.SMALL, "100 x 64", [(64,)] * 100),
        _stored("SGD", 1),
        _stored("AdamW", 1),
        _stored("AdamW", 2),
        _small(cases.BUSY, "1 thread", [(1 << 16,)], busy=True),
        _small(cases.BUSY, "2 threads", [(1 << 16,)], busy=True, threads=2),
    ]
    for result in results:
        others = {"gdm, int8 states"} if result.case.group == cases.STORAGE else {"NumPy out=", "limit"}
        assert set(result.timings) == {"gdm"} | others
        assert all(timing.median > 0 for timing in result.timings.values())
        moved = result.case.elements * result.case.method.moved_bytes
        assert math.isclose(result.gigabytes_per_second, moved * 1e-9 / result.ours.median)
    text = report.table(results)
    assert "2^16" in text
    assert "p95: gdm" in text
    bench.finish(tmp_path, results)
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert saved["results"][0]["seconds"]["gdm"] == results[0].ours.median
    assert saved["machine"]["versions"]["numpy"] == np.__version__
    for name in ("throughput", "tensors", "storage", "busy"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
