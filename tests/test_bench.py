"""The benchmarks measure what they say: the right shapes, checked results, a limit that moves every byte."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gdm import bench
from gdm.__main__ import main
from gdm.bench import cases, compare, peers, report, workloads
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
    assert [x["ratios"]["gdm"] for x in saved["results"]] == [1.0] * len(results)
    same = compare.changes(*[compare.read(tmp_path / "bench.json")] * 2)
    assert len(same) == sum(name.startswith("gdm") for result in results for name in result.timings)
    assert {change.ratio for change in same} == {change.factor for change in same} == {1.0}
    for name in ("throughput", "tensors", "storage", "busy"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# ---- two measurements ------------------------------------------------------------------------------------------------


def times(median, width=0.02):
    return {"seconds": median, "quartiles": [median * (1 - width), median * (1 + width)]}


def content(seconds=None, **facts):
    """What a bench.json holds: one case, in which these peers take so long, or have these times and quartiles."""
    seconds = {"gdm": 1.0, "NumPy out=": 2.0, "torch fused": 3.0} if seconds is None else seconds
    measured = {name: x if isinstance(x, dict) else times(x) for name, x in seconds.items()}
    result = {"group": "one tensor", "label": "2^16"}
    result |= {key: {name: x[key] for name, x in measured.items()} for key in ("seconds", "quartiles")}
    machine = {"cpu": "a CPU", "gdm": "0.1.0", "isa": "avx2", "versions": {"numpy": "2.3.0", "torch": "2.13.0"}}
    return {"format": report.FORMAT, "machine": machine | facts, "results": [result]}


def change(old, new):
    """The change of gdm's only time."""
    (found,) = compare.changes(compare.parse(content(old)), compare.parse(content(new)))
    return found


@pytest.mark.parametrize(
    ("old", "new", "factor", "others"),
    [
        pytest.param({"gdm": 1.0}, {"gdm": 1.2}, 1.2, 1.0, id="slower"),
        pytest.param({"gdm": 1.0}, {"gdm": 0.8}, 0.8, 1.0, id="faster"),
        pytest.param({"gdm": 1.0}, {"gdm": 1.03}, 1.0, 1.0, id="quartiles overlap"),
        pytest.param({"gdm": times(1.0, 0.2)}, {"gdm": 1.1}, 1.0, 1.0, id="a noisy measurement"),
        pytest.param({"gdm": 1.0, "limit": 1.0}, {"gdm": 1.2, "limit": 1.2}, 1.0, 1.2, id="the machine is slower"),
        pytest.param({"gdm": 1.0, "limit": 1.0}, {"gdm": 1.5, "limit": 1.25}, 1.2, 1.25, id="both are slower"),
        pytest.param({"gdm": 1.0, "limit": 1.0}, {"gdm": 1.2, "limit": 0.8}, 1.2, 0.8, id="the limit is faster"),
        pytest.param({"gdm": 1.0, "limit": 1.0}, {"gdm": 1.0, "limit": 0.8}, 1.0, 0.8, id="only the limit is faster"),
        pytest.param({"gdm": 1.0, "optax jit": 1.0}, {"gdm": 0.5, "limit": 0.8}, 0.5, 1.0, id="no peer in both"),
    ],
)
def test_a_change_is_what_neither_noise_nor_the_machine_explains(old, new, factor, others):
    found = change(old, new)
    assert (found.factor, found.others) == (pytest.approx(factor), pytest.approx(others))


def test_a_peer_with_another_version_does_not_stand_for_the_machine():
    before = compare.parse(content({"gdm": 1.0, "NumPy out=": 1.0, "torch fused": 1.0}))
    after = content({"gdm": 1.0, "NumPy out=": 1.1, "torch fused": 5.0}, versions={"numpy": "2.3.0", "torch": "2.14.0"})
    (found,) = compare.changes(before, compare.parse(after))
    assert found.others == pytest.approx(1.1)


def test_every_peer_but_gdm_has_its_libraries():
    """A peer that is missing there would never count."""
    named = {peer.name for case in bench.suite() for peer in case.peers if not peer.name.startswith("gdm")}
    assert {name.split()[0].rstrip(",") for name in named} == compare.LIBRARIES.keys()


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def test_two_files_are_compared_without_measuring(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gdm.bench.measure", lambda *args, **kwargs: pytest.fail("the measurement has begun"))
    new = content({"gdm": 1.3, "gdm, step(grads)": 1.0, "NumPy out=": 2.0}, isa="avx512", gdm="0.2.0")
    files = [write(tmp_path / "old.json", content()), write(tmp_path / "new.json", new)]
    out = ["--out", str(tmp_path / "out")]
    assert main(["bench", "--compare", *files, *out]) == 0
    printed = capsys.readouterr().out
    assert "old: gdm 0.1.0; new: gdm 0.2.0" in printed
    assert printed.count("WARNING") == 1
    assert "isa: avx2 before, avx512 now" in printed
    assert "one tensor: 2^16 " in printed
    assert "1.300" in printed
    assert "SLOWER" in printed
    assert "1 times: 1 slower and 0 faster" in printed
    assert (tmp_path / "out" / compare.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert main(["bench", "--compare", *files, *out, "--fail-above", "1.4"]) == 0
    assert main(["bench", "--compare", *files, *out, "--fail-above", "1.25"]) == 1
    assert "FAILED: one tensor: 2^16 takes 1.30 times as long, more than 1.25" in capsys.readouterr().out
    assert main(["bench", "--compare", *files[::-1], *out, "--fail-above", "1.0"]) == 0
    assert "faster" in capsys.readouterr().out


def test_a_measurement_is_compared_with_an_earlier_one(tmp_path, capsys, monkeypatch):
    """With one that was a thousand times faster, it fails."""
    case = cases.Case(cases.SIZE, "2^16", [(1 << 16,)], (peers.Gdm, peers.NumPyOut), seconds=0.01)
    monkeypatch.setattr("gdm.bench.suite", lambda quick: [case])
    assert main(["bench", "--out", str(tmp_path / "a")]) == 0
    earlier = json.loads((tmp_path / "a" / "bench.json").read_text())
    for result in earlier["results"]:
        result["seconds"]["gdm"] /= 1000
        result["quartiles"]["gdm"] = [x / 1000 for x in result["quartiles"]["gdm"]]
    old = write(tmp_path / "old.json", earlier)
    capsys.readouterr()
    assert main(["bench", "--out", str(tmp_path / "b"), "--compare", old, "--fail-above", "10"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED: one tensor: 2^16 takes " in printed
    assert "WARNING" not in printed
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"bench.json", compare.PICTURE}


def without(key):
    damaged = content()
    del damaged["results"][0][key]
    return damaged


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        ([1], "has no 'machine' and 'results'"),
        ({"machine": {}}, "has no 'machine' and 'results'"),
        (content() | {"format": 0}, "must have the format 1, has 0: measure again"),
        ({"machine": {}, "results": []}, "must have the format 1, has None: measure again"),
        (content() | {"machine": 1}, "must have an object 'machine'"),
        (content() | {"results": []}, "must have at least one result"),
        (content() | {"results": [1]}, "results[0] must be a result"),
        (without("label"), "results[0] must be a result of gdm's benchmarks: KeyError('label')"),
        (without("quartiles"), "results[0] must be a result"),
        (content({}), "results[0] must have times above 0"),
        (content({"gdm": 0.0}), "results[0] must have times above 0"),
        (content({"gdm": math.nan}), "results[0] must have times above 0"),
        (content({"gdm": math.inf}), "results[0] must have times above 0"),
        (content({"gdm": {"seconds": 1.0, "quartiles": [1.1, 1.2]}}), "with each median between its quartiles"),
        (content({"gdm": {"seconds": 1.0, "quartiles": [1.0]}}), "results[0] must be a result"),
        (content({"gdm": {"seconds": "1", "quartiles": [1.0, 1.0]}}), "results[0] must be a result"),
    ],
)
def test_a_bad_file_is_one_line_before_anything_is_measured(damaged, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gdm.bench.measure", lambda *args, **kwargs: pytest.fail("the measurement has begun"))
    path = tmp_path / "old.json"
    path.write_bytes(damaged if isinstance(damaged, bytes) else json.dumps(damaged).encode())
    for files in ([path], [write(tmp_path / "good.json", content()), path]):
        assert main(["bench", "--out", str(tmp_path / "out"), "--compare", *map(str, files)]) == 2
        done = capsys.readouterr()
        assert done.err.startswith(f"gdm: error: {path}: ")
        assert message in done.err
        assert (done.out, done.err.count("\n")) == ("", 1)


def test_measurements_without_a_common_case_are_refused(tmp_path, capsys):
    other = content()
    other["results"][0]["label"] = "2^17"
    files = [write(tmp_path / "old.json", content()), write(tmp_path / "new.json", other)]
    assert main(["bench", "--out", str(tmp_path), "--compare", *files]) == 2
    assert capsys.readouterr().err == "gdm: error: the two measurements must have a case in common, have none\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "missing.json"], "missing.json: No such file"),
        (["--compare", "a", "b", "c"], "argument --compare: expected one or two files, got 3"),
        (["--compare", "out/bench.json"], "argument --compare: out/bench.json would be overwritten"),
        (["--fail-above", "1.1"], "argument --fail-above: needs --compare"),
        (["--compare", "a", "--fail-above", "0.9"], "argument --fail-above: must be at least 1 and finite, got 0.9"),
        (["--compare", "a", "--fail-above", "nan"], "argument --fail-above: must be at least 1 and finite, got nan"),
        (["--compare", "a", "--fail-above", "x"], "argument --fail-above: invalid number value: 'x'"),
    ],
)
def test_wrong_arguments_of_a_comparison_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gdm.bench.measure", lambda *args, **kwargs: pytest.fail("the measurement has begun"))
    try:
        code = main(["bench", *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err
