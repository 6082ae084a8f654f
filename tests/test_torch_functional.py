"""gdm.torch.functional: one update of lists of tensors, with states that the caller keeps."""

from __future__ import annotations

import doctest
import inspect
import threading

import pytest

import gdm
from torch_cases import (
    CLASSES,
    FULL,
    NUMBERED,
    OPTIONS,
    WITH_EPS,
    assert_close,
    assert_same_tensors,
    clones,
    come_and_go,
    every_case,
    every_class,
    every_dtype,
    tensor,
    torch,
    torchs_class,
)

pytestmark = pytest.mark.usefixtures("float64_by_default")
functional = gdm.torch.functional
# For each function its class, and its lists of states with torch's keys and what they are needed for.
STATES = {
    "SGD": {"momentum_buffers": ("momentum_buffer", "momentum")},
    "Adagrad": {"state_sums": ("sum", None)},
    "RMSprop": {
        "square_avgs": ("square_avg", None),
        "grad_avgs": ("grad_avg", "centered"),
        "momentum_buffers": ("momentum_buffer", "momentum"),
    },
    "Adam": {
        "exp_avgs": ("exp_avg", None),
        "exp_avg_sqs": ("exp_avg_sq", None),
        "max_exp_avg_sqs": ("max_exp_avg_sq", "amsgrad"),
    },
    "NAdam": {"exp_avgs": ("exp_avg", None), "exp_avg_sqs": ("exp_avg_sq", None)},
    "RAdam": {"exp_avgs": ("exp_avg", None), "exp_avg_sqs": ("exp_avg_sq", None)},
    "Adamax": {"exp_avgs": ("exp_avg", None), "exp_infs": ("exp_inf", None)},
    "Adadelta": {"square_avgs": ("square_avg", None), "acc_deltas": ("acc_delta", None)},
    "Lion": {"exp_avgs": ("exp_avg", None)},
    "Signum": {"exp_avgs": ("exp_avg", None)},
    "Rprop": {"prevs": ("prev", None), "sizes": ("step_size", None)},
    "ASGD": {"axs": ("ax", None)},
    "LARS": {"momentum_buffers": ("momentum_buffer", None)},
    "LAMB": {"exp_avgs": ("exp_avg", None), "exp_avg_sqs": ("exp_avg_sq", None)},
    "AdEMAMix": {
        "exp_avgs": ("exp_avg", None),
        "exp_avgs_slow": ("exp_avg_slow", None),
        "exp_avg_sqs": ("exp_avg_sq", None),
    },
    "ScheduleFreeSGD": {"zs": ("z", None)},
    "ScheduleFreeAdamW": {"zs": ("z", None), "exp_avg_sqs": ("exp_avg_sq", None)},
}
# For each function that keeps numbers, the lists of tensors with torch's keys, and what they begin with.
SCALARS = {"NAdam": {"mu_products": ("mu_product", 1.0)}, "ASGD": {"etas": ("eta", 0.0), "mus": ("mu", 1.0)}}
SCALARS["ScheduleFreeSGD"] = {"weight_sums": ("weight_sum", 0.0), "lr_maxs": ("lr_max", 0.0)}
SCALARS["ScheduleFreeAdamW"] = SCALARS["ScheduleFreeSGD"]
STATES["AdamW"] = STATES["Adam"]
SHAPES = [(33,), (4, 7), (), (0,), (40, 5)]
BACKENDS = pytest.mark.parametrize("backend_name", ["native", "reference"])


def function(name: str):
    return getattr(functional, name_of(name))


def name_of(name: str) -> str:
    return name.replace("ScheduleFree", "schedule_free_").lower()


class Call:
    """Parameters, gradients and states for calls of one function, all as keywords."""

    def __init__(self, name: str, options=None, *, dtype=torch.float64, shapes=SHAPES, params=None) -> None:
        self.name, self.options = name, {"lr": 0.01, **(options or {})}
        self.lists = {"params": [tensor(s, k, dtype) for k, s in enumerate(shapes)] if params is None else params}
        params = self.lists["params"]
        self.lists["grads"] = [None] * len(params)
        self.initial = self.options.pop("initial_accumulator_value", None)
        for key, (_, needs) in STATES[name].items():
            if needs is None or self.options.get(needs):
                self.lists[key] = [torch.full_like(p, self.initial or 0.0) for p in params]
        for key, (_, initial) in SCALARS.get(name, {}).items():
            self.lists[key] = [torch.full((), initial) for _ in params]
        self.made = 0

    def set_grads(self, step: int, absent=lambda step, i: False) -> None:
        self.lists["grads"] = [
            None if absent(step, i) else tensor(p.shape, 300 + 11 * step + i, p.dtype)
            for i, p in enumerate(self.lists["params"])
        ]

    def keywords(self, **changes):
        counted = {"steps": self.made + 1} if self.name in NUMBERED else {}
        first = {"first": self.made == 0} if self.name == "SGD" else {}
        return {**self.lists, **counted, **first, **self.options, **changes}

    def update(self, **changes) -> None:
        assert function(self.name)(**self.keywords(**changes)) is None
        self.made += 1

    def tensors(self):
        return [x for values in self.lists.values() for x in values]

    def copy(self):
        return [None if x is None else x.clone() for x in self.tensors()]


def torchs_path(name, call: Call, steps, absent=lambda step, i: False):
    """The parameters and states of torch's class after the same steps."""
    params = clones(call.lists["params"])
    initial = {} if call.initial is None else {"initial_accumulator_value": call.initial}
    optimizer = torchs_class(name)(params, **call.options, **initial)
    for step in steps:
        call.set_grads(step, absent)
        for p, grad in zip(params, call.lists["grads"], strict=True):
            p.grad = None if grad is None else grad.clone()
        optimizer.step()
    return params, optimizer


# ---- what it computes ----


@BACKENDS
@every_dtype
@every_case
def test_the_path_is_torchs(name, options, dtype, backend_name):
    gdm.set_backend(backend_name)
    call = Call(name, options, dtype=dtype)
    wanted, optimizer = torchs_path(name, call, range(8))
    for step in range(8):
        call.set_grads(step)
        call.update()
    for i, (p, q) in enumerate(zip(call.lists["params"], wanted, strict=True)):
        assert_close(p, q, f"parameter {i}", least=0.1)
        for key, (theirs, _) in STATES[name].items():
            if key in call.lists:
                assert_close(call.lists[key][i], optimizer.state[q][theirs], key, least=0.0 if "sq" in key else 0.1)
        for key, (theirs, _) in SCALARS.get(name, {}).items():
            assert_close(call.lists[key][i], optimizer.state[q][theirs], key)


@every_dtype
@every_case
def test_the_bits_are_those_of_the_class(name, options, dtype):
    """And of the reference."""
    found = []
    for backend in ("native", "reference"):
        gdm.set_backend(backend)
        call = Call(name, options, dtype=dtype)
        for step in range(5):
            call.set_grads(step)
            call.update()
        found.append(call)
    assert_same_tensors(found[0].copy(), found[1].copy())
    gdm.set_backend("native")
    call = Call(name, options, dtype=dtype)
    params = call.lists["params"]
    optimizer = getattr(gdm.torch, name)(params, lr=0.01, **options)
    for step in range(5):
        call.set_grads(step)
        for p, grad in zip(params, call.lists["grads"], strict=True):
            p.grad = grad
        optimizer.step()
    assert_same_tensors(params, found[0].lists["params"])
    for key, (theirs, _) in STATES[name].items():
        if key in found[0].lists:
            assert_same_tensors([optimizer.state[p][theirs] for p in params], found[0].lists[key], key)


@BACKENDS
@every_class
def test_a_gradient_of_none_leaves_its_parameter_out(name, backend_name):
    gdm.set_backend(backend_name)
    call = Call(name, FULL[name])
    for step in range(6):
        call.set_grads(step, come_and_go)
        before = call.copy()
        call.update()
        count = len(call.lists["params"])
        for i, grad in enumerate(call.lists["grads"]):
            after = call.copy()[i::count]
            same = all(x is y is None or torch.equal(x, y) for x, y in zip(after, before[i::count], strict=True))
            assert same is (grad is None or (after[0].numel() == 0 and name not in SCALARS))


@every_class
def test_empty_lists_are_fine(name):
    call = Call(name, FULL[name], shapes=[])
    call.update()
    call = Call(name, FULL[name])
    before = call.copy()
    call.update()  # no gradients
    assert_same_tensors(call.copy(), before)


@BACKENDS
@pytest.mark.parametrize("name", NUMBERED)
def test_ways_to_give_the_number_of_the_step(name, backend_name):
    """One int, ints, and tensors of the steps made before, which are counted up."""
    gdm.set_backend(backend_name)
    ways = {
        "int": lambda made, count, kept: made + 1,
        "ints": lambda made, count, kept: [made + 1] * count,
        "tuple": lambda made, count, kept: (made + 1,) * count,
        "tensors": lambda made, count, kept: kept,
        "float32": lambda made, count, kept: kept,
        "one axis": lambda made, count, kept: kept,
    }
    results = {}
    for way, steps in ways.items():
        call = Call(name, FULL[name])
        count = len(call.lists["params"])
        dtype = torch.float32 if way == "float32" else torch.float64
        kept = [torch.zeros((1,) if way == "one axis" else (), dtype=dtype) for _ in range(count)]
        for step in range(4):
            call.set_grads(step)
            call.update(steps=steps(step, count, kept))
        results[way] = call.copy()
        if way in ("tensors", "float32", "one axis"):
            assert [int(x) for x in kept] == [4] * count
    for way, tensors in results.items():
        assert_same_tensors(tensors, results["int"], way)


@pytest.mark.parametrize("name", NUMBERED)
def test_each_parameter_may_be_at_a_step_of_its_own(name):
    steps = [3, 1, 10, 1, 1000]
    together = Call(name, FULL[name])
    together.set_grads(0)
    together.update(steps=steps)
    for i, step in enumerate(steps):
        alone = Call(name, FULL[name])
        alone.set_grads(0)
        alone.lists["grads"] = [g if k == i else None for k, g in enumerate(alone.lists["grads"])]
        alone.update(steps=step)
        count = len(steps)
        assert_same_tensors(alone.copy()[i::count], together.copy()[i::count], f"parameter {i}")


@pytest.mark.parametrize("name", NUMBERED)
def test_only_those_with_a_gradient_are_counted(name):
    call = Call(name, FULL[name])
    kept = [torch.tensor(2.0) for _ in call.lists["params"]]
    call.set_grads(0, lambda step, i: i in (1, 3))
    call.update(steps=kept)
    assert [x.item() for x in kept] == [3.0, 2.0, 3.0, 2.0, 3.0]


def test_sgds_first_step_is_undampened():
    for first, velocity in ((True, 2.0), (False, 0.5 * 7.0 + 0.25 * 2.0)):
        param, buffer = torch.zeros(3), torch.full((3,), 7.0)
        functional.sgd([param], [torch.full((3,), 2.0)], [buffer], lr=1.0, momentum=0.5, dampening=0.75, first=first)
        assert buffer.tolist() == [velocity] * 3
        assert param.tolist() == [-velocity] * 3


def test_sgd_without_momentum_needs_no_buffers():
    for buffers in (None, []):
        param = torch.zeros(3)
        functional.sgd([param], [torch.ones(3)], buffers, lr=0.5)
        assert param.tolist() == [-0.5] * 3


@pytest.mark.parametrize(
    ("name", "key", "option"),
    [
        ("Adam", "max_exp_avg_sqs", {"amsgrad": True}),
        ("AdamW", "max_exp_avg_sqs", {"amsgrad": True}),
        ("RMSprop", "grad_avgs", {"centered": True}),
        ("RMSprop", "momentum_buffers", {"momentum": 0.5}),
        ("SGD", "momentum_buffers", {"momentum": 0.5}),
    ],
)
def test_states_are_needed_with_some_options_and_refused_without(name, key, option):
    call = Call(name, {})
    call.set_grads(0)
    with pytest.raises(ValueError, match=f"{key} are needed with these options, got None"):
        call.update(**option)
    lists = [torch.full_like(p, 7.0) for p in call.lists["params"]]
    for unused in (lists, lists[:1]):
        refused(call, ValueError, f"{key} are not used without {next(iter(option))}; expected None", **{key: unused})
    refused(call, TypeError, f"{key} must be a list of tensors, not float", **{key: 0.1})
    call.update(**{key: []})


@every_class
def test_versions_rise_where_there_is_a_gradient(name):
    call = Call(name, FULL[name])
    params = call.lists["params"]
    call.set_grads(0, lambda step, i: i == 1)
    before = [p._version for p in params]
    call.update()
    assert [p._version > n for p, n in zip(params, before, strict=True)] == [True, False, True, True, True]


def test_autograd_notices_the_update():
    param = torch.ones(3, requires_grad=True)
    loss = (param**2).sum()
    functional.adamw([param], [torch.ones(3)], [torch.zeros(3)], [torch.zeros(3)], 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert param.is_leaf
    assert param.requires_grad


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_the_bits(threads):
    for name in ("SGD", "AdamW"):
        results = []
        for n in (1, threads, None):
            call = Call(name, FULL[name], dtype=torch.float32, shapes=[(400_000,), (7,), (300, 301)])
            for step in range(2):
                call.set_grads(step)
                call.update(threads=n)
            results.append(call.copy())
        assert_same_tensors(results[0], results[1])
        assert_same_tensors(results[0], results[2])


def test_updates_in_several_threads():
    """They know nothing of each other."""
    results, errors = {}, []

    def work(k) -> None:
        try:
            call = Call("Adam", FULL["Adam"], shapes=[(50_000,), (9,)])
            for step in range(20):
                call.set_grads(step)
                call.update()
            results[k] = call.copy()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for k in (1, 2):
        assert_same_tensors(results[k], results[0])


# ---- which tensors ----

LAYOUTS = {
    "channels_last": lambda dtype, k: tensor((2, 3, 4, 5), k, dtype).to(memory_format=torch.channels_last),
    "transposed": lambda dtype, k: tensor((5, 7), k, dtype).t(),
    "permuted": lambda dtype, k: tensor((3, 4, 5), k, dtype).permute(2, 0, 1),
    "slice": lambda dtype, k: tensor((40,), k, dtype)[7:31],
    "odd slice": lambda dtype, k: tensor((41,), k, dtype)[1:],
    "one column": lambda dtype, k: tensor((6, 1), k, dtype).t(),
}


@BACKENDS
@pytest.mark.parametrize("layout", LAYOUTS)
@every_class
def test_layouts_that_fill_their_memory(name, layout, backend_name):
    gdm.set_backend(backend_name)
    make = LAYOUTS[layout]
    call = Call(name, FULL[name], params=[make(torch.float64, 0)])
    call.lists["grads"] = [make(torch.float64, 1)]
    for key in STATES[name]:
        if key in call.lists:
            call.lists[key] = [make(torch.float64, 2).zero_()]
    param, grad = call.lists["params"][0].clone(), call.lists["grads"][0].clone()
    call.update()
    optimizer = torchs_class(name)([param], **call.options)
    param.grad = grad
    optimizer.step()
    assert_close(call.lists["params"][0], param)


def test_shards_of_a_flat_buffer():
    """As an engine that divides parameters, states and gradients among its processes has them."""
    flat = {key: tensor((100,), k) for k, key in enumerate(("params", "grads"))}
    flat |= {key: torch.zeros(100) for key in ("exp_avgs", "exp_avg_sqs")}
    wanted = {key: x.clone() for key, x in flat.items()}
    cuts = [(0, 13), (13, 50), (50, 51), (51, 51), (51, 97)]
    lists = {key: [x[a:b] for a, b in cuts] for key, x in flat.items()}
    functional.adamw(**lists, steps=1, lr=0.1)
    functional.adamw(**{key: [x] for key, x in wanted.items()}, steps=1, lr=0.1)
    for key, x in flat.items():
        assert torch.equal(x[:97], wanted[key][:97])
    start = tensor((100,), 0)
    assert torch.equal(flat["params"][97:], start[97:])
    assert not bool((flat["params"][:97] == start[:97]).any())


@every_class
def test_gradients_may_share_memory(name):
    call = Call(name, FULL[name], shapes=[(6,), (6,), (4,)])
    grad = tensor((6,), 5)
    call.lists["grads"] = [grad, grad, grad[1:5]]
    before = grad.clone()
    call.update()
    other = Call(name, FULL[name], shapes=[(6,), (6,), (4,)])
    other.lists["grads"] = [grad.clone(), grad.clone(), grad[1:5].clone()]
    other.update()
    assert_same_tensors(call.copy(), other.copy())
    assert torch.equal(grad, before)


@every_class
def test_parameters_and_tensors_that_require_gradients(name):
    call = Call(name, FULL[name])
    call.lists["params"] = [torch.nn.Parameter(p) for p in call.lists["params"]]
    call.set_grads(0)
    call.lists["grads"] = [g.requires_grad_() for g in call.lists["grads"]]
    call.update()
    assert all(p.is_leaf and p.requires_grad for p in call.lists["params"])


@every_class
def test_several_dtypes_in_one_call(name):
    call = Call(name, FULL[name], params=[tensor((5,), 0, torch.float32), tensor((6,), 1), tensor((3,), 2).float()])
    call.set_grads(0)
    call.update()
    for i, p in enumerate(call.lists["params"]):
        alone = Call(name, FULL[name], params=[tensor((5, 6, 3)[i : i + 1], i).to(p.dtype)])
        alone.lists["grads"] = [call.lists["grads"][i]]
        alone.update()
        assert_same_tensors([p], alone.lists["params"])


# ---- errors ----


def refused(call: Call, error, message: str, **changes) -> None:
    before = call.copy()
    versions = [p._version for p in call.lists["params"] if isinstance(p, torch.Tensor)]
    with pytest.raises(error, match=message) as raised:
        call.update(**changes)
    assert type(raised.value) is error or error in (ValueError, TypeError)
    assert "not known" not in str(raised.value)
    for x, y in zip(call.tensors(), before, strict=True):
        if isinstance(x, torch.Tensor):
            assert_same_tensors([x], [y])
    assert [p._version for p in call.lists["params"] if isinstance(p, torch.Tensor)] == versions


def sparse(shape):
    indices = torch.zeros((len(shape), 1), dtype=torch.int64)
    return torch.sparse_coo_tensor(indices, torch.ones(1), shape, check_invariants=True)


BAD = {
    "integers": (TypeError, "dtype torch.int64", lambda p: torch.ones(p.shape, dtype=torch.int64)),
    "complex": (TypeError, "dtype torch.complex128", lambda p: torch.ones(p.shape, dtype=torch.complex128)),
    "shape": (ValueError, "shape", lambda p: torch.ones((*p.shape, 2))),
    "as many elements": (ValueError, "shape", lambda p: torch.ones(p.numel())),
    "order": (ValueError, "order|strides", lambda p: torch.ones(tuple(reversed(p.shape))).t()),
    "gaps": (ValueError, "strides|fill", lambda p: torch.ones((*p.shape, 2))[..., 0]),
    "expanded": (ValueError, "strides|fill", lambda p: torch.ones(()).expand(p.shape)),
    "sparse": (TypeError, "layout", lambda p: sparse(p.shape)),
    "meta": (TypeError, "device meta", lambda p: torch.ones(p.shape, device="meta")),
    "list": (TypeError, "must be a tensor, not list", lambda p: [1.0, 2.0]),
    "number": (TypeError, "must be a tensor, not float", lambda p: 1.0),
    "array": (TypeError, "must be a tensor, not ndarray", lambda p: torch.ones(p.shape).numpy()),
}


@BACKENDS
@pytest.mark.parametrize("what", BAD)
@every_class
def test_a_bad_tensor_is_refused_and_named(name, what, backend_name):
    gdm.set_backend(backend_name)
    error, message, make = BAD[what]
    for key in Call(name, FULL[name]).lists:
        if key in SCALARS.get(name, {}):
            continue
        call = Call(name, FULL[name], shapes=[(4,), (3, 5), (6,)])
        call.set_grads(0)
        call.lists[key][1] = make(call.lists["params"][1])
        plain = [x for x in call.tensors() if isinstance(x, torch.Tensor) and not x.is_meta and not x.is_sparse]
        before = [x.clone() for x in plain]
        with pytest.raises(error, match=message) as raised:
            call.update()
        assert f"{key}[1]" in str(raised.value)
        assert_same_tensors(plain, before)


@BACKENDS
@every_class
def test_a_missing_state_is_refused(name, backend_name):
    gdm.set_backend(backend_name)
    for key in STATES[name]:
        call = Call(name, FULL[name])
        if key in call.lists:
            call.set_grads(0)
            call.lists[key][1] = None
            with pytest.raises(TypeError, match=rf"{key}\[1\] must be a tensor, not NoneType"):
                call.update()


@BACKENDS
@every_class
def test_lists_of_other_lengths_are_refused(name, backend_name):
    gdm.set_backend(backend_name)
    for key in [k for k in Call(name, FULL[name]).lists if k != "params"]:
        for change in (lambda x: x[:-1], lambda x: [*x, x[0]]):
            call = Call(name, FULL[name])
            call.set_grads(0)
            refused(call, ValueError, f"{key} must have as many items as params, 5", **{key: change(call.lists[key])})
    if name in NUMBERED:
        refused(call, ValueError, "steps must have as many items as params, 5, got 2", steps=[1, 1])


SHARED = {
    "two parameters": (lambda c: c["params"].__setitem__(1, c["params"][0][1:4]), r"params\[[01]\] and params\[[01]\]"),
    "parameter and state": (lambda c: c[state_of(c)].__setitem__(0, c["params"][0]), r"params\[0\]"),
    "two states": (lambda c: c[state_of(c)].__setitem__(1, c[state_of(c)][0][:3]), r"\[[01]\] and .*\[[01]\]"),
    "gradient and its parameter": (lambda c: c["grads"].__setitem__(0, c["params"][0]), r"params\[0\]"),
    "gradient and another parameter": (lambda c: c["grads"].__setitem__(1, c["params"][0][:3]), r"grads\[1\]"),
    "gradient and state": (lambda c: c["grads"].__setitem__(1, c[state_of(c)][0][2:5]), r"grads\[1\]"),
}


def state_of(lists) -> str:
    return next(key for key in lists if key not in ("params", "grads"))


@BACKENDS
@pytest.mark.parametrize("what", SHARED)
@every_class
def test_shared_memory_is_refused(name, what, backend_name):
    gdm.set_backend(backend_name)
    call = Call(name, FULL[name], shapes=[(5,), (3,), (6,)])
    call.set_grads(0)
    share, message = SHARED[what]
    share(call.lists)
    refused(call, gdm.OverlapError, f"{message}.*share memory")


@BACKENDS
@every_class
def test_a_gradient_that_shares_memory_far_away_is_refused(name, backend_name):
    """A small gradient in the middle of a large parameter."""
    gdm.set_backend(backend_name)
    call = Call(name, FULL[name], shapes=[(5000,), (3,)])
    call.set_grads(0)
    call.lists["grads"][1] = call.lists["params"][0][2500:2503]
    refused(call, gdm.OverlapError, "share memory")


BAD_OPTIONS = [
    *((name, {"lr": value}, "lr must be") for name in CLASSES for value in (-0.1, float("nan"), float("inf"), 1e39)),
    *((name, {"weight_decay": -1.0}, "weight_decay must be") for name in CLASSES if name != "Rprop"),
    *((name, {"threads": 0}, "threads must be") for name in CLASSES),
    *((name, {"eps": -1.0}, "eps must be") for name in WITH_EPS),
    ("ScheduleFreeSGD", {"momentum": 0.0}, "momentum must be above 0"),
    ("ScheduleFreeAdamW", {"warmup_steps": -1.0}, "warmup_steps must be"),
    *((name, {"betas": (1.0, 0.9)}, "betas") for name in ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Lion")),
    ("SGD", {"momentum": 1.0}, "momentum must be"),
    ("SGD", {"momentum": 0.5, "dampening": 2.0}, "dampening must be"),
    ("SGD", {"momentum": 0.5, "dampening": 0.5, "nesterov": True}, "nesterov|dampening"),
    ("RMSprop", {"alpha": 1.0}, "alpha must be"),
    ("Adagrad", {"lr_decay": -1.0}, "lr_decay must be"),
    ("NAdam", {"momentum_decay": -1.0}, "momentum_decay must be"),
    ("Adadelta", {"rho": 1.5}, "rho must be"),
    ("Signum", {"momentum": -0.5}, "momentum must be"),
    *(("Rprop", {"etas": x}, "etas") for x in ((0.0, 1.2), (0.5, 1.0), (0.5, 1e39))),
    *(("Rprop", {"step_sizes": x}, "step_sizes") for x in ((-1.0, 1.0), (2.0, 1.0), (0.5, 1e39))),
    *(("ASGD", {name: -1.0}, f"{name} must be") for name in ("lambd", "alpha", "t0")),
    *(("AdEMAMix", {name: -1.0}, f"{name} must be") for name in ("alpha", "t_alpha", "t_beta3")),
    ("AdEMAMix", {"betas": (0.9, 0.9, 1.0)}, "betas"),
]


@BACKENDS
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [pytest.param(n, o, m, id=f"{n}-{'-'.join(o)}-{k}") for k, (n, o, m) in enumerate(BAD_OPTIONS)],
)
def test_bad_options_are_refused(name, options, message, backend_name):
    gdm.set_backend(backend_name)
    call = Call(name, {**FULL[name], **({} if name != "SGD" else {"momentum": 0.9})})
    call.set_grads(0)
    refused(call, ValueError, message, **options)


BAD_STEPS = {
    "zero": (0, ValueError),
    "negative": (-3, ValueError),
    "a zero among them": ([1, 0, 1, 1, 1], ValueError),
    "half": ([1, 1.5, 1, 1, 1], (TypeError, ValueError)),
    "text": (["1"] * 5, TypeError),
    "too large": (2**70, ValueError),
    "negative tensor": ([torch.tensor(-1.0) for _ in range(5)], ValueError),
    "half tensor": ([torch.tensor(1.5) for _ in range(5)], ValueError),
    "NaN tensor": ([torch.tensor(torch.nan) for _ in range(5)], ValueError),
    "integer tensor": ([torch.tensor(1) for _ in range(5)], TypeError),
    "float": (1.0, TypeError),
    "one tensor": (torch.tensor(1.0), TypeError),
    "one integer tensor": (torch.tensor(1), TypeError),
    "None": (None, TypeError),
    "two elements": ([torch.ones(2) for _ in range(5)], ValueError),
}


@BACKENDS
@pytest.mark.parametrize("what", BAD_STEPS)
@pytest.mark.parametrize("name", NUMBERED)
def test_bad_numbers_of_steps_are_refused(name, what, backend_name):
    gdm.set_backend(backend_name)
    steps, error = BAD_STEPS[what]
    call = Call(name, FULL[name])
    call.set_grads(0)
    before = call.copy()
    with pytest.raises(error, match="steps"):
        call.update(steps=steps)
    assert_same_tensors(call.copy(), before)


@BACKENDS
@pytest.mark.parametrize("value", [2.0, -0.5, torch.nan, None, "shape", "integer"])
def test_bad_products_of_nadam_are_refused(value, backend_name):
    gdm.set_backend(backend_name)
    call = Call("NAdam")
    call.set_grads(0)
    made = {None: None, "shape": torch.ones(2), "integer": torch.tensor(1)}
    call.lists["mu_products"][1] = made[value] if value in made else torch.tensor(value)
    before = [None if x is None else x.clone() for x in call.tensors()]
    with pytest.raises((TypeError, ValueError), match="mu_product"):
        call.update()
    assert_same_tensors(call.tensors(), before)


@every_class
def test_a_step_by_a_wrong_one_among_many_changes_nothing(name):
    """The last of a hundred."""
    call = Call(name, FULL[name], shapes=[(n % 7 + 1,) for n in range(100)])
    call.set_grads(0)
    call.lists["grads"][99] = torch.ones(50)
    refused(call, ValueError, r"grads\[99\] has shape")


@BACKENDS
@pytest.mark.parametrize("kind", ["inference tensors", "leaves"])
def test_numbers_are_kept_in_tensors_of_any_kind(kind, backend_name):
    """All or nothing is written, also where PyTorch would refuse to fill such a tensor."""
    gdm.set_backend(backend_name)
    with torch.inference_mode(kind == "inference tensors"):
        numbers = [torch.ones(()), torch.zeros(())]
    if kind == "leaves":
        numbers = [x.requires_grad_() for x in numbers]
    param, exp_avg, exp_avg_sq = torch.zeros(3), torch.zeros(3), torch.zeros(3)
    functional.nadam([param], [torch.ones(3)], [exp_avg], [exp_avg_sq], numbers[:1], numbers[1:], lr=0.5)
    assert numbers[1] == 1
    assert numbers[0] < 1
    assert bool((param < 0).all())


# ---- the module ----


def test_it_has_a_function_for_each_class():
    assert sorted(functional.__all__) == sorted([*map(name_of, CLASSES), "muon"])  # see test_torch_muon.py
    assert set(STATES) == set(OPTIONS)


@every_class
def test_options_have_the_defaults_of_the_class(name):
    parameters = inspect.signature(function(name)).parameters
    optimizer = getattr(gdm.torch, name)([torch.ones(1)])
    for key, x in parameters.items():
        if key in optimizer.defaults and x.default is not inspect.Parameter.empty:
            assert x.default == optimizer.defaults[key], key
        if key in optimizer.defaults:
            assert x.kind is inspect.Parameter.KEYWORD_ONLY


def test_the_examples_of_its_docstring_run():
    torch.set_default_dtype(torch.float32)
    tests = [test for test in doctest.DocTestFinder().find(functional) if test.examples]
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).attempted >= 4
    assert runner.summarize(verbose=False).failed == 0


# ---- narrow tensors, scales, copies ----

MIXED = {  # of parameters, gradients, states, copies
    "bf16": (torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float32),
    "f16": (torch.float16, torch.float16, torch.float16, torch.float64),
    "f32 with bf16 gradients": (torch.float32, torch.bfloat16, torch.float32, torch.bfloat16),
    "f32 with f16 gradients and bf16 states": (torch.float32, torch.float16, torch.bfloat16, torch.float16),
    "f64 with f32 gradients and bf16 states": (torch.float64, torch.float32, torch.bfloat16, torch.float32),
    "bf16 with f32 gradients and states": (torch.bfloat16, torch.float32, torch.float32, torch.float16),
}
MIXED_SHAPES = [(1100,), (0,), (), (40, 5)]


def mixed_call(name, dtypes, copies=True):
    param, _, state, copied = dtypes
    call = Call(name, FULL[name], dtype=param, shapes=MIXED_SHAPES)
    for key in STATES[name]:
        if key in call.lists:
            call.lists[key] = [x.to(state) for x in call.lists[key]]
    if copies:
        call.lists["copies"] = [torch.full(x.shape, 7.0, dtype=copied) for x in call.lists["params"]]
        call.lists["copies"][2] = None
    return call


@pytest.mark.parametrize("grad_scale", [None, 1.0, 3.0, torch.tensor(1024.0)], ids=["none", "1", "3", "tensor"])
@pytest.mark.parametrize("how", MIXED)
@every_class
def test_each_tensor_has_a_dtype_of_its_own(name, how, grad_scale):
    """The bits of the reference, and of the class; the gradients do not change."""
    dtypes, results = MIXED[how], []
    for backend in ("native", "reference"):
        gdm.set_backend(backend)
        call = mixed_call(name, dtypes)
        for step in range(4):
            call.set_grads(step, come_and_go)
            call.lists["grads"] = [None if g is None else g.to(dtypes[1]) for g in call.lists["grads"]]
            before = [None if g is None else g.clone() for g in call.lists["grads"]]
            copies = [x if x is None else x.clone() for x in call.lists["copies"]]
            call.update(grad_scale=grad_scale)
            assert_same_tensors(call.lists["grads"], before)
            for p, x, g, old in zip(call.lists["params"], call.lists["copies"], before, copies, strict=True):
                if x is not None and dtypes[0] is torch.float64:
                    assert_same_tensors([x], [old if g is None else p.to(x.dtype)])
        results.append(call.copy())
    assert_same_tensors(*results)


def test_the_class_gives_the_same_bits_for_bfloat16():
    for name in CLASSES:
        call = mixed_call(name, MIXED["bf16"])
        params = [p.clone() for p in call.lists["params"]]
        copies = [None if x is None else x.clone() for x in call.lists["copies"]]
        optimizer = getattr(gdm.torch, name)(params, **call.options, copies=copies)
        for step in range(3):
            call.set_grads(step)
            for p, g in zip(params, call.lists["grads"], strict=True):
                p.grad = g
            call.update()
            optimizer.step()
        assert_same_tensors([*params, *copies], [*call.lists["params"], *call.lists["copies"]])


def test_an_unscaled_gradient_is_not_rounded_to_its_dtype():
    """2**-10 / 2**16 is less than the smallest float16."""
    param = torch.zeros(5, dtype=torch.float32)
    grad = torch.full((5,), 2.0**-10, dtype=torch.float16)
    functional.sgd([param], [grad], lr=1.0, grad_scale=2.0**16)
    assert param.tolist() == [-(2.0**-26)] * 5
    assert grad.tolist() == [2.0**-10] * 5


BAD_SCALES = [(0.0, ValueError), (torch.nan, ValueError), (torch.tensor(torch.inf), ValueError), ("x", TypeError)]


@BACKENDS
@pytest.mark.parametrize(("scale", "error"), [*BAD_SCALES, (torch.ones(2), TypeError)])
def test_bad_scales_are_refused(scale, error, backend_name):
    gdm.set_backend(backend_name)
    for name in CLASSES:
        call = Call(name, FULL[name])
        call.set_grads(0)
        refused(call, error, "grad_scale must be", grad_scale=scale)


@BACKENDS
@pytest.mark.parametrize("key", ["grads", "exp_avgs"])
def test_float64_goes_with_float64_only(key, backend_name):
    gdm.set_backend(backend_name)
    call = Call("Adam", FULL["Adam"], dtype=torch.float32)
    call.set_grads(0)
    call.lists[key][1] = call.lists[key][1].double()
    refused(call, ValueError, rf"{key}\[1\] has dtype torch.float64, but params\[1\] has torch.float32")
    call.lists[key][1] = call.lists[key][1].float()
    call.update(copies=[torch.zeros(p.shape, dtype=torch.float64) for p in call.lists["params"]])


BAD_COPIES = {
    "shape": (lambda c: torch.zeros(4), ValueError, r"copies\[1\] has shape"),
    "order": (lambda c: torch.zeros(7, 4).t(), ValueError, r"copies\[1\] lies in memory in another order"),
    "dtype": (lambda c: torch.zeros(4, 7, dtype=torch.int32), TypeError, r"copies\[1\] has dtype torch.int32"),
    "number": (lambda c: 1.0, TypeError, r"copies\[1\] must be a tensor"),
    "parameter": (lambda c: c["params"][1], gdm.OverlapError, r"copies\[1\].*share memory"),
    "state": (lambda c: c["exp_avgs"][1], gdm.OverlapError, r"copies\[1\].*share memory"),
    "gradient": (lambda c: c["grads"][1], gdm.OverlapError, r"copies\[1\].*share memory"),
}


@BACKENDS
@pytest.mark.parametrize("what", BAD_COPIES)
def test_bad_copies_are_refused(what, backend_name):
    gdm.set_backend(backend_name)
    make, error, message = BAD_COPIES[what]
    call = Call("Adam", FULL["Adam"])
    call.set_grads(0)
    copies = [None] * 5
    copies[1] = make(call.lists)
    refused(call, error, message, copies=copies)
    refused(call, ValueError, "copies must have as many items as params, 5, got 1", copies=copies[:1])


@BACKENDS
@every_class
def test_what_is_no_list_is_refused(name, backend_name):
    gdm.set_backend(backend_name)
    for key in Call(name, FULL[name]).lists:
        for bad, kind in ((torch.ones(5), "Tensor"), (None, "NoneType"), (1.0, "float"), ("abc", "str")):
            call = Call(name, FULL[name])
            call.set_grads(0)
            error = ValueError if bad is None and key not in ("params", "grads") else TypeError
            refused(call, error, f"{key} (must be a list of tensors, not {kind}|are needed)", **{key: bad})


def test_an_optional_list_in_the_wrong_place_is_named():
    p, g, m, v = ([torch.ones(3)] for _ in range(4))
    with pytest.raises(TypeError, match="max_exp_avg_sqs must be a list of tensors, not float"):
        functional.adamw(p, g, m, v, 1, 0.1)
    with pytest.raises(TypeError, match="momentum_buffers must be a list of tensors, not float"):
        functional.sgd(p, g, 0.1, lr=0.1)
    assert p[0].tolist() == [1.0] * 3
