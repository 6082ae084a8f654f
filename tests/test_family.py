"""Every optimizer class: the native steps are the reference's, and training goes on to the bit wherever it stopped."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import gdm
from support import CLASSES, DTYPES, assert_same_bits, numbers, python

cosine = gdm.schedules.cosine(0.05, steps=12, warmup=3)

# For every class options that switch each of its kernels and states on and off.
CASES = {
    "SGD": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "form": "classic", "maximize": True},
        {"momentum": 0.9, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
    "Adagrad": [{}, {"lr_decay": 0.1, "weight_decay": 0.1}, {"initial_accumulator_value": 0.5, "maximize": True}],
    "RMSprop": [
        {},
        {"centered": True, "weight_decay": 0.1},
        {"momentum": 0.9},
        {"centered": True, "momentum": 0.5, "maximize": True},
    ],
    "Adam": [{}, {"amsgrad": True, "weight_decay": 0.1}, {"betas": (0.5, 0.7), "eps": 1e-3, "maximize": True}],
    "AdamW": [{}, {"amsgrad": True, "weight_decay": 0.2}],
    "NAdam": [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"weight_decay": 0.1, "momentum_decay": 0.1}],
    "Lion": [{}, {"weight_decay": 0.1, "betas": (0.8, 0.9)}],
    "Signum": [
        {},
        {"momentum": 0.0, "weight_decay": 0.1},
        {"momentum": 0.0, "weight_decay": 0.1, "decoupled_weight_decay": True},
        {"momentum": 0.5, "weight_decay": 0.1, "maximize": True},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
}
RATES = {
    "lr": {"lr": 0.03},
    "schedule": {"lr": cosine},
    "scales": {"lr": 0.03, "lr_scale": [0.5, 1.0, np.linspace(0, 2, 257), 2.0]},
}
every_case = pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, {**options, **rate}, id=f"{name}-{k}-{how}")
        for name, cases in CASES.items()
        for k, options in enumerate(cases)
        for how, rate in RATES.items()
    ],
)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
every_class = pytest.mark.parametrize("name", list(CASES))


def four(dtype=np.float64):
    return [numbers(dtype, n, n) for n in (1, 16, 257, 40)]


def gradients(step, dtype=np.float64):
    return [numbers(dtype, n, 10 * step + k) for k, n in enumerate((1, 16, 257, 40))]


def states(optimizer):
    """Every state there is, by parameter and name."""
    entries = [entry for group in optimizer.state_dict()["groups"] for entry in group["params"]]
    return {(i, name): x for i, entry in enumerate(entries) for name, x in entry["state"].items()}


def assert_same(one, other, params, wanted):
    for x, y in zip(params, wanted, strict=True):
        assert_same_bits(x, y)
    a, b = states(one), states(other)
    assert a.keys() == b.keys()
    for key, x in a.items():
        assert_same_bits(x, b[key], str(key))
    assert [g.steps for g in one.groups] == [g.steps for g in other.groups]


@every_dtype
@every_case
def test_native_equals_reference(name, options, dtype, isa):
    results = []
    for backend in ("native", "reference"):
        gdm.set_backend(backend)
        params = four(dtype)
        optimizer = getattr(gdm, name)(params, **options)
        for step in range(5):
            optimizer.step(gradients(step, dtype))
        results.append((optimizer, params))
    (native, params), (reference, wanted) = results
    assert_same(native, reference, params, wanted)
    assert native._progress() == reference._progress()
    assert not np.array_equal(params[2], four(dtype)[2])


@every_case
def test_class_is_its_function(name, options):
    """A class steps as its function does, called with the step's number and learning rate."""
    params, plain = four(), four()
    optimizer = getattr(gdm, name)(params, **options)
    rule = optimizer._rule_of(optimizer._snapshot.options[0])
    if rule == "momentum" and options.get("form") != "classic":
        pytest.skip("the first step of torch's form is the class's own")
    formula = getattr(gdm.reference, rule)
    keywords = gdm.reference.names(formula.__wrapped__)[1]
    own = optimizer._snapshot.options[0]
    kept = {n: own[n] for n in keywords if n in own and n != "lr_scale"}
    state = [
        {n: x.copy() for n, x in entry["state"].items()} for entry in optimizer.state_dict()["groups"][0]["params"]
    ]
    products = [np.ones(1) for _ in params]
    for step in range(4):
        grads = gradients(step)
        for i, (param, grad) in enumerate(zip(plain, grads, strict=True)):
            scale = options.get("lr_scale", [1.0] * 4)[i]
            lr = options["lr"](step) if callable(options["lr"]) else options["lr"]
            given = {**kept, "lr": lr * (scale if isinstance(scale, float) else 1.0)}
            if not isinstance(scale, float):
                given["lr_scale"] = scale
            if "step" in keywords:
                given["step"] = step + 1
            if "mu_product" in keywords:
                given["mu_product"] = products[i]
            getattr(gdm, rule)(param=param, grad=grad, **state[i], **given)
        optimizer.step(grads)
        for x, y in zip(params, plain, strict=True):
            assert_same_bits(x, y)


@every_class
def test_bound_steps(name):
    params, wanted, grads = four(), four(), gradients(0)
    one, other = getattr(gdm, name)(params, lr=cosine), getattr(gdm, name)(wanted, lr=cosine)
    one.bind(grads)
    for step in range(4):
        for x, new in zip(grads, gradients(step), strict=True):
            x[...] = new
        one.step()
        other.step(gradients(step))
    assert_same(one, other, params, wanted)


@every_case
def test_stopped_and_resumed(name, options, tmp_path, backend):
    """N steps straight are N/2, saved, loaded by another optimizer, and N/2 more."""
    params, halfway = four(), four()
    straight = getattr(gdm, name)(params, **options)
    for step in range(10):
        straight.step(gradients(step))
    first = getattr(gdm, name)(halfway, **options)
    for step in range(5):
        first.step(gradients(step))
    first.save(tmp_path / "state")
    again = [x.copy() for x in halfway]
    second = getattr(gdm, name)(again, **{**options, "lr": 0.5 if not callable(options["lr"]) else options["lr"]})
    second.load(tmp_path / "state")
    assert second.lr == first.lr
    for step in range(5, 10):
        second.step(gradients(step))
    assert_same(second, straight, again, params)


def test_resumed_in_another_process(tmp_path):
    """Every class; the parameters travel as a .npz file."""
    code = """
    import itertools
    from pathlib import Path
    import numpy as np
    import gdm
    from test_family import CASES, four, gradients, states
    for name, options in [(name, {**options, "lr": 0.03}) for name, cases in CASES.items() for options in cases]:
        key = f"{name}{sorted(options.items())}"
        folder = Path(FOLDER)
        params = four()
        optimizer = getattr(gdm, name)(params, **options)
        if BEGIN:
            with np.load(folder / f"{abs(hash(key))}.npz") as file:
                for i, x in enumerate(params):
                    x[...] = file[str(i)]
            optimizer.load(folder / f"{abs(hash(key))}.safetensors")
        for step in range(BEGIN, END):
            optimizer.step(gradients(step))
        if END == 6:
            np.savez(folder / f"{abs(hash(key))}.npz", **{str(i): x for i, x in enumerate(params)})
            optimizer.save(folder / f"{abs(hash(key))}.safetensors")
        else:
            print(key, [x.tobytes() for x in params], {k: x.tobytes() for k, x in states(optimizer).items()})
    """

    def run(begin, end):
        here = code.replace("FOLDER", repr(str(tmp_path))).replace("BEGIN", str(begin)).replace("END", str(end))
        return python(here, PYTHONHASHSEED="0", PYTHONPATH=str(Path(__file__).parent))

    straight = run(0, 12)
    run(0, 6)
    assert run(6, 12) == straight
    assert len(straight.splitlines()) == sum(map(len, CASES.values()))


@every_case
@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies(name, options, way):
    params = four()
    optimizer = getattr(gdm, name)(params, **options)
    optimizer.step(gradients(0))
    copied_params, copied = way((params, optimizer))
    for each in (optimizer, copied):
        each.step(gradients(1))
    assert_same(copied, optimizer, copied_params, params)
    assert copied_params[0] is not params[0]


@every_class
def test_state_dict_is_plain(name):
    """Arrays in the dtype of the parameters, and besides only what JSON has."""
    optimizer = getattr(gdm, name)(four(np.float32), lr=cosine)
    optimizer.step(gradients(0, np.float32))

    def plain(x):
        if isinstance(x, np.ndarray):
            assert x.dtype == np.float32
            return None
        if isinstance(x, (list, tuple)):
            return [plain(y) for y in x]
        return {key: plain(y) for key, y in x.items()} if isinstance(x, dict) else x

    saved = optimizer.state_dict()
    assert saved["groups"][0]["steps"] == 1
    assert json.loads(json.dumps(plain(saved))) == plain(saved)


@every_class
def test_hyperparameters_change_between_steps(name, backend):
    """A new value is that of an optimizer made with it; a bad one changes nothing."""
    params, optimizer = four(), None
    optimizer = getattr(gdm, name)(params, lr=0.1)
    for option, value in optimizer._snapshot.options[0].items():
        if option in ("form", "initial_accumulator_value", "nesterov", "lr_scale", "dampening"):
            continue
        new = not value if isinstance(value, bool) else (0.5, 0.25) if option == "betas" else 0.25
        setattr(optimizer, option, new)
        assert getattr(optimizer, option) == new
        before = repr(optimizer)
        with pytest.raises((TypeError, ValueError), match=f"^{option}"):
            setattr(optimizer, option, "bad")
        assert repr(optimizer) == before
        optimizer.step(gradients(0))


@every_class
def test_misspelt(name):
    optimizer = getattr(gdm, name)(four())
    with pytest.raises(AttributeError, match=f"{name} has no hyperparameter 'learning_rate'; it has lr,"):
        optimizer.learning_rate = 0.1
    with pytest.raises(AttributeError, match=f"{name} has no attribute 'learning_rate'; it has lr,"):
        _ = optimizer.learning_rate


# ---- learning rates ----


def test_schedules_drive_the_step(backend):
    theta = np.zeros(1)
    optimizer = gdm.SGD(theta, lr=gdm.schedules.piecewise([1.0, 0.25], [2]))
    seen = []
    for _ in range(4):
        seen.append(optimizer.groups[0].current_lr)
        before = theta.copy()
        optimizer.step(np.ones(1))
        assert before - theta == seen[-1]
    assert seen == [1.0, 1.0, 0.25, 0.25]
    assert optimizer.steps == 4


@pytest.mark.parametrize("bad", [-1.0, np.nan, "x", None])
def test_schedules_that_give_nonsense(backend, bad):
    """Found before anything is written; the step can be made once the schedule is mended."""
    theta = np.ones(3)
    optimizer = gdm.SGD([{"params": [np.ones(2)]}, {"params": [theta], "lr": lambda t: 0.5 if t != 1 else bad}])
    optimizer.step([[np.ones(2)], [np.ones(3)]])
    with pytest.raises((TypeError, ValueError), match=r"^lr\(1\) must be"):
        optimizer.step([[np.ones(2)], [np.ones(3)]])
    np.testing.assert_array_equal(theta, 0.5)
    assert optimizer.groups[1].steps == 1
    optimizer.groups[1].lr = 0.5
    optimizer.step([[np.ones(2)], [np.ones(3)]])
    np.testing.assert_array_equal(theta, 0.0)
    with pytest.raises((TypeError, ValueError), match=r"lr\(0\) must be"):
        gdm.SGD(theta, lr=lambda t: bad)


def test_a_schedule_cannot_step_its_own_optimizer():
    theta = np.ones(2)

    def meddle(t):
        if t == 1:
            optimizer.step(np.ones(2))
        return 0.5

    optimizer = gdm.SGD(theta, lr=meddle)
    optimizer.step(np.ones(2))
    with pytest.raises(RuntimeError, match="already in the middle of a step"):
        optimizer.step(np.ones(2))
    np.testing.assert_array_equal(theta, 0.5)


def test_functions_are_not_saved(backend):
    """A user's own schedule stays the optimizer's own."""
    optimizer = gdm.SGD(np.ones(2), lr=lambda t: 0.5)
    saved = optimizer.state_dict()
    assert saved["groups"][0]["options"]["lr"] is None
    mine = lambda t: 0.25  # noqa: E731
    other = gdm.SGD(np.ones(2), lr=mine)
    other.load_state_dict(saved)
    assert other.lr is mine
    with pytest.raises(gdm.CheckpointError, match="lr was a function, which was not saved"):
        gdm.SGD(np.ones(2), lr=0.1).load_state_dict(saved)


def test_scales(backend):
    """A number scales a parameter's learning rate, an array each element's, decoupled decay included."""
    a, b, c = np.ones(3), np.ones(3), np.ones(3)
    scale = np.array([0.0, 1.0, 2.0], np.float32)
    optimizer = gdm.SGD([a, b, c], lr=0.25, lr_scale=[2.0, scale, 1])
    scale[...] = 7  # it was copied
    optimizer.step([np.ones(3)] * 3)
    np.testing.assert_array_equal(a, 0.5)
    np.testing.assert_array_equal(b, [1.0, 0.75, 0.5])
    np.testing.assert_array_equal(c, 0.75)
    optimizer.lr_scale = 0
    optimizer.step([np.ones(3)] * 3)
    np.testing.assert_array_equal(c, 0.75)
    x = np.ones(3)
    decayed = gdm.AdamW(x, lr=0.5, weight_decay=0.5, lr_scale=np.array([0.0, 1.0, 2.0]))
    decayed.step(np.zeros(3))
    np.testing.assert_array_equal(x, [1.0, 0.75, 0.5])


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (-1, ValueError, "^lr_scale must be finite and not negative, got -1"),
        (np.inf, ValueError, "^lr_scale must be finite"),
        ("x", TypeError, "^lr_scale must be a"),
        ([1.0], ValueError, "^lr_scale must have as many items as params, 2, got 1"),
        ([1.0, np.ones(4)], ValueError, r"^lr_scale\[1\] has shape \(4,\), which does not broadcast"),
        ([1.0, -np.ones(3)], ValueError, r"^lr_scale\[1\] must be finite and not negative in each element"),
        ([1.0, np.full(3, np.nan)], ValueError, r"^lr_scale\[1\] must be finite"),
        ([1.0, "x"], (TypeError, ValueError), r"^lr_scale\[1\]"),
    ],
)
def test_bad_scales(backend, scale, error, message):
    params = [np.ones(2), np.ones(3)]
    with pytest.raises(error, match=message):
        gdm.SGD(params, lr_scale=scale)
    optimizer = gdm.SGD(params)
    with pytest.raises(error, match=message):
        optimizer.lr_scale = scale
    assert optimizer.lr_scale == 1.0


# ---- groups ----


def named():
    return gdm.Adam(
        [{"params": [np.ones(3)], "name": "body"}, {"params": np.ones(2), "name": "head", "lr": 0.5}], lr=0.1
    )


def test_names(backend):
    optimizer = named()
    assert [group.name for group in optimizer.groups] == ["body", "head"]
    assert optimizer.groups["head"].lr == optimizer.groups[-1].lr == 0.5
    optimizer.groups["head"].lr = 0.001
    assert optimizer.groups[1].lr == 0.001
    assert "name='head'" in repr(optimizer.groups["head"])
    with pytest.raises(KeyError, match="no group 'tail'"):
        _ = optimizer.groups["tail"]
    with pytest.raises(IndexError, match="no group 2; there are 2"):
        _ = optimizer.groups[2]
    with pytest.raises(ValueError, match="which another group has"):
        gdm.SGD([{"params": [np.ones(1)], "name": "a"}, {"params": [np.ones(1)], "name": "a"}])
    with pytest.raises(TypeError, match="must be a string"):
        gdm.SGD([{"params": [np.ones(1)], "name": 3}])


def test_groups_come_and_go(backend):
    """A new group starts from step 0; the others go on to the bit, without those that left."""
    params, alone = [np.ones(3), np.ones(2)], [np.ones(3), np.ones(2)]
    straight = [gdm.Adam([x], lr=0.1) for x in alone]
    optimizer = gdm.Adam([params[0]], lr=0.1)
    optimizer.step([np.ones(3)])
    straight[0].step([np.ones(3)])
    late = optimizer.add_group({"params": [params[1]], "name": "late"})
    assert late.name == "late"
    assert (optimizer.groups[0].steps, late.steps) == (1, 0)
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        optimizer.step([np.ones(3)])
    for _ in range(3):
        optimizer.step([[np.ones(3)], [np.ones(2)]])
        for each, n in zip(straight, (3, 2), strict=True):
            each.step([np.ones(n)])
    for x, wanted in zip(params, alone, strict=True):
        assert_same_bits(x, wanted)
    optimizer.remove_group(0)
    assert len(optimizer.groups) == 1
    assert optimizer.groups["late"].steps == 3
    optimizer.step([[np.ones(2)]])
    straight[1].step([np.ones(2)])
    assert_same_bits(params[1], alone[1])
    assert params[0].tolist() == alone[0].tolist()
    copied = pickle.loads(pickle.dumps(optimizer))
    assert copied.groups["late"].steps == 4


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ([np.ones(2)], TypeError, "group must be a mapping with the key 'params'"),
        ({"params": [np.ones(2)], "rate": 1}, ValueError, "option 'rate' that Adam does not know"),
        ({"params": [np.ones(2)], "lr": -1}, ValueError, "group 2: lr must be"),
        ({"params": [np.ones(2)], "name": "body"}, ValueError, "which another group has"),
        ({"params": [np.ones(2, int)]}, TypeError, r"params\[2\]\['params'\]\[0\] has dtype"),
    ],
)
def test_bad_groups(backend, group, error, message):
    optimizer = named()
    before = repr(optimizer.state_dict())
    with pytest.raises(error, match=message):
        optimizer.add_group(group)
    assert repr(optimizer.state_dict()) == before
    optimizer.step([[np.ones(3)], np.ones(2)])


def test_a_group_may_not_overlap():
    x = np.ones(4)
    optimizer = gdm.Adam([x[:3]])
    with pytest.raises(gdm.OverlapError, match="share memory"):
        optimizer.add_group({"params": [x[2:]]})
    with pytest.raises(gdm.OverlapError, match="the exp_avg of params"):
        optimizer.add_group({"params": [optimizer.exp_avg[0]]})


def test_groups_removed_down_to_none(backend):
    optimizer = named()
    optimizer.remove_group("body")
    optimizer.remove_group("head")
    optimizer.step([])
    assert len(optimizer.groups) == 0
    assert optimizer.add_group({"params": [np.ones(2)], "lr": 0.5}).lr == 0.5


# ---- forms ----


@pytest.mark.parametrize(("form", "other"), [("torch", "classic"), ("classic", "torch")])
@pytest.mark.parametrize("nesterov", [False, True])
def test_forms_convert(backend, form, other, nesterov):
    """An optimizer of the other form that takes over walks on along the same path."""

    def gradient(x):
        return 2 * x + 0.1

    options = {"lr": 0.05, "momentum": 0.8, "nesterov": nesterov, "lr_scale": [0.5, np.linspace(0.5, 1, 9)]}
    params = [np.linspace(-1, 1, 9), np.linspace(0, 1, 9)]
    one = gdm.SGD(params, form=form, **options)
    for _ in range(6):
        one.step([gradient(x) for x in params])
    taken = [x.copy() for x in params]
    two = gdm.SGD(taken, form=other, **options)
    with pytest.raises(gdm.CheckpointError, match="form"):
        two.load_state_dict(one.state_dict())
    two.load_state_dict(gdm.SGD.to_form(one.state_dict(), other))
    for _ in range(10):
        one.step([gradient(x) for x in params])
        two.step([gradient(x) for x in taken])
    for x, y in zip(params, taken, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


def test_forms_convert_at_the_learning_rate_of_the_next_step():
    optimizer = gdm.SGD(np.ones(2), lr=gdm.schedules.piecewise([1.0, 0.5, 0.25], [1, 2]), momentum=0.5)
    optimizer.step(np.ones(2))
    (saved,) = gdm.SGD.to_form(optimizer.state_dict(), "classic")["groups"][0]["params"]
    np.testing.assert_array_equal(saved["state"]["velocity"], [-0.5, -0.5])


@pytest.mark.parametrize("form", ["torch", "classic"])
def test_forms_convert_before_the_first_step(form):
    """A velocity that is nothing yet does not mind a learning rate of 0, with which a warm-up begins."""
    optimizer = gdm.SGD(np.ones(2), lr=gdm.schedules.constant(0.5, warmup=3), momentum=0.5, form=form)
    other = {"torch": "classic", "classic": "torch"}[form]
    (saved,) = gdm.SGD.to_form(optimizer.state_dict(), other)["groups"][0]["params"]
    assert_same_bits(saved["state"]["velocity"], np.zeros(2))


def test_forms_that_do_not_convert():
    with pytest.raises(ValueError, match=r"dampening=0\.5, which the classic form does not know"):
        gdm.SGD.to_form(gdm.SGD(np.ones(2), momentum=0.9, dampening=0.5).state_dict(), "classic")
    with pytest.raises(ValueError, match="form must be"):
        gdm.SGD.to_form(gdm.SGD(np.ones(2)).state_dict(), "other")
    with pytest.raises(ValueError, match="only SGD has forms"):
        gdm.SGD.to_form(gdm.Adam(np.ones(2)).state_dict(), "classic")
    optimizer = gdm.SGD(np.ones(2), lr=0.0, momentum=0.9, form="classic")
    optimizer.step(np.ones(2))
    with pytest.raises(ValueError, match="learning rate of 0"):
        gdm.SGD.to_form(optimizer.state_dict(), "torch")


# ---- checkpoints of optimizers ----


def test_checkpoints_that_do_not_fit(tmp_path, backend):
    """Nothing is loaded from one of another class, shape, dtype, group, name or form; the message says what."""
    path = tmp_path / "state"
    optimizer = gdm.Adam({"w": np.ones((2, 3))}, lr=0.1)
    optimizer.step({"w": np.ones((2, 3))})
    before = repr(optimizer.state_dict())
    for other, message in [
        (gdm.SGD({"w": np.ones((2, 3))}), "is of SGD; expected Adam"),
        (gdm.AdamW({"w": np.ones((2, 3))}), "is of AdamW; expected Adam"),
        (gdm.Adam({"w": np.ones((3, 2))}), r"exp_avg of params\['w'\] has dtype float64 and shape \(3, 2\)"),
        (gdm.Adam({"w": np.ones((2, 3), np.float32)}), r"has dtype float32"),
        (gdm.Adam({"v": np.ones((2, 3))}), r"parameter \"\['v'\]\" where"),
        (gdm.Adam({"w": np.ones((2, 3)), "b": np.ones(1)}), r"has \[2\] parameters"),
        (gdm.Adam([{"params": {"w": np.ones((2, 3))}, "name": "body"}]), "groups named"),
    ]:
        other.save(path)
        with pytest.raises(gdm.CheckpointError, match=message):
            optimizer.load(path)
        assert repr(optimizer.state_dict()) == before
    path.write_bytes(b"not one")
    with pytest.raises(gdm.CheckpointError):
        optimizer.load(path)
    with pytest.raises(FileNotFoundError):
        optimizer.load(tmp_path / "missing")


def test_rates_and_names_survive(tmp_path):
    optimizer = gdm.AdamW(
        [
            {"params": {"w": np.ones(3)}, "name": "body", "lr": gdm.schedules.join([cosine, cosine], [12])},
            {"params": [np.ones(2), np.ones(2)], "name": "head", "lr_scale": [0.5, np.array([1.0, 2.0])]},
        ]
    )
    optimizer.save(tmp_path / "state")
    fresh = gdm.AdamW(
        [{"params": {"w": np.ones(3)}, "name": "body"}, {"params": [np.ones(2), np.ones(2)], "name": "head"}], lr=0.5
    )
    fresh.load(tmp_path / "state")
    assert fresh.groups["body"].lr == optimizer.groups["body"].lr
    assert fresh.groups["head"].lr_scale[0] == 0.5
    np.testing.assert_array_equal(fresh.groups["head"].lr_scale[1], [1.0, 2.0])


def test_cases_are_complete():
    """Every class that steps is here."""
    assert {cls.__name__ for cls in CLASSES} == set(CASES)
    assert len(list(itertools.chain(*CASES.values()))) > len(CASES)


# ---- what users trip over ----


def test_scales_of_groups(backend):
    """A group without one of its own has the number that was given, and not what is another parameter's."""
    optimizer = gdm.SGD(np.ones(3), lr=0.1, lr_scale=np.array([0.0, 1.0, 1.0]))
    assert optimizer.add_group({"params": np.ones(3)}).lr_scale == 1.0
    assert gdm.SGD([{"params": np.ones(3)}], lr_scale=0.5).add_group({"params": np.ones(2)}).lr_scale == 0.5
    with pytest.raises(TypeError, match=r"^lr_scale must be a number where there are groups"):
        gdm.SGD([{"params": np.ones(3)}, {"params": np.ones(3)}], lr_scale=np.ones(3))


class Tensor:
    """What torch's looks like from here."""

    def detach(self):
        raise NotImplementedError

    def __iter__(self):
        raise AssertionError("a tensor is not a list of its numbers")


def test_tensors_are_refused_as_a_whole(backend):
    with pytest.raises(TypeError, match=r"^params must be .* not Tensor; pass its \.detach\(\)\.numpy\(\)"):
        gdm.SGD(Tensor())
    with pytest.raises(TypeError, match=r"^params\[0\] must be .* not Tensor; pass its"):
        gdm.SGD([Tensor()])
    with pytest.raises(TypeError, match=r"^grads must be .* not Tensor; pass its"):
        gdm.SGD(np.ones(2)).step(Tensor())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([{"param": np.ones(2)}], r"^params\[0\] must be a group, .* but it has only \['param'\]"),
        ([{"params": np.ones(2)}, np.ones(2)], r"^params\[1\] must be a group, .* not ndarray"),
    ],
)
def test_what_is_no_group(params, message):
    with pytest.raises(TypeError, match=message):
        gdm.SGD(params)
    with pytest.raises(TypeError, match=r"^group must be a mapping with the key 'params', but it has only"):
        gdm.SGD([np.ones(1)]).add_group({"lr": 3})


def test_a_moved_parameter_is_not_the_gradients_mistake(backend):
    param = np.ones(4)
    optimizer = gdm.SGD(param)
    param.resize(8, refcheck=False)
    for grads in (np.ones(8), np.ones(4)):
        for call in (optimizer.step, optimizer.bind):
            with pytest.raises(gdm.StaleBufferError, match=r"^params has moved, been resized"):
                call(grads)


def test_states_of_others():
    optimizer = gdm.Adam(np.ones(2))
    with pytest.raises(gdm.CheckpointError, match=r"gdm\.torch\.load_state_dict"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    with pytest.raises(gdm.CheckpointError, match=r"load\(\) reads files"):
        optimizer.load_state_dict("state.safetensors")
