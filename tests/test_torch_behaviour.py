"""gdm.torch's optimizers in use: groups, schedules, hooks, closures, gradient scalers, autograd, threads, failures."""

from __future__ import annotations

import copy
import inspect
import shutil
import threading
import warnings

import pytest

import gdm
from support import python
from torch_cases import (
    A_STATE,
    FULL,
    OPTIONS,
    OWN,
    TORCHS,
    Twins,
    assert_close,
    assert_same_tensors,
    clones,
    come_and_go,
    every_case,
    every_class,
    every_class_of_torchs,
    every_dtype,
    everything,
    give_gradients,
    parameters,
    tensor,
    torch,
    torchs_class,
)

from torch.optim.optimizer import (  # isort: skip
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

pytestmark = pytest.mark.usefixtures("float64_by_default")
schedulers = torch.optim.lr_scheduler


def model():
    """A small one, the same in every call."""
    torch.manual_seed(3)
    layers = torch.nn.Linear(4, 6, bias=False), torch.nn.BatchNorm1d(6), torch.nn.Tanh(), torch.nn.Linear(6, 2)
    return torch.nn.Sequential(*layers)


def batches(count: int = 6):
    return [(tensor((8, 4), 10 + k), tensor((8, 2), 50 + k)) for k in range(count)]


def loss_of(net, batch):
    x, y = batch
    return torch.nn.functional.mse_loss(net(x), y)


def make(library, name: str, params, **options):
    """gdm's optimizer, or torch's with its for-loop."""
    if library is gdm.torch:
        return getattr(gdm.torch, name)(params, **options)
    return torchs_class(name)(params, **options, **({} if name in OWN else {"foreach": False}))


def assert_alike(run, name: str, *, tolerance: float | None = None) -> None:
    """``run(library)`` gives tensors that are close for gdm.torch and torch.optim; and some of them are not 0."""
    ours, theirs = run(gdm.torch), run(torch.optim)
    assert any(bool(x.any()) for x in ours)
    for i, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(x, y, f"{name}: tensor {i}", tolerance=tolerance)


# ---- what they are ----


@every_class_of_torchs
def test_they_are_torchs_classes(name):
    params = parameters()
    optimizer = getattr(gdm.torch, name)(params)
    theirs = getattr(torch.optim, name)
    assert isinstance(optimizer, theirs)
    assert repr(optimizer) == repr(theirs(params))
    assert optimizer.defaults == theirs(params).defaults


@pytest.mark.parametrize("name", OWN)
def test_lion_and_signum_are_torch_optimizers(name):
    assert isinstance(getattr(gdm.torch, name)(parameters()), torch.optim.Optimizer)


@every_class_of_torchs
def test_arguments_are_torchs_in_torchs_order_and_some_more(name):
    ours = dict(inspect.signature(getattr(gdm.torch, name)).parameters)
    more = {"threads": None, "state_dtype": None, "rounding": "nearest", "seed": 0, "copies": None}
    assert list(ours)[-len(more) :] == list(more)
    for key, default in more.items():
        x = ours.pop(key)
        assert (x.kind, x.default) == (inspect.Parameter.KEYWORD_ONLY, default)
    wanted = inspect.signature(getattr(torch.optim, name)).parameters
    assert [(x.name, x.kind, x.default) for x in ours.values()] == [
        (x.name, x.kind, x.default) for x in wanted.values()
    ]


@every_class
def test_a_subclass_has_arguments_of_its_own(name):
    class Mine(getattr(gdm.torch, name)):
        def __init__(self, params, fast):
            super().__init__(params, lr=0.1 if fast else 0.01)

    class Same(getattr(gdm.torch, name)):
        pass

    assert list(inspect.signature(Mine).parameters) == ["params", "fast"]
    assert inspect.signature(Same) == inspect.signature(getattr(gdm.torch, name))
    assert Mine(parameters(), True).param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Lion", {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}),
        ("Signum", {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0}),
        (
            "LARS",
            {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.0, "trust_coefficient": 0.001, "adapt": True},
        ),
        ("LAMB", {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, "adapt": True}),
        (
            "AdEMAMix",
            {
                **{"lr": 1e-3, "betas": (0.9, 0.999, 0.9999), "alpha": 5.0, "t_alpha": 0.0, "t_beta3": 0.0},
                **{"eps": 1e-8, "weight_decay": 0.0},
            },
        ),
    ],
)
def test_arguments_of_lion_and_signum(name, expected):
    listed = list(inspect.signature(getattr(gdm.torch, name)).parameters.values())[1:]
    assert {x.name: x.default for x in listed if x.kind is x.POSITIONAL_OR_KEYWORD} == expected
    by_keyword = {x.name: x.default for x in listed if x.kind is x.KEYWORD_ONLY}
    assert {"maximize": False, "threads": None}.items() <= by_keyword.items()
    assert ("decoupled_weight_decay" in by_keyword) is (name == "Signum")
    optimizer = getattr(gdm.torch, name)(parameters(), *expected.values())
    assert expected.items() <= optimizer.param_groups[0].items()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Lion", {"lr": -1.0}, "lr|learning rate"),
        ("Lion", {"betas": (1.0, 0.9)}, "beta"),
        ("Lion", {"betas": (0.9, -0.1)}, "beta"),
        ("Lion", {"weight_decay": -0.1}, "weight_decay"),
        ("Signum", {"lr": -1.0}, "lr|learning rate"),
        ("Signum", {"momentum": 1.0}, "momentum"),
        ("Signum", {"momentum": -0.5}, "momentum"),
        ("Signum", {"weight_decay": -0.1}, "weight_decay"),
        ("LARS", {"momentum": 1.0}, "momentum"),
        ("LARS", {"trust_coefficient": -1.0}, "trust_coefficient"),
        ("LAMB", {"betas": (0.9, 1.0)}, "beta"),
        ("LAMB", {"eps": -1.0}, "eps"),
        ("AdEMAMix", {"betas": (0.9, 0.99)}, "three"),
        ("AdEMAMix", {"betas": (0.9, 0.99, 1.0)}, "beta"),
        *(("AdEMAMix", {key: -0.1}, key) for key in ("alpha", "t_alpha", "t_beta3", "eps", "weight_decay")),
        *((name, {"threads": 0}, "threads must be") for name in TORCHS + OWN),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(gdm.torch, name)(parameters(), **options)


@every_class
def test_threads_are_an_attribute(name):
    optimizer = getattr(gdm.torch, name)(parameters(), threads=3)
    assert optimizer.threads == 3
    optimizer.threads = None
    assert optimizer.threads is None
    with pytest.raises(ValueError, match="threads must be"):
        optimizer.threads = 1000
    assert optimizer.threads is None
    assert "threads" not in optimizer.param_groups[0]


# ---- paths ----


@every_dtype
@every_case
def test_a_path_is_torchs(name, options, dtype):
    Twins(name, parameters(dtype), options).steps(range(30))


@every_dtype
@every_case
def test_a_path_is_torchs_where_gradients_come_and_go(name, options, dtype):
    """One parameter's first gradient arrives late."""
    Twins(name, parameters(dtype), options).steps(range(20), absent=come_and_go)


@every_class
def test_steps_without_any_gradient_change_nothing(name):
    twins = Twins(name, options=FULL[name])
    before = everything(twins.ours)
    twins.ours.step()
    assert_same_tensors(everything(twins.ours), before)
    assert twins.ours.state_dict()["state"].keys() == twins.theirs.state_dict()["state"].keys()
    twins.steps([0])
    twins.ours.zero_grad()
    before = everything(twins.ours)
    twins.ours.step()
    assert_same_tensors(everything(twins.ours), before)


@every_class
def test_a_parameter_without_a_gradient_has_no_state(name):
    """As in torch; but Adagrad makes all states at once there, too."""
    twins = Twins(name, options=FULL[name])
    twins.steps([0], absent=lambda step, i: i == 1)
    for opt, params in twins.both():
        assert bool(opt.state.get(params[1])) is (name == "Adagrad")


# ---- groups ----


@every_dtype
@every_class
def test_groups_have_options_of_their_own(name, dtype):
    def groups(params):
        return [
            {"params": params[0]},
            {"params": params[1:3], "lr": 0.002, "weight_decay": 0.3},
            {"params": params[3:]},
        ]

    twins = Twins(name, parameters(dtype), FULL[name], make=groups)
    twins.steps(range(6), absent=come_and_go)
    for opt, _ in twins.both():
        opt.param_groups[2]["lr"] = 0.05
        opt.param_groups[0]["maximize"] = True
        opt.param_groups[1]["weight_decay"] = 0.0
    twins.steps(range(6, 12), absent=come_and_go)


@every_class
def test_a_group_is_added_between_steps(name):
    twins = Twins(name, parameters(), FULL[name], make=lambda params: params[:2])
    twins.steps(range(3))
    for opt, params in twins.both():
        opt.add_param_group({"params": params[2:], "lr": 0.003, "weight_decay": 0.2})
    twins.steps(range(3, 8), absent=come_and_go)


def replace_list(opt, params) -> None:
    opt.param_groups[0]["params"] = [params[2], params[0]]


def append(opt, params) -> None:
    opt.param_groups[0]["params"].append(params[3])


def remove(opt, params) -> None:
    del opt.param_groups[0]["params"][1]


def swap_in_place(opt, params) -> None:
    ps = opt.param_groups[0]["params"]
    ps[0], ps[1] = ps[1], ps[0]


def replace_one(opt, params) -> None:
    opt.param_groups[0]["params"][1] = params[3]


def make_it_a_tuple(opt, params) -> None:
    opt.param_groups[0]["params"] = (params[0], params[2])


def replace_groups(opt, params) -> None:
    group = {key: x for key, x in opt.param_groups[0].items() if key != "params"}
    opt.param_groups = [{**group, "params": [params[1]], "lr": 0.02}, {**group, "params": [params[0], params[3]]}]


def remove_group(opt, params) -> None:
    opt.add_param_group({"params": [params[3]]})
    opt.param_groups.pop(0)


def replace_group(opt, params) -> None:
    opt.param_groups[0] = {**opt.param_groups[0], "lr": 0.03}


class Groups(list):
    pass


class Group(dict):
    pass


def make_them_subclasses(opt, params) -> None:
    """Of list and dict, as libraries do that watch their groups."""
    opt.param_groups = Groups(Group({**group, "params": Groups(group["params"])}) for group in opt.param_groups)
    opt.param_groups[0]["lr"] = 0.03


def no_group(opt, params) -> None:
    opt.param_groups.clear()


CHANGES = [
    replace_list,
    append,
    remove,
    swap_in_place,
    replace_one,
    make_it_a_tuple,
    replace_groups,
    remove_group,
    replace_group,
    make_them_subclasses,
    no_group,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@every_class
def test_groups_are_changed_between_steps(name, change):
    twins = Twins(name, parameters(), FULL[name], make=lambda params: params[:3])
    twins.steps(range(3))
    for opt, params in twins.both():
        change(opt, params)
    twins.steps(range(3, 7))


@every_class
def test_options_are_changed_between_steps(name):
    twins = Twins(name, options=FULL[name])
    for step in range(10):
        twins.steps([step])
        for opt, _ in twins.both():
            group = opt.param_groups[0]
            group["lr"] *= 0.8
            group["maximize"] = not group["maximize"]
            group["weight_decay"] = 0.1 * (step % 2)
            if "betas" in group:
                group["betas"] = (0.5 + 0.04 * step, 0.9, *([0.95] if name == "AdEMAMix" else []))
            if "momentum" in group and name != "RMSprop":
                group["momentum"] = 0.1 * (step % 3) + (0.5 if name == "ScheduleFreeSGD" else 0)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "Lion"])
def test_options_in_a_list_are_changed_in_place(name):
    twins = Twins(name)
    for opt, _ in twins.both():
        opt.param_groups[0]["betas"] = [0.9, 0.99]
    for step in range(6):
        twins.steps([step])
        for opt, _ in twins.both():
            opt.param_groups[0]["betas"][step % 2] -= 0.1


def test_a_tensor_as_momentum_is_changed_in_place():
    """It is 0 at first, so that the rule is another one then."""
    twins = Twins("SGD")
    for opt, _ in twins.both():
        opt.param_groups[0]["momentum"] = torch.tensor(0.0)
    for step in range(6):
        twins.steps([step], lambda step, i: i == 1)
        for opt, _ in twins.both():
            opt.param_groups[0]["momentum"].fill_([0.0, 0.9, 0.5][step % 3])


def test_an_option_comes_into_gdms_range_in_place(monkeypatch):
    (param,) = parameters(shapes=[(3,)])
    optimizer = gdm.torch.SGD([param], lr=torch.tensor(1e300, dtype=torch.float64))
    optimizer.step()
    left = []
    monkeypatch.setattr(optimizer, "_step_by_torch", left.append)
    param.grad = torch.ones(3)
    optimizer.step()
    assert left == [[0]]
    optimizer.param_groups[0]["lr"].fill_(0.5)
    optimizer.step()
    assert left == [[0]]


# ---- schedules ----


@pytest.mark.parametrize(
    ("name", "options"),
    [("SGD", {"momentum": 0.9}), ("SGD", {"momentum": 0.9, "nesterov": True}), ("RMSprop", {"momentum": 0.9})]
    + [(name, {}) for name in ("Adam", "AdamW", "NAdam")]
    + [("Lion", {}), ("Signum", {})],
)
def test_onecyclelr_moves_the_momentum_too(name, options):
    twins = Twins(name, parameters(), options)
    made = [schedulers.OneCycleLR(opt, max_lr=0.05, total_steps=15) for opt, _ in twins.both()]
    seen = set()
    for step in range(14):
        twins.steps([step], absent=come_and_go)
        for scheduler in made:
            scheduler.step()
        group = twins.ours.param_groups[0]
        seen.add(group["betas"][0] if "betas" in group else group["momentum"])
    assert len(seen) > 10


def test_cycliclr_moves_the_momentum_too():
    twins = Twins("SGD", parameters(), {"momentum": 0.9})
    made = [schedulers.CyclicLR(opt, 0.001, 0.1, step_size_up=4) for opt, _ in twins.both()]
    for step in range(14):
        twins.steps([step])
        for scheduler in made:
            scheduler.step()


@every_class
def test_schedules_in_a_row(name):
    twins = Twins(name, parameters(), FULL[name])
    made = []
    for opt, _ in twins.both():
        parts = [schedulers.LinearLR(opt, 0.1, total_iters=4), schedulers.CosineAnnealingLR(opt, T_max=6)]
        made.append(schedulers.SequentialLR(opt, parts, milestones=[4]))
    for step in range(10):
        twins.steps([step])
        for scheduler in made:
            scheduler.step()


def test_a_scheduler_notices_whether_a_step_was_made():
    """It replaces the method, and warns where it is called first."""
    optimizer = gdm.torch.SGD(parameters(), lr=0.1)
    scheduler = schedulers.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match=r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        scheduler.step()
    optimizer = gdm.torch.SGD(parameters(), lr=0.1)
    scheduler = schedulers.StepLR(optimizer, 1)
    optimizer.step()
    scheduler.step()


# ---- models ----


@every_class
def test_a_model_learns_the_same(name):
    def run(library):
        net = model()
        optimizer = make(library, name, net.parameters(), lr=0.01)
        losses = []
        for _ in range(5):
            for batch in batches():
                optimizer.zero_grad()
                loss = loss_of(net, batch)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        assert losses[-1] < losses[0]
        return [*net.state_dict().values(), torch.stack(losses)]

    assert_alike(run, name, tolerance=1e-9)


@every_class
def test_swa_utils(name):
    """The averaged model, the schedule towards its learning rate, its batch norms."""
    swa = torch.optim.swa_utils

    def run(library):
        net = model()
        optimizer = make(library, name, net.parameters(), lr=0.01)
        averaged, scheduler = swa.AveragedModel(net), swa.SWALR(optimizer, swa_lr=0.002, anneal_epochs=3)
        for _ in range(5):
            for batch in batches():
                optimizer.zero_grad()
                loss_of(net, batch).backward()
                optimizer.step()
            averaged.update_parameters(net)
            scheduler.step()
        swa.update_bn([x for x, _ in batches()], averaged)
        return [x for x in averaged.state_dict().values() if x.is_floating_point()]

    assert_alike(run, name, tolerance=1e-9)


@every_class
def test_a_step_in_the_middle_of_backward(name):
    """An optimizer for each parameter, which steps when the gradient is there: the gradients need not be kept."""

    def run(library):
        net = model()
        for param in net.parameters():
            optimizer = make(library, name, [param], lr=0.01)

            def hook(param, optimizer=optimizer):
                optimizer.step()
                optimizer.zero_grad()

            param.register_post_accumulate_grad_hook(hook)
        for batch in batches():
            loss_of(net, batch).backward()
        assert all(param.grad is None for param in net.parameters())
        return list(net.state_dict().values())

    assert_alike(run, name, tolerance=1e-9)


@pytest.mark.parametrize("set_to_none", [True, False])
@every_class
def test_zero_grad(name, set_to_none):
    twins = Twins(name, options=FULL[name])
    twins.steps([0])
    for opt, _ in twins.both():
        opt.zero_grad(set_to_none=set_to_none)
    for p in twins.params:
        assert p.grad is None if set_to_none else not bool(p.grad.any())
    for opt, _ in twins.both():
        opt.step()
    twins.assert_close("after a step without gradients, or with zeros")
    twins.steps(range(1, 4))


def test_gradients_are_only_read():
    for name in TORCHS + OWN:
        twins = Twins(name, options=FULL[name])
        give_gradients(0, twins.params)
        before = [p.grad.clone() for p in twins.params]
        tensors = [p.grad for p in twins.params]
        twins.ours.step()
        assert all(p.grad is grad for p, grad in zip(twins.params, tensors, strict=True))
        assert_same_tensors(tensors, before)


def test_a_gradient_with_a_graph_is_left_alone():
    """``backward(create_graph=True)`` leaves gradients that require gradients."""

    def run(library):
        param = tensor((4,), 0).requires_grad_()
        optimizer = make(library, "Adam", [param], lr=0.1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Using backward\(\) with create_graph=True")
            (param**3).sum().backward(create_graph=True)
        assert param.grad.requires_grad
        optimizer.step()
        assert all(not x.requires_grad for x in optimizer.state[param].values())
        return [param]

    assert_alike(run, "Adam")


# ---- closures and hooks ----


@every_class
def test_a_closure_is_called_with_gradients_on(name):
    def run(library):
        params = parameters()
        optimizer = make(library, name, params, lr=0.01)

        def closure():
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = sum((p**2).sum() for p in params)
            loss.backward()
            return loss

        with torch.no_grad():
            losses = [optimizer.step(closure) for _ in range(4)]
            assert not torch.is_grad_enabled()
        losses += [optimizer.step(closure=closure)]
        assert optimizer.step() is None
        return [*params, *(loss.detach() for loss in losses)]

    assert_alike(run, name)


@every_class
def test_an_error_in_a_closure_changes_nothing(name):
    twins = Twins(name, options=FULL[name])
    twins.steps([0])
    before = everything(twins.ours)

    def closure():
        raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError, match="mine"):
        twins.ours.step(closure)
    assert_same_tensors(everything(twins.ours), before)
    twins.steps([1])


@pytest.mark.parametrize("everywhere", [False, True], ids=["instance", "global"])
@every_class
def test_hooks_are_called_before_and_after_each_step(name, everywhere):
    twins = Twins(name, options=FULL[name])
    seen = []

    def before(optimizer, args, kwargs):
        if optimizer is twins.ours:
            seen.append(("before", args, kwargs, twins.params[0].detach().clone()))

    def after(optimizer, args, kwargs):
        if optimizer is twins.ours:
            seen.append(("after", args, kwargs, twins.params[0].detach().clone()))

    if everywhere:
        handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    else:
        handles = [twins.ours.register_step_pre_hook(before), twins.ours.register_step_post_hook(after)]
    try:
        starts = twins.params[0].detach().clone()
        twins.steps(range(2))
        assert [x[0] for x in seen] == ["before", "after"] * 2
        assert torch.equal(seen[0][3], starts)
        assert not torch.equal(seen[1][3], starts)
        assert torch.equal(seen[3][3], twins.params[0])
        for _, args, kwargs, _ in seen:
            assert args[1:] in ((), (None,))
            assert kwargs in ({}, {"closure": None})
    finally:
        for handle in handles:
            handle.remove()
    twins.steps(range(2, 4))
    assert len(seen) == 4


def test_hooks_are_called_once_where_a_subclass_calls_the_step():
    """PyTorch wraps the step of the subclass."""

    class Own(gdm.torch.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    (param,) = parameters(shapes=[(3,)])
    optimizer, calls = Own([param], lr=0.5), []
    optimizer.register_step_pre_hook(lambda *args: calls.append("before"))
    optimizer.register_step_post_hook(lambda *args: calls.append("after"))
    param.grad = torch.ones(3)
    optimizer.step()
    assert calls == ["before", "after"]
    assert optimizer.state[param]["step"] == 1


def test_a_wrong_argument_of_a_step_is_named():
    with pytest.raises(TypeError, match=r"\.step\(\) got an unexpected keyword argument 'loss'"):
        gdm.torch.SGD(parameters()).step(loss=1)


def test_hooks_see_what_torchs_see():
    """The same optimizer, arguments and closures, in the same order."""

    def run(library, closure, how):
        seen = []
        optimizer = make(library, "SGD", parameters(), lr=0.1)

        def note(what):
            def hook(opt, args, kwargs):
                assert opt is optimizer
                assert args[0] is optimizer
                seen.append((what, args[1:], kwargs))

            return hook

        handles = [
            optimizer.register_step_pre_hook(note("own before")),
            optimizer.register_step_post_hook(note("own after")),
            register_optimizer_step_pre_hook(note("global before")),
            register_optimizer_step_post_hook(note("global after")),
        ]
        try:
            how(optimizer, closure)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def closure():
        return 3.0

    ways = [
        lambda opt, f: opt.step(),
        lambda opt, f: opt.step(f),
        lambda opt, f: opt.step(closure=f),
        lambda opt, f: opt.step(None),
    ]
    for how in ways:
        assert run(gdm.torch, closure, how) == run(torch.optim, closure, how)


@pytest.mark.parametrize("by", ["position", "keyword"])
def test_a_hook_may_give_a_closure(by):
    """It returns new arguments, made from those it was given."""

    def run(library):
        params = parameters()
        optimizer = make(library, "AdamW", params, lr=0.01)

        def closure():
            give_gradients(0, params)
            return torch.tensor(3.0)

        def hook(opt, args, kwargs):
            return ((*args, closure), kwargs) if by == "position" else (args, {**kwargs, "closure": closure})

        optimizer.register_step_pre_hook(hook)
        return [optimizer.step(), *params]

    assert_alike(run, "AdamW")


@every_class
def test_a_hook_may_change_the_arguments_gradients_and_options(name):
    def run(library):
        params = parameters()
        optimizer = make(library, name, params, lr=0.01)
        calls = []

        def closure():
            calls.append(1)
            give_gradients(len(calls), params)
            return torch.tensor(float(len(calls)))

        def before(opt, args, kwargs):
            opt.param_groups[0]["lr"] *= 0.5
            return (args[0], closure), {}

        def clip(opt, args, kwargs):
            for p in params:
                if p.grad is not None:
                    p.grad.mul_(0.5)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_pre_hook(clip)
        losses = [optimizer.step() for _ in range(3)]
        assert len(calls) == 3
        return [*params, *losses]

    assert_alike(run, name)


def test_an_error_in_a_hook_before_the_step_changes_nothing():
    twins = Twins("Adam")
    give_gradients(0, twins.params)
    before = everything(twins.ours)

    def hook(opt, args, kwargs):
        raise ArithmeticError("mine")

    twins.ours.register_step_pre_hook(hook)
    with pytest.raises(ArithmeticError, match="mine"):
        twins.ours.step()
    assert_same_tensors(everything(twins.ours), before)


def test_the_profiler_shows_the_step():
    twins = Twins("Adam")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        twins.steps([0])
    names = [event.key for event in profile.key_averages()]
    assert names.count("Optimizer.step#Adam.step") == 1
    twins.steps([1])


def test_a_subclass_may_wrap_the_step():
    class Mine(gdm.torch.AdamW):
        calls = 0

        def step(self, closure=None):
            self.calls += 1
            return super().step(closure)

    params, others = parameters(), parameters()
    mine, theirs = Mine(params, lr=0.1), torch.optim.AdamW(others, lr=0.1, foreach=False)
    hooked = []
    mine.register_step_post_hook(lambda opt, args, kwargs: hooked.append(opt))
    for step in range(3):
        give_gradients(step, params, others)
        mine.step()
        theirs.step()
    assert mine.calls == 3
    assert set(hooked) == {mine}
    for p, q in zip(params, others, strict=True):
        assert_close(p, q)


# ---- gradient scalers ----


@pytest.mark.parametrize("unscale", [False, True], ids=["not unscaled", "unscaled"])
@every_dtype
@every_class
def test_a_grad_scaler_gives_torchs_path(name, dtype, unscale):
    """With a gradient that is infinite in the third step, which is left out."""

    def run(library):
        params = parameters(dtype)
        optimizer = make(library, name, params, lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        kept = []
        for step in range(6):
            optimizer.zero_grad()
            targets = [tensor(p.shape, 40 + step, dtype) for p in params]
            loss = sum(((p - t) ** 2).sum() for p, t in zip(params, targets, strict=True))
            scaler.scale(loss).backward()
            if step == 2:
                params[1].grad[0, 0] = torch.inf
            if unscale:
                scaler.unscale_(optimizer)
                if step != 2:
                    torch.nn.utils.clip_grad_norm_(params, 1.0)
            before = everything(optimizer)[: len(params)]
            scaler.step(optimizer)
            same = all(torch.equal(x, y) for x, y in zip(params, before, strict=True))
            assert same is (step == 2)
            if step != 2:
                kept += [p.grad.clone() for p in params]
            scaler.update()
            kept.append(torch.tensor(scaler.get_scale()))
        return [*params, *kept]

    assert_alike(run, name)


def test_hooks_run_for_a_step_that_a_grad_scaler_skips():
    """As for PyTorch's fused optimizers."""
    counts = []
    for library in (torch.optim, gdm.torch):
        (param,) = parameters(torch.float32, shapes=[(3,)])
        optimizer, scaler, calls = library.AdamW([param], fused=True), torch.amp.GradScaler("cpu"), []
        optimizer.register_step_post_hook(lambda *args, calls=calls: calls.append(args))
        for value in (torch.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale((param * value).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        counts.append(len(calls))
    assert counts == [2, 2]


@every_class
def test_grad_scale_and_found_inf_set_by_hand(name):
    """As torch's fused optimizers take them: the gradient is divided by the one, the step left out by the other."""
    twins = Twins(name, options=FULL[name])
    for step in range(4):
        give_gradients(step, twins.params, twins.other_params)
        with torch.no_grad():
            for p in twins.params:
                p.grad.mul_(8.0)
        twins.ours.grad_scale, twins.ours.found_inf = torch.tensor(8.0), torch.tensor(float(step == 2))
        if step == 2:
            before = everything(twins.ours)
        twins.ours.step()
        if step == 2:
            assert_same_tensors(everything(twins.ours), before)
        else:
            twins.theirs.step()
        twins.assert_close(f"after step {step}")
    del twins.ours.grad_scale, twins.ours.found_inf
    twins.steps(range(4, 6))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
@pytest.mark.parametrize("attributes", [(8.0, 0.0), (8.0, None), (None, 1.0), (8.0, 1.0), (None, None)])
def test_grad_scale_and_found_inf_do_what_they_do_in_fused(name, attributes):
    def run(library):
        params = parameters(torch.float32)
        optimizer = getattr(library, name)(params, lr=0.01, fused=True)
        scale, found = (None if x is None else torch.tensor(x, dtype=torch.float32) for x in attributes)
        optimizer.grad_scale, optimizer.found_inf = scale, found
        for step in range(3):
            give_gradients(step, params)
            optimizer.step()
        return [*params, *(p.grad for p in params if attributes[1] != 1.0)]

    assert_alike(run, name)


# ---- named parameters ----


@every_class
def test_named_parameters(name):
    def named(params):
        return [(f"layer.{i}", p) for i, p in enumerate(params)]

    twins = Twins(name, options=FULL[name], make=named)
    twins.steps(range(4), absent=come_and_go)
    names = [f"layer.{i}" for i in range(len(twins.params))]
    assert twins.ours.param_groups[0]["param_names"] == names
    assert twins.ours.state_dict()["param_groups"][0]["param_names"] == names
    twins.ours.load_state_dict(copy.deepcopy(twins.theirs.state_dict()))
    twins.steps(range(4, 6))


def test_named_parameters_of_a_model_in_groups():
    def run(library):
        net = model()
        named = list(net.named_parameters())
        groups = [{"params": named[:2]}, {"params": named[2:], "lr": 0.002}]
        optimizer = make(library, "AdamW", groups, lr=0.01)
        for batch in batches():
            optimizer.zero_grad()
            loss_of(net, batch).backward()
            optimizer.step()
        assert [len(g["param_names"]) for g in optimizer.param_groups] == [2, len(named) - 2]
        return list(net.state_dict().values())

    assert_alike(run, "AdamW", tolerance=1e-9)


# ---- autograd ----


@every_class
def test_versions_rise_as_torchs_do(name):
    """Autograd sees from them that a tensor has changed."""
    twins = Twins(name, options=FULL[name])
    for step in range(6):
        before = [[p._version for p in params] for _, params in twins.both()]
        twins.steps([step], absent=come_and_go)
        rose = [
            [p._version > n for p, n in zip(params, versions, strict=True)]
            for (_, params), versions in zip(twins.both(), before, strict=True)
        ]
        assert rose[0] == rose[1]
        assert rose[0] == [not come_and_go(step, i) for i in range(len(twins.params))]


@pytest.mark.parametrize("backend", ["native", "reference"])
@every_class
def test_autograd_notices_that_a_step_changed_what_it_needs(name, backend):
    gdm.set_backend(backend)
    for view in (False, True):
        flat = tensor((10,), 0)
        param = torch.nn.Parameter(flat[2:8] if view else flat)
        optimizer = getattr(gdm.torch, name)([param], lr=0.1)
        for _ in range(2):
            loss = (param**2).sum()
            param.grad = torch.ones_like(param)
            optimizer.step()
            with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
                loss.backward()
            param.grad = None
            (param**2).sum().backward()


@every_class
def test_a_skipped_parameter_may_still_go_backward(name):
    first, second = parameters(shapes=[(3,), (4,)])
    optimizer = getattr(gdm.torch, name)([first, second], lr=0.1)
    loss = (first**2).sum()
    second.grad = torch.ones_like(second)
    optimizer.step()
    loss.backward()
    assert torch.equal(first.grad, 2 * first)


@every_class
def test_parameters_remain_leaves_that_require_gradients(name):
    twins = Twins(name, options=FULL[name])
    twins.steps(range(2))
    for p in twins.params:
        assert p.is_leaf
        assert p.requires_grad
        assert p.grad_fn is None
    for state in twins.ours.state.values():
        assert not any(x.requires_grad for x in state.values())


@every_class
def test_tensors_made_in_inference_mode(name):
    def run(library):
        with torch.inference_mode():
            params = [tensor((5,), 0), tensor((2, 3), 1)]
            optimizer = make(library, name, params, lr=0.01)
            for step in range(4):
                give_gradients(step, params)
                optimizer.step()
            return [x.clone() for x in params]

    assert_alike(run, name)


@every_class
def test_gradients_made_in_inference_mode(name):
    def run(library):
        params = parameters()
        optimizer = make(library, name, params, lr=0.01)
        for step in range(3):
            with torch.inference_mode():
                grads = [tensor(p.shape, 60 + step) for p in params]
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad
            optimizer.step()
        return params

    assert_alike(run, name)


# ---- compiled models ----

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="NOT TESTED: models compiled by torch.compile; there is no C++ compiler here",
)


@needs_compiler
@pytest.mark.filterwarnings("ignore")  # torch's compiler imports what is deprecated
def test_a_compiled_model_learns_the_same():
    def run(library, *, compiled=True):
        torch.compiler.reset()
        net = model()
        call = torch.compile(net) if compiled else net
        optimizer = make(library, "AdamW", net.parameters(), lr=0.01)
        for batch in batches(4):
            optimizer.zero_grad()
            loss_of(call, batch).backward()
            optimizer.step()
        return list(net.state_dict().values())

    for x, y in zip(run(gdm.torch), run(torch.optim, compiled=False), strict=True):
        assert_close(x, y, tolerance=1e-9)


@pytest.mark.filterwarnings("ignore")  # torch's compiler imports what is deprecated
@every_class
def test_a_step_within_a_compiled_function(name):
    """torch's compiler leaves the step out of what it compiles."""
    torch.compiler.reset()
    twins = Twins(name, options=FULL[name])

    @torch.compile(backend="eager")
    def step() -> None:
        twins.ours.step()

    for k in range(3):
        give_gradients(k, twins.params, twins.other_params)
        step()
        twins.theirs.step()
        twins.assert_close(f"after step {k}")
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")
def test_a_step_is_a_graph_break():
    """So a function that has one cannot be compiled as one graph. The message says why."""
    torch.compiler.reset()
    params = parameters()
    optimizer = gdm.torch.SGD(params)
    give_gradients(0, params)
    step = torch.compile(lambda: optimizer.step(), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="gdm"):
        step()
    torch.compiler.reset()


# ---- threads ----


def test_two_optimizers_step_in_two_threads():
    names = ["Adam", "SGD", "NAdam"]

    def path(name, seed):
        params = parameters(seed=seed)
        optimizer = getattr(gdm.torch, name)(params, lr=0.01, **FULL[name])
        for step in range(200):
            give_gradients(step, params, seed=seed)
            optimizer.step()
        return params

    alone = [path(name, k) for k, name in enumerate(names)]
    together, errors = [None] * len(names), []

    def work(k):
        try:
            together[k] = path(names[k], k)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for xs, ys in zip(together, alone, strict=True):
        assert_same_tensors(xs, ys)


def test_one_optimizer_steps_in_one_thread_at_a_time():
    """A step that begins in the middle of another is an error, and leaves everything to the other one."""
    param = torch.zeros(1 << 23, dtype=torch.float32)
    param.grad = torch.ones_like(param)
    optimizer = gdm.torch.SGD([param], lr=1.0, threads=1)
    optimizer.step()
    made, errors = [1], []

    def work():
        for _ in range(100):
            try:
                optimizer.step()
                made.append(1)
            except RuntimeError as error:
                errors.append(str(error))
                if len(errors) > 5:
                    return

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors
    assert all("in the middle of a step" in error for error in errors)
    assert bool((param == -len(made)).all())


def test_another_thread_may_read_while_a_step_runs():
    """It releases the GIL."""
    code = """
        import threading, time, torch, gdm
        torch.set_num_threads(1)
        params = [torch.zeros(1 << 24)]
        params[0].grad = torch.ones(1 << 24)
        optimizer = gdm.torch.Adam(params)
        optimizer.step()
        counts, done = [], threading.Event()
        def count():
            while not done.is_set():
                counts.append(time.perf_counter())
                time.sleep(0.0001)
        thread = threading.Thread(target=count)
        thread.start()
        time.sleep(0.05)
        start = time.perf_counter()
        for _ in range(10):
            optimizer.step()
        end = time.perf_counter()
        done.set()
        thread.join()
        gaps = [b - a for a, b in zip(counts, counts[1:]) if start <= a <= end]
        print(max(gaps) < (end - start) / 5)
    """
    assert python(code) == "True"


# ---- failures ----


def overlap(opt, params) -> type[Exception]:
    opt.param_groups[0]["params"].append(params[0][1:3].detach())
    opt.param_groups[0]["params"][-1].grad = torch.ones(2)
    return gdm.OverlapError


def sparse(opt, params) -> type[Exception]:
    opt.param_groups[0]["params"].append(torch.zeros(5, 2))
    indices = torch.tensor([[1, 3]])
    opt.param_groups[0]["params"][-1].grad = torch.sparse_coo_tensor(
        indices, torch.ones(2, 2), (5, 2), check_invariants=True
    )
    return RuntimeError


def option(opt, params) -> type[Exception]:
    del opt.param_groups[0]["etas" if isinstance(opt, torch.optim.Rprop) else "lr"]  # which Rprop reads in each step
    return KeyError


def second_group(opt, params) -> type[Exception]:
    """Torch's optimizer has updated the first group when it notices."""
    opt.add_param_group({"params": [torch.zeros(3, dtype=torch.bfloat16)]})
    last = opt.param_groups[1]["params"][0]
    last.grad = torch.ones(3, dtype=torch.bfloat16)
    key = A_STATE[type(opt).__name__]
    opt.state[last][key] = torch.zeros(2, dtype=torch.bfloat16)
    return Exception


FAILURES = [
    (name, failure)
    for failure in (overlap, sparse, option, second_group)
    for name in TORCHS + OWN
    if not (failure is sparse and name in ("SGD", "Adagrad"))
]


@pytest.mark.parametrize("begun", [False, True], ids=["first step", "later"])
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("name", "failure"), [pytest.param(n, f, id=f"{n}-{f.__name__}") for n, f in FAILURES])
def test_after_an_error_nothing_has_changed(name, failure, backend, begun):
    gdm.set_backend(backend)
    twins = Twins(name, options=FULL[name])
    if begun:
        twins.steps(range(2))
    error = failure(twins.ours, twins.params)
    give_gradients(2, twins.params)
    before, keys = everything(twins.ours), {p: list(state) for p, state in twins.ours.state.items()}
    counted = [p._version for p in twins.params]
    for _ in range(2):
        with pytest.raises(error):
            twins.ours.step()
        assert {p: list(state) for p, state in twins.ours.state.items()} == keys
        assert_same_tensors(everything(twins.ours), before)
        assert [p._version for p in twins.params] == counted


@pytest.mark.parametrize("failure", [overlap, sparse], ids=lambda f: f.__name__)
def test_steps_go_on_when_what_was_wrong_is_mended(failure):
    twins = Twins("Adam", options=FULL["Adam"])
    twins.steps(range(2))
    error = failure(twins.ours, twins.params)
    with pytest.raises(error):
        twins.ours.step()
    twins.ours.param_groups[0]["params"].pop()
    twins.steps(range(2, 5))


# ---- names that the module has ----


def test_the_module_lists_its_names():
    assert set(TORCHS + OWN) <= set(dir(gdm.torch))
    with pytest.raises(
        AttributeError, match=r"no attribute 'SparseAdam'; it has ASGD, .*, SGD, .*, functional, load_state_dict"
    ):
        gdm.torch.SparseAdam  # noqa: B018


def test_importing_gdm_does_not_import_torch():
    assert python("import sys, gdm, gdm.torch; print('torch' in sys.modules)") == "False"
    assert python("import sys, gdm; print(gdm.torch.AdamW.__name__, 'torch' in sys.modules)") == "AdamW True"


def test_every_class_of_this_list_has_options_to_try():
    assert set(OPTIONS) == set(FULL) == set(TORCHS + OWN)
    assert {x for x in gdm.torch.__all__ if x[0].isupper()} == {*TORCHS, *OWN, "Muon"}  # see test_torch_muon.py
    assert len(clones(parameters())) == len(parameters())
