"""gdm's optimizers against torch's own: the same paths, and states that go from one to the other."""

from __future__ import annotations

import copy
import doctest
import io
import pickle
import sys

import numpy as np
import pytest

import gdm
from support import assert_same_bits
from torch_cases import FUSED, TORCHS

torch = pytest.importorskip("torch", reason="NOT TESTED: agreement with torch.optim; there is no torch here")

SHAPES = [(7,), (3, 5), ()]


@pytest.fixture(autouse=True)
def _doubles():
    """torch keeps NAdam's product of momenta, ASGD's eta and mu, and counts in its default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Problem:
    """Gradients of quadratics with noise, which keep a path bounded and away from 0 / 0."""

    def __init__(self, seed: int, *, maximize: bool = False, dtype=np.float64) -> None:
        rng = np.random.default_rng(seed)
        self.sign, self.dtype = -1.0 if maximize else 1.0, dtype
        self.curvature = [np.asarray(rng.uniform(0.1, 1.0, shape), dtype) for shape in SHAPES]
        self.start = [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]
        self.noise = [0.3 * rng.standard_normal((200, *shape)) for shape in SHAPES]

    def gradient(self, step: int, i: int, x):
        return np.asarray(self.sign * (self.curvature[i] * x + self.noise[i][step]), self.dtype)


def ours_steps(optimizer, params, problem, steps) -> None:
    for step in steps:
        grads = [problem.gradient(step, i, x) for i, x in enumerate(params)]
        if optimizer._snapshot.layout.grouped:
            grads = [grads[:1], grads[1:]]
        optimizer.step(grads)


def theirs_steps(optimizer, tensors, problem, steps) -> None:
    for step in steps:
        for i, tensor in enumerate(tensors):
            tensor.grad = torch.from_numpy(problem.gradient(step, i, tensor.numpy()))
        optimizer.step()


def tensors_of(params):
    return [torch.from_numpy(x.copy()) for x in params]


def assert_close(params, tensors, rtol=1e-12, scale=1.0) -> None:
    for x, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(x, tensor.numpy(), rtol=rtol, atol=rtol * scale / 10)


def random_options(name: str, rng) -> dict:
    """Options that torch's class of this name has too."""
    options = {
        "lr": rng.uniform(0.001, 0.1),
        "weight_decay": rng.choice([0.0, rng.uniform(0.0, 0.1)]),
        "maximize": bool(rng.integers(2)),
    }
    if name == "SGD":
        nesterov = bool(rng.integers(2))
        options |= {
            "nesterov": nesterov,
            "momentum": rng.uniform(0.1, 0.95) if nesterov else rng.choice([0.0, rng.uniform(0.0, 0.95)]),
            "dampening": 0.0 if nesterov else rng.choice([0.0, rng.uniform(0.0, 0.9)]),
        }
    if name == "Rprop":
        del options["weight_decay"]
        options["etas"] = (float(rng.uniform(0.1, 0.9)), float(1 + rng.uniform(0.05, 0.5)))
        options["step_sizes"] = (float(10 ** rng.uniform(-8, -3)), float(10 ** rng.uniform(-2, 1)))
    elif name == "ASGD":
        options["lambd"] = rng.choice([0.0, 10 ** rng.uniform(-5, 0)])
        options["alpha"] = rng.uniform(0, 2)
        options["t0"] = rng.choice([0.0, rng.uniform(0, 150), 1e6])
    elif name != "SGD":
        options["eps"] = 10 ** rng.uniform(-10, -1)
    if name == "Adagrad":
        options["lr_decay"] = rng.choice([0.0, rng.uniform(0.0, 0.1)])
        options["initial_accumulator_value"] = rng.choice([0.0, rng.uniform(0.0, 1.0)])
    if name == "RMSprop":
        options["alpha"] = rng.uniform(0.5, 0.999)
        options["momentum"] = rng.choice([0.0, rng.uniform(0.0, 0.9)])
        options["centered"] = bool(rng.integers(2))
    if name in ("Adam", "AdamW", "NAdam", "RAdam", "Adamax"):
        options["betas"] = (rng.choice([0.0, rng.uniform(0.0, 0.95)]), rng.uniform(0.5, 0.9999))
    if name in ("Adam", "AdamW"):
        options["amsgrad"] = bool(rng.integers(2))
    if name in ("Adam", "NAdam", "RAdam"):
        options["decoupled_weight_decay"] = bool(rng.integers(2))
    if name == "Adadelta":
        options["rho"] = rng.uniform(0.0, 1.0)
    if name == "NAdam":
        options["momentum_decay"] = rng.choice([0.0, rng.uniform(0.0, 0.1)])
    return {key: x if isinstance(x, (bool, tuple)) else float(x) for key, x in options.items()}


def implementation(name: str, seed: int) -> dict:
    """One of those that torch has, in turn."""
    return [{"foreach": False}, {"foreach": True}, {"fused": True} if name in FUSED else {}][seed % 3]


# ---- the same paths ----


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", TORCHS)
def test_gdm_walks_torchs_path(backend, name, seed):
    """200 steps of float64 with random options, a learning rate that changes twice, three parameters."""
    options = random_options(name, np.random.default_rng(seed))
    problem = Problem(seed, maximize=options["maximize"])
    params, tensors = [x.copy() for x in problem.start], tensors_of(problem.start)
    ours = getattr(gdm, name)(params, **options)
    theirs = getattr(torch.optim, name)(tensors, **options, **implementation(name, seed))
    for part, factor in enumerate([1.0, 0.3, 2.0]):
        ours.lr = theirs.param_groups[0]["lr"] = ours.lr * factor
        steps = range([0, 70, 140][part], [70, 140, 200][part])
        ours_steps(ours, params, problem, steps)
        theirs_steps(theirs, tensors, problem, steps)
        assert_close(params, tensors, rtol=1e-12)
    if name == "ASGD":
        assert_close(ours.ax, [theirs.state[tensor]["ax"] for tensor in tensors], rtol=1e-12)
    assert max(np.abs(x).max() for x in params) < 10
    assert all(np.any(x != start) for x, start in zip(params, problem.start, strict=True))


@pytest.mark.parametrize("name", ["RAdam", "Adamax", "Adadelta"])
def test_what_is_not_finite_becomes_what_it_becomes_in_torch(backend, name):
    """In parameters and states. After NaN finite gradients may follow; infinity must come last, since torch's way to
    average makes NaN of it in the next step. RAdam's fifth step is the last without a root."""
    nan_or_huge, infinite = [np.nan, 1.0, -1.0, 1e200, -0.0, 0.0, 1.0], [0.5, np.inf, -np.inf, 0.5, -0.0, np.nan, 0.5]
    for last in (4, 7):
        param, tensor = np.ones(7), torch.ones(7)
        ours, theirs = getattr(gdm, name)(param), getattr(torch.optim, name)([tensor], foreach=False)
        for step in range(last + 1):
            grad = np.array({1: nan_or_huge, last: infinite}.get(step, [0.5] * 7))
            ours.step(grad)
            tensor.grad = torch.from_numpy(grad)
            theirs.step()
        np.testing.assert_allclose(param, tensor.numpy(), rtol=1e-12)
        for key, x in theirs.state[tensor].items():
            if key != "step":
                np.testing.assert_allclose(getattr(ours, key), x.numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", TORCHS)
def test_defaults_are_torchs(name):
    """They are torch's, but for SGD's learning rate, which torch has changed over the years."""
    theirs = getattr(torch.optim, name)([torch.zeros(1)]).defaults
    ours = gdm.torch.to_state_dict(getattr(gdm, name)([np.zeros(1)]))["param_groups"][0]
    del ours["params"]
    if name == "SGD":
        assert (ours.pop("lr"), theirs.pop("lr")) == (0.01, 0.001)
    assert ours == theirs


@pytest.mark.parametrize("name", TORCHS)
def test_gdm_walks_roughly_torchs_path_in_float32(backend, name):
    """Roughly: each of 20 steps rounds a few times in both, in different orders."""
    for seed in range(10):
        options = {**random_options(name, np.random.default_rng(seed)), "lr": 0.01}
        problem = Problem(seed, maximize=options["maximize"], dtype=np.float32)
        params, tensors = [x.copy() for x in problem.start], tensors_of(problem.start)
        ours_steps(getattr(gdm, name)(params, **options), params, problem, range(20))
        theirs_steps(getattr(torch.optim, name)(tensors, **options), tensors, problem, range(20))
        assert_close(params, tensors, rtol=20 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("seed", range(40))
def test_lion_follows_its_paper(backend, seed):
    """Algorithm 2 of Chen et al., 2023, with eta, lambda and c as there."""
    rng = np.random.default_rng(seed)
    lr, (beta1, beta2) = rng.uniform(1e-4, 0.02), rng.uniform(0.0, 0.99, 2)
    decay, maximize = rng.choice([0.0, rng.uniform(0.0, 0.5)]), bool(rng.integers(2))
    problem = Problem(seed, maximize=maximize)
    params, expected = [x.copy() for x in problem.start], [x.copy() for x in problem.start]
    average = [np.zeros_like(x) for x in expected]
    optimizer = gdm.Lion(params, lr=lr, betas=(beta1, beta2), weight_decay=decay, maximize=maximize)
    sign = -1.0 if maximize else 1.0
    for step in range(200):
        if step == 100:
            lr = optimizer.lr = lr / 3
        for i, theta in enumerate(expected):
            g = sign * problem.gradient(step, i, theta)
            c = beta1 * average[i] + (1 - beta1) * g
            expected[i] = theta - lr * (np.sign(c) + decay * theta)
            average[i] = beta2 * average[i] + (1 - beta2) * g
        ours_steps(optimizer, params, problem, [step])
    assert_close(params, [torch.from_numpy(np.asarray(x)) for x in expected])


@pytest.mark.parametrize("seed", range(40))
def test_ademamix_follows_its_paper(backend, seed):
    """Algorithm 1 of Pagliardini et al., 2024, and the schedules of its section 3, with names as there."""
    rng = np.random.default_rng(seed)
    lr, (beta1, beta2, beta3), eps = rng.uniform(1e-4, 0.02), rng.uniform(0.1, 0.999, 3), 10 ** rng.uniform(-8, -2)
    alpha, decay, warmup = rng.uniform(0, 10), rng.choice([0.0, rng.uniform(0.0, 0.5)]), rng.choice([0, 150, 1000], 2)
    maximize = bool(rng.integers(2))
    problem = Problem(seed, maximize=maximize)
    params, expected = [x.copy() for x in problem.start], [x.copy() for x in problem.start]
    m1, m2, nu = ([np.zeros_like(x) for x in expected] for _ in range(3))
    options = {"betas": (beta1, beta2, beta3), "alpha": alpha, "t_alpha": warmup[0], "t_beta3": warmup[1]}
    options |= {"eps": eps, "weight_decay": decay, "maximize": maximize}
    optimizer = gdm.AdEMAMix(params, lr=lr, **options)
    sign = -1.0 if maximize else 1.0
    for step in range(200):
        if step == 100:
            lr = optimizer.lr = lr / 3
        t, a, b3 = step + 1, alpha, beta3
        if warmup[0]:
            a = min(t * alpha / warmup[0], alpha)
        if warmup[1]:
            x = t / warmup[1]
            b3 = np.exp(np.log(beta1) * np.log(beta3) / ((1 - x) * np.log(beta3) + x * np.log(beta1))) if x < 1 else 1
            b3 = min(b3, beta3)
        for i, theta in enumerate(expected):
            g = sign * problem.gradient(step, i, theta)
            m1[i] = beta1 * m1[i] + (1 - beta1) * g
            m2[i] = b3 * m2[i] + (1 - b3) * g
            nu[i] = beta2 * nu[i] + (1 - beta2) * g**2
            root = np.sqrt(nu[i] / (1 - beta2**t))
            expected[i] = theta - lr * ((m1[i] / (1 - beta1**t) + a * m2[i]) / (root + eps) + decay * theta)
        ours_steps(optimizer, params, problem, [step])
    assert_close(params, [torch.from_numpy(np.asarray(x)) for x in expected])


# ---- states ----

OPTIONS = {
    "SGD": [{}, {"momentum": 0.9, "dampening": 0.3}, {"momentum": 0.8, "nesterov": True, "maximize": True}],
    "Adagrad": [{}, {"lr_decay": 0.05, "weight_decay": 0.1, "initial_accumulator_value": 0.25, "eps": 1e-4}],
    "RMSprop": [{}, {"centered": True}, {"momentum": 0.7, "alpha": 0.8}, {"centered": True, "momentum": 0.5}],
    "Adam": [{}, {"amsgrad": True, "betas": (0.5, 0.9)}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "AdamW": [{}, {"amsgrad": True, "weight_decay": 0.2, "maximize": True}],
    "NAdam": [{}, {"momentum_decay": 0.1, "decoupled_weight_decay": True, "weight_decay": 0.1}, {"betas": (0.0, 0.9)}],
    "RAdam": [{}, {"betas": (0.5, 0.9), "weight_decay": 0.1, "decoupled_weight_decay": True}],
    "Adamax": [{}, {"betas": (0.5, 0.9), "weight_decay": 0.1, "eps": 1e-3, "maximize": True}],
    "Adadelta": [{}, {"rho": 0.5, "weight_decay": 0.1, "eps": 1e-3, "maximize": True}],
    "Rprop": [{}, {"etas": (0.25, 1.75), "step_sizes": (0.001, 0.1), "maximize": True}],
    "ASGD": [{}, {"t0": 2.0, "lambd": 0.5, "alpha": 1.5, "weight_decay": 0.1}],
}
every_case = pytest.mark.parametrize(
    ("name", "options"), [pytest.param(n, o, id=f"{n}-{k}") for n in TORCHS for k, o in enumerate(OPTIONS[n])]
)


def make(name, params, options, *, grouped=False):
    """An optimizer; its second group has other options, and those of the class."""
    given = params
    if grouped:
        other = {**options, "lr": 0.003, **({} if name == "Rprop" else {"weight_decay": 0.05})}
        given = [{"params": params[:1], "name": "first"}, {"params": params[1:], **other}]
    return getattr(gdm, name)(given, **{"lr": 0.02, **options})


def torch_twin(name, tensors, *, grouped=False):
    """torch's optimizer, with options and a state that are yet to be loaded."""
    groups = [{"params": tensors[:1]}, {"params": tensors[1:]}] if grouped else tensors
    return getattr(torch.optim, name)(groups)


def assert_same_state(a, b, *, but=()) -> None:
    """Two states, equal to the bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - set(but):
            assert_same_state(a[key], b[key], but=but)
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_state(x, y, but=but)
    elif isinstance(a, np.ndarray):
        assert_same_bits(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 5])
@every_case
def test_a_path_goes_on_in_torch_and_back_in_gdm(backend, name, options, steps, grouped):
    """A path that begins in gdm goes on in torch, and from there in gdm, as if it had stayed."""
    problem = Problem(3)
    params = [x.copy() for x in problem.start]
    stayed = make(name, params, options, grouped=grouped)
    ours_steps(stayed, params, problem, range(steps))

    tensors = tensors_of(params)
    theirs = torch_twin(name, tensors, grouped=grouped)
    theirs.load_state_dict(gdm.torch.to_state_dict(stayed))
    ours_steps(stayed, params, problem, range(steps, 20))
    theirs_steps(theirs, tensors, problem, range(steps, 20))
    assert_close(params, tensors)

    back = [tensor.numpy().copy() for tensor in tensors]
    returned = make(name, back, {}, grouped=grouped)
    gdm.torch.load_state_dict(returned, theirs.state_dict())
    ours_steps(stayed, params, problem, range(20, 60))
    theirs_steps(theirs, tensors, problem, range(20, 60))
    ours_steps(returned, back, problem, range(20, 60))
    assert_close(params, tensors)
    assert_close(back, tensors)
    if name != "SGD":
        assert returned.steps == stayed.steps == 60


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("steps", [0, 1, 5])
@every_case
def test_round_trip_is_exact(name, options, steps, dtype):
    """To the bit, and through an optimizer of torch's too; but torch's SGD does not count its steps."""
    problem = Problem(4, dtype=dtype)
    params = [x.copy() for x in problem.start]
    optimizer = make(name, params, options, grouped=True)
    ours_steps(optimizer, params, problem, range(steps))
    theirs = torch_twin(name, tensors_of(params), grouped=True)
    theirs.load_state_dict(gdm.torch.to_state_dict(optimizer))
    for through_torch in (False, True):
        loaded = make(name, [x.copy() for x in params], {}, grouped=True)
        gdm.torch.load_state_dict(loaded, theirs.state_dict() if through_torch else gdm.torch.to_state_dict(optimizer))
        but = ["steps", "updates"] if name == "SGD" else []
        if through_torch and dtype == np.float32:  # where torch makes a float32 of it
            but += ["mu_product", "eta", "mu"]
        assert_same_state(loaded.state_dict(), optimizer.state_dict(), but=but)
        assert loaded.steps == (0 if name == "SGD" else steps)


@every_case
def test_it_is_what_torch_would_have_saved(name, options):
    """The same keys, in the same order, of the same types, after the same steps."""
    problem = Problem(5)
    params, tensors = [x.copy() for x in problem.start], tensors_of(problem.start)
    ours = make(name, params, options)
    theirs = getattr(torch.optim, name)(tensors, **{"lr": 0.02, **options})
    ours_steps(ours, params, problem, range(3))
    theirs_steps(theirs, tensors, problem, range(3))
    actual, expected = gdm.torch.to_state_dict(ours), theirs.state_dict()
    assert actual["param_groups"] == expected["param_groups"]
    assert [list(group) for group in actual["param_groups"]] == [list(group) for group in expected["param_groups"]]
    assert actual["state"].keys() == expected["state"].keys()
    for number, state in actual["state"].items():
        assert state.keys() == expected["state"][number].keys()
        for key, tensor in state.items():
            other = expected["state"][number][key]
            assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
            np.testing.assert_allclose(tensor.numpy(), other.numpy(), rtol=1e-13, atol=1e-16)


def test_a_count_is_of_torchs_dtype():
    optimizer = gdm.Adam(np.zeros(2, np.float32))
    torch.set_default_dtype(torch.float32)
    assert gdm.torch.to_state_dict(optimizer)["state"][0]["step"].dtype == torch.float32
    saved = optimizer.state_dict()
    saved["groups"][0]["params"][0]["steps"] = 2**24  # the next number is none of float32
    optimizer.load_state_dict(saved)
    assert gdm.torch.to_state_dict(optimizer)["state"][0]["step"].item() + 1 == 2**24 + 1


def test_a_state_before_the_first_step_is_converted():
    optimizer = gdm.SGD([np.ones(2), np.ones(3)], momentum=0.9)
    assert gdm.torch.to_state_dict(optimizer)["state"] == {0: {"momentum_buffer": None}, 1: {"momentum_buffer": None}}
    assert gdm.torch.to_state_dict(gdm.SGD(np.ones(2)))["state"] == {}
    state = gdm.torch.to_state_dict(gdm.Adagrad(np.ones(2), initial_accumulator_value=0.5))["state"][0]
    assert (state["step"].item(), state["sum"].tolist()) == (0.0, [0.5, 0.5])
    for name in ("Rprop", "ASGD"):  # torch makes it, with the learning rate of the first step
        assert gdm.torch.to_state_dict(getattr(gdm, name)(np.ones(2)))["state"] == {}


@pytest.mark.parametrize("name", TORCHS)
def test_a_state_of_torchs_before_the_first_step_is_converted(name):
    """Its state is empty but for Adagrad's, and gdm's is then what it was when the optimizer was made."""
    options = {"initial_accumulator_value": 0.5} if name == "Adagrad" else {}
    theirs = getattr(torch.optim, name)(tensors_of(Problem(0).start), **options)
    params = [x.copy() for x in Problem(0).start]
    optimizer = getattr(gdm, name)(params, **options)
    fresh = optimizer.state_dict()
    ours_steps(optimizer, params, Problem(0), range(3))
    gdm.torch.load_state_dict(optimizer, theirs.state_dict())
    if name == "SGD":
        optimizer.lr = 0.01
    assert_same_state(optimizer.state_dict(), fresh, but=["steps", "updates"] if name == "SGD" else [])


def test_parameters_of_sgd_begin_one_by_one():
    """Where a parameter had no gradient in torch, it has no velocity yet, and its first one is undampened."""
    problem = Problem(6)
    tensors = tensors_of(problem.start)
    theirs = torch.optim.SGD(tensors, lr=0.1, momentum=0.9, dampening=0.5)
    tensors[1].grad = torch.from_numpy(problem.gradient(0, 1, tensors[1].numpy()))
    theirs.step()
    params = [tensor.numpy().copy() for tensor in tensors]
    ours = gdm.SGD(params)
    gdm.torch.load_state_dict(ours, theirs.state_dict())
    assert [entry["begun"] for entry in ours.state_dict()["groups"][0]["params"]] == [False, True, False]
    ours_steps(ours, params, problem, range(5))
    theirs_steps(theirs, tensors, problem, range(5))
    assert_close(params, tensors)


@pytest.mark.parametrize(
    ("name", "option", "value"), [("SGD", "momentum", 0.9), ("Adam", "amsgrad", True), ("RMSprop", "centered", True)]
)
def test_states_that_are_not_in_use_are_kept(name, option, value):
    """They stay where an option was switched off, and are there when it is switched on again, on either side."""
    problem = Problem(7)
    params = [x.copy() for x in problem.start]
    stayed = getattr(gdm, name)(params, lr=0.02, **{option: value})
    ours_steps(stayed, params, problem, range(3))
    setattr(stayed, option, type(value)(0))
    tensors, copied = tensors_of(params), [x.copy() for x in params]
    theirs, loaded = torch_twin(name, tensors), getattr(gdm, name)(copied)
    theirs.load_state_dict(gdm.torch.to_state_dict(stayed))
    gdm.torch.load_state_dict(loaded, theirs.state_dict())
    theirs.param_groups[0][option] = value
    for optimizer, arrays in ((stayed, params), (loaded, copied)):
        setattr(optimizer, option, value)
        ours_steps(optimizer, arrays, problem, range(3, 9))
    theirs_steps(theirs, tensors, problem, range(3, 9))
    assert_close(params, tensors)
    for x, y in zip(params, copied, strict=True):
        assert_same_bits(x, y)


def test_what_is_converted_is_a_copy():
    """Neither side's later steps reach what was converted."""
    params = [np.ones(4), np.ones(3)]
    optimizer = gdm.Adam(params)
    optimizer.step([np.ones(4), np.ones(3)])
    converted = gdm.torch.to_state_dict(optimizer)
    before = copy.deepcopy(converted)
    gdm.torch.load_state_dict(optimizer, converted)
    optimizer.step([np.ones(4), np.ones(3)])
    assert converted["param_groups"] == before["param_groups"]
    for number, state in converted["state"].items():
        for key, tensor in state.items():
            assert torch.equal(tensor, before["state"][number][key])


def test_a_schedule_becomes_its_number():
    optimizer = gdm.Adam(np.ones(2), lr=lambda step: 0.1 / (1 + step))
    optimizer.step(np.ones(2))
    state = gdm.torch.to_state_dict(optimizer)
    assert state["param_groups"][0]["lr"] == 0.05
    gdm.torch.load_state_dict(optimizer, state)
    assert optimizer.lr == 0.05


def test_any_structure_is_converted_in_the_order_of_params():
    """Mappings, Fortran order, empty groups and arrays, names: by the order of the parameters."""
    params = {"w": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "b": np.ones(2), "none": np.ones((0, 2))}
    grads = {key: np.asarray(x + 1.0, order="F") for key, x in params.items()}
    optimizer = gdm.NAdam([{"params": params, "name": "all"}, {"params": []}])
    optimizer.step([grads, []])
    state = gdm.torch.to_state_dict(optimizer)
    assert [group["params"] for group in state["param_groups"]] == [[0, 1, 2], []]
    assert [group.get("name") for group in state["param_groups"]] == ["all", None]
    np.testing.assert_array_equal(state["state"][0]["exp_avg"].numpy(), optimizer.exp_avg[0]["w"])
    copied = {key: x.copy("K") for key, x in params.items()}
    loaded = gdm.NAdam([{"params": copied, "name": "all"}, {"params": []}])
    gdm.torch.load_state_dict(loaded, state)
    assert_same_state(loaded.state_dict()["groups"][0], optimizer.state_dict()["groups"][0])


def test_torch_saves_and_loads_a_converted_state():
    """A state can be saved and loaded as torch does by default: tensors and plain values only."""
    optimizer = gdm.NAdam([np.ones(3), np.ones(2)])
    optimizer.step([np.ones(3), np.ones(2)])
    file = io.BytesIO()
    torch.save(gdm.torch.to_state_dict(optimizer), file)
    file.seek(0)
    loaded = gdm.NAdam([np.ones(3), np.ones(2)])
    gdm.torch.load_state_dict(loaded, torch.load(file, weights_only=True))
    assert_same_state(loaded.state_dict(), optimizer.state_dict())


def test_what_torch_leaves_beside_options_does_not_matter():
    """Switches of how it computes, what its schedulers note, tensors as numbers, keys that older versions had not."""
    params, tensors = [np.ones(3, np.float32)], [torch.ones(3, dtype=torch.float32)]
    theirs = torch.optim.Adam([("w", tensors[0])], lr=torch.tensor(0.25), betas=(0.5, 0.75), fused=True)
    torch.optim.lr_scheduler.OneCycleLR(theirs, 0.1, total_steps=10)
    tensors[0].grad = torch.ones(3, dtype=torch.float32)
    theirs.step()
    state = theirs.state_dict()
    group = state["param_groups"][0]
    assert {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "param_names"} <= group.keys()
    assert isinstance(group["lr"], torch.Tensor)
    for key in ("decoupled_weight_decay", "maximize", "foreach", "capturable", "differentiable"):
        del group[key]
    state["state"][0]["step"] = 1  # as it was once
    optimizer = gdm.Adam(params, decoupled_weight_decay=True, maximize=True)
    gdm.torch.load_state_dict(optimizer, state)
    assert (optimizer.lr, optimizer.steps) == (group["lr"].item(), 1)
    assert optimizer.betas == tuple(map(float, group["betas"]))
    assert (optimizer.decoupled_weight_decay, optimizer.maximize) == (False, False)
    del state["param_groups"][0]["amsgrad"]
    gdm.torch.load_state_dict(optimizer, state)


def test_states_of_an_older_adamw_are_converted():
    """Before torch 2.7 its groups did not say that the decay is decoupled."""
    state = gdm.torch.to_state_dict(gdm.AdamW(np.ones(2)))
    del state["param_groups"][0]["decoupled_weight_decay"]
    optimizer = gdm.AdamW(np.ones(2))
    gdm.torch.load_state_dict(optimizer, state)
    assert optimizer.decoupled_weight_decay is True


@pytest.mark.parametrize("name", ["Adam", "NAdam", "Adagrad", "Rprop", "ASGD"])
def test_parameters_with_different_counts(backend, name):
    """Some parameters had no gradient in some steps in torch. Each goes on from its own count."""
    problem = Problem(6)
    tensors = tensors_of(problem.start)
    theirs = getattr(torch.optim, name)(tensors, lr=0.1)
    for step in range(4):
        for i, tensor in enumerate(tensors):
            present = (i + step) % 3 or (i == 2 and step == 1)
            tensor.grad = torch.from_numpy(problem.gradient(step, i, tensor.numpy())) if present else None
        theirs.step()
    params = [tensor.numpy().copy() for tensor in tensors]
    ours = getattr(gdm, name)(params)
    gdm.torch.load_state_dict(ours, theirs.state_dict())
    assert ours.param_steps == [int(theirs.state[tensor]["step"]) for tensor in tensors]
    assert ours.steps == max(ours.param_steps)
    ours_steps(ours, params, problem, range(4, 40))
    theirs_steps(theirs, tensors, problem, range(4, 40))
    assert_close(params, tensors)
    again = gdm.torch.to_state_dict(ours)["state"]
    assert [int(again[i]["step"]) for i in range(len(params))] == ours.param_steps


def test_each_of_nadams_products_goes_on_in_its_own_dtype():
    """torch has one for each parameter, in its dtype; each goes on from its own."""
    params = [np.ones(3, np.float32), np.ones(3)]
    optimizer = gdm.NAdam(params)
    for _ in range(5):
        optimizer.step([np.ones(3, np.float32), np.ones(3)])
    theirs = torch.optim.NAdam(tensors_of(params))
    theirs.load_state_dict(gdm.torch.to_state_dict(optimizer))
    state = theirs.state_dict()
    assert [state["state"][i]["mu_product"].dtype for i in (0, 1)] == [torch.float32, torch.float64]
    loaded = gdm.NAdam([x.copy() for x in params])
    gdm.torch.load_state_dict(loaded, state)
    assert_same_state(loaded.state_dict(), optimizer.state_dict(), but=["mu_product"])
    found, wanted = (
        [entry["scalars"]["mu_product"] for entry in x.state_dict()["groups"][0]["params"]] for x in (loaded, optimizer)
    )
    assert found == [float(np.float32(wanted[0])), wanted[1]]


def test_nadams_product_may_be_zero():
    """In float32, where it is after some hundred steps."""
    theirs = torch.optim.NAdam([torch.ones(2)])
    theirs.param_groups[0]["params"][0].grad = torch.ones(2)
    theirs.step()
    state = theirs.state_dict()
    state["state"][0]["mu_product"] = torch.tensor(0.0, dtype=torch.float32)
    optimizer = gdm.NAdam(np.ones(2))
    gdm.torch.load_state_dict(optimizer, state)
    assert optimizer.state_dict()["groups"][0]["params"][0]["scalars"] == {"mu_product": 0.0}
    optimizer.step(np.ones(2))


def test_a_subclass_is_converted_as_its_class():
    class Mine(gdm.AdamW):
        pass

    optimizer = Mine(np.ones(2))
    optimizer.step(np.ones(2))
    loaded = Mine(np.ones(2))
    gdm.torch.load_state_dict(loaded, gdm.torch.to_state_dict(optimizer))
    assert_same_state(loaded.state_dict(), optimizer.state_dict())


# ---- what does not fit ----


def group_with(**options):
    return lambda state: state["param_groups"][0].update(options)


def group_without(key):
    return lambda state: state["param_groups"][0].pop(key)


def state_with(**values):
    return lambda state: state["state"][1].update(values)


def drop(key):
    return lambda state: state.pop(key)


DAMAGE = {
    "no state": ("Adam", drop("state"), r"the keys 'state' and 'param_groups', got \['param_groups'\]"),
    "no groups": ("Adam", drop("param_groups"), "the keys 'state' and 'param_groups'"),
    "groups": ("Adam", lambda s: s["param_groups"].append(s["param_groups"][0]), "has 2 groups; expected 1"),
    "sizes": ("Adam", lambda s: s["param_groups"][0]["params"].pop(), r"\[2\] parameters .* expected \[3\]"),
    "twice": ("Adam", group_with(params=[0, 0, 1]), r"expected some of \[0, 0, 1\], each once"),
    "stray": ("Adam", lambda s: s["state"].update({7: {}}), r"has states of \[0, 1, 2, 7\]; expected some of"),
    "unknown option": ("Adam", group_with(rho=0.9), r"param_groups\[0\] the options \['rho'\], which torch.optim.Adam"),
    "missing option": ("Adam", group_without("eps"), r"param_groups\[0\] no options \['eps'\], which torch.optim.Adam"),
    "name": ("Adam", group_with(name="b"), r"the name 'b'; expected 'a'"),
    "illegal option": ("Adam", group_with(lr=-1.0), "lr must be finite and not negative, got -1.0"),
    "momentum": ("SGD", group_with(momentum=1.5), r"momentum must be in \[0, 1\), got 1.5"),
    "type": ("Adam", group_with(betas="fast"), "betas must be a pair of real numbers"),
    "tensor": ("Adam", group_with(lr=torch.ones(3)), "state_dict is not one of torch.optim's: RuntimeError"),
    "adam for adamw": (
        "AdamW",
        group_with(decoupled_weight_decay=False),
        "decoupled_weight_decay=False; expected True",
    ),
    "unknown state": (
        "Adam",
        state_with(ema=1),
        r"the states \['ema'\] of params\[0\]\['params'\]\[1\]; .* has \['step',",
    ),
    "missing state": ("Adam", lambda s: s["state"][1].pop("exp_avg"), r"lacks the states \['exp_avg'\] of params"),
    "only a step": (
        "Adam",
        lambda s: s["state"].update({k: {"step": torch.tensor(2.0)} for k in range(3)}),
        r"lacks the states \['exp_avg', 'exp_avg_sq'\] of params",
    ),
    "missing step": ("Adam", lambda s: s["state"][1].pop("step"), "is not one of torch.optim's: KeyError: 'step'"),
    "missing product": ("NAdam", lambda s: s["state"][1].pop("mu_product"), "KeyError: 'mu_product'"),
    "amsgrad": ("Adam", group_with(amsgrad=True), r"lacks the states \['max_exp_avg_sq'\]"),
    "shape": (
        "Adam",
        state_with(exp_avg=torch.ones(2)),
        r"the exp_avg of .*\[1\] .* shape \(2,\); expected float64 and \(3, 5\)",
    ),
    "buffer": ("SGD", state_with(momentum_buffer=torch.ones(2)), r"the momentum_buffer of .* shape \(2,\)"),
    "dtype": ("RMSprop", state_with(square_avg=torch.ones(3, 5).float()), "dtype float32 .* expected float64"),
    "bfloat16": ("Adagrad", state_with(sum=torch.ones(3, 5).bfloat16()), "the sum of .* dtype bfloat16"),
    "sparse": (
        "Adam",
        state_with(exp_avg=torch.ones(3, 5, dtype=torch.float64).to_sparse()),
        "is not one of torch.optim's: TypeError",
    ),
    "array": ("Adam", state_with(exp_avg=np.ones((3, 5))), "a ndarray; expected a tensor"),
    "half a step": ("Adam", state_with(step=torch.tensor(2.5)), "a step of 2.5; expected a whole number"),
    "NaN steps": ("Adam", state_with(step=torch.tensor(torch.nan)), "a step of nan; expected a whole number"),
    "product": (
        "NAdam",
        lambda s: [x.update(mu_product=2.0) for x in s["state"].values()],
        r"mu_product must be in \[0, 1\]",
    ),
    "state": ("Adam", lambda s: s.update(state=3), "is not one of torch.optim's: TypeError"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_state_is_refused(backend, what):
    name, damage, message = DAMAGE[what]
    problem = Problem(8)
    params = [x.copy() for x in problem.start]
    optimizer = getattr(gdm, name)([{"params": params, "name": "a"}], **({"momentum": 0.5} if name == "SGD" else {}))
    for step in range(2):
        optimizer.step([[problem.gradient(step, i, x) for i, x in enumerate(params)]])
    state = gdm.torch.to_state_dict(optimizer)
    optimizer.step([[problem.gradient(2, i, x) for i, x in enumerate(params)]])
    before = optimizer.state_dict()
    damage(state)
    with pytest.raises(gdm.CheckpointError, match=message):
        gdm.torch.load_state_dict(optimizer, state)
    assert_same_state(optimizer.state_dict(), before)


@pytest.mark.parametrize("found", [None, 3, [], torch.optim.SGD([torch.zeros(2)], lr=0.1)])
def test_what_is_no_state_of_torchs_is_refused(found):
    with pytest.raises(gdm.CheckpointError, match=f"must be a mapping with .*, got {type(found).__name__}"):
        gdm.torch.load_state_dict(gdm.SGD(np.ones(2)), found)


@pytest.mark.parametrize("name", TORCHS)
def test_a_state_of_another_class_is_refused(name):
    for other in TORCHS:
        state = gdm.torch.to_state_dict(getattr(gdm, other)(np.ones(2)))
        if name in (other, "Adam") and other in (name, "AdamW"):  # AdamW is an Adam with an option
            gdm.torch.load_state_dict(getattr(gdm, name)(np.ones(2)), state)
            continue
        with pytest.raises(gdm.CheckpointError, match=r"state_dict has (in param_groups\[0\]|the states)"):
            gdm.torch.load_state_dict(getattr(gdm, name)(np.ones(2)), state)


def test_gdms_own_state_is_not_torchs():
    optimizer = gdm.SGD(np.ones(2))
    with pytest.raises(gdm.CheckpointError, match=r"got \['format', 'optimizer', 'around',"):
        gdm.torch.load_state_dict(optimizer, optimizer.state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gdm.SGD(np.ones(2), momentum=0.9, form="classic"), "form='classic', .* gdm.SGD.to_form converts"),
        (lambda: gdm.SGD(np.ones(2), weight_decay=0.1, decoupled_weight_decay=True), "decoupled_weight_decay=True"),
        (lambda: gdm.SGD(np.ones(2), lr_scale=0.5), "group 0 has an lr_scale, .*; expected 1"),
        (lambda: gdm.SGD(np.ones(2), lr_scale=np.array([1.0, 0.5])), "group 0 has an lr_scale"),
        (lambda: gdm.SGD([{"params": np.ones(2)}, {"params": np.ones(2), "lr_scale": 0.5}]), "group 1 has an lr_scale"),
    ],
)
def test_what_torch_has_not_is_refused(make, message):
    optimizer = make()
    with pytest.raises(ValueError, match=message):
        gdm.torch.to_state_dict(optimizer)
    groups = [{"params": np.ones(2)} for _ in optimizer.groups]
    state = gdm.torch.to_state_dict(gdm.SGD(groups, momentum=0.9, weight_decay=0.1))
    before = optimizer.state_dict()
    with pytest.raises(gdm.CheckpointError, match=message):
        gdm.torch.load_state_dict(optimizer, state)
    assert_same_state(optimizer.state_dict(), before)


def test_what_torch_has_not_and_does_not_matter():
    """Decoupled decay of nothing, factors of 1: kept as they are."""
    optimizer = gdm.SGD(np.ones(2), momentum=0.5, decoupled_weight_decay=True, lr_scale=np.ones(2))
    optimizer.step(np.ones(2))
    state = gdm.torch.to_state_dict(optimizer)
    before = optimizer.state_dict()
    gdm.torch.load_state_dict(optimizer, state)
    assert_same_state(optimizer.state_dict(), before)


def test_the_way_around_the_classic_form():
    """The one that the message points to."""
    theta, start = np.ones(3), np.ones(3)
    classic = gdm.SGD(theta, lr=0.1, momentum=0.5, form="classic")
    classic.step(2 * theta)
    between = gdm.SGD(theta, form="torch")
    between.load_state_dict(gdm.SGD.to_form(classic.state_dict(), "torch"))
    tensors = tensors_of([theta])
    theirs = torch.optim.SGD(tensors, lr=0.1)
    theirs.load_state_dict(gdm.torch.to_state_dict(between))
    for _ in range(5):
        classic.step(2 * theta)
        tensors[0].grad = 2 * tensors[0]
        theirs.step()
    assert_close([theta], tensors)
    assert np.all(theta != start)


def test_an_adamw_that_is_not_decoupled_is_refused():
    optimizer = gdm.AdamW(np.ones(2))
    optimizer.decoupled_weight_decay = False
    with pytest.raises(ValueError, match=r"torch\.optim\.AdamW does not have; expected decoupled_weight_decay=True"):
        gdm.torch.to_state_dict(optimizer)


def test_a_class_that_is_not_in_both_libraries_is_refused():
    for call in (gdm.torch.to_state_dict, lambda x: gdm.torch.load_state_dict(x, {})):
        for name in ("Lion", "Signum", "AdEMAMix", "LARS", "LAMB", "ScheduleFreeSGD", "ScheduleFreeAdamW"):
            with pytest.raises(
                TypeError, match=rf"torch\.optim has no {name}; expected one of gdm\.SGD, gdm\.Adagrad, gdm\.RMSprop"
            ):
                call(getattr(gdm, name)(np.ones(2)))
        with pytest.raises(TypeError, match=r"optimizer is a torch\.optim\.adam\.Adam, which has load_state_dict"):
            call(torch.optim.Adam([torch.ones(2)]))
        with pytest.raises(TypeError, match=r"optimizer is a gdm\.torch\.AdamW, which has load_state_dict"):
            call(gdm.torch.AdamW([torch.ones(2)]))
        with pytest.raises(TypeError, match=r"optimizer must be one of gdm\.SGD, .*; not dict"):
            call({})


def test_without_torch_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for call in (gdm.torch.to_state_dict, lambda x: gdm.torch.load_state_dict(x, {})):
        with pytest.raises(ImportError, match=r"gdm\.torch needs PyTorch: pip install torch"):
            call(gdm.SGD(np.ones(2)))


def test_a_star_import_leaves_torch_alone():
    names: dict = {"torch": torch}
    exec("from gdm import *", names)
    assert names["torch"] is torch


def test_docstring_examples_of_torch_run():
    torch.set_default_dtype(torch.float32)
    runner = doctest.DocTestRunner()
    documented = (
        gdm.torch.to_state_dict,
        gdm.torch.load_state_dict,
        gdm.torch.functional,
        gdm.torch.SGD,
        gdm.torch.AdamW,
    )
    for x in documented:
        for test in doctest.DocTestFinder().find(x, x.__name__):
            runner.run(test)
    assert runner.summarize(verbose=False).attempted > 20
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("options", [{"state_dtype": "int8"}, {"state_dtype": "bfloat16"}, {"average": 0.9}])
def test_narrow_states_and_averages_are_not_converted(options):
    optimizer = gdm.AdamW([np.ones(4, np.float32)], **options)
    theirs = torch.optim.AdamW([torch.ones(4)])
    before = pickle.dumps(optimizer.state_dict())
    for convert in (
        lambda: gdm.torch.to_state_dict(optimizer),
        lambda: gdm.torch.load_state_dict(optimizer, theirs.state_dict()),
    ):
        with pytest.raises(ValueError, match="only the state of an optimizer of float32 and float64 parameters"):
            convert()
    assert pickle.dumps(optimizer.state_dict()) == before
