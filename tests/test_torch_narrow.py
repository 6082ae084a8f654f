"""gdm.torch with bfloat16 and float16: parameters, gradients, states and copies, each stored in a dtype of its own."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import numpy as np
import pytest

import gdm
from gdm import _stages, reference
from gdm._checks import SCALARS
from gdm.optimizer.state import scalar_names, state_names
from torch_cases import (
    CLASSES,
    FULL,
    OWN,
    WITH_EPS,
    assert_same_tensors,
    clones,
    come_and_go,
    every_case,
    every_class,
    every_class_of_torchs,
    everything,
    flat_state,
    give_gradients,
    parameters,
    tensor,
    torch,
    torchs_class,
)

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
HALVES = pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
ROUNDINGS = pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
BACKENDS = pytest.mark.parametrize("backend_name", ["native", "reference"])
STORAGE = {BF16: "bfloat16", F16: "float16", F32: "float32", F64: "float64"}
RULES = {"SGD": "momentum", "AdamW": "adam"}
RULES |= {"ScheduleFreeSGD": "schedule_free_sgd", "ScheduleFreeAdamW": "schedule_free_adamw"}
FIXED = {"AdamW": {"decoupled_weight_decay": True}}
KEYS = {"velocity": "momentum_buffer", "state_sum": "sum"}  # states that torch calls otherwise
SHAPES = [(1100,), (3, 5), (), (129,)]


def bits(x):
    """The elements of a tensor, as gdm._stages has them."""
    x = x.detach().contiguous().view(-1)
    return (x.view(torch.uint16) if x.dtype is BF16 else x).numpy().copy()


def tensor_of(array, dtype, shape):
    x = torch.from_numpy(np.ascontiguousarray(array).copy())
    return (x.view(BF16) if dtype is BF16 else x).view(shape)


class Oracle:
    """One parameter, stepped by gdm.reference and gdm._stages as docs/pytorch.md says."""

    def __init__(self, name, param, options, *, state=None, copy=None, rounding="nearest", seed=0, index=0) -> None:
        rule = RULES.get(name, name.lower())
        if name == "SGD" and not options.get("momentum"):
            rule = "sgd"
        self.rule, self.rounding, self.seed, self.index = rule, rounding, seed, index
        accepted = reference.names(getattr(reference, rule).__wrapped__)[1]
        group = getattr(gdm.torch, name)([torch.ones(1)], **options).param_groups[0]
        given = {**group, "form": "torch", **FIXED.get(name, {})}
        self.options = {key: given[key] for key in accepted if key in given}
        if name == "SGD":
            self.options["decoupled_weight_decay"] = False
        self.dtypes = {"param": param.dtype}
        self.compute = np.float64 if param.dtype is F64 else np.float32
        self.stored = {"param": bits(param)}
        self.shape, n = param.shape, param.numel()
        for key in state_names(rule):
            if (
                key in ("grad_avg", "momentum_buffer", "max_exp_avg_sq")
                and not self.options[
                    {"grad_avg": "centered", "momentum_buffer": "momentum", "max_exp_avg_sq": "amsgrad"}[key]
                ]
            ):
                continue
            self.dtypes[key] = state or param.dtype
            start = options.get("initial_accumulator_value", 0.0) if key == "state_sum" else 0.0
            self.stored[key] = bits(torch.full((n,), start, dtype=self.dtypes[key]))
        self.copy_dtype, self.copied = copy, None
        # The tensors that keep these are float32, those of sums of many steps float64.
        self.steps, self.scalars = 0, {key: float(SCALARS[key].initial) for key in scalar_names(rule)}
        if "eta" in self.scalars:
            self.scalars["eta"] = float(np.float32(options["lr"]))

    def step(self, grad, update: int, scale: float = 1.0) -> None:
        if grad is None:
            return
        wide = {key: _stages.widen(x, STORAGE[self.dtypes[key]], self.compute) for key, x in self.stored.items()}
        g = _stages.widen(bits(grad), STORAGE[grad.dtype], self.compute)
        wide["grad"] = g if scale == 1.0 else _stages.scaled(g, scale)
        self.steps += 1
        scalars = {key: np.array(x) for key, x in self.scalars.items()}
        given = {**self.options, "step": self.steps, "lr_scale": None, **wide, **scalars}
        new = reference.formula.update(self.rule, given, first=self.steps == 1)
        dtypes = {key: np.float64 if key in ("weight_sum", "lr_max") else np.float32 for key in scalars}
        self.scalars = {key: float(dtype(float(new.pop(key)))) for key, dtype in dtypes.items()}
        order = ["param", None, None, *state_names(self.rule)]
        for key, x in new.items():
            draws = None
            if self.rounding == "stochastic" and self.dtypes[key] in (BF16, F16):
                draws = _stages.draws(self.seed, update, self.index, order.index(key), 0, x.size)
            self.stored[key] = _stages.narrow(x, STORAGE[self.dtypes[key]], draws)
        if self.copy_dtype is not None:
            self.copied = _stages.narrow(new["param"], STORAGE[self.copy_dtype])

    def assert_equals(self, optimizer, param, copied=None) -> None:
        for key, dtype in self.dtypes.items():
            x = param if key == "param" else optimizer.state[param].get(KEYS.get(key, key))
            if x is None:  # no gradient so far
                assert self.steps == 0, key
                continue
            assert_same_tensors([x], [tensor_of(self.stored[key], dtype, self.shape)], key)
        if copied is not None and self.copied is not None:
            assert_same_tensors([copied], [tensor_of(self.copied, self.copy_dtype, self.shape)], "copy")


def narrow_options(options):
    return {"lr": 0.013, **options}


def check(name, params, options, *, steps=4, absent=lambda step, i: False, grad_dtype=None, copies=None, **keywords):
    """Steps of gdm's class, which must give the oracle's bits."""
    options = narrow_options(options)
    oracles = [
        Oracle(
            name,
            p,
            options,
            state=keywords.get("state_dtype"),
            copy=None if copies is None or copies[i] is None else copies[i].dtype,
            rounding=keywords.get("rounding", "nearest"),
            seed=keywords.get("seed", 0),
            index=i,
        )
        for i, p in enumerate(params)
    ]
    optimizer = getattr(gdm.torch, name)(params, **options, copies=copies, **keywords)
    for p in params if grad_dtype else ():
        p.grad_dtype = None  # any
    for step in range(steps):
        give_gradients(step, params, absent=absent)
        for p in params if grad_dtype else ():
            p.grad = p.grad.to(grad_dtype)
        before = [None if p.grad is None else p.grad.clone() for p in params]
        optimizer.step()
        assert_same_tensors([p.grad for p in params], before, "gradient")
        for i, (p, oracle) in enumerate(zip(params, oracles, strict=True)):
            oracle.step(p.grad, step)
            oracle.assert_equals(optimizer, p, None if copies is None else copies[i])
    return optimizer


# ---- bits ----


@BACKENDS
@ROUNDINGS
@HALVES
@every_case
def test_narrow_parameters_have_the_bits_of_the_stages(name, options, dtype, rounding, backend_name):
    gdm.set_backend(backend_name)
    check(name, parameters(dtype, SHAPES), options, rounding=rounding, seed=11)


@BACKENDS
@ROUNDINGS
@HALVES
@every_class
def test_gradients_come_and_go(name, dtype, rounding, backend_name):
    """The random bits of a parameter do not depend on which others have a gradient."""
    gdm.set_backend(backend_name)
    check(name, parameters(dtype, SHAPES), FULL[name], steps=7, absent=come_and_go, rounding=rounding, seed=2**64 - 1)


@BACKENDS
@ROUNDINGS
@pytest.mark.parametrize("state", [F32, BF16, F16], ids=lambda x: STORAGE[x])
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=lambda x: STORAGE[x])
@every_class
def test_states_have_a_dtype_of_their_own(name, dtype, state, rounding, backend_name):
    gdm.set_backend(backend_name)
    optimizer = check(name, parameters(dtype, SHAPES), FULL[name], state_dtype=state, rounding=rounding)
    assert optimizer.state_dtype is state
    for s in optimizer.state.values():
        assert {x.dtype for key, x in s.items() if key not in ("step", *SCALARS)} == {state}


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="NOT TESTED: gradients of another dtype")
@BACKENDS
@pytest.mark.parametrize(
    ("dtype", "grad"), [(F32, BF16), (F32, F16), (F64, BF16), (F64, F32), (BF16, F32), (F16, BF16)]
)
@every_class
def test_gradients_have_a_dtype_of_their_own(name, dtype, grad, backend_name):
    gdm.set_backend(backend_name)
    check(name, parameters(dtype, SHAPES), FULL[name], grad_dtype=grad)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="NOT TESTED: gradients of another dtype")
def test_the_dtype_of_a_gradient_changes_between_steps():
    param = tensor((1500,), 0, F32)
    param.grad_dtype = None
    optimizer, oracle = gdm.torch.AdamW([param], lr=0.01), Oracle("AdamW", param, {"lr": 0.01})
    for step, dtype in enumerate([F32, BF16, BF16, F16, F32, None, BF16]):
        param.grad = None if dtype is None else tensor((1500,), step + 1, dtype)
        optimizer.step()
        oracle.step(param.grad, step)
        oracle.assert_equals(optimizer, param)


@BACKENDS
@ROUNDINGS
def test_all_dtypes_in_groups(rounding, backend_name):
    gdm.set_backend(backend_name)
    for name in ("SGD", "AdamW", "NAdam"):
        params = [p for k, d in enumerate((BF16, F32, F64, F16)) for p in parameters(d, [(700,), (3, 4)], seed=9 * k)]
        oracles = [
            Oracle(name, p, {"lr": 0.01 * (1 + i // 4), **FULL[name]}, rounding=rounding, seed=5, index=i)
            for i, p in enumerate(params)
        ]
        groups = [{"params": params[:4], "lr": 0.01}, {"params": params[4:], "lr": 0.02}]
        optimizer = getattr(gdm.torch, name)(groups, **FULL[name], rounding=rounding, seed=5)
        for step in range(4):
            give_gradients(step, params, absent=come_and_go)
            optimizer.step()
            for p, oracle in zip(params, oracles, strict=True):
                oracle.step(p.grad, step)
                oracle.assert_equals(optimizer, p)


@BACKENDS
def test_a_parameter_that_pytorch_updates_does_not_move_the_random_bits(backend_name):
    gdm.set_backend(backend_name)
    params = [torch.ones(3, dtype=torch.complex64), *parameters(BF16, [(500,)])]
    oracle = Oracle("AdamW", params[1], {"lr": 0.01}, rounding="stochastic", seed=1, index=1)
    optimizer = gdm.torch.AdamW(params, lr=0.01, rounding="stochastic", seed=1)
    for step in range(3):
        give_gradients(step, params)
        optimizer.step()
        oracle.step(params[1].grad, step)
        oracle.assert_equals(optimizer, params[1])


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "odd slice", "empty"])
@HALVES
@every_class
def test_every_layout(name, dtype, layout):
    make = {
        "transposed": lambda k: tensor((30, 40), k, dtype).t(),
        "channels_last": lambda k: tensor((2, 3, 4, 5), k, dtype).to(memory_format=torch.channels_last),
        "odd slice": lambda k: tensor((1401,), k, dtype)[1:],
        "empty": lambda k: torch.zeros((0, 3), dtype=dtype),
    }[layout]
    results = []
    for backend in ("native", "reference"):
        gdm.set_backend(backend)
        params = [make(0)]
        optimizer = getattr(gdm.torch, name)(params, lr=0.01, rounding="stochastic", state_dtype=F32, **FULL[name])
        for step in range(3):
            params[0].grad = make(step + 1) if step != 1 else make(step + 1).contiguous()
            optimizer.step()
        results.append([*params, *flat_state(optimizer)])
    assert_same_tensors(*results)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_the_number_of_threads_does_not_matter(threads):
    shapes = [(300_001,), (7,), (100, 1001), ()]
    results = []
    for n in (1, threads):
        params = parameters(BF16, shapes)
        copies = [torch.empty(s, dtype=F16) for s in shapes]
        optimizer = gdm.torch.AdamW(params, lr=0.01, rounding="stochastic", seed=3, threads=n, copies=copies)
        for step in range(3):
            give_gradients(step, params)
            optimizer.step()
        results.append([*params, *copies, *flat_state(optimizer)])
    assert_same_tensors(*results)


@every_class
def test_every_isa_gives_the_same_bits(isa, name):
    check(name, parameters(BF16, SHAPES), FULL[name], rounding="stochastic")


@HALVES
@every_class
def test_tensors_are_read_by_dlpack_too(name, dtype):
    from gdm.torch.tensors import connect

    connect(use_libtorch=False)
    try:
        check(name, parameters(dtype, SHAPES), FULL[name], absent=come_and_go, copies=[None] * len(SHAPES))
    finally:
        connect()


# ---- what it is good for ----


@HALVES
@every_class_of_torchs
def test_a_path_is_as_near_to_that_of_float64_as_torchs_or_nearer(name, dtype):
    """PyTorch's for-loop rounds after each operation, gdm once for each number that is stored."""
    options = {**FULL[name], **({"eps": 1e-3} if name in WITH_EPS else {})}
    ours, wide = parameters(dtype, [(2000,)]), [p.detach().double() for p in parameters(dtype, [(2000,)])]
    theirs = clones(ours)
    paths = [
        (getattr(gdm.torch, name)(ours, lr=0.01, **options), ours),
        (torchs_class(name)(theirs, lr=0.01, foreach=False, **options), theirs),
        (torchs_class(name)(wide, lr=0.01, foreach=False, **options), wide),
    ]
    for step in range(5):
        give_gradients(step, ours)
        for optimizer, params in paths:
            if params is not ours:
                params[0].grad = ours[0].grad.to(params[0].dtype)
            optimizer.step()
    errors = [(params[0].double() - wide[0]).abs().mean().item() for params in (ours, theirs)]
    # Rprop has hardly more than one operation for each number that is stored: there chance decides.
    assert errors[0] <= (1.1 if name == "Rprop" else 1.05) * errors[1]


def test_stochastic_rounding_keeps_small_changes():
    """1e-4 is less than half of the distance to the next bfloat16 below 1."""
    results = {}
    for rounding in ("nearest", "stochastic"):
        param = torch.ones(10_000, dtype=BF16)
        optimizer = gdm.torch.SGD([param], lr=1e-4, rounding=rounding)
        param.grad = torch.ones_like(param)
        for _ in range(100):
            optimizer.step()
        results[rounding] = param.double().mean().item()
    assert results["nearest"] == 1.0
    assert results["stochastic"] == pytest.approx(0.99, abs=5e-4)


@HALVES
@every_class
def test_states_are_torchs_key_for_key(name, dtype):
    params = parameters(dtype)
    others = clones(params)
    pairs = (
        (getattr(gdm.torch, name)(params, **FULL[name]), params),
        (torchs_class(name)(others, **FULL[name]), others),
    )
    found = []
    for optimizer, ps in pairs:
        give_gradients(0, ps)
        optimizer.step()
        found.append([{k: (x.dtype, x.shape, x.stride()) for k, x in optimizer.state[p].items()} for p in ps])
    assert found[0] == found[1]
    assert all(p._version == 1 for p in params)


# ---- seeds and counts ----


def stochastic_path(steps, *, seed=7, save_at=None, how=None, backends=("native",)):
    """Parameters and states; the optimizer is replaced by one that goes on from its state at the step ``save_at``."""
    params = parameters(BF16, SHAPES)
    optimizer = gdm.torch.AdamW(params, lr=0.01, rounding="stochastic", seed=seed)
    for step in range(steps):
        gdm.set_backend(backends[step % len(backends)])
        if step == save_at:
            optimizer = how(optimizer, params)
            params = optimizer.param_groups[0]["params"]
        give_gradients(step, params)
        optimizer.step()
    assert optimizer.updates == optimizer.param_groups[0]["rounding_updates"] == steps
    return [*params, *flat_state(optimizer)]


def through_a_file(optimizer, params):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    made = gdm.torch.AdamW(params, rounding="stochastic", seed=7)
    made.load_state_dict(torch.load(file, weights_only=True))
    return made


WAYS = {
    "file": through_a_file,
    "deepcopy": lambda optimizer, params: copy.deepcopy(optimizer),
    "pickle": lambda optimizer, params: pickle.loads(pickle.dumps(optimizer)),
}


@pytest.mark.parametrize("how", WAYS)
def test_a_saved_optimizer_goes_on_to_the_bit(how):
    assert_same_tensors(stochastic_path(6, save_at=3, how=WAYS[how]), stochastic_path(6))


def test_the_seed_and_nothing_else_decides():
    assert_same_tensors(stochastic_path(4), stochastic_path(4))
    assert_same_tensors(stochastic_path(5), stochastic_path(5, backends=("native", "reference")))
    assert not torch.equal(stochastic_path(4)[0], stochastic_path(4, seed=8)[0])


def test_a_group_that_is_added_goes_on_with_the_others():
    first, second = parameters(BF16, [(500,), (600,)])
    optimizer = gdm.torch.SGD([first], lr=0.01, rounding="stochastic")
    first.grad = tensor((500,), 0, BF16)
    optimizer.step()
    optimizer.add_param_group({"params": [second]})
    oracle = Oracle("SGD", second, {"lr": 0.01}, rounding="stochastic", index=1)
    second.grad = tensor((600,), 1, BF16)
    optimizer.step()
    oracle.step(second.grad, 1)
    oracle.assert_equals(optimizer, second)
    assert [group["rounding_updates"] for group in optimizer.param_groups] == [2, 2]


def test_torchs_class_loads_a_stochastic_state():
    params = parameters(BF16)
    optimizer = gdm.torch.AdamW(params, rounding="stochastic")
    give_gradients(0, params)
    optimizer.step()
    state = optimizer.state_dict()
    assert state["param_groups"][0]["rounding_updates"] == 1
    theirs = torch.optim.AdamW(clones(params))
    theirs.load_state_dict(copy.deepcopy(state))
    assert_same_tensors(flat_state(theirs), flat_state(optimizer))
    back = gdm.torch.AdamW(params, rounding="stochastic")
    back.load_state_dict(theirs.state_dict())
    assert back.updates == 1


@pytest.mark.parametrize("count", [-1, 2**64, 1.5, "3"])
def test_a_damaged_count_is_refused_and_nothing_loaded(count):
    optimizer = gdm.torch.AdamW(parameters(BF16), rounding="stochastic")
    state = optimizer.state_dict()
    state["param_groups"][0] |= {"rounding_updates": count, "lr": 0.5}
    with pytest.raises((TypeError, ValueError), match="rounding_updates"):
        optimizer.load_state_dict(state)
    assert (optimizer.updates, optimizer.param_groups[0]["lr"]) == (0, 1e-3)


def test_without_stochastic_rounding_a_saved_state_is_torchs():
    assert "rounding_updates" not in gdm.torch.AdamW(parameters(BF16)).state_dict()["param_groups"][0]


@pytest.mark.parametrize("how", ["file", "pickle", "deepcopy"])
@pytest.mark.parametrize("state", [F32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize("dtype", [BF16, F32], ids=["bf16 param", "f32 param"])
@every_class
def test_states_of_another_dtype_are_saved_and_loaded(name, dtype, state, how):
    """PyTorch would load them in the parameters' dtype."""
    params = parameters(dtype)
    optimizer = getattr(gdm.torch, name)(params, state_dtype=state, **FULL[name])
    for step in range(2):
        give_gradients(step, params)
        optimizer.step()
    if how == "file":
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        twin = getattr(gdm.torch, name)(clones(params), state_dtype=state)
        twin.load_state_dict(torch.load(file, weights_only=True))
    else:
        twin = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    others = twin.param_groups[0]["params"]
    if name not in ("NAdam", "ASGD"):
        assert_same_tensors(flat_state(twin), flat_state(optimizer))
    assert twin.state_dtype is state
    give_gradients(2, params, others)
    for opt in (optimizer, twin):
        opt.step()
    if (
        name not in ("NAdam", "ASGD") or how != "file" or dtype is F32
    ):  # PyTorch rounds NAdam's product to the parameter's dtype
        assert_same_tensors([*params, *flat_state(optimizer)], [*others, *flat_state(twin)])


@HALVES
@every_class
def test_states_go_to_torch_and_back(name, dtype):
    params = parameters(dtype)
    optimizer = getattr(gdm.torch, name)(params, state_dtype="float32", **FULL[name])
    give_gradients(0, params)
    optimizer.step()
    if name in OWN:
        theirs = getattr(gdm.torch, name)(clones(params), **FULL[name])
    else:
        theirs = torchs_class(name)(clones(params), **FULL[name])
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for state in theirs.state.values():
        assert {x.dtype for key, x in state.items() if key not in ("step", "weight_sum", "lr_max")} == {dtype}
    back = getattr(gdm.torch, name)(params, state_dtype="float32")
    back.load_state_dict(theirs.state_dict())
    for state in back.state.values():
        assert {x.dtype for key, x in state.items() if key not in ("step", *SCALARS)} == {F32}
    give_gradients(1, params)
    back.step()


def test_hooks_may_change_a_state_that_is_loaded():
    params = parameters(BF16)
    optimizer = gdm.torch.Adam(params, state_dtype=F32)
    give_gradients(0, params)
    optimizer.step()

    def halve(opt, state):
        return {**state, "state": {i: {**s, "exp_avg": s["exp_avg"] / 2} for i, s in state["state"].items()}}

    before = [optimizer.state[p]["exp_avg"].clone() for p in params]
    seen = []
    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append(opt.state[params[0]]["exp_avg"].dtype))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert seen == [F32]
    assert_same_tensors([optimizer.state[p]["exp_avg"] for p in params], [x / 2 for x in before])
    assert (
        len(optimizer._optimizer_load_state_dict_pre_hooks) == len(optimizer._optimizer_load_state_dict_post_hooks) == 1
    )


# ---- arguments ----

BAD = {
    "state_dtype": [({"state_dtype": "float64"}, ValueError), ({"state_dtype": torch.int8}, ValueError)],
    "rounding": [({"rounding": "up"}, ValueError), ({"rounding": None}, ValueError)],
    "seed": [({"seed": -1}, ValueError), ({"seed": 2**64}, ValueError), ({"seed": 0.5}, TypeError)],
    "copies": [
        ({"copies": []}, ValueError),
        ({"copies": torch.zeros(3)}, TypeError),
        ({"copies": {torch.zeros(3): torch.zeros(3)}}, ValueError),
    ],
}


@pytest.mark.parametrize(("name", "case"), [(name, k) for name, cases in BAD.items() for k in range(len(cases))])
def test_bad_arguments_are_named(name, case):
    options, error = BAD[name][case]
    for cls in CLASSES:
        with pytest.raises(error, match=name):
            getattr(gdm.torch, cls)(parameters(), **options)


@pytest.mark.parametrize("given", ["bfloat16", BF16])
def test_a_dtype_or_its_name(given):
    optimizer = gdm.torch.AdamW(parameters(), state_dtype=given, rounding="stochastic", seed=5)
    assert (optimizer.state_dtype, optimizer.rounding, optimizer.seed) == (BF16, "stochastic", 5)


# ---- GradScaler ----


@BACKENDS
@HALVES
@every_class
def test_a_scaled_gradient_is_divided_before_it_is_rounded(name, dtype, backend_name):
    """As in torch's fused optimizers. .grad then has the quotient, rounded to its own dtype, as there."""
    gdm.set_backend(backend_name)
    (param,) = parameters(dtype, [(1300,)])
    options = narrow_options(FULL[name])
    optimizer, oracle = getattr(gdm.torch, name)([param], **options), Oracle(name, param, options)
    for step, divisor in enumerate([1024.0, 3.0, 2.0**-10]):
        param.grad = tensor((1300,), step, dtype)
        grad = param.grad.clone()
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(divisor), torch.tensor(0.0)
        optimizer.step()
        oracle.step(grad, step, scale=1 / divisor)
        oracle.assert_equals(optimizer, param)
        assert_same_tensors([param.grad], [grad / divisor])
    del optimizer.grad_scale, optimizer.found_inf
    param.grad = tensor((1300,), 9, dtype)
    optimizer.step()
    oracle.step(param.grad, 3)
    oracle.assert_equals(optimizer, param)


def test_float16_gradients_below_its_smallest_number_are_not_lost():
    """That is what a GradScaler is for. PyTorch's for-loop divides in float16."""
    (param,) = [torch.zeros(64, dtype=F16)]
    optimizer = gdm.torch.SGD([param], lr=2.0**20, momentum=0.9, state_dtype=F32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(torch.ones(()))
    param.grad = torch.full_like(param, 2.0**-10)  # 2**-26 when it is unscaled
    scaler.step(optimizer)
    scaler.update()
    assert param.tolist() == [-(2.0**-6)] * 64


@BACKENDS
@pytest.mark.parametrize("value", [0.0, torch.inf, torch.nan])
def test_a_scale_that_is_not_a_number_is_refused(value, backend_name):
    gdm.set_backend(backend_name)
    params = parameters()
    optimizer = gdm.torch.Adam(params)
    give_gradients(0, params)
    optimizer.grad_scale = torch.tensor(value)
    before = everything(optimizer)
    with pytest.raises(ValueError, match="grad_scale must be finite and not 0"):
        optimizer.step()
    assert_same_tensors(everything(optimizer), before)


@BACKENDS
def test_a_scale_reaches_those_that_pytorch_updates(backend_name):
    gdm.set_backend(backend_name)
    params, others = [[torch.ones(3, dtype=torch.complex64), torch.ones(4)] for _ in range(2)]
    scaled, plain = gdm.torch.SGD(params, lr=0.5, momentum=0.5), gdm.torch.SGD(others, lr=0.5, momentum=0.5)
    for step in range(3):
        give_gradients(step, params, others)
        for p in params:
            p.grad *= 8
        scaled.grad_scale = torch.tensor(8.0)
        kept = [p.grad for p in params]
        scaled.step()
        plain.step()
        assert_same_tensors([*params, *(p.grad for p in params)], [*others, *(p.grad for p in others)])
        assert all(p.grad is grad for p, grad in zip(params, kept, strict=True))


@BACKENDS
def test_an_error_leaves_scaled_gradients_alone(backend_name):
    gdm.set_backend(backend_name)
    params = [torch.ones(4), torch.zeros(5, 2)]
    optimizer = gdm.torch.Adam(params)
    params[0].grad = torch.full((4,), 8.0)
    indices = torch.tensor([[1, 3]])
    params[1].grad = torch.sparse_coo_tensor(indices, torch.ones(2, 2), (5, 2), check_invariants=True)
    optimizer.grad_scale = torch.tensor(8.0)
    kept = params[1].grad
    for _ in range(2):
        with pytest.raises(RuntimeError, match="sparse"):
            optimizer.step()
    assert params[0].tolist() == [1.0] * 4
    assert params[0].grad.tolist() == [8.0] * 4
    assert params[1].grad is kept
    assert bool(kept.to_dense().sum() == 4)


# ---- copies ----


def made_copies(params, dtypes=(BF16, F16, F32, F64)):
    return [
        torch.full_like(p, 7.0, dtype=dtype, requires_grad=False)
        for p, dtype in zip(params, itertools.cycle(dtypes), strict=False)
    ]


@BACKENDS
@ROUNDINGS
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=lambda x: STORAGE[x])
@every_class
def test_copies_are_the_new_parameters_rounded_once(name, dtype, rounding, backend_name):
    gdm.set_backend(backend_name)
    params = parameters(dtype, SHAPES)
    copies = made_copies(params)
    check(name, params, FULL[name], copies=copies, rounding=rounding, absent=come_and_go, steps=6)


@BACKENDS
def test_a_parameter_without_a_gradient_is_not_copied(backend_name):
    gdm.set_backend(backend_name)
    params = parameters(F32)
    copies = made_copies(params)
    optimizer = gdm.torch.AdamW(params, copies=copies)
    give_gradients(0, params, absent=lambda step, i: i == 1)
    versions = [x._version for x in copies]
    optimizer.step()
    assert bool((copies[1] == 7).all())
    assert [x._version - n for x, n in zip(copies, versions, strict=True)] == [1, 0, 1, 1]
    assert_same_tensors([copies[0]], [params[0].detach().bfloat16()])


@BACKENDS
def test_copies_by_parameter_and_changed_between_steps(backend_name):
    gdm.set_backend(backend_name)
    params = parameters(F32)
    first, second = (torch.empty_like(params[1], dtype=BF16) for _ in range(2))
    optimizer = gdm.torch.SGD(params, lr=0.1, copies={params[1]: first})
    for copies, target in (((), first), ({params[1]: second}, second), ([None, first, None, None], first)):
        if copies != ():
            optimizer.copies = copies
        for _ in range(2):
            target.detach().zero_()
            give_gradients(0, params)
            optimizer.step()
            assert_same_tensors([target], [params[1].detach().bfloat16()])
    optimizer.copies = None
    kept = first.clone()
    optimizer.step()
    assert optimizer.copies == {}
    assert_same_tensors([first], [kept])


@BACKENDS
def test_a_copy_may_be_moved_and_converted(backend_name):
    gdm.set_backend(backend_name)
    params = parameters(F32)
    copies = made_copies(params)
    optimizer = gdm.torch.AdamW(params, copies=copies)
    for step in range(5):
        give_gradients(step, params)
        if step == 2:
            copies[0].data = copies[0].data.clone()
        if step == 3:
            copies[0].data = copies[0].data.to(F16)
        if step == 4:
            copies[0].data = copies[0].data.view(BF16)
        optimizer.step()
        assert_same_tensors(copies, [p.detach().to(c.dtype) for p, c in zip(params, copies, strict=True)])


@BACKENDS
def test_copies_of_what_pytorch_updates(backend_name):
    """A view with gaps. Its copy follows, too."""
    gdm.set_backend(backend_name)
    params = [tensor((20,), 0, F32)[::2], tensor((7,), 1, F32)]
    copies = [torch.zeros(10, dtype=BF16), torch.zeros(7, dtype=BF16)]
    optimizer = gdm.torch.SGD(params, lr=0.1, copies=copies)
    for step in range(2):
        give_gradients(step, params)
        optimizer.step()
        assert_same_tensors(copies, [p.bfloat16() for p in params])


BAD_COPIES = {
    "shape": (lambda p: torch.zeros((*p.shape, 2)), ValueError, "shape"),
    "order": (lambda p: torch.zeros(tuple(reversed(p.shape))).t(), ValueError, "order"),
    "integers": (lambda p: torch.zeros(p.shape, dtype=torch.int32), TypeError, "dtype torch.int32"),
    "complex": (lambda p: torch.zeros(p.shape, dtype=torch.complex64), TypeError, "dtype torch.complex64"),
    "meta": (lambda p: torch.zeros(p.shape, device="meta"), TypeError, "device meta"),
    "expanded": (lambda p: torch.zeros(()).expand(p.shape), ValueError, "fill|order"),
    "array": (lambda p: np.zeros(p.shape), TypeError, "must be a tensor, not ndarray"),
    "its parameter": (lambda p: p.detach(), gdm.OverlapError, "share memory"),
}


@pytest.mark.parametrize("what", BAD_COPIES)
def test_a_bad_copy_is_refused_and_named(what):
    make, error, message = BAD_COPIES[what]
    params = parameters(F32)
    good = made_copies(params)
    optimizer = gdm.torch.AdamW(params, copies=good)
    bad = [None, make(params[1]), None, None]
    with pytest.raises(error, match=rf"copies\[1\].*{message}|{message}.*copies\[1\]"):
        gdm.torch.AdamW(params, copies=bad)
    with pytest.raises(error, match=r"copies\[param_groups\[0\]\['params'\]\[1\]\]"):
        optimizer.copies = {params[1]: bad[1]}
    give_gradients(0, params)
    optimizer.step()
    assert_same_tensors(good, [p.detach().to(c.dtype) for p, c in zip(params, good, strict=True)])


def test_copies_share_no_memory_with_anything():
    params = parameters(F32)
    memory = torch.zeros(64)
    with pytest.raises(gdm.OverlapError, match=r"copies\[0\] and copies\[1\] share memory"):
        gdm.torch.AdamW(params, copies=[memory[:7], memory[6:21].view(3, 5), None, None])
    optimizer = gdm.torch.AdamW(params)
    give_gradients(0, params)
    optimizer.step()
    optimizer.copies = [optimizer.state[params[0]]["exp_avg"], None, None, None]
    before = everything(optimizer)
    with pytest.raises(gdm.OverlapError, match=r"copy of param_groups\[0\]\['params'\]\[0\].*share memory"):
        optimizer.step()
    assert_same_tensors(everything(optimizer), before)


@BACKENDS
@pytest.mark.parametrize("begun", [False, True])
def test_a_gradient_in_the_memory_of_a_copy_is_refused(begun, backend_name):
    gdm.set_backend(backend_name)
    params = parameters(F32)
    copies = made_copies(params, (F32,))
    optimizer = gdm.torch.AdamW(params, copies=copies)
    if begun:
        give_gradients(0, params)
        optimizer.step()
    give_gradients(1, params)
    params[0].grad = copies[0].detach()
    before = everything(optimizer)
    with pytest.raises(gdm.OverlapError, match="copies"):
        optimizer.step()
    assert_same_tensors(everything(optimizer), before)


def test_a_parameter_that_no_longer_fits_its_copy_is_refused():
    params = parameters(F32)
    optimizer = gdm.torch.SGD(params, copies=made_copies(params))
    give_gradients(0, params)
    optimizer.step()
    params[0].grad = None
    params[0].data = torch.ones(9)
    params[0].grad = torch.ones(9)
    before = everything(optimizer)
    with pytest.raises(ValueError, match="copies has shape"):
        optimizer.step()
    assert_same_tensors(everything(optimizer), before)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_an_optimizer_has_copies_of_its_own(how):
    params = parameters(F32)
    copies = made_copies(params)
    optimizer = gdm.torch.AdamW(params, copies=copies)
    twin = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    others = twin.param_groups[0]["params"]
    give_gradients(0, others)
    twin.step()
    assert all(bool((x == 7).all()) for x in copies)
    found = [twin.copies[p] for p in others]
    assert_same_tensors(found, [p.detach().to(c.dtype) for p, c in zip(others, found, strict=True)])


def test_a_model_of_its_own_gets_the_copies():
    """The weights of another module, as those on an accelerator would be."""
    torch.manual_seed(0)
    master = torch.nn.Linear(5, 3)
    narrow = copy.deepcopy(master).to(BF16)
    optimizer = gdm.torch.AdamW(master.parameters(), lr=0.1, copies=list(narrow.parameters()))
    for step in range(3):
        narrow.zero_grad()
        narrow(tensor((4, 5), step, BF16)).sum().backward()
        for p, q in zip(master.parameters(), narrow.parameters(), strict=True):
            p.grad = q.grad.float()
        optimizer.step()
    assert_same_tensors(list(narrow.parameters()), [p.detach().to(BF16) for p in master.parameters()])
