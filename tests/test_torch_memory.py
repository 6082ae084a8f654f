"""Memory that moves, is freed, or gets another dtype between the steps of gdm.torch's optimizers, or during one."""

from __future__ import annotations

import pytest

import gdm
from torch_cases import Twins, torch

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
    """PyTorch cannot use it either. Nothing is written."""
    twins = Twins("Adam", [parameter(64, dtype=torch.float64)])
    twins.steps(range(3))
    for optimizer, (param,) in twins.both():
        state = optimizer.state[param]
        memory = state["exp_avg"].data.view(torch.float32)
        memory[64:] = 7
        state["exp_avg"].data = memory[:64]
        before = param.detach().clone()
        with pytest.raises(RuntimeError, match="dtype"):
            optimizer.step()
        assert bool((memory[64:] == 7).all())
        assert torch.equal(param, before)


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
    with pytest.raises(RuntimeError, match="Boolean value|scalar|elements"):  # PyTorch's
        optimizer.step()
