"""Schedule-Free: the averages that its steps make, and its two modes."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest

import gdm
from support import LARGE, assert_same_bits, numbers

CLASSES = {"ScheduleFreeSGD": {"lr": 0.1}, "ScheduleFreeAdamW": {"lr": 0.02}}
every_class = pytest.mark.parametrize("name", list(CLASSES))
BACKENDS = ("native", "reference") if gdm.available_isas() else ("reference",)
IN_EVAL = "^the optimizer is in eval mode, .*call train"


def make(name, params, **options):
    return getattr(gdm, name)(params, **{**CLASSES[name], **options})


def trained(name, params, steps=5, **options):
    """An optimizer of one or more arrays after some steps."""
    optimizer = make(name, params, **options)
    for step in range(steps):
        optimizer.step([numbers(np.float32, x.size, step).reshape(x.shape) for x in params])
    return optimizer


def defined(start, gradients, *, lr, kept, warmup_steps, r, weight_lr_power, adam, weight_decay):
    """y and x by the definition in the paper, which keeps x: y = (1 - kept) z + kept x, x the average of all z."""
    x, z, v, weights, largest = start.copy(), start.copy(), np.zeros_like(start), 0.0, 0.0
    for t, gradient in enumerate(gradients, start=1):
        y = (1 - kept) * z + kept * x
        g, rate = gradient(y), lr(t) * min(1.0, t / warmup_steps if warmup_steps else 1.0)
        if adam:
            beta2, eps = adam
            v = beta2 * v + (1 - beta2) * g**2
            g = g / (np.sqrt(v / (1 - beta2**t)) + eps)
        z = z - rate * (g + weight_decay * y)
        largest = max(largest, rate)
        weight = t**r * largest**weight_lr_power
        weights += weight
        x = (1 - weight / weights) * x + weight / weights * z
    return (1 - kept) * z + kept * x, x


@pytest.mark.parametrize("seed", range(20))
@every_class
def test_it_is_the_average_that_the_paper_defines(name, seed, backend):
    """100 steps in float64 with random options, and a learning rate that changes by hand."""
    rng = np.random.default_rng(seed)
    adam = (rng.uniform(0.5, 0.999), 1e-8) if name == "ScheduleFreeAdamW" else None
    kept, start = rng.uniform(0.1, 0.98), rng.standard_normal(9)
    options = {
        "warmup_steps": int(rng.integers(0, 30)),
        "r": rng.choice([0.0, 1.0, rng.uniform(0, 3)]),
        "weight_lr_power": rng.choice([0.0, 2.0, rng.uniform(0, 3)]),
        "weight_decay": rng.choice([0.0, rng.uniform(0, 0.1)]),
    }
    rates = rng.uniform(0.01, 0.2, 3)
    curvature, noise = rng.uniform(0.1, 1.0, 9), rng.standard_normal((100, 9))
    gradients = [lambda y, k=k: curvature * y + noise[k] for k in range(100)]
    wanted, average = defined(start, gradients, lr=lambda t: rates[(t - 1) // 40], kept=kept, adam=adam, **options)
    theta = start.copy()
    own = {"betas": (kept, adam[0]), "eps": adam[1]} if adam else {"momentum": kept}
    optimizer = make(name, theta, lr=rates[0], **own, **options)
    for step, gradient in enumerate(gradients):
        optimizer.lr = rates[step // 40]
        if step == 50:  # there and back
            optimizer.eval()
            optimizer.train()
        optimizer.step(gradient(theta))
    np.testing.assert_allclose(theta, wanted, rtol=1e-11, atol=1e-12)
    optimizer.eval()
    np.testing.assert_allclose(theta, average, rtol=1e-11, atol=1e-12)


# ---- the modes ----


@every_class
def test_it_begins_in_train_mode_and_makes_no_step_in_eval_mode(name, backend):
    theta = np.linspace(-1, 1, 7)
    optimizer = make(name, theta)
    assert optimizer.training
    optimizer.train()
    optimizer.step(theta.copy())
    before = theta.copy()
    optimizer.train()  # does nothing
    assert_same_bits(theta, before)
    optimizer.bind(np.ones(7))
    optimizer.step()
    optimizer.eval()
    assert not optimizer.training
    average, z = theta.copy(), optimizer.z.copy()
    optimizer.eval()  # does nothing, too
    for grads in ([np.ones(7)], []):
        with pytest.raises(RuntimeError, match=IN_EVAL):
            optimizer.step(*grads)
    assert_same_bits(theta, average)
    assert_same_bits(optimizer.z, z)
    assert optimizer.steps == 2
    optimizer.train()
    assert optimizer.training
    optimizer.step()
    assert optimizer.steps == 3


@every_class
def test_a_parameter_without_a_step_is_its_own_average(name, backend):
    params = [numbers(np.float64, 5, 1), numbers(np.float64, 6, 2)]
    before = [x.copy() for x in params]
    optimizer = make(name, params)
    optimizer.eval()
    optimizer.train()
    for x, y in zip(params, before, strict=True):
        assert_same_bits(x, y)
    optimizer.step([params[0].copy(), None])
    optimizer.step([params[0].copy(), None])
    optimizer.eval()
    assert (params[0] != before[0]).any()
    assert_same_bits(params[1], before[1])


@every_class
def test_z_becomes_what_the_parameter_is_at_the_first_step(name, backend):
    """Also if it was changed after the optimizer was made, as by loading a model."""
    theta = np.zeros(4)
    optimizer = make(name, theta, lr=0.0)
    theta[...] = [1.0, -2.0, 3.0, -0.0]
    optimizer.step(np.ones(4))
    np.testing.assert_array_equal(optimizer.z, theta)
    np.testing.assert_array_equal(theta, [1.0, -2.0, 3.0, 0.0])


@every_class
def test_groups_may_come_and_go_in_eval_mode(name, backend):
    first, second = numbers(np.float64, 5, 1), numbers(np.float64, 6, 2)
    optimizer = make(name, [{"params": first}])
    grads = [numbers(np.float64, 5, 3), numbers(np.float64, 6, 4)]
    for _ in range(3):
        optimizer.step([grads[0]])
    point = first.copy()
    optimizer.eval()
    average = first.copy()
    added = optimizer.add_group({"params": second})
    assert not optimizer.training
    optimizer.lr = 0.05
    start = second.copy()
    optimizer.train()
    np.testing.assert_allclose(first, point, rtol=1e-14)
    assert_same_bits(second, start)
    for _ in range(3):
        optimizer.step(grads)
    optimizer.eval()
    assert (first != average).any()
    kept = second.copy()
    optimizer.remove_group(1)
    optimizer.train()
    assert_same_bits(second, kept)  # what it was when it was removed
    with pytest.raises(RuntimeError, match="removed"):
        added.lr = 1.0


def test_each_group_has_its_own_share(backend):
    params = [numbers(np.float64, 6, 1), numbers(np.float64, 6, 1)]
    optimizer = gdm.ScheduleFreeSGD([{"params": params[0]}, {"params": params[1], "momentum": 0.5}], lr=0.1)
    for step in range(4):
        optimizer.step([numbers(np.float64, 6, step)] * 2)
    points, iterates = [x.copy() for x in params], optimizer.z
    optimizer.eval()
    for x, y, z, share in zip(params, points, iterates, (0.9, 0.5), strict=True):
        assert_same_bits(x, y + (1 - 1 / share) * (z - y))
    # In eval mode the average stays what it is.
    averages = [x.copy() for x in params]
    optimizer.momentum = 0.75
    optimizer.train()
    optimizer.eval()
    for x, y in zip(params, averages, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13)


@every_class
def test_moving_averages_and_copies_work_in_both_modes(name, backend):
    theta, narrow = numbers(np.float32, 40, 1), np.zeros(40, np.float16)
    optimizer = make(name, theta, average=0.5, copies=narrow, max_grad_norm=1.0)
    for step in range(4):
        optimizer.step(numbers(np.float32, 40, step))
        assert_same_bits(narrow, theta.astype(np.float16))
    optimizer.eval()
    assert_same_bits(narrow, theta.astype(np.float16))
    average = theta.copy()
    with optimizer.swap_averages():
        assert_same_bits(theta, optimizer.averages)
        for change in (optimizer.train, optimizer.eval):
            with pytest.raises(RuntimeError, match="middle of a step"):
                change()
    assert_same_bits(theta, average)
    optimizer.train()
    assert_same_bits(narrow, theta.astype(np.float16))


@every_class
def test_a_moved_parameter_stops_the_swap_before_anything_is_written(name, backend):
    params = [numbers(np.float64, 5, 1), np.linspace(-1, 1, 8).copy()]
    optimizer = trained(name, params)
    before = params[0].copy()
    params[1].resize(4, refcheck=False)
    with pytest.raises(gdm.StaleBufferError, match=r"^params\[1\] has moved"):
        optimizer.eval()
    assert optimizer.training
    assert_same_bits(params[0], before)


# ---- what is saved ----


@every_class
def test_the_mode_is_a_part_of_the_state(name, backend, tmp_path):
    params = [numbers(np.float64, 9, 1)]
    optimizer = trained(name, params)
    grads = [numbers(np.float64, 9, 77)]
    for evaluate, how in itertools.product([False, True], ["dict", "file", "pickle", "copy"]):
        (optimizer.eval if evaluate else optimizer.train)()
        if how in ("pickle", "copy"):
            other = pickle.loads(pickle.dumps(optimizer)) if how == "pickle" else copy.deepcopy(optimizer)
            copied = other._snapshot.user_arrays
        else:
            copied = [x.copy() for x in params]
            other = make(name, copied)
            if how == "dict":
                other.load_state_dict(optimizer.state_dict())
            else:
                optimizer.save(tmp_path / "state.safetensors")
                other.load(tmp_path / "state.safetensors")
        assert other.training is not evaluate
        assert_same_bits(copied[0], params[0])
        if evaluate:
            with pytest.raises(RuntimeError, match=IN_EVAL):
                other.step(grads)
        for each in (optimizer, other):
            each.train()
            each.step(grads)
        assert_same_bits(copied[0], params[0])
        assert_same_bits(other.z[0], optimizer.z[0])


def test_a_wrong_mode_is_not_loaded(backend):
    theta = np.ones(3)
    optimizer = gdm.ScheduleFreeSGD(theta)
    saved = {**optimizer.state_dict(), "mode": "evaluate"}
    with pytest.raises(gdm.CheckpointError, match="mode 'evaluate'"):
        optimizer.load_state_dict(saved)
    del saved["mode"]
    with pytest.raises(gdm.CheckpointError, match="mode"):
        optimizer.load_state_dict(saved)
    assert "mode" not in gdm.SGD(theta).state_dict()
    assert not hasattr(gdm.SGD(theta), "eval")


# ---- options ----


def test_what_schedule_free_cannot_do_is_refused(backend):
    theta = np.ones(3)
    for wrong, message in (
        ({"momentum": 0.0}, r"^momentum must be above 0, got 0.0"),
        ({"momentum": 1.0}, r"^momentum must be in \[0, 1\)"),
        ({"warmup_steps": -1}, "^warmup_steps must be finite and not negative"),
        ({"r": float("nan")}, "^r must be finite and not negative"),
        ({"weight_lr_power": -0.5}, "^weight_lr_power must be finite and not negative"),
        ({"state_dtype": "int8"}, "^state_dtype must not be 'int8' with Schedule-Free"),
    ):
        with pytest.raises(ValueError, match=message):
            gdm.ScheduleFreeSGD(theta, **wrong)
    with pytest.raises(ValueError, match=r"^betas\[0\] must be above 0"):
        gdm.ScheduleFreeAdamW(theta, betas=(0.0, 0.9))
    arrays = [theta, np.ones(3), np.ones(3)]
    with pytest.raises(ValueError, match=r"^momentum must be above 0"):
        gdm.schedule_free_sgd(*arrays, step=1, weight_sum=np.zeros(1), lr_max=np.zeros(1), momentum=0.0)
    with pytest.raises(ValueError, match=r"^lr_max must be finite and not negative, got -1\.0"):
        gdm.schedule_free_sgd(*arrays, step=1, weight_sum=np.zeros(1), lr_max=-np.ones(1))


@every_class
def test_without_any_learning_rate_nothing_moves(name, backend):
    """The weights are 0 then: there is nothing to average."""
    theta = numbers(np.float64, 9, 1)
    before = theta.copy()
    optimizer = make(name, theta, lr=0.0)
    for _ in range(3):
        optimizer.step(np.ones(9))
    optimizer.eval()
    assert_same_bits(theta, before)
    assert optimizer.state_dict()["groups"][0]["params"][0]["scalars"] == {"weight_sum": 0.0, "lr_max": 0.0}


def test_weights_that_overflow_stay_finite(backend):
    theta = np.ones(3)
    optimizer = gdm.ScheduleFreeSGD(theta, lr=0.1, r=2000.0)
    for _ in range(4):
        optimizer.step(theta.copy())
    assert np.isfinite(theta).all()
    optimizer.load_state_dict(optimizer.state_dict())


# ---- the same bits ----


DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": np.uint16}


def mixed(dtype):
    """Arrays of some sizes. bfloat16 are its bits."""
    sizes = (1, 300, 5000)
    if dtype == "bfloat16":
        return [(numbers(np.float32, n, n).view(np.uint32) >> 16).astype(np.uint16) for n in sizes]
    return [np.clip(numbers(DTYPES[dtype], n, n), -6e4, 6e4).astype(DTYPES[dtype]) for n in sizes]


@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", list(DTYPES))
@every_class
def test_both_backends_swap_to_the_same_bits(name, dtype, state_dtype):
    for rounding, split in (("nearest", False), ("stochastic", dtype == "bfloat16")):
        found = []
        for backend in BACKENDS:
            gdm.set_backend(backend)
            params, copies = mixed(dtype), [np.zeros(n, np.float32) for n in (1, 300, 5000)]
            optimizer = make(
                name,
                params,
                lr_scale=[1.0, 0.5, 2.0],
                dtype="bfloat16" if dtype == "bfloat16" else None,
                state_dtype=state_dtype,
                rounding=rounding,
                split_masters=split,
                copies=copies,
            )
            seen = []
            for step in range(4):
                optimizer.step([None if step == i else numbers(np.float32, x.size, step) for i, x in enumerate(params)])
                if step >= 2:
                    optimizer.eval()
                    seen += [x.copy() for x in (*params, *copies)]
                    optimizer.train()
                    seen += [x.copy() for x in (*params, *copies)]
            states = [x.copy() for state in optimizer._snapshot.states for x in state.values()]
            found.append([*seen, *states])
        for other in found[1:]:
            for x, y in zip(found[0], other, strict=True):
                assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("how", [{"lr_scale": [0.5, 2.0, 1.0]}, {"lr": gdm.schedules.cosine(0.1, steps=9, warmup=3)}])
@every_class
def test_both_backends_keep_the_same_numbers(name, how):
    """The weights depend on the learning rate, which has factors and schedules."""
    progress = []
    for backend in BACKENDS:
        gdm.set_backend(backend)
        params = [numbers(np.float64, n, n) for n in (5, 17, 33)]
        optimizer = make(name, params, warmup_steps=2, r=0.5, weight_lr_power=1.5, **how)
        for step in range(6):
            grads = [None if step == 3 and x.size == 17 else numbers(np.float64, x.size, step) for x in params]
            optimizer.step(grads)
            if step == 4:
                optimizer.load_state_dict(optimizer.state_dict())
        progress.append((optimizer._progress(), [x.tobytes() for x in params]))
    assert all(x == progress[0] for x in progress)
    scalars = progress[0][0].scalars
    assert scalars[0] != scalars[1]
    assert (scalars[0] == scalars[2]) is ("lr" in how)


@every_class
def test_threads_swap_to_the_same_bits(name, isa):
    found = []
    for threads in (1, 3):
        params = [numbers(np.float32, n, n) for n in (LARGE, 7, LARGE // 2)]
        optimizer = trained(name, params, 2, threads=threads)
        optimizer.eval()
        optimizer.train()
        optimizer.eval()
        found.append(params)
    for x, y in zip(*found, strict=True):
        assert_same_bits(x, y)


@every_class
def test_narrow_parameters_mostly_come_back(name, backend):
    """A swap rounds to the nearest number, also where steps round stochastically."""
    theta = mixed("bfloat16")[2]
    optimizer = trained(name, [theta], dtype="bfloat16", rounding="stochastic", lr=1e-3)
    before = theta.copy()
    optimizer.eval()
    average = theta.copy()
    optimizer.train()
    assert (average != before).mean() > 0.1
    assert (theta == before).mean() > 0.95
