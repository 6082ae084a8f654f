"""Bugs of PyTorch's fused optimizers on the CPU: what it computes, and what is right, which gdm.torch computes.

Right is what PyTorch's for-loop gives, or the formula in exact arithmetic. Where a test of PyTorch's result fails one
day, a bug is gone, and its test may go.
"""

from __future__ import annotations

import warnings

import pytest

import gdm
from torch_cases import FUSED, TOLERANCE, assert_close, clones, every_dtype, give_gradients, tensor, torch

SGD_AND_MOMENTUM = [{}, {"momentum": 0.5}, {"momentum": 0.5, "nesterov": True, "weight_decay": 0.25}]
LONG = 1000  # elements: longer than any vector


def stepped(library, name: str, param, grads, **options):
    """A parameter after a step with each of these gradients."""
    (param,) = clones([param])
    optimizer = getattr(library, name)([param], lr=0.25, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        for grad in grads:
            param.grad = grad
            optimizer.step()
    return param.detach()


def three_results(name: str, param, grads, **options):
    """By gdm.torch, by torch's fused implementation, by torch's for-loop."""
    ours = [stepped(gdm.torch, name, param, grads, **options, fused=fused) for fused in (None, True)]
    assert torch.equal(*ours)
    fused = stepped(torch.optim, name, param, grads, **options, fused=True)
    return ours[0], fused, stepped(torch.optim, name, param, grads, **options, foreach=False, fused=False)


def far(x, y) -> bool:
    """Not the same up to rounding."""
    difference = (x.double() - y.double()).abs().nan_to_num(torch.inf).max().item()
    return difference > 100 * TOLERANCE[x.dtype] * y.double().abs().max().item()


# ---- bfloat16 and float16 ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("options", SGD_AND_MOMENTUM, ids=["sgd", "momentum", "nesterov"])
def test_fused_sgd_leaves_out_whole_vectors_of_narrow_parameters(options, dtype):
    """Only what is left after the last whole vector is updated. Here every element is to go down from 1."""
    param, grad = torch.ones(LONG, dtype=dtype), torch.ones(LONG, dtype=dtype)
    ours, fused, right = three_results("SGD", param, [grad], **options)
    assert int((fused == 1).sum()) > 0.9 * LONG
    assert_close(ours, right)
    assert bool((ours < 0.8).all())
    if not options:
        assert bool((ours == 0.75).all())  # 1 - 0.25 * 1, exactly


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_narrow_parameters_shorter_than_a_vector_are_right_in_both(dtype):
    param, grad = torch.ones(5, dtype=dtype), torch.ones(5, dtype=dtype)
    for x in three_results("SGD", param, [grad]):
        assert bool((x == 0.75).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("n", [1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129])
def test_narrow_parameters_of_every_length_are_updated(n, dtype):
    param, grads = tensor((n,), 0, dtype), [tensor((n,), k, dtype) for k in (1, 2)]
    for options in SGD_AND_MOMENTUM:
        wanted = stepped(torch.optim, "SGD", param, grads, **options, foreach=False)
        assert_close(stepped(gdm.torch, "SGD", param, grads, **options), wanted)


# ---- parameters and gradients whose elements lie in memory in different orders ----

TRANSPOSED = {
    "parameter": lambda x, y: (x.t(), y.t().contiguous()),
    "gradient": lambda x, y: (x, y.t().contiguous().t()),
    "channels_last": lambda x, y: (
        x.view(2, 3, 2, 5).contiguous(memory_format=torch.channels_last),
        y.view(2, 3, 2, 5),
    ),
    "channels_last gradient": lambda x, y: (
        x.view(2, 3, 2, 5),
        y.view(2, 3, 2, 5).contiguous(memory_format=torch.channels_last),
    ),
}


@every_dtype
@pytest.mark.parametrize("how", TRANSPOSED)
@pytest.mark.parametrize("name", FUSED)
def test_fused_pairs_the_wrong_elements_of_other_orders(name, how, dtype):
    """It walks through parameter and gradient as they lie in memory."""
    param, grad = TRANSPOSED[how](tensor((6, 10), 0, dtype), tensor((6, 10), 1, dtype))
    assert param.stride() != grad.stride()
    ours, fused, right = three_results(name, param, [grad])
    assert far(fused, right)
    assert_close(ours, right)
    if name == "SGD":
        as_it_lies = param.as_strided((60,), (1,)) - 0.25 * grad.as_strided((60,), (1,))
        assert_close(fused.as_strided((60,), (1,)), as_it_lies)
        exact = param.double() - 0.25 * grad.double()
        assert_close(ours.double(), exact, tolerance=TOLERANCE[dtype])


@every_dtype
@pytest.mark.parametrize("how", TRANSPOSED)
@pytest.mark.parametrize("name", FUSED)
def test_over_several_steps_the_states_are_right_too(name, how, dtype):
    pairs = [TRANSPOSED[how](tensor((6, 10), 0, dtype), tensor((6, 10), k, dtype)) for k in range(1, 5)]
    options = {"momentum": 0.5, "weight_decay": 0.1} if name == "SGD" else {"weight_decay": 0.1}
    ours, fused, right = three_results(name, pairs[0][0], [grad for _, grad in pairs], **options)
    assert far(fused, right)
    assert_close(ours, right)


@every_dtype
@pytest.mark.parametrize("name", FUSED)
def test_where_all_are_transposed_alike_both_are_right(name, dtype):
    param, grad = tensor((6, 10), 0, dtype).t(), tensor((6, 10), 1, dtype).t()
    ours, fused, right = three_results(name, param, [grad])
    assert_close(fused, right)
    assert_close(ours, right)


# ---- gradients of which several elements are the same memory, or that have gaps ----


def memory(dtype):
    """A gradient may be a view into it. So where fused reads too far, it reads this."""
    return tensor((200,), 1, dtype)


VIEWS = {
    "rows": lambda m: m[:10].expand(6, 10),
    "columns": lambda m: m[:6, None].expand(6, 10),
    "one number": lambda m: m[:1].expand(6, 10),
    "every other": lambda m: m[:120:2].view(6, 10),
    "every other row": lambda m: m[:120].view(12, 10)[::2],
}


@every_dtype
@pytest.mark.parametrize("how", VIEWS)
@pytest.mark.parametrize("name", FUSED)
def test_fused_reads_past_expanded_and_strided_gradients(name, how, dtype):
    """It takes as many elements from where the gradient begins, whatever they are."""
    param, whole = tensor((6, 10), 0, dtype), memory(dtype)
    grad = VIEWS[how](whole)
    ours, fused, right = three_results(name, param, [grad])
    assert far(fused, right)
    assert_close(fused, stepped(torch.optim, name, param, [whole[:60].view(6, 10)], foreach=False))
    assert_close(ours, right)
    if name == "SGD":
        assert_close(ours.double(), param.double() - 0.25 * grad.double(), tolerance=TOLERANCE[dtype])


@every_dtype
@pytest.mark.parametrize("name", FUSED)
def test_the_gradient_of_a_sum_is_expanded(name, dtype):
    """So it is no rare case: autograd makes such a gradient for a parameter whose sum is the loss."""
    results = []
    for library, flags in ((gdm.torch, {}), (torch.optim, {"foreach": False})):
        param = tensor((6, 10), 0, dtype).requires_grad_()
        param.grad = torch.autograd.grad(param.sum(), param)[0]
        assert param.grad.stride() == (0, 0)
        getattr(library, name)([param], lr=0.25, **flags).step()
        results.append(param.detach())
    assert_close(*results)


# ---- a momentum buffer that is made later than its neighbours' ----


@every_dtype
@pytest.mark.parametrize("options", [{}, {"dampening": 0.5}, {"nesterov": True}], ids=["plain", "dampening", "nesterov"])
def test_fused_sgd_fails_where_a_first_gradient_arrives_late(options, dtype):
    """It knows one flag for all parameters: that this is the first step of all of them."""

    def steps(library, **flags):
        params = [torch.ones(3, dtype=dtype) for _ in range(3)]
        optimizer = getattr(library, "SGD")(params, lr=0.25, momentum=0.5, **options, **flags)
        for step in range(4):
            give_gradients(step, params, absent=lambda step, i: i == 1 and step < 2)
            optimizer.step()
        return params, [optimizer.state[p]["momentum_buffer"] for p in params]

    with pytest.raises(TypeError, match="expected Tensor as element 1 in argument 2, but got NoneType"):
        steps(torch.optim, fused=True)
    wanted = steps(torch.optim, foreach=False)
    for flags in ({}, {"fused": True}):
        for mine, theirs in zip(steps(gdm.torch, **flags), wanted, strict=True):
            for x, y in zip(mine, theirs, strict=True):
                assert_close(x, y)


def test_a_late_momentum_buffer_by_hand():
    """p = 1; v = g = 2; p = 1 - 0.25 * 2; v = 0.5 * 2 + (1 - 0.5) * 2; p = 0.5 - 0.25 * 2."""
    early, late = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    optimizer = gdm.torch.SGD([early, late], lr=0.25, momentum=0.5, dampening=0.5, fused=True)
    for step in range(4):
        early.grad = torch.full((3,), 2.0, dtype=torch.float64)
        late.grad = early.grad.clone() if step >= 2 else None
        optimizer.step()
    assert late.tolist() == [0.0] * 3
    assert optimizer.state[late]["momentum_buffer"].tolist() == [2.0] * 3
    assert early.tolist() == [-1.0] * 3
