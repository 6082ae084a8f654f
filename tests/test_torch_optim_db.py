"""gdm.torch's classes on torch's own list of what an optimizer must do: its ``optim_db``, with schedules, and more."""

from __future__ import annotations

import copy
import re

import pytest

import gdm
from torch_cases import (
    DTYPES,
    FUSED,
    TORCHS,
    Twins,
    assert_close,
    assert_close_states,
    come_and_go,
    every_class_of_torchs,
    every_dtype,
    give_gradients,
    parameters,
    tensor,
    torch,
)

pytest.importorskip("expecttest", reason="NOT TESTED: torch's list of optimizers; its module needs expecttest")
from torch.testing._internal import common_optimizers

schedulers = torch.optim.lr_scheduler
STEPS = 12
INFOS = {info.optim_cls.__name__: info for info in common_optimizers.optim_db}


def inputs(name: str, dtype):
    return INFOS[name].optim_inputs_func(device="cpu", dtype=dtype)


def error_inputs(name: str, dtype):
    return INFOS[name].optim_error_inputs_func(device="cpu", dtype=dtype)


# Beside torch's own, whose rates hardly change in 12 steps.
SCHEDULES = {
    "none": [],
    "step": [lambda opt: schedulers.StepLR(opt, step_size=3, gamma=0.5)],
    "cosine": [lambda opt: schedulers.CosineAnnealingLR(opt, T_max=5)],
    "restarts": [lambda opt: schedulers.CosineAnnealingWarmRestarts(opt, T_0=4)],
    "lambda": [lambda opt: schedulers.LambdaLR(opt, lambda n: 1 / (1 + n))],
    "plateau": [lambda opt: schedulers.ReduceLROnPlateau(opt, patience=0, factor=0.5)],
    "two": [
        lambda opt: schedulers.LinearLR(opt, start_factor=0.3, total_iters=5),
        lambda opt: schedulers.ExponentialLR(opt, gamma=0.9),
    ],
    "zero at first": [lambda opt: schedulers.LambdaLR(opt, lambda n: float(n > 2))],
}
CONFIGURATIONS = [
    pytest.param(name, dtype, k, id=f"{name}-{key}-{k}-{re.sub('[^a-z_]+', '_', case.desc.lower())}")
    for name in TORCHS
    for key, dtype in DTYPES.items()
    for k, case in enumerate(inputs(name, dtype))
]
ERRORS = [
    pytest.param(name, dtype, k, id=f"{name}-{key}-{k}-{re.sub('[^a-z_0-9]+', '_', case.optimizer_error_input.desc)}")
    for name in TORCHS
    for key, dtype in DTYPES.items()
    for k, case in enumerate(error_inputs(name, dtype))
]


@pytest.fixture(autouse=True)
def _default_dtype(request):
    """Counts of steps and NAdam's product in float64, where that is what is compared."""
    arguments = getattr(request.node, "callspec", None)
    if arguments is not None and arguments.params.get("dtype") is torch.float64:
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def next_rates(made, step: int) -> None:
    for scheduler in made:
        if isinstance(scheduler, schedulers.ReduceLROnPlateau):
            scheduler.step([3.0, 2.0, 2.5][step % 3])
        else:
            scheduler.step()


def exchange(one, other) -> None:
    """Each goes on from the other's state."""
    a, b = copy.deepcopy(one.state_dict()), copy.deepcopy(other.state_dict())
    one.load_state_dict(b)
    other.load_state_dict(a)


def assert_same_rates(one, other) -> None:
    for mine, wanted in zip(one.param_groups, other.param_groups, strict=True):
        assert float(mine["lr"]) == float(wanted["lr"])


def walk(twins: Twins, constructors, *, absent=lambda step, i: False) -> None:
    """Steps side by side, compared after each; half-way each twin takes over the other's state."""
    made = [[constructor(opt) for constructor in constructors] for opt in (twins.ours, twins.theirs)]
    start = twins.params[0].detach().clone()
    for step in range(STEPS):
        twins.steps([step], absent=absent)
        for side in made:
            next_rates(side, step)
        assert_same_rates(twins.ours, twins.theirs)
        if step == STEPS // 2:
            exchange(twins.ours, twins.theirs)
            twins.assert_close("after the exchange")
    assert bool((twins.params[0] != start).any())


# ---- torch's configurations ----


@every_class_of_torchs
def test_torchs_list_has_the_class(name):
    """Without one of them the tests below would be of nothing."""
    assert INFOS[name].optim_cls is getattr(torch.optim, name)
    for dtype in DTYPES.values():
        assert len(inputs(name, dtype)) >= 5
        assert len(error_inputs(name, dtype)) >= 7
    assert sum(case.values[0] == name for case in CONFIGURATIONS) >= 10
    assert sum(case.values[0] == name for case in ERRORS) >= 14


@pytest.mark.parametrize(("name", "dtype", "k"), CONFIGURATIONS)
def test_a_configuration_gives_torchs_path_under_torchs_schedules(name, dtype, k):
    for constructors in INFOS[name].scheduler_inputs:
        twins = Twins(name, parameters(dtype), inputs(name, dtype)[k].kwargs)
        walk(twins, constructors, absent=come_and_go)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "dtype", "k"), CONFIGURATIONS)
def test_a_configuration_gives_torchs_path(name, dtype, k, schedule):
    twins = Twins(name, parameters(dtype), inputs(name, dtype)[k].kwargs)
    walk(twins, SCHEDULES[schedule], absent=come_and_go)


@pytest.mark.parametrize(("name", "dtype", "k"), CONFIGURATIONS)
def test_a_configuration_gives_torchs_path_in_groups(name, dtype, k):
    """Three groups, each with options of its own."""
    other = {"lr": 0.02, "weight_decay": 0.3, "maximize": True}

    def groups(params):
        return [{"params": params[:1]}, {"params": params[1:2], **other}, {"params": params[2:], "lr": 0.004}]

    twins = Twins(name, parameters(dtype), inputs(name, dtype)[k].kwargs, make=groups)
    walk(twins, SCHEDULES["step"], absent=come_and_go)


@pytest.mark.parametrize("into", ["gdm", "torch"])
@pytest.mark.parametrize(("name", "dtype", "k"), CONFIGURATIONS)
def test_a_new_optimizer_goes_on_from_the_others_state(name, dtype, k, into):
    """One that was made with the defaults: the options come with the state."""
    twins = Twins(name, parameters(dtype), inputs(name, dtype)[k].kwargs)
    twins.steps(range(5), absent=come_and_go)
    if into == "gdm":
        fresh = getattr(gdm.torch, name)(twins.params)
        fresh.load_state_dict(copy.deepcopy(twins.theirs.state_dict()))
        twins.ours = fresh
    else:
        fresh = getattr(torch.optim, name)(twins.other_params)
        fresh.load_state_dict(copy.deepcopy(twins.ours.state_dict()))
        twins.theirs = fresh
    twins.steps(range(5, STEPS), absent=come_and_go)


# ---- what torch has in other implementations than the for-loop ----


def tensor_options(name: str) -> dict:
    """Learning rate and betas as tensors."""
    betas = (torch.tensor(0.8), torch.tensor([0.95]))
    return {"lr": torch.tensor(0.01), **({"betas": betas} if name in ("Adam", "AdamW") else {})}


@every_dtype
@every_class_of_torchs
def test_options_may_be_tensors(name, dtype):
    twins = Twins(name, parameters(dtype), tensor_options(name))
    for step in range(STEPS):
        twins.steps([step], absent=come_and_go)
        for opt, _ in twins.both():
            opt.param_groups[0]["lr"].mul_(0.9)


@every_dtype
@every_class_of_torchs
def test_a_learning_rate_of_one_element_and_one_axis(name, dtype):
    Twins(name, parameters(dtype), {"lr": torch.tensor([0.01])}).steps(range(3))


@every_dtype
@pytest.mark.parametrize("flag", ["foreach", "fused"])
@every_class_of_torchs
def test_flags_of_the_implementation_are_taken_and_ignored(name, flag, dtype):
    if flag == "fused" and name not in FUSED:
        with pytest.raises(TypeError, match="fused"):
            getattr(gdm.torch, name)(parameters(dtype), fused=True)
        return
    for value in (True, False, None):
        flags = {"foreach": None, **({"fused": None} if name in FUSED else {}), flag: value}
        twins = Twins(name, parameters(dtype), ours=flags)
        walk(twins, [], absent=come_and_go)


def same_errors(make_ours, make_theirs, error=Exception):
    """Both raise the same."""
    with pytest.raises(error) as theirs:
        make_theirs()
    with pytest.raises(type(theirs.value)) as ours:
        make_ours()
    assert type(ours.value) is type(theirs.value)
    assert str(ours.value) == str(theirs.value)


FLAGS = [{"foreach": True, "fused": True}, {"fused": True, "differentiable": True}]


@pytest.mark.parametrize("flags", FLAGS, ids="-".join)
@pytest.mark.parametrize("name", FUSED)
def test_flags_that_contradict_each_other_are_refused_in_torchs_words(name, flags):
    make = [lambda lib=lib: getattr(lib, name)(parameters(), **flags) for lib in (gdm.torch, torch.optim)]
    same_errors(*make, RuntimeError)


@pytest.mark.parametrize("name", ["RMSprop", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta"])
def test_capturable_on_a_cpu_is_refused_in_torchs_words(name):
    def attempt(library):
        params = parameters()
        optimizer = getattr(library, name)(params, capturable=True)
        give_gradients(0, params)
        optimizer.step()

    same_errors(lambda: attempt(gdm.torch), lambda: attempt(torch.optim), AssertionError)


NOT_DIFFERENTIABLE = ["Adamax", "Rprop"]  # PyTorch changes in place what the derivative needs


@every_dtype
@every_class_of_torchs
def test_gradients_go_through_a_differentiable_step(name, dtype):
    """The derivative of the updated parameter with respect to the one before, and to the gradient, is torch's."""

    def derivative(library):
        start = tensor((6,), 3, dtype).requires_grad_()
        factor = tensor((6,), 4, dtype).requires_grad_()
        param = start.clone()
        optimizer = getattr(library, name)([param], lr=0.1, differentiable=True)
        for _ in range(2):
            param.grad = factor * start
            optimizer.step()
        param.square().sum().backward()
        return param, start.grad, factor.grad

    if name in NOT_DIFFERENTIABLE:
        same_errors(lambda: derivative(gdm.torch), lambda: derivative(torch.optim), RuntimeError)
        return
    for x, y in zip(derivative(gdm.torch), derivative(torch.optim), strict=True):
        assert y is not None
        assert bool(y.abs().max() > 0)
        assert_close(x, y)


@every_class_of_torchs
def test_differentiable_without_a_derivative_gives_torchs_path(name):
    """On leaves, torch's way fails, and gdm's in the same words."""

    def attempt(library):
        params = parameters()
        optimizer = getattr(library, name)(params, differentiable=True)
        give_gradients(0, params)
        optimizer.step()

    same_errors(lambda: attempt(gdm.torch), lambda: attempt(torch.optim), RuntimeError)


# ---- torch's errors ----


@pytest.mark.parametrize(("name", "dtype", "k"), ERRORS)
def test_an_error_is_torchs(name, dtype, k):
    case = error_inputs(name, dtype)[k]
    given = case.optimizer_error_input
    make = getattr(gdm.torch, name)
    check = pytest.warns if issubclass(case.error_type, Warning) else pytest.raises
    if case.error_on is common_optimizers.OptimizerErrorEnum.CONSTRUCTION_ERROR:
        with check(case.error_type, match=case.error_regex):
            make(given.params, **given.kwargs)
    else:
        optimizer = make(given.params, **given.kwargs)
        with check(case.error_type, match=case.error_regex):
            optimizer.step()


BAD_OPTIONS = [
    *((name, {"lr": -0.1}) for name in TORCHS),
    *((name, {"weight_decay": -0.1}) for name in TORCHS),
    *((name, {"eps": -1.0}) for name in TORCHS if name != "SGD"),
    ("SGD", {"nesterov": True}),
    ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
    ("Adagrad", {"initial_accumulator_value": -1.0}),
    ("RMSprop", {"alpha": -0.5}),
    ("Adam", {"betas": (0.9, 1.0)}),
    ("AdamW", {"betas": (-0.1, 0.9)}),
    ("NAdam", {"betas": (0.9, 1.5)}),
    ("NAdam", {"momentum_decay": -0.1}),
    ("RAdam", {"betas": (0.9, 1.5)}),
    ("Adamax", {"betas": (-0.1, 0.9)}),
    ("Adadelta", {"rho": 1.5}),
    *((name, {"rho": 0.9}) for name in TORCHS if name != "Adadelta"),
    ("SGD", {"amsgrad": True}),
]


@pytest.mark.parametrize(
    ("name", "options"), [pytest.param(n, o, id=f"{n}-{'-'.join(o)}-{k}") for k, (n, o) in enumerate(BAD_OPTIONS)]
)
def test_bad_options_are_refused_as_torch_refuses_them(name, options):
    with pytest.raises((ValueError, TypeError)) as theirs:
        getattr(torch.optim, name)(parameters(), **options)
    with pytest.raises(type(theirs.value)) as ours:
        getattr(gdm.torch, name)(parameters(), **options)
    if isinstance(theirs.value, ValueError):
        assert str(ours.value) == str(theirs.value)
    else:
        assert next(iter(options)) in str(ours.value)


@every_class_of_torchs
@pytest.mark.parametrize(
    "params",
    [
        pytest.param(lambda: [], id="empty"),
        pytest.param(lambda: torch.zeros(3), id="tensor"),
        pytest.param(lambda: [3.0], id="number"),
        pytest.param(lambda: [{"params": {torch.zeros(3)}}], id="set"),
        pytest.param(lambda: [torch.zeros(3, requires_grad=True) * 2], id="not a leaf"),
    ],
)
def test_bad_parameters_are_refused_as_torch_refuses_them(name, params):
    same_errors(lambda: getattr(gdm.torch, name)(params()), lambda: getattr(torch.optim, name)(params()))


# ---- paths outside of what gdm's kernels take ----

OUTSIDE = [
    ("SGD", {"momentum": 1.5}),
    ("SGD", {"momentum": 1.0, "dampening": 0.5}),
    ("SGD", {"momentum": 0.9, "dampening": 1.5}),
    ("SGD", {"momentum": 0.9, "dampening": -0.5}),
    ("RMSprop", {"alpha": 1.0}),
    ("RMSprop", {"alpha": 1.25}),
    ("RMSprop", {"momentum": 1.0}),
]


@every_dtype
@pytest.mark.parametrize(
    ("name", "options"), [pytest.param(n, o, id=f"{n}-{'-'.join(map(str, o.values()))}") for n, o in OUTSIDE]
)
def test_options_that_only_torch_allows_give_torchs_path(name, options, dtype):
    """gdm's own classes refuse them."""
    with pytest.raises(ValueError, match=r"must be"):
        getattr(gdm, name)([tensor((3,), 0).numpy()], **options)
    twins = Twins(name, parameters(dtype), {"lr": 0.003, **options})
    for step in range(4):
        give_gradients(step, twins.params, twins.other_params)
        twins.ours.step()
        twins.theirs.step()
        for p, q in zip(twins.params, twins.other_params, strict=True):
            assert_close(p.nan_to_num(), q.nan_to_num())
            assert bool((p.isnan() == q.isnan()).all())
    if not any(bool(p.isnan().any()) for p in twins.params):
        assert_close_states(twins.ours, twins.theirs)
