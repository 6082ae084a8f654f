"""Narrow storage and what is done around the rule, in the classes: the bits of both backends, and what users see."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import gdm
from gdm import _stages
from support import CLASSES, NO_SAFETENSORS

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": BF16, "float16": np.float16}
OPTIONS = {"SGD": {"momentum": 0.9}, "Adam": {"amsgrad": True}, "RMSprop": {"centered": True, "momentum": 0.5}}
SHAPES = [((30, 50), "C"), ((2, 3, 4), "F"), ((), "C"), ((0, 3), "C"), ((129,), "C")]
AROUND = {
    "max_grad_norm": 1.0,
    "max_grad_value": 0.02,
    "average": 0.9,
    "average_correction": True,
    "clear_grads": True,
    "seed": 3,
}


def arrays(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [np.array(rng.standard_normal(shape), DTYPES[dtype], order=order) for shape, order in SHAPES]


def bits(x):
    """The bits of an array; those of a NaN are not specified, so all are made alike."""
    if x.dtype.kind == "f":
        x = np.where(np.isnan(x), np.array(np.nan, x.dtype), x)
    return np.ascontiguousarray(x).view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[x.itemsize])


def everything(optimizer):
    """The bits of all arrays that a step writes."""
    snapshot = optimizer._snapshot
    held = [x for state in snapshot.states for x in state.values()]
    return [bits(x) for x in [*snapshot.params, *held, *(x for x in snapshot.copies if x is not None)]]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(x, y)


def walk(name, param="float32", grad="float32", steps=3, scale=1.0, backend="native", **options):
    gdm.set_backend(backend)
    params = arrays(param)
    optimizer = getattr(gdm, name)(params, lr=0.01, **OPTIONS.get(name, {}), **options)
    for step in range(steps):
        grads = arrays(grad, seed=step + 1)
        grads[1] = None if step == 1 else grads[1]
        optimizer.step(grads, scale=scale)
    return optimizer


# ---- bits ----


@pytest.mark.parametrize("name", [cls.__name__ for cls in CLASSES])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "float16", "int8"])
@pytest.mark.parametrize(("param", "grad"), list(itertools.product(DTYPES, ["float32", "bfloat16", "float16"])))
def test_both_backends_give_the_same_bits(name, param, grad, state_dtype):
    if state_dtype == "int8" and name.startswith("ScheduleFree"):
        pytest.skip("z cannot be int8: see test_schedule_free.py")
    for rounding, split in (("nearest", False), ("stochastic", False), ("nearest", True)):
        given = {**AROUND, "state_dtype": state_dtype, "rounding": rounding, "split_masters": split}
        copies = arrays("float16", seed=9)
        ours = walk(name, param, grad, scale=0.5, **given, copies=copies)
        theirs = walk(name, param, grad, scale=0.5, backend="reference", **given, copies=arrays("float16", seed=9))
        assert_same(everything(ours), everything(theirs))
        assert ours.last_grad_norm == theirs.last_grad_norm
        assert_same([bits(x) for x in copies], [bits(_stages.narrow(np.array(x, "f4"), "float16")) for x in copies])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_float32_without_options_is_as_with_options_that_do_nothing(backend):
    plain = walk("AdamW", backend=backend)
    asked = walk("AdamW", backend=backend, nonfinite="skip", max_grad_norm=1e9, max_grad_value=1e9, average=0.5)
    params = [bits(x) for x in plain._snapshot.params]
    assert_same(params, [bits(x) for x in asked._snapshot.params])


# ---- dtypes ----


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_uint16_holds_bfloat16_if_the_user_says_so(backend):
    gdm.set_backend(backend)
    typed = np.linspace(-2, 2, 300).astype(BF16)
    plain = typed.copy().view(np.uint16)
    for x, options in ((typed, {}), (plain, {"dtype": "bfloat16"})):
        gdm.AdamW(x, lr=0.1, **options).step(np.ones(300, np.float32))
    np.testing.assert_array_equal(typed.view(np.uint16), plain)
    with pytest.raises(TypeError, match=r"^params has dtype uint16; .*dtype='bfloat16'"):
        gdm.AdamW(plain)
    optimizer = gdm.AdamW(np.ones(3, np.float32))
    with pytest.raises(TypeError, match=r"^grads has dtype uint16; .*dtype='bfloat16'"):
        optimizer.step(np.ones(3, np.uint16))


def test_a_gradient_may_be_narrower_but_not_wider_than_the_arithmetic():
    for param, grad in itertools.product(DTYPES, DTYPES):
        optimizer = gdm.SGD(np.ones(5, DTYPES[param]), lr=0.5)
        if grad == "float64" and param != "float64":
            with pytest.raises(ValueError, match=f"^grads has dtype float64, but params has {param}"):
                optimizer.step(np.ones(5))
        else:
            optimizer.step(np.ones(5, DTYPES[grad]))
            np.testing.assert_array_equal(np.array(optimizer._snapshot.user_arrays[0], float), 0.5)


def test_bound_gradients_of_changing_dtypes(monkeypatch):
    param = np.ones(4, np.float32)
    optimizer = gdm.SGD(param, lr=1.0)
    for dtype in ("float32", "bfloat16", "float16", "float32"):
        optimizer.bind(np.full(4, 0.25, DTYPES[dtype]))
        optimizer.step()
        optimizer.step(np.zeros(4, BF16))
        optimizer.step()
    np.testing.assert_array_equal(param, 1.0 - 8 * 0.25)


@pytest.mark.parametrize(
    ("state_dtype", "share"), [("float32", 1.0), ("bfloat16", 0.5), ("float16", 0.5), ("int8", 0.27)]
)
def test_narrow_states_take_less_memory(state_dtype, share):
    param = np.ones(100_000, np.float32)
    whole = gdm.AdamW(param).nbytes
    assert whole == 2 * param.nbytes
    assert gdm.AdamW(param, state_dtype=state_dtype).nbytes <= share * whole


@pytest.mark.parametrize(("state_dtype", "share"), [("float32", 1.0), ("bfloat16", 0.5), ("int8", 0.27)])
@pytest.mark.parametrize("measure", ["tracemalloc", "resident"])
def test_the_memory_taken_is_what_nbytes_says(state_dtype, share, measure):
    """Measured in a process of its own: what Python allocates, and what the system gives to it."""
    if measure == "resident" and not Path("/proc/self/statm").exists():
        pytest.skip("NOT TESTED: resident memory, which needs /proc")
    code = f"""
import resource, tracemalloc
import numpy as np, gdm
def taken():
    if {measure == "tracemalloc"}:
        return tracemalloc.get_traced_memory()[0]
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
param, grad = np.ones(1 << 22, np.float32), np.ones(1 << 22, np.float32)
gdm.AdamW(np.ones(9, np.float32), state_dtype={state_dtype!r}).step(np.ones(9, np.float32))
tracemalloc.start() if {measure == "tracemalloc"} else None
before = taken()
opt = gdm.AdamW(param, state_dtype={state_dtype!r})
opt.step(grad)
print(taken() - before, opt.nbytes)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken, nbytes = map(int, done.stdout.split())
    spare = 1 << 20
    assert nbytes - spare < taken < nbytes + spare
    assert taken < share * 8 * (1 << 22) + spare


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "float16", "int8"])
def test_states_can_be_read(state_dtype):
    wide, narrow = (gdm.AdamW(np.ones((7, 40), np.float32), state_dtype=x) for x in (None, state_dtype))
    grad = np.random.default_rng(0).standard_normal((7, 40)).astype(np.float32)
    for optimizer in (wide, narrow):
        optimizer.step(grad)
    assert narrow.exp_avg.shape == narrow.exp_avg_sq.shape == (7, 40)
    np.testing.assert_allclose(np.asarray(narrow.exp_avg, float), wide.exp_avg, atol=0.01 * np.abs(wide.exp_avg).max())
    roots = np.sqrt(np.asarray(narrow.exp_avg_sq, float))
    np.testing.assert_allclose(roots, np.sqrt(wide.exp_avg_sq), atol=0.01 * roots.max())


@pytest.mark.parametrize("param", DTYPES)
def test_a_factor_for_each_element_is_as_wide_as_the_arithmetic(param, tmp_path):
    """0.1 is used as float32 has it, not as the parameter's dtype would round it; and it can be saved."""
    factors = np.array([0.1, 1.0, 0.0], np.float32)
    theta = np.zeros(3, DTYPES[param])
    opt = gdm.SGD([theta], lr=1.0, lr_scale=[factors])
    opt.step([np.full(3, -1.0, np.float32)])
    np.testing.assert_array_equal(theta, factors.astype(theta.dtype))
    opt.save(tmp_path / "state")
    opt.load(tmp_path / "state")
    assert opt.groups[0].lr_scale[0].dtype == (np.float64 if param == "float64" else np.float32)


def test_stochastic_rounding_arrives_where_nearest_stalls():
    results = {}
    for rounding in ("nearest", "stochastic"):
        param = np.full(20_000, 1.0, BF16)
        optimizer = gdm.SGD(param, lr=1.0, rounding=rounding)
        for _ in range(100):
            optimizer.step(np.full(20_000, 1e-4, np.float32))
        results[rounding] = param.astype(float).mean()
    assert results["nearest"] == 1.0
    assert abs(results["stochastic"] - 0.99) < 2e-4


def test_split_masters_are_exact_float32():
    rng = np.random.default_rng(0)
    narrow = rng.standard_normal(5000).astype(BF16)
    wide = narrow.astype(np.float32)
    ours, theirs = gdm.AdamW(narrow, split_masters=True), gdm.AdamW(wide)
    for _ in range(20):
        grad = rng.standard_normal(5000).astype(np.float32)
        ours.step(grad)
        theirs.step(grad)
    low = ours._snapshot.states[0]["low_bits"]
    np.testing.assert_array_equal(_stages.join(narrow.view(np.uint16), low), wide)


# ---- around the rule ----


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_clipping_by_norm(backend):
    gdm.set_backend(backend)
    params = [np.zeros(2, np.float32), np.zeros(1, np.float32)]
    optimizer = gdm.SGD(params, lr=1.0, max_grad_norm=1.0)
    assert optimizer.last_grad_norm is None
    optimizer.step([np.array([6.0, 0.0], np.float32), np.array([8.0], np.float32)], scale=0.5)
    assert optimizer.last_grad_norm == 5.0
    np.testing.assert_allclose(np.concatenate(params), [-0.6, 0, -0.8], rtol=1e-5)
    optimizer.max_grad_norm = None
    optimizer.step([np.array([6.0, 0.0], np.float32), None])
    assert optimizer.last_grad_norm is None
    np.testing.assert_allclose(params[0], [-6.6, 0], rtol=1e-5)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_scale_of_minus_0_is_not_0(backend):
    """0 - -0 is 0, but -0 - 0 is -0."""
    gdm.set_backend(backend)
    theta = np.full(3, -0.0)
    opt = gdm.SGD([theta], lr=0.5)
    for scale, is_negative in ((0.0, True), (-0.0, False)):
        opt.step([np.ones(3)], scale=scale)
        assert (np.signbit(theta) == is_negative).all()


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("clear", [False, True])
def test_gradients_that_are_not_finite(backend, clear):
    gdm.set_backend(backend)
    params = [np.ones(3, np.float32), np.ones(70, np.float32)]
    optimizer = gdm.AdamW(params, nonfinite="skip", clear_grads=clear, average=0.5)
    good = [np.ones(3, np.float32), np.ones(70, np.float32)]
    optimizer.step([x.copy() for x in good])
    before = everything(optimizer)
    bad = [x.copy() for x in good]
    bad[1][69] = np.inf
    optimizer.step(bad)
    assert_same(everything(optimizer), before)
    assert (optimizer.skipped_steps, optimizer.steps) == (1, 1)
    assert np.isinf(bad[1]).any() != clear
    optimizer.nonfinite = "raise"
    bad[1][69] = np.nan
    kept = [x.copy() for x in bad]
    with pytest.raises(gdm.NonFiniteError, match=r"^grads\[1\] has NaN or infinite elements: 1 of 70$"):
        optimizer.step(bad)
    assert_same(bad, kept)
    assert_same(everything(optimizer), before)
    optimizer.nonfinite = "propagate"
    optimizer.step(bad)
    assert np.isnan(params[1][69])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_averages(backend):
    gdm.set_backend(backend)
    param = np.zeros(4, np.float32)
    plain = gdm.SGD(param, lr=1.0, average=0.75)
    np.testing.assert_array_equal(plain.averages, 0.0)
    for expected in (-0.25, -0.6875):
        plain.step(np.ones(4, np.float32))
        np.testing.assert_array_equal(plain.averages, np.float32(expected))
    with plain.swap_averages():
        np.testing.assert_array_equal(param, np.float32(-0.6875))
        with pytest.raises(RuntimeError, match=r"already in the middle of a step"):
            plain.step(np.ones(4, np.float32))
    np.testing.assert_array_equal(param, -2.0)
    with pytest.raises(KeyError), plain.swap_averages():
        raise KeyError
    np.testing.assert_array_equal(param, -2.0)
    plain.step(np.ones(4, np.float32))
    corrected = gdm.SGD(param, lr=1.0, average=0.75, average_correction=True)
    corrected.step(np.ones(4, np.float32))
    np.testing.assert_array_equal(corrected.averages, param)
    with pytest.raises(AttributeError, match=r"there are no averages"):
        _ = gdm.SGD(np.ones(3)).averages


def test_copies_begin_with_the_parameters_and_follow_them():
    params = {"w": np.linspace(0, 1, 6, dtype=np.float32), "b": np.ones(2, np.float32)}
    copies = {"w": np.zeros(6, BF16), "b": None}
    optimizer = gdm.SGD(params, lr=0.5, copies=copies)
    np.testing.assert_array_equal(copies["w"], params["w"].astype(BF16))
    optimizer.step({"w": np.ones(6, np.float32), "b": np.ones(2, np.float32)})
    np.testing.assert_array_equal(copies["w"], params["w"].astype(BF16))
    assert optimizer.copies["w"] is copies["w"]


def test_a_group_that_is_added_may_have_copies():
    params = [np.ones(6, np.float32), np.full(2, 2.0, np.float32), np.full(3, 3.0, np.float32)]
    copies = np.zeros(2, BF16)
    optimizer = gdm.SGD(params[0], lr=0.5)
    optimizer.add_group({"params": [params[1]], "copies": [copies]})
    optimizer.add_group({"params": params[2]})
    np.testing.assert_array_equal(copies, params[1].astype(BF16))
    optimizer.step([np.ones(6, np.float32), [np.ones(2, np.float32)], np.ones(3, np.float32)])
    np.testing.assert_array_equal(copies, np.full(2, 1.5, BF16))
    first, second, third = optimizer.copies
    assert first is third is None
    assert second[0] is copies
    clone = pickle.loads(pickle.dumps(optimizer))
    np.testing.assert_array_equal(clone.copies[1][0], copies)
    with pytest.raises(ValueError, match=r"^copies\[3\] has shape \(5,\), but params\[3\]\['params'\] has \(4,\)"):
        optimizer.add_group({"params": np.ones(4, np.float32), "copies": np.zeros(5, BF16)})
    assert len(optimizer.groups) == 3


def test_gradients_are_cleared():
    param, grads = np.ones(3000, np.float32), np.ones(3000, np.float32)
    optimizer = gdm.AdamW(param, clear_grads=True)
    optimizer.bind(grads)
    optimizer.step()
    assert not grads.any()
    read_only = np.ones(3000, np.float32)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match=r"^grads is read-only"):
        optimizer.step(read_only)
    shared = np.ones(10, np.float32)
    two = gdm.SGD([np.ones(6, np.float32), np.ones(6, np.float32)], clear_grads=True)
    with pytest.raises(gdm.OverlapError, match=r"^grads\[0\] and grads\[1\] share memory"):
        two.step([shared[:6], shared[4:]])
    np.testing.assert_array_equal(shared, 1.0)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"state_dtype": "int4"}, ValueError, "^state_dtype must be one of"),
        ({"dtype": "float32"}, ValueError, "^dtype must be 'bfloat16'"),
        ({"rounding": "up"}, ValueError, "^rounding must be 'nearest' or 'stochastic', got 'up'"),
        ({"seed": -1}, ValueError, "^seed must be from 0"),
        ({"seed": 0.5}, TypeError, "^seed must be a whole number"),
        ({"max_grad_norm": 0.0}, ValueError, "^max_grad_norm must be finite and above 0"),
        ({"max_grad_norm": float("nan")}, ValueError, "^max_grad_norm must be finite and above 0"),
        ({"max_grad_value": "1"}, TypeError, "^max_grad_value must be a real number"),
        ({"nonfinite": "ignore"}, ValueError, "^nonfinite must be 'propagate', 'skip' or 'raise'"),
        ({"average": 1.0}, ValueError, r"^average must be in \[0, 1\)"),
        ({"average_correction": "yes"}, TypeError, "^average_correction must be True or False"),
        ({"clear_grads": None}, TypeError, "^clear_grads must be True or False"),
        ({"split_masters": 2.0}, TypeError, "^split_masters must be True or False"),
        ({"copies": np.zeros(4)}, ValueError, r"^copies has shape \(4,\), but params has \(3,\)"),
        ({"copies": np.zeros(3, np.int8)}, TypeError, "^copies has dtype int8"),
        ({"copies": [np.zeros(3)]}, TypeError, "^copies must be a NumPy array"),
        ({"no_such": 1}, TypeError, "no_such"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        gdm.SGD(np.ones(3, np.float32), lr=0.1, **options)


def test_options_are_checked_when_they_are_set():
    optimizer = gdm.SGD(np.ones(3, np.float32), lr=0.1, max_grad_norm=1.0)
    for name, value in (("max_grad_norm", -1.0), ("rounding", "x"), ("seed", 2**64), ("nonfinite", 0)):
        before = getattr(optimizer, name)
        with pytest.raises(ValueError, match=f"^{name} must be"):
            setattr(optimizer, name, value)
        assert getattr(optimizer, name) == before
    with pytest.raises(AttributeError, match=r"fixed when the optimizer is made"):
        optimizer.average = 0.5
    optimizer.max_grad_value = 0.5
    optimizer.step(np.full(3, 2.0, np.float32))
    np.testing.assert_allclose(optimizer._snapshot.params[0], 0.95)
    for name, value in (("state_dtype", None), ("dtype", None), ("split_masters", False)):
        assert getattr(optimizer, name) is value
        with pytest.raises(AttributeError, match=f"^{name} is fixed when the optimizer is made"):
            setattr(optimizer, name, value)
    for scale in (float("inf"), float("nan"), 1e39, -1e39):
        with pytest.raises(ValueError, match=r"^scale must be finite"):
            optimizer.step(np.ones(3, np.float32), scale=scale)


def test_copies_that_share_memory_or_move_are_refused():
    x = np.ones(6, np.float32)
    with pytest.raises(gdm.OverlapError, match=r"^copies and params share memory|^params and copies share memory"):
        gdm.SGD(x[:3], copies=x[2:5])
    copy_ = np.zeros(3, np.float32)
    optimizer = gdm.SGD(np.ones(3, np.float32), copies=copy_)
    copy_.resize(0, refcheck=False)
    with pytest.raises(gdm.StaleBufferError, match=r"^copies has moved"):
        optimizer.step(np.ones(3, np.float32))


# ---- saving ----

SAVED = {
    "int8": {"state_dtype": "int8"},
    "bfloat16": {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 11},
    "split": {"split_masters": True},
    "average": {"average": 0.9, "average_correction": True, "max_grad_norm": 0.5, "nonfinite": "skip"},
}


@pytest.mark.parametrize("how", ["state_dict", "file", "pickle", "deepcopy"])
@pytest.mark.parametrize("what", SAVED)
@pytest.mark.parametrize("name", ["SGD", "AdamW", "NAdam"])
def test_a_saved_optimizer_goes_on_to_the_bit(name, what, how, tmp_path):
    if how == "file":
        pytest.importorskip("safetensors", reason=NO_SAFETENSORS)
    optimizer = walk(name, "bfloat16", **SAVED[what])
    if how in ("pickle", "deepcopy"):
        other = pickle.loads(pickle.dumps(optimizer)) if how == "pickle" else copy.deepcopy(optimizer)
    else:
        params = [np.array(x) for x in optimizer._snapshot.user_arrays]
        other = getattr(gdm, name)(params, lr=0.5, **OPTIONS.get(name, {}), **SAVED[what])
        if how == "file":
            optimizer.save(tmp_path / "x")
            other.load(tmp_path / "x")
        else:
            other.load_state_dict(optimizer.state_dict())
    assert_same(everything(optimizer), everything(other))
    for one in (optimizer, other):
        for step in range(3):
            one.step(arrays("bfloat16", seed=20 + step))
    assert_same(everything(optimizer), everything(other))
    assert one.max_grad_norm == SAVED[what].get("max_grad_norm")


def test_a_state_of_another_dtype_is_refused():
    saved = walk("AdamW", state_dtype="int8").state_dict()
    other = walk("AdamW")
    before = everything(other)
    with pytest.raises(gdm.CheckpointError, match=r"state_dict has unknown states|has dtype int8"):
        other.load_state_dict(saved)
    with pytest.raises(gdm.CheckpointError, match=r"state_dict has averages; expected none"):
        other.load_state_dict(walk("AdamW", average=0.9).state_dict())
    assert_same(everything(other), before)


# ---- sums ----


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("total", "grad"), list(itertools.product(DTYPES, DTYPES)))
def test_accumulate(backend, total, grad):
    gdm.set_backend(backend)
    totals, grads = arrays(total), arrays(grad, seed=1)
    if grad == "float64" and total != "float64":
        with pytest.raises(ValueError, match=r"^grads\[0\] has dtype float64"):
            gdm.accumulate(totals, grads)
        return
    wide = np.float64 if total == "float64" else np.float32
    expected = [
        (x.astype(wide) + wide(0.3) * g.astype(wide)).astype(DTYPES[total]) for x, g in zip(totals, grads, strict=True)
    ]
    gdm.accumulate({"a": totals[0], "b": totals[1:]}, {"a": grads[0], "b": grads[1:]}, scale=0.3)
    assert_same([bits(x) for x in totals], [bits(x) for x in expected])
    gdm.accumulate(totals, [None] * len(totals))
    assert_same([bits(x) for x in totals], [bits(x) for x in expected])


def test_accumulate_refuses_what_does_not_fit():
    total = [np.ones(4, np.float32), np.ones(3, np.float32)]
    before = copy.deepcopy(total)
    for grads, error, message in [
        ([np.ones(4, np.float32)], ValueError, "^grads must be a sequence of 2 items"),
        ([np.ones(4, np.float32), np.ones(4, np.float32)], ValueError, r"^grads\[1\] has shape \(4,\), but total\[1\]"),
        ([np.ones(4, np.float32), [1, 2, 3]], TypeError, r"^grads\[1\] must be a NumPy array"),
        ([total[0], None], gdm.OverlapError, "share memory"),
    ]:
        with pytest.raises(error, match=message):
            gdm.accumulate(total, grads)
        assert_same(total, before)
    for scale in (float("nan"), float("inf"), "1"):
        with pytest.raises((TypeError, ValueError), match=r"^scale must be a finite real number"):
            gdm.accumulate(total, total, scale=scale)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_norms_of_narrow_gradients(backend):
    gdm.set_backend(backend)
    for dtype in DTYPES:
        grads = arrays(dtype)
        wide = [x.astype(np.float64 if dtype == "float64" else np.float32) for x in grads]
        assert gdm.grad_norm(grads) == gdm.grad_norm(wide)
        grads[0][0, 0] = np.nan
        assert gdm.count_nonfinite(grads) == 1
