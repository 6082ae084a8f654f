"""Schedule-Free in gdm.torch: its modes, its state, and the paths of the package schedulefree."""

from __future__ import annotations

import copy
import io
import re

import numpy as np
import pytest

import gdm
from gdm import _backend
from support import python
from torch_cases import (
    assert_same_tensors,
    everything,
    flat_state,
    give_gradients,
    parameters,
    tensor,
    torch,
)

try:
    import schedulefree
except ImportError:
    schedulefree = None

CLASSES = {"ScheduleFreeSGD": {"lr": 0.1}, "ScheduleFreeAdamW": {"lr": 0.02}}
every_class = pytest.mark.parametrize("name", list(CLASSES))
BACKENDS = pytest.mark.parametrize("backend_name", ["native", "reference"])
needs_package = pytest.mark.skipif(schedulefree is None, reason="NOT TESTED: against schedulefree, which is not here")
IN_EVAL = "^the optimizer is in eval mode, .*call train"


def make(name, params, **options):
    return getattr(gdm.torch, name)(params, **{**CLASSES[name], **options})


def theirs_of(name, params, **options):
    cls = schedulefree.SGDScheduleFree if name == "ScheduleFreeSGD" else schedulefree.AdamWScheduleFree
    return cls(params, **{**CLASSES[name], **options})


def steps(optimizer, params, numbers) -> None:
    for step in numbers:
        give_gradients(step, params)
        optimizer.step()


def random_options(name, rng) -> dict:
    """Options of the package."""
    options = {
        "lr": rng.uniform(0.001, 0.3),
        "weight_decay": rng.choice([0.0, rng.uniform(0, 0.1)]),
        "warmup_steps": int(rng.choice([0, 1, 13, 50])),
        "r": float(rng.choice([0.0, 1.0, rng.uniform(0, 3)])),
        "weight_lr_power": float(rng.choice([2.0, 0.0, rng.uniform(0, 3)])),
    }
    if name == "ScheduleFreeSGD":
        return {**options, "momentum": rng.uniform(0.3, 0.98)}
    return {**options, "betas": (rng.uniform(0.3, 0.98), rng.uniform(0.8, 0.999)), "eps": 10 ** rng.uniform(-10, -3)}


# ---- against the package ----


@needs_package
@pytest.mark.parametrize("seed", range(40))
@every_class
def test_the_path_is_that_of_the_package(name, seed):
    """200 steps in float64 with random options, rates that change by hand, and swaps in between: 1e-12."""
    rng = np.random.default_rng(seed)
    options, start = random_options(name, rng), rng.standard_normal(20)
    curvature, rates = rng.uniform(0.1, 1.0, 20), dict.fromkeys((60, 130), rng.uniform(0.001, 0.3))
    arrays = start.copy()
    tensors = [torch.nn.Parameter(torch.tensor(start)) for _ in range(2)]
    theirs = theirs_of(name, [tensors[0]], foreach=bool(seed % 2), **options)
    ours, own = make(name, [tensors[1]], **options), getattr(gdm, name)(arrays, **options)

    def compare(where) -> None:
        wanted = tensors[0].detach().numpy()
        for found in (tensors[1].detach().numpy(), arrays):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max(), err_msg=where)

    theirs.train()
    for step in range(200):
        noise = rng.standard_normal(20)
        if step in rates:
            theirs.param_groups[0]["lr"] = ours.param_groups[0]["lr"] = own.lr = rates[step]
        if step in (50, 150):
            for change in ("eval", "train"):
                for each in (theirs, ours, own):
                    getattr(each, change)()
                compare(f"{change} before step {step}")
        for x in tensors:
            x.grad = torch.from_numpy(curvature * x.detach().numpy() + noise)
        theirs.step()
        ours.step()
        own.step(curvature * arrays + noise)
        compare(f"step {step}")
    for each in (theirs, ours, own):
        each.eval()
    compare("the average")


@pytest.mark.parametrize("wrong", [0, 2])
def test_a_swap_that_the_core_refuses_is_an_error(monkeypatch, wrong):
    """Which only another thread can cause, that changes a parameter at this moment."""
    params = parameters()
    optimizer = make("ScheduleFreeSGD", params)
    steps(optimizer, params, range(2))
    before = [p.detach().clone() for p in params]
    gdm.set_backend("native")
    monkeypatch.setattr(_backend.native, "swap_tensors", lambda *_: wrong)
    with pytest.raises(RuntimeError, match=rf"params'\]\[{wrong}\] changed while the averages were being put"):
        optimizer.eval()
    assert optimizer.param_groups[0]["train_mode"]
    assert all(map(torch.equal, params, before))


@needs_package
@pytest.mark.parametrize("evaluate", [False, True], ids=["train", "eval"])
@every_class
def test_a_state_of_the_package_goes_on(name, evaluate):
    """In the mode in which it was saved."""
    params = parameters()
    theirs = theirs_of(name, params, warmup_steps=3)
    theirs.train()
    steps(theirs, params, range(6))
    if evaluate:
        theirs.eval()
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours = make(name, others)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert ours.param_groups[0]["train_mode"] is not evaluate
    if evaluate:
        with pytest.raises(RuntimeError, match=IN_EVAL):
            ours.step()
        ours.train()
        theirs.train()
    give_gradients(7, params, others)
    theirs.step()
    ours.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-13)
    assert {float(x["step"]) for x in ours.state.values()} == {7.0}


@needs_package
@every_class
def test_a_program_of_the_package_runs_unchanged(name):
    """It calls train() first, where gdm's optimizers are in train mode already; the options have the same names."""
    paths = []
    for make_one in (theirs_of, make):
        params = parameters()
        optimizer = make_one(name, params, foreach=False, warmup_steps=2)
        optimizer.train()
        steps(optimizer, params, range(3))
        optimizer.eval()
        optimizer.eval()
        paths.append(params)
    for p, q in zip(*paths, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-13)


# ---- the modes ----


@BACKENDS
@every_class
def test_it_makes_no_step_in_eval_mode(name, backend_name):
    gdm.set_backend(backend_name)
    params = parameters()
    optimizer = make(name, params)
    optimizer.train()
    start = [p.detach().clone() for p in params]
    optimizer.eval()
    assert_same_tensors(params, start)  # no step so far
    optimizer.train()
    steps(optimizer, params, range(3))
    versions = [p._version for p in params]
    optimizer.eval()
    assert all(p._version > before for p, before in zip(params, versions, strict=True))
    before = everything(optimizer)
    optimizer.eval()
    for call in (optimizer.step, lambda: optimizer.step(lambda: 1 / 0)):  # the closure is not called
        with pytest.raises(RuntimeError, match=IN_EVAL):
            call()
    assert_same_tensors(everything(optimizer), before)
    optimizer.train()
    steps(optimizer, params, [3])
    assert {float(x["step"]) for x in optimizer.state.values()} == {4.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "float32"])
@every_class
def test_the_bits_are_those_of_the_reference(name, dtype, state_dtype):
    if dtype is torch.float64 and state_dtype is not None:
        state_dtype = torch.float32
    found = []
    for backend in ("native", "reference"):
        gdm.set_backend(backend)
        params = parameters(dtype)
        copies = [torch.zeros(p.shape, dtype=torch.float16) for p in params]
        options = {"state_dtype": state_dtype, "rounding": "stochastic", "copies": copies}
        groups = [{"params": params[:2]}, {"params": params[2:], "betas" if "Adam" in name else "momentum": 0.5}]
        if "Adam" in name:
            groups[1]["betas"] = (0.5, 0.9)
        optimizer = make(name, groups, **options)
        seen = []
        for step in range(3):
            steps(optimizer, params, [step])
            for change in (optimizer.eval, optimizer.train):
                change()
                seen += [x.detach().clone() for x in (*params, *copies)]
                for p, c in zip(params, copies, strict=True):  # of what a narrow parameter is rounded from
                    torch.testing.assert_close(p.detach().to(torch.float16), c, rtol=2**-8, atol=0)
        found.append([*seen, *flat_state(optimizer)])
    assert_same_tensors(*found)


@every_class
def test_the_bits_are_those_of_gdms_class(name):
    params = parameters()
    arrays = [p.detach().numpy().copy() for p in params]
    ours, own = make(name, params), getattr(gdm, name)(arrays, **CLASSES[name])
    for step in range(3):
        give_gradients(step, params)
        own.step([p.grad.numpy() for p in params])
        ours.step()
    for change in ("eval", "train"):
        getattr(ours, change)()
        getattr(own, change)()
        assert_same_tensors([torch.from_numpy(np.asarray(x)) for x in arrays], [p.detach() for p in params])


@BACKENDS
@every_class
def test_what_gdm_cannot_update_swaps_too(name, backend_name):
    """PyTorch's operations do that: with gaps between the elements, or in another order than z; not only those."""
    gdm.set_backend(backend_name)
    wide = tensor((4, 6), 1)
    params = [wide[:, ::2].requires_grad_(), torch.nn.Parameter(tensor((5,), 2))]
    plain = [torch.nn.Parameter(p.detach().clone()) for p in params]
    copies = [torch.zeros(4, 3), None]
    ours, others = make(name, params, copies=copies), make(name, plain)
    beside = wide[:, 1::2].clone()
    for step in range(4):
        give_gradients(step, params, plain)
        ours.step()
        others.step()
    for change in ("eval", "train"):
        getattr(ours, change)()
        getattr(others, change)()
        for p, q in zip(params, plain, strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-12, atol=1e-12)
        assert torch.equal(copies[0], params[0].detach().to(copies[0].dtype))
    assert torch.equal(wide[:, 1::2], beside)


@BACKENDS
@every_class
def test_parameters_that_share_memory_are_refused(name, backend_name):
    gdm.set_backend(backend_name)
    memory = tensor((9,), 1)
    params = [memory[:5].requires_grad_(), torch.nn.Parameter(tensor((5,), 2))]
    optimizer = make(name, params)
    steps(optimizer, params, range(2))
    with torch.no_grad():
        params[1].set_(memory[3:8])
    before = everything(optimizer)
    with pytest.raises(
        gdm.OverlapError, match=re.escape("param_groups[0]['params'][0] and param_groups[0]['params'][1]")
    ):
        optimizer.eval()
    assert optimizer.param_groups[0]["train_mode"]
    assert_same_tensors(everything(optimizer), before)


@every_class
def test_a_swap_waits_for_no_step(name):
    params = parameters()
    optimizer = make(name, params)
    give_gradients(0, params)

    def closure():
        optimizer.eval()  # before the update, when the step has not begun
        return 7.0

    assert optimizer.step(closure) == 7.0
    with pytest.raises(RuntimeError, match="already in the middle"):
        optimizer._lock._exclusively(optimizer.eval)


@every_class
def test_groups_that_are_added_are_in_the_mode_of_the_others(name):
    params, more = parameters(), torch.nn.Parameter(tensor((3,), 9))
    optimizer = make(name, params)
    steps(optimizer, params, range(2))
    optimizer.eval()
    optimizer.add_param_group({"params": [more]})
    assert [group["train_mode"] for group in optimizer.param_groups] == [False, False]
    before = more.detach().clone()
    optimizer.train()
    assert torch.equal(more.detach(), before)
    steps(optimizer, [*params, more], [3])


# ---- state, schedules, models ----


@every_class
def test_the_mode_is_a_part_of_the_state(name):
    params = parameters(torch.float32)
    optimizer = make(name, params)
    steps(optimizer, params, range(3))
    optimizer.eval()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    loaded = make(name, others)
    loaded.load_state_dict(torch.load(file))
    assert {x["weight_sum"].dtype for x in loaded.state.values()} == {torch.float64}
    for each, its in ((optimizer, params), (loaded, others)):
        assert not each.param_groups[0]["train_mode"]
        each.train()
        steps(each, its, range(3, 5))
        each.eval()
    assert_same_tensors(params, others)
    assert_same_tensors(flat_state(optimizer), flat_state(loaded))
    copied = copy.deepcopy(optimizer)
    with pytest.raises(RuntimeError, match=IN_EVAL):
        copied.step()


@every_class
def test_it_follows_a_schedule(name):
    """The weights follow the rates of torch's schedulers."""
    params, others = parameters(), parameters()
    optimizer = make(name, params)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.25, total_iters=5)
    arrays = [p.detach().numpy() for p in others]
    lr = CLASSES[name]["lr"]
    own = getattr(gdm, name)(arrays, lr=lr)
    for step in range(8):
        own.lr = optimizer.param_groups[0]["lr"]
        give_gradients(step, params, others)
        own.step([p.grad.numpy() for p in others])
        optimizer.step()
        scheduler.step()
    optimizer.eval()
    own.eval()
    assert_same_tensors([p.detach() for p in params], [p.detach() for p in others])


@every_class
def test_the_average_beats_the_last_iterate_on_a_noisy_problem(name):
    """What the method is for, at a constant rate."""
    torch.manual_seed(0)
    theta = torch.nn.Parameter(torch.full((50,), 3.0))
    optimizer = make(name, [theta], lr=0.2)
    for _ in range(400):
        theta.grad = theta.detach() + torch.randn(50)
        optimizer.step()
    iterate = optimizer.state[theta]["z"].square().mean()
    optimizer.eval()
    assert theta.detach().square().mean() < 0.2 * iterate


@every_class
def test_wrong_options_are_refused(name):
    params = parameters()
    wrong = [{"warmup_steps": -1}, {"r": -0.5}, {"weight_lr_power": float("nan")}, {"lr": -1.0}]
    wrong += [{"momentum": 0.0}, {"momentum": 1.0}] if "SGD" in name else [{"betas": (0.0, 0.9)}, {"betas": (0.9, 1.0)}]
    for options in wrong:
        with pytest.raises(ValueError, match=r"Invalid|between 0 and 1"):
            make(name, params, **options)


@every_class
def test_a_swap_counts_the_version_of_a_distributed_parameter(name):
    """As a step does: autograd looks at the parameter, not at its local part."""
    told = python(
        f"""
        import torch, torch.distributed, gdm
        from torch.distributed.tensor import DTensor, Shard, init_device_mesh
        from torch.testing._internal.distributed.fake_pg import FakeStore

        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        mesh = init_device_mesh("cpu", (2,))
        param, grad = (DTensor.from_local(torch.ones(3), mesh, [Shard(0)], run_check=False) for _ in range(2))
        param = torch.nn.Parameter(param)
        optimizer = gdm.torch.{name}([param], lr=0.25)
        param.grad = grad
        for backend in ("native", "reference"):
            gdm.set_backend(backend)
            for change in (optimizer.step, optimizer.eval, optimizer.train):
                before = param._version, param._local_tensor._version
                change()
                print(param._version > before[0], param._local_tensor._version > before[1])
        """
    )
    assert told.split() == ["True"] * 12
