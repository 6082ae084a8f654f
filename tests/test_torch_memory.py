"""Memory that moves, is freed, or gets another dtype between the steps of gdm.torch's optimizers, or during one."""

from __future__ import annotations

import gc
import weakref

import pytest

import gdm
from support import python
from torch_cases import FULL, Twins, assert_same_tensors, every_class, everything, parameters, torch

from gdm.torch import tensors  # isort: skip


@pytest.fixture(params=["libtorch", "dlpack", "versions by PyTorch"])
def read_by(request, monkeypatch):
    """How tensors are read, and their versions counted."""
    if request.param == "versions by PyTorch":
        monkeypatch.setattr(tensors, "_versions", lambda offset: (0, 0))
    tensors.connect(use_libtorch=request.param != "dlpack")
    yield request.param
    monkeypatch.undo()
    tensors.connect()


def left_to_torch(optimizer, monkeypatch):
    """The indices of the parameters that PyTorch updates from now on, a list for each step that has any."""
    found = []
    step_by_torch = optimizer._step_by_torch
    monkeypatch.setattr(optimizer, "_step_by_torch", lambda indices: (found.append(indices), step_by_torch(indices)))
    return found


def sgd(params, **options):
    return gdm.torch.SGD(params, **{"lr": 0.5, **options})


def parameter(n, value=0.0, dtype=torch.float32):
    return torch.nn.Parameter(torch.full((n,), value, dtype=dtype))


# ---- another dtype at the same address ----


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["f16", "f32"])
@pytest.mark.parametrize("grads", ["of the old dtype", "of the new dtype"])
def test_a_parameter_gets_another_dtype_at_the_same_address(dtype, grads, read_by):
    twins = Twins("SGD", [parameter(64, dtype=torch.float64)], {"lr": 0.5})
    twins.steps(range(3))
    for optimizer, (param,) in twins.both():
        memory = param.data.view(dtype)
        memory[64:] = 7
        param.data = memory[:64]
        param.data.fill_(1)
        param.grad = None
        param.grad = torch.ones(64, dtype=dtype if grads == "of the new dtype" else torch.float64).to(param.dtype)
        if grads == "of the old dtype":
            param.grad = param.grad.to(dtype)
        optimizer.step()
        optimizer.step()
        assert bool((memory[64:] == 7).all())
        assert bool((param == 0).all())


def test_a_state_gets_another_dtype_at_the_same_address(read_by):
    """Nothing is written beyond it. A step can use the narrower state, other than PyTorch's."""
    twins = Twins("Adam", [parameter(64, dtype=torch.float64)])
    twins.steps(range(3))
    for optimizer, (param,) in twins.both():
        state = optimizer.state[param]
        memory = state["exp_avg"].data.view(torch.float32)
        memory[64:] = 7
        state["exp_avg"].data = memory[:64]
        if optimizer is twins.ours:
            optimizer.step()
            assert state["exp_avg"].dtype == torch.float32
        else:
            with pytest.raises(RuntimeError, match="dtype"):
                optimizer.step()
        assert bool((memory[64:] == 7).all())


@pytest.mark.parametrize("key", ["step", "mu_product"])
def test_a_number_gets_another_dtype_at_the_same_address(key, read_by):
    twins = Twins("NAdam", [parameter(5)])
    for optimizer, (param,) in twins.both():
        param.grad = torch.ones(5)
        optimizer.step()
        memory = torch.zeros(2)
        memory[0] = optimizer.state[param][key].item()
        optimizer.state[param][key].data = memory[0]
        optimizer.step()
        optimizer.step()
        memory.view(torch.float64)[0] = optimizer.state[param][key].item() / 2 if key == "mu_product" else 70.0
        optimizer.state[param][key].data = memory.view(torch.float64)[0]
        optimizer.step()
        optimizer.step()
    assert twins.ours.state[twins.params[0]][key].dtype == torch.float64
    twins.assert_close(tolerance=1e-6)  # what was a float32 has been rounded


def test_a_number_gets_an_axis_at_the_same_address(read_by):
    (param,) = [parameter(5)]
    optimizer = gdm.torch.AdamW([param])
    memory = torch.zeros(3)
    param.grad = torch.ones(5)
    optimizer.step()
    optimizer.state[param]["step"].data = memory[0]
    optimizer.step()
    optimizer.state[param]["step"].data = memory
    with pytest.raises(RuntimeError, match=r"Boolean value|scalar|elements"):  # PyTorch's
        optimizer.step()


# ---- parameters without a gradient ----


def test_memory_that_a_parameter_without_a_gradient_has_left_is_free(read_by, monkeypatch):
    """A gradient may lie there."""
    for name in ("SGD", "Adam"):
        absent, param = parameter(30_000), parameter(30_000)
        optimizer = getattr(gdm.torch, name)([absent, param], **{**FULL[name], "lr": 0.5})
        for _ in range(2):
            absent.grad, param.grad = torch.ones(30_000), torch.ones(30_000)
            optimizer.step()
        old, absent.grad = absent.data, None
        states = [x for x in optimizer.state[absent].values() if x.numel() > 1]
        for where in (absent, *states):
            old = where.data
            where.data = where.data.clone()
            param.grad = old
            found = left_to_torch(optimizer, monkeypatch)
            optimizer.step()
            assert found == []


def test_a_parameter_without_a_gradient_may_become_what_gdm_cannot_update(read_by):
    twins = Twins("SGD", [parameter(64, 1.0), parameter(3)], FULL["SGD"])
    twins.steps(range(2))
    for _, (first, _) in twins.both():
        first.grad = None
        first.data = first.data.to(torch.float16)
    twins.steps(range(2, 4), absent=lambda step, i: i == 0)
    for _, (first, _) in twins.both():
        first.data = first.data.to(torch.float32)
    twins.steps(range(4, 6))


def test_a_gradient_overlaps_memory_to_which_its_parameter_moves_in_the_same_step(read_by, monkeypatch):
    param, other = parameter(50), parameter(50)
    optimizer = sgd([other, param])
    for _ in range(2):
        param.grad, other.grad = torch.ones(50), torch.ones(50)
        optimizer.step()
    found = left_to_torch(optimizer, monkeypatch)
    memory = torch.arange(51.0)
    param.data, param.grad = memory[1:], memory[:-1]
    before = everything(optimizer)
    with pytest.raises(RuntimeError, match="single memory location"):  # PyTorch's
        optimizer.step()
    assert found == [[1]]
    assert_same_tensors(everything(optimizer), before)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_distributed_parameter_gets_another_local_tensor(name):
    """Nothing is written into the old one."""
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
        optimizer.step()
        optimizer.step()
        old, param._local_tensor = param._local_tensor, torch.zeros(3)
        before = old.clone()
        optimizer.step()
        print(torch.equal(old, before), bool((param._local_tensor < 0).all()))
        """
    )
    assert told.split() == ["True", "True"]


@pytest.mark.parametrize(("name", "adapt"), [("LARS", True), ("LAMB", True), ("LARS", False), ("LAMB", False)])
def test_a_trust_ratio_of_a_distributed_parameter_is_left_to_pytorch(name, adapt):
    """gdm would see a part of it only, and the ratio needs the norm of the whole."""
    told = python(
        f"""
        import torch, torch.distributed, gdm
        from gdm.torch.arrange import Arrangement
        from torch.distributed.tensor import DTensor, Shard, init_device_mesh
        from torch.testing._internal.distributed.fake_pg import FakeStore

        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        mesh = init_device_mesh("cpu", (2,))
        param, grad = (DTensor.from_local(torch.ones(3), mesh, [Shard(0)], run_check=False) for _ in range(2))
        param, plain = torch.nn.Parameter(param), torch.nn.Parameter(torch.ones(3))
        optimizer = gdm.torch.{name}([param, plain], adapt={adapt})
        param.grad, plain.grad = grad, torch.ones(3)
        print(*(slot.local is not None for slot in Arrangement(optimizer).slots))
        """
    )
    assert told.split() == [str(not adapt), "True"]


# ---- gradients that are copied, or made by each access ----


def test_a_gradient_is_copied_once_in_a_step(monkeypatch):
    """Also where PyTorch updates another parameter in between: a second copy may lie elsewhere."""
    params = parameters(torch.float32, shapes=[(4, 6), (5, 2), (3,)])
    optimizer = sgd(params)
    copied = []
    usable_grad = optimizer._usable_grad

    def note(param, local, grad):
        copied.append([param is x for x in params].index(True))
        return usable_grad(param, local, grad)

    monkeypatch.setattr(optimizer, "_usable_grad", note)
    for _ in range(3):
        params[0].grad = torch.ones(6, 4).t()
        params[1].grad = torch.ones(5, 2).to_sparse()
        params[2].grad = torch.ones(1).expand(3)
        expected = [x.detach() - 0.5 for x in params]
        copied.clear()
        optimizer.step()
        assert sorted(copied) == [0, 1, 2]
        assert_same_tensors(params, expected)


@every_class
def test_a_property_of_a_subclass_may_make_each_gradient(name, read_by):
    """Nobody else has it, so the step must keep it as long as it needs it. Megatron's parameters have such ones."""

    class Made(torch.nn.Parameter):
        made = 0.0

        @property
        def grad(self):
            return self.made * torch.ones(1000)

        @grad.setter
        def grad(self, value):
            pass

    params, others = [Made(torch.zeros(1000)) for _ in range(20)], [parameter(1000) for _ in range(20)]
    optimizers = [getattr(gdm.torch, name)(x, lr=1.0) for x in (params, others)]
    for step in range(3):
        for i, (param, other) in enumerate(zip(params, others, strict=True)):
            param.made = float(1 + i + step)
            other.grad = torch.full((1000,), param.made)
        for optimizer in optimizers:
            optimizer.step()
    for param, other in zip(params, others, strict=True):
        assert bool((param == other).all())


def test_a_parameter_gets_another_class_between_steps():
    """As lazy ones do. A property of the new class may make each gradient."""

    class Made(torch.nn.Parameter):
        @property
        def grad(self):
            return torch.full((1000,), 2.0)

    params = [parameter(1000) for _ in range(20)]
    optimizer = sgd(params)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones(1000)
        optimizer.step()
    for param in params:
        param.__class__ = Made
    optimizer.step()
    assert all(bool((param == -2.0).all()) for param in params)


# ---- other code during a step ----


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_the_garbage_collector_may_free_gradients_during_a_step(name, read_by):
    """CPython 3.11 collects where an object is made, and then calls finalizers and callbacks."""
    params = [parameter(3000) for _ in range(5)]
    optimizer = getattr(gdm.torch, name)(params, lr=1.0, weight_decay=0.0)
    for _ in range(3):
        for param in params:
            param.grad = torch.ones(3000)
        optimizer.step()
    freed, junk = [], []

    def free(phase, info):
        for i, param in enumerate(params):
            if param.grad is not None:
                param.grad = None
                freed.append(i)
                junk.append(torch.full((3000,), -777.0))

    before, thresholds = [param.detach().clone() for param in params], gc.get_threshold()
    gc.callbacks.append(free)
    try:
        gc.set_threshold(1, 1, 1)
        optimizer._engine.step(optimizer, 0, 1.0)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(free)
    for param, old in zip(params, before, strict=True):
        moved = (param - old).unique()
        assert len(moved) == 1
        assert -1.001 < moved.item() <= 0.0  # of the gradient that was there, or of none


def test_old_states_are_freed_when_others_are_loaded():
    (param,) = [parameter(1000)]
    optimizer = gdm.torch.AdamW([param])
    param.grad = torch.ones(1000)
    optimizer.step()
    state = {"state": {0: {k: x.clone() for k, x in optimizer.state[param].items()}}}
    state["param_groups"] = optimizer.state_dict()["param_groups"]
    old = weakref.ref(optimizer.state[param]["exp_avg"])
    optimizer.load_state_dict(state)
    gc.collect()
    assert old() is None
    optimizer.step()


@pytest.mark.parametrize("name", ["SGD", "Lion"])
def test_a_state_is_renamed(name):
    """It is another state then."""
    options = {"momentum": 0.9} if name == "SGD" else {}
    twins = Twins(name, parameters(torch.float32, shapes=[(5,)]), options)
    twins.steps(range(2))
    for optimizer, (param,) in twins.both():
        state = optimizer.state[param]
        (key,) = state
        state["own"] = state.pop(key)
    twins.steps(range(2, 4))


# ---- what cannot be undone ----


def breaking(optimizer, what):
    """Lets the step of PyTorch's be followed by other code, as that of a tensor's subclass may be."""
    step_by_torch = optimizer._step_by_torch

    def step(indices):
        step_by_torch(indices)
        what()

    optimizer._step_by_torch = step


@pytest.mark.parametrize("begun", [False, True])
def test_what_changes_while_pytorch_makes_its_part_of_a_step_is_named(begun):
    params = [*parameters(torch.float32, shapes=[(6,)]), *parameters(torch.complex64, shapes=[(3,)])]
    optimizer = gdm.torch.Adam([("weight", params[0]), ("phase", params[1])], lr=0.5)
    for param in params:
        param.grad = torch.ones_like(param)
    if begun:
        optimizer.step()
        optimizer.step()

    def change():
        params[0].data = torch.zeros(7)

    breaking(optimizer, change)
    with pytest.raises(RuntimeError, match=r"params'\]\[0\] \('weight'\)"):
        optimizer.step()
    assert optimizer.state[params[1]]["step"] == (3 if begun else 1)  # PyTorch has updated this one
    assert not begun or optimizer.state[params[0]]["step"] == 2


def test_what_moves_while_pytorch_makes_its_part_of_a_step_is_found():
    params = [*parameters(torch.float32, shapes=[(6,)]), *parameters(torch.complex64, shapes=[(3,)])]
    optimizer = sgd(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    kept = []

    def move():
        kept.append(params[0].data)
        params[0].data = torch.zeros(6)
        params[0].grad = None

    breaking(optimizer, move)
    optimizer.step()
    assert params[0].tolist() == [-0.5] * 6


@pytest.mark.parametrize("name", ["Adam", "Adagrad", "Lion", "Signum"])
def test_pytorch_refuses_before_it_writes(name):
    """Also where it updates several groups one after the other, and refuses a gradient of a later one."""
    first, second = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64)), parameter(4)
    dense = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    if name in ("Lion", "Signum"):
        first = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    for groups in ([[first], [dense, second]], [[first, dense, second]]):
        optimizer = getattr(gdm.torch, name)([{"params": x} for x in groups], lr=0.5, weight_decay=0.1)
        for param in (first, dense):
            param.grad = torch.ones_like(param)
        second.grad = torch.ones(4).to_sparse()
        before = everything(optimizer)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="sparse"):
                optimizer.step()
        assert_same_tensors(everything(optimizer), before)
