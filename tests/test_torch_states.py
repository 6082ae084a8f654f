"""States of gdm.torch's optimizers: torch's keys and tensors, saved, loaded, copied, and changed by the user."""

from __future__ import annotations

import copy
import io
import itertools
import multiprocessing
import pickle

import pytest

import gdm
from torch_cases import (
    COUNTS,
    FULL,
    OPTIONS,
    OWN,
    SCALARS,
    TORCHS,
    Twins,
    assert_close,
    assert_same_tensors,
    clones,
    come_and_go,
    every_case,
    every_case_of_torchs,
    every_class,
    every_class_of_torchs,
    every_dtype,
    flat_state,
    give_gradients,
    parameters,
    tensor,
    torch,
    torchs_class,
)

pytestmark = pytest.mark.usefixtures("float64_by_default")
STATES = {
    "SGD": ["momentum_buffer"],
    "Adagrad": ["step", "sum"],
    "RMSprop": ["grad_avg", "momentum_buffer", "square_avg", "step"],
    "Adam": ["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"],
    "AdamW": ["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"],
    "NAdam": ["exp_avg", "exp_avg_sq", "mu_product", "step"],
    "RAdam": ["exp_avg", "exp_avg_sq", "step"],
    "Adamax": ["exp_avg", "exp_inf", "step"],
    "Adadelta": ["acc_delta", "square_avg", "step"],
    "Lion": ["exp_avg"],
    "Signum": ["exp_avg"],
    "LARS": ["momentum_buffer"],
    "LAMB": ["exp_avg", "exp_avg_sq", "step"],
    "Rprop": ["prev", "step", "step_size"],
    "ASGD": ["ax", "eta", "mu", "step"],
    "AdEMAMix": ["exp_avg", "exp_avg_slow", "exp_avg_sq", "step"],
    "ScheduleFreeSGD": ["lr_max", "step", "weight_sum", "z"],
    "ScheduleFreeAdamW": ["exp_avg_sq", "lr_max", "step", "weight_sum", "z"],
}


def saved(state):
    """A state that went through a file, as torch.load reads it by default: tensors and plain values only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def structure(x):
    """What there is in a state, but for the numbers in large tensors."""
    if isinstance(x, dict):
        return {key: structure(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x), [structure(value) for value in x]
    if isinstance(x, torch.Tensor):
        return (
            type(x),
            x.dtype,
            tuple(x.shape),
            x.stride(),
            x.device,
            x.requires_grad,
            x.item() if x.dim() == 0 else None,
        )
    return type(x), x


def assert_same_structure(ours, theirs) -> None:
    ours, theirs = structure(ours), structure(theirs)
    for state in (*ours["state"].values(), *theirs["state"].values()):
        for key in SCALARS:
            state.pop(key, None)  # the last bit of a number
        for key in list(state):
            if isinstance(state[key], tuple) and key != "step":
                state[key] = state[key][:-1]
    assert ours == theirs


# ---- keys and tensors ----


@every_class
def test_state_keys(name):
    twins = Twins(name, options=FULL[name])
    twins.steps(range(2))
    for p in twins.params:
        assert sorted(twins.ours.state[p]) == STATES[name]


@every_dtype
@every_case_of_torchs
def test_a_state_dict_is_torchs_key_for_key(name, options, dtype):
    """The same keys, types, dtypes, shapes, strides, counts, options; before the first step too."""
    options = {"lr": 0.1, **options}
    twins = Twins(name, parameters(dtype), options)
    assert_same_structure(twins.ours.state_dict(), twins.theirs.state_dict())
    for step in range(5):
        twins.steps([step], absent=come_and_go)
        assert_same_structure(twins.ours.state_dict(), twins.theirs.state_dict())


@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", [name for name in COUNTS if name not in OWN])
def test_the_count_is_a_tensor_of_torchs_dtype(name, default):
    torch.set_default_dtype(default)
    for flags in ({}, *([{"fused": True}] if name in ("Adagrad", "Adam", "AdamW") else [])):
        counts = []
        for cls in (getattr(gdm.torch, name), torchs_class(name)):
            params = [torch.ones(3, dtype=torch.float32)]
            optimizer = cls(params, **flags)
            for step in range(3):
                give_gradients(step, params)
                optimizer.step()
            counts.append(optimizer.state[params[0]]["step"])
        assert (counts[0].item(), counts[0].dtype, counts[0].shape) == (3.0, counts[1].dtype, counts[1].shape)


def test_a_count_beyond_the_whole_numbers_of_float32():
    """Where adding 1 to the tensor changes nothing, and torch's count stands still. It no longer matters to a step."""
    twins = Twins("Adam", parameters(torch.float32))
    twins.steps([0])
    for opt, params in twins.both():
        for p in params:
            opt.state[p]["step"] = torch.tensor(2.0**24, dtype=torch.float32)
    for step in range(1, 4):
        give_gradients(step, twins.params, twins.other_params)
        twins.ours.step()
        twins.theirs.step()
        for p, q in zip(twins.params, twins.other_params, strict=True):
            assert_close(p, q)
            assert 2**24 <= twins.ours.state[p]["step"].item() <= 2**24 + 4


@every_class
def test_states_have_the_layout_of_their_parameters(name):
    params = [
        tensor((2, 3, 4, 5), 0).to(memory_format=torch.channels_last),
        tensor((4, 6), 1).t(),
        tensor((2, 3, 4), 2).permute(1, 0, 2),
        tensor((2, 2, 3, 4, 5), 3).to(memory_format=torch.channels_last_3d),
    ]
    twins = Twins(name, params, FULL[name])
    twins.steps(range(3))
    for p in params:
        for key, x in twins.ours.state[p].items():
            if x.dim():
                assert x.stride() == p.stride(), key


def test_states_are_not_larger_in_a_file_than_torchs():
    """Whatever memory they are part of."""
    sizes = []
    for library in (gdm.torch, torch.optim):
        params = parameters(shapes=[(100,)] * 30)
        optimizer = library.Adam(params, amsgrad=True)
        give_gradients(0, params)
        optimizer.step()
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        sizes.append(len(file.getvalue()))
    assert sizes[0] < 1.1 * sizes[1]


def test_states_do_not_share_memory():
    params = parameters()
    optimizer = gdm.torch.Adam(params, amsgrad=True)
    give_gradients(0, params)
    optimizer.step()
    spans = sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in [*params, *flat_state(optimizer)])
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end <= start


# ---- from one to the other ----


@pytest.mark.parametrize("through_a_file", [False, True], ids=["direct", "file"])
@every_dtype
@every_case
def test_states_go_both_ways(name, options, dtype, through_a_file):
    carry = saved if through_a_file else copy.deepcopy
    twins = Twins(name, parameters(dtype), options)
    twins.steps(range(5), absent=come_and_go)
    ours, theirs = carry(twins.ours.state_dict()), carry(twins.theirs.state_dict())
    twins.ours = getattr(gdm.torch, name)(twins.params, lr=0.5)
    twins.theirs = torchs_class(name)(twins.other_params, lr=0.5)
    flags = {key: False for key in ("foreach", "fused") if key in theirs["param_groups"][0]}
    ours["param_groups"][0].update(flags)
    if name in OWN:
        theirs["param_groups"][0] = ours["param_groups"][0]
    twins.ours.load_state_dict(theirs)
    twins.theirs.load_state_dict(ours)
    twins.assert_close("after loading")
    twins.steps(range(5, 12), absent=come_and_go)


@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=["f32 default", "f64 default"])
@every_case
def test_a_loaded_optimizer_goes_on_to_the_bit(name, options, default):
    """Whatever it had done before. PyTorch loads NAdam's product, ASGD's eta and mu in the parameters' dtype, and makes
    them in the default one: in float64 a product that has been rounded to float32 goes on in another way."""
    torch.set_default_dtype(default)
    params = parameters(default if name in ("NAdam", "ASGD") else torch.float64)
    first = getattr(gdm.torch, name)(params, lr=0.01, **options)
    for step in range(4):
        give_gradients(step, params, absent=come_and_go)
        first.step()
    others = clones(params)
    second = getattr(gdm.torch, name)(others, lr=0.3)
    give_gradients(9, others)
    second.step()
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    second.load_state_dict(saved(first.state_dict()))
    for step in range(4, 9):
        give_gradients(step, params, others, absent=come_and_go)
        first.step()
        second.step()
    assert_same_tensors(params, others)
    assert_same_tensors(flat_state(first), flat_state(second))


@every_class
def test_loading_before_the_first_step(name):
    twins = Twins(name, options=FULL[name])
    twins.ours.load_state_dict(copy.deepcopy(twins.ours.state_dict()))
    twins.steps(range(4))


@pytest.mark.parametrize("to", [torch.float32, torch.float64], ids=["to f32", "to f64"])
@every_class
def test_a_loaded_state_gets_the_dtype_of_the_parameters(name, to):
    """But for the counts, and sums of many steps."""
    start = torch.float64 if to is torch.float32 else torch.float32
    twins = Twins(name, parameters(start), FULL[name])
    twins.steps(range(3))
    states = [copy.deepcopy(opt.state_dict()) for opt, _ in twins.both()]
    converted = Twins(name, parameters(to), FULL[name])
    converted.ours.load_state_dict(states[0])
    converted.theirs.load_state_dict(states[1])
    for state in converted.ours.state.values():
        assert {x.dtype for key, x in state.items() if key not in ("step", "weight_sum", "lr_max")} == {to}
        assert {state[key].dtype for key in ("weight_sum", "lr_max") if key in state} <= {torch.float64}
    converted.assert_close("after loading", tolerance=1e-4)
    for opt, _ in converted.both():
        opt.load_state_dict(copy.deepcopy(converted.theirs.state_dict()))
    converted.steps(range(3, 6))


def test_states_of_adam_and_adamw_are_alike():
    for one, other in (("Adam", "AdamW"), ("AdamW", "Adam")):
        twins = Twins(one, options={"weight_decay": 0.1})
        twins.steps(range(3))
        states = [copy.deepcopy(opt.state_dict()) for opt in (twins.theirs, twins.ours)]
        twins.ours = getattr(gdm.torch, other)(twins.params)
        twins.theirs = getattr(torch.optim, other)(twins.other_params)
        twins.ours.load_state_dict(states[0])
        twins.theirs.load_state_dict(states[1])
        twins.steps(range(3, 6))


@pytest.mark.parametrize("name", [name for name in COUNTS if name not in OWN])
def test_states_of_older_versions_count_in_plain_numbers(name):
    twins = Twins(name, options=FULL[name])
    twins.steps(range(3))
    for opt, _ in twins.both():
        state = copy.deepcopy(opt.state_dict())
        for x in state["state"].values():
            x["step"] = int(x["step"])
            x |= {key: float(x[key]) for key in SCALARS if key in x}
        del state["param_groups"][0]["maximize"]
        opt.load_state_dict(state)
    for state in twins.ours.state.values():
        assert isinstance(state["step"], torch.Tensor)
    twins.steps(range(3, 6))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s["param_groups"].append(s["param_groups"][0]), "different number of parameter groups"),
        (lambda s: s["param_groups"][0]["params"].pop(), "parameter group that doesn't match the size"),
    ],
)
@every_class
def test_a_state_that_does_not_fit_is_refused_in_torchs_words(name, damage, message):
    twins = Twins(name, options=FULL[name])
    twins.steps(range(2))
    state = copy.deepcopy(twins.ours.state_dict())
    damage(state)
    with pytest.raises(ValueError, match=message):
        twins.ours.load_state_dict(state)
    twins.steps(range(2, 4))


@every_class
def test_loading_does_not_change_what_was_loaded_when_it_steps_on(name):
    """States of the parameter's dtype are taken over, in torch as here; what was deep-copied is left alone."""
    twins = Twins(name, options=FULL[name])
    twins.steps(range(2))
    state = copy.deepcopy(twins.theirs.state_dict())
    before = copy.deepcopy(state)
    twins.ours.load_state_dict(copy.deepcopy(state))
    twins.steps(range(2, 4))
    for i, x in before["state"].items():
        assert_same_tensors(x.values(), state["state"][i].values())


# ---- hooks ----


def test_hooks_of_state_dict_and_load_state_dict():
    def run(library):
        params = parameters()
        optimizer = library.AdamW(params)
        give_gradients(0, params)
        optimizer.step()
        seen = []

        def after_saving(opt, state):
            seen.append("saved")
            return {**state, "extra": 3}

        def before_loading(opt, state):
            seen.append(("load", state["extra"]))
            state = {**state, "param_groups": [{**g, "lr": 0.25} for g in state["param_groups"]]}
            del state["extra"]
            return state

        optimizer.register_state_dict_pre_hook(lambda opt: seen.append("save"))
        optimizer.register_state_dict_post_hook(after_saving)
        optimizer.register_load_state_dict_pre_hook(before_loading)
        optimizer.register_load_state_dict_post_hook(lambda opt: seen.append("loaded"))
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.param_groups[0]["lr"] == 0.25
        give_gradients(1, params)
        optimizer.step()
        return seen, params

    (ours, xs), (theirs, ys) = run(gdm.torch), run(torch.optim)
    assert ours == theirs == ["save", "saved", ("load", 3), "loaded"]
    for x, y in zip(xs, ys, strict=True):
        assert_close(x, y)


# ---- copies ----

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda opt: pickle.loads(pickle.dumps(opt))}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
@every_class
def test_a_copy_goes_its_own_way(name, how, begun):
    """It has parameters, groups and states of its own."""
    params = parameters()
    optimizer = getattr(gdm.torch, name)(params, lr=0.01, threads=2, **FULL[name])
    if begun:
        give_gradients(0, params)
        optimizer.step()
    twin = COPIES[how](optimizer)
    assert type(twin) is type(optimizer)
    assert twin.threads == 2
    others = twin.param_groups[0]["params"]
    assert_same_tensors(others, params)
    assert_same_tensors(flat_state(twin), flat_state(optimizer))
    before = [p.detach().clone() for p in params]
    give_gradients(1, others)
    twin.step()
    assert_same_tensors(params, before)
    give_gradients(1, params)
    optimizer.step()
    assert_same_tensors(others, params)
    assert_same_tensors(flat_state(twin), flat_state(optimizer))


def test_a_model_and_its_optimizer_are_copied_together():
    net = torch.nn.Linear(3, 2)
    optimizer = gdm.torch.Adam(net.parameters(), lr=0.1)
    net(tensor((4, 3), 0)).sum().backward()
    optimizer.step()
    for twin_net, twin in (copy.deepcopy((net, optimizer)), pickle.loads(pickle.dumps((net, optimizer)))):
        assert twin.param_groups[0]["params"][0] is twin_net.weight
        before = twin_net.weight.detach().clone()
        give_gradients(1, list(twin_net.parameters()))
        twin.step()
        assert not torch.equal(twin_net.weight, before)


def test_a_whole_optimizer_in_a_file():
    params = parameters()
    optimizer = gdm.torch.NAdam(params)
    give_gradients(0, params)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    others = twin.param_groups[0]["params"]
    for opt, ps in ((twin, others), (optimizer, params)):
        give_gradients(1, ps)
        opt.step()
    assert_same_tensors(others, params)


# ---- what users do with states ----


def user_changes():
    """Changes of the states of one parameter, by a function of state and key."""

    def replace(state, key):
        state[key] = state[key] * 0.5

    def in_place(state, key):
        state[key].mul_(0.5)

    def move(state, key):
        state[key].data = state[key].detach().clone()

    def transposed(state, key):
        x = state[key]
        state[key] = x.t().contiguous().t() if x.dim() == 2 else x.clone()

    def to_part_of_another(state, key):
        x = state[key]
        memory = torch.zeros(x.numel() + 10, dtype=x.dtype)
        state[key] = memory[3 : 3 + x.numel()].view(x.shape).copy_(x)

    def strided(state, key):
        x = state[key]
        memory = torch.zeros(2 * x.numel() + 10, dtype=x.dtype)
        state[key] = memory[: 2 * x.numel() : 2].view(x.shape).copy_(x)

    def as_parameter(state, key):
        state[key] = torch.nn.Parameter(state[key], requires_grad=False)

    return [replace, in_place, move, transposed, to_part_of_another, strided, as_parameter]


@pytest.mark.parametrize("change", user_changes(), ids=lambda f: f.__name__)
@every_class
def test_states_are_changed_between_steps(name, change):
    twins = Twins(name, options=FULL[name])
    twins.steps(range(3))
    for opt, params in twins.both():
        for p in params:
            for key in STATES[name]:
                if key not in ("step", *SCALARS):
                    change(opt.state[p], key)
    twins.steps(range(3, 6))


@every_class
def test_all_states_are_removed(name):
    """The parameter then begins anew, as in torch."""
    twins = Twins(name, options=FULL[name])
    twins.steps(range(3))
    for opt, params in twins.both():
        opt.state[params[1]].clear()
        if name == "Adagrad":  # torch's needs them
            opt.state[params[1]].update(step=torch.tensor(0.0), sum=torch.zeros_like(params[1]))
        del opt.state[params[3]]
        if name == "Adagrad":
            opt.state[params[3]] = {"step": torch.tensor(0.0), "sum": torch.zeros_like(params[3])}
    twins.steps(range(3, 6))
    for opt, _ in twins.both():
        opt.state.clear()
    if name != "Adagrad":
        twins.steps(range(6, 9))


@every_class
def test_the_whole_state_is_replaced(name):
    twins = Twins(name, options=FULL[name])
    twins.steps(range(3))
    for opt, _ in twins.both():
        opt.state = type(opt.state)(dict, {p: {k: x.clone() for k, x in s.items()} for p, s in opt.state.items()})
    twins.steps(range(3, 6))


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_set_by_the_user(name):
    twins = Twins(name, options=FULL[name])
    twins.steps(range(3))
    for opt, params in twins.both():
        opt.state[params[0]]["step"].fill_(40)
        opt.state[params[1]]["step"] = torch.tensor(7.0)
        opt.state[params[2]]["step"] += 5
        opt.state[params[3]]["step"].fill_(1.0 if name == "Rprop" else 0.0)  # gdm's first step is the one after 0
    twins.steps(range(3, 6))
    last = 4 if name == "Rprop" else 3
    assert [int(twins.ours.state[p]["step"]) for p in twins.params] == [43, 10, 11, last]


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_may_be_a_float32_or_have_an_axis(name):
    twins = Twins(name, options=FULL[name])
    twins.steps(range(2))
    for opt, params in twins.both():
        opt.state[params[0]]["step"] = torch.tensor(2.0, dtype=torch.float32)
        opt.state[params[3]]["step"] = torch.tensor([2.0])
    twins.steps(range(2, 5))


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_that_is_no_whole_number_goes_on(name):
    """As in torch."""
    twins = Twins(name, options=FULL[name])
    twins.steps(range(2))
    for opt, params in twins.both():
        opt.state[params[1]]["step"].fill_(2.5)
    twins.steps(range(2, 4))
    assert twins.ours.state[twins.params[1]]["step"].item() == 4.5


def test_nadams_product_is_set_by_the_user():
    twins = Twins("NAdam")
    twins.steps(range(3))
    for opt, params in twins.both():
        opt.state[params[0]]["mu_product"].fill_(0.25)
        opt.state[params[1]]["mu_product"] = torch.tensor(0.5)
    twins.steps(range(3, 6))


@pytest.mark.parametrize(("name", "option", "value"), [("SGD", "momentum", 0.9)])
def test_an_option_that_needs_a_state_is_switched_on(name, option, value):
    twins = Twins(name)
    twins.steps(range(3))
    for opt, _ in twins.both():
        opt.param_groups[0][option] = value
    twins.steps(range(3, 6))


@pytest.mark.parametrize(
    ("name", "option"), [("SGD", "momentum"), ("Adam", "amsgrad"), ("RMSprop", "centered"), ("RMSprop", "momentum")]
)
def test_an_option_is_switched_off_and_on_again(name, option):
    """The state waits."""
    twins = Twins(name, options=FULL[name])
    twins.steps(range(3))
    for value in (0, FULL[name][option]):
        for opt, _ in twins.both():
            opt.param_groups[0][option] = type(FULL[name][option])(value)
        twins.steps(range(3, 6))


@every_class
def test_additional_states_of_the_user_are_kept(name):
    twins = Twins(name, options=FULL[name])
    twins.steps(range(2))
    mine = torch.ones(3)
    twins.ours.state[twins.params[0]]["mine"] = mine
    twins.ours.state["everywhere"] = {"number": 3}
    give_gradients(2, twins.params, twins.other_params)
    twins.ours.step()
    twins.theirs.step()
    assert twins.ours.state[twins.params[0]].pop("mine") is mine
    assert twins.ours.state.pop("everywhere") == {"number": 3}
    twins.assert_close()
    twins.steps(range(3, 5))


@every_class
def test_states_go_to_shared_memory(name):
    """share_memory_() moves them, for training in several processes."""
    twins = Twins(name, options=FULL[name])
    twins.steps(range(2))
    for state in twins.ours.state.values():
        for x in state.values():
            x.share_memory_()
            assert x.is_shared()
    for p in twins.params:
        p.share_memory_()
    twins.steps(range(2, 5))
    for state in twins.ours.state.values():
        assert all(x.is_shared() for x in state.values())


def test_share_memory_of_adagrad():
    twins = Twins("Adagrad")
    twins.ours.share_memory()
    assert all(state["sum"].is_shared() for state in twins.ours.state.values())
    twins.steps(range(3))
    assert all(state["sum"].is_shared() for state in twins.ours.state.values())


def step_in_a_child(optimizer, params) -> None:
    torch.set_num_threads(1)
    for step in range(3):
        give_gradients(step, params)
        optimizer.step()


def test_a_child_process_steps_in_shared_memory():
    """As in Hogwild: the parent sees the result."""
    params, others = parameters(torch.float64), parameters(torch.float64)
    optimizer, alone = gdm.torch.Adam(params), gdm.torch.Adam(others)
    give_gradients(0, params, others)
    optimizer.step()
    alone.step()
    optimizer.zero_grad()
    for x in [*params, *flat_state(optimizer)]:
        x.share_memory_()
    child = multiprocessing.get_context("fork").Process(target=step_in_a_child, args=(optimizer, params))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    step_in_a_child(alone, others)
    assert_same_tensors(params, others)
    assert_same_tensors(flat_state(optimizer), flat_state(alone))


# ---- one list of states for all tests ----


@every_class_of_torchs
def test_the_options_that_tests_use_switch_every_state_on(name):
    params = parameters()
    optimizer = getattr(torch.optim, name)(params, **FULL[name])
    give_gradients(0, params)
    optimizer.step()
    assert sorted(optimizer.state[params[0]]) == STATES[name]
    assert OPTIONS.keys() == STATES.keys()
    assert set(TORCHS) < STATES.keys()
