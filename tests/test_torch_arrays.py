"""PyTorch's tensors as parameters, gradients and all else that is an array, without a copy."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gdm
from classes import assert_same_training, every_class, four_arrays, gradients
from support import RULES, assert_same_bits, call, expected, full, names, python

torch = pytest.importorskip("torch", reason="NOT TESTED: torch's tensors as arrays; there is no torch here")

N = 8


def parameter(x):
    return torch.nn.Parameter(torch.from_numpy(x))


def floats(*shape, value=1.0):
    return torch.full(shape, value, dtype=torch.float32)


KINDS = {"tensor": torch.from_numpy, "parameter": parameter}
every_kind = pytest.mark.parametrize("wrap", KINDS.values(), ids=KINDS)


# ---- in every place --------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("rule", list(RULES))
def test_every_argument_of_a_function_may_be_a_tensor(backend, rule, wrap):
    good = {name: np.arange(1, N + 1, dtype=np.float32) * (k + 1) for k, name in enumerate(names(rule, full(rule)))}
    wanted = expected(rule, good, full(rule))
    for which in [*([name] for name in good), list(good)]:
        given = {name: wrap(x.copy()) if name in which else x.copy() for name, x in good.items()}
        call(rule, given, full(rule))
        for name, x in given.items():
            assert_same_bits(x.detach().numpy() if name in which else x, wanted[name])


@every_kind
@every_class
def test_an_optimizer_trains_tensors_where_they_are(backend, name, wrap):
    memory, wanted = four_arrays(), four_arrays()
    params = [wrap(x) for x in memory]
    optimizer, other = getattr(gdm, name)(params, lr=0.1), getattr(gdm, name)(wanted, lr=0.1)
    bound = [torch.from_numpy(x) for x in gradients(0)]
    optimizer.bind(bound)
    for step in range(4):
        if step % 2:
            optimizer.step([torch.from_numpy(x) for x in gradients(step)])
        else:
            for x, new in zip(bound, gradients(step), strict=True):
                x.copy_(torch.from_numpy(new))
            optimizer.step()
        other.step(gradients(step))
    assert_same_training(optimizer, other, memory, wanted)


@pytest.mark.parametrize("bound", [False, True])
def test_a_model_is_trained(backend, bound):
    """With the gradients that backward() leaves, bound or given, as by torch.optim."""
    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    theirs = copy.deepcopy(ours)
    unused = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))  # has no gradient
    optimizer = gdm.AdamW([*ours.parameters(), unused], lr=0.01)
    reference = torch.optim.AdamW([*theirs.parameters(), unused], lr=0.01)
    x = torch.randn(16, 4, dtype=torch.float64)
    for step in range(10):
        for model in (ours, theirs):
            model.zero_grad(set_to_none=not bound)
            model(x).square().sum().backward()
        grads = [p.grad for p in [*ours.parameters(), unused]]
        if not bound:
            optimizer.step(grads)
        else:
            if not step:
                optimizer.bind(grads)
            optimizer.step()
        reference.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    assert all(p.requires_grad for p in ours.parameters())
    assert bool((unused == 1).all())


def test_in_every_structure(backend):
    """One tensor, a generator, a mapping, groups; tuples, as torch.autograd.grad gives; NumPy's arrays beside them."""
    model = torch.nn.Linear(2, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gdm.SGD(model.weight, lr=1.0).step(floats(2, 2))
    gdm.SGD(model.parameters(), lr=1.0).step((floats(2, 2), np.ones(2, np.float32)))
    gdm.SGD(dict(model.named_parameters()), lr=1.0).step({"weight": floats(2, 2), "bias": None})
    gdm.SGD([{"params": model.weight}, {"params": [model.bias]}], lr=1.0).step([None, [floats(2)]])
    assert torch.equal(model.weight, before["weight"] - 1 - 1 - 1)
    assert torch.equal(model.bias, before["bias"] - 1 - 1)
    with pytest.raises(TypeError, match=r"^grads must be a sequence like params, not Tensor"):
        gdm.SGD([model.bias]).step(floats(2))
    with pytest.raises(TypeError, match=r"^params must be an array, or a sequence or mapping of arrays, not Linear"):
        gdm.SGD(model)


def test_any_order_in_memory_and_any_shape(backend):
    for param, grad in [
        (floats(4, 3).t(), floats(4, 3).t()),
        (floats(), floats()),
        (floats(0, 3), floats(0, 3)),
        (floats(3, 5)[1:], floats(2, 5)),
        (floats(2, 1, 3, 1).to(memory_format=torch.channels_last), floats(2, 1, 3, 1)),
    ]:
        optimizer = gdm.SGD([param], lr=0.5)
        optimizer.step([grad])
        optimizer.bind([grad])
        optimizer.step()
        assert bool((param == 0).all())


def test_factors_of_the_learning_rate_may_be_tensors(backend):
    """Of any real dtype, as with NumPy's arrays. They are copied."""
    param, scale = floats(3, value=0.0), torch.tensor([0, 1, 2])
    optimizer = gdm.SGD([param], lr=1.0, lr_scale=[scale])
    scale[:] = 9
    optimizer.step([floats(3)])
    assert param.tolist() == [0, -1, -2]
    optimizer.lr_scale = [torch.nn.Parameter(torch.tensor(0.5))]
    optimizer.step([floats(3)])
    assert param.tolist() == [-0.5, -1.5, -2.5]
    with pytest.raises(TypeError, match=r"^lr_scale\[0\] is on the device 'meta'; expected the CPU"):
        gdm.SGD([param], lr_scale=[torch.ones(3, device="meta")])


def test_reductions_read_tensors(backend):
    grads = {"a": [floats(9), None], "b": torch.nn.Parameter(floats(7))}
    assert gdm.grad_norm(grads) == 4.0
    assert gdm.count_nonfinite(torch.tensor([1.0, float("nan"), float("inf")])) == 2


def test_subclasses_are_plain_memory(backend):
    class Named(torch.Tensor):
        pass

    param, grad = floats(3).as_subclass(Named), floats(3).as_subclass(Named)
    gdm.sgd(param, grad, lr=0.5)
    optimizer = gdm.SGD([param], lr=0.25)
    optimizer.step([grad])
    optimizer.bind([grad])
    optimizer.step()
    assert param.tolist() == [0, 0, 0]
    with torch.inference_mode():
        gdm.sgd(floats(3), floats(3), lr=0.5)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_trains_the_parameters_that_were_copied_along(backend, way):
    model = torch.nn.Linear(3, 2).double()
    optimizer = gdm.SGD([{"params": [model.weight]}, {"params": [model.bias]}], lr=0.1, momentum=0.9)
    grads = [[torch.ones(2, 3, dtype=torch.float64)], [torch.ones(2, dtype=torch.float64)]]
    optimizer.step(grads)
    copied_model, copied = way((model, optimizer))
    for each in (optimizer, copied):
        each.step(grads)
    assert torch.equal(copied_model.weight, model.weight)
    assert torch.equal(copied_model.bias, model.bias)
    copied.step(grads)
    assert not torch.equal(copied_model.weight, model.weight)


# ---- what is refused -------------------------------------------------------------------------------------------------


class Wrapper(torch.Tensor):
    """Holds another tensor, and has no memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), keywords=None):
        return function(*(x.inner if isinstance(x, Wrapper) else x for x in args), **(keywords or {}))


def fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return floats(N)


NARROW = {  # the functions take only float32 and float64
    "bfloat16": (
        lambda: floats(N).bfloat16(),
        TypeError,
        r"has dtype torch\.bfloat16; expected float32 or float64",
    ),
    "float16": (lambda: floats(N).half(), TypeError, r"has dtype float16; expected float32 or float64"),
}
BAD = {
    "another device": (lambda: torch.ones(N, device="meta"), TypeError, "is on the device 'meta'; expected the CPU"),
    "complex": (lambda: floats(N) * 1j, TypeError, r"has dtype complex64; expected float"),
    "conjugate": (lambda: (floats(N) * 1j).conj(), TypeError, r"has dtype torch\.complex64; expected float32"),
    "integers": (lambda: torch.ones(N, dtype=torch.int32), TypeError, "has dtype int32; expected float"),
    "sparse": (lambda: floats(N).to_sparse(), TypeError, r"has the layout torch\.sparse_coo; expected a dense"),
    "negative": (lambda: torch._neg_view(floats(N)), ValueError, r"has its negative bit set: .* its \.resolve_neg\(\)"),
    "zero": (lambda: torch._efficientzerotensor((N,)), TypeError, "must be a plain tensor, not Tensor: .*ZeroTensor"),
    "strided": (lambda: floats(2 * N)[::2], ValueError, r"is not contiguous \(shape \(8,\), strides \(8,\) bytes\); "),
    "expanded": (lambda: floats(1).expand(N), ValueError, "is not contiguous"),
    "a wrapper": (lambda: Wrapper(floats(N)), TypeError, "must be a plain tensor, not Wrapper: "),
    "fake": (fake, TypeError, "must be a plain tensor, not FakeTensor: "),
    "functional": (
        lambda: torch._to_functional_tensor(floats(N)),
        TypeError,
        "must be a plain tensor, not Tensor: it has no memory of its own",
    ),
    "uninitialized": (torch.nn.UninitializedParameter, TypeError, "must be a plain tensor, not Uninit"),
}


@pytest.mark.parametrize("what", [*BAD, *NARROW])
def test_bad_tensors_are_refused(backend, what):
    make, error, message = {**BAD, **NARROW}[what]
    bad, param, other = make(), floats(N), floats(3)
    optimizer = gdm.SGD([other, param], momentum=0.9)
    optimizer.step([floats(3), floats(N)])
    before = [param.tolist(), other.tolist(), *(x.tolist() for x in optimizer.velocity)]
    for name, attempt in [
        ("param", lambda: gdm.sgd(bad, floats(N), lr=0.1)),
        ("grad", lambda: gdm.sgd(param, bad, lr=0.1)),
        ("velocity", lambda: gdm.momentum(param, bad, floats(N), lr=0.1)),
        ("lr_scale", lambda: gdm.sgd(param, floats(N), lr=0.1, lr_scale=bad)),
    ]:
        with pytest.raises(error, match=f"^{name} {message}"):
            attempt()
    for name, attempt in [
        (r"params\[1\]", lambda: gdm.SGD([floats(3), bad])),
        (r"params\[0\]\['params'\]", lambda: gdm.SGD([{"params": bad}])),
        (r"grads\[1\]", lambda: optimizer.step([floats(3), bad])),
        (r"grads\[1\]", lambda: optimizer.bind([floats(3), bad])),
        (r"grads\['a'\]", lambda: gdm.grad_norm({"a": bad})),
    ] * (what not in NARROW):
        with pytest.raises(error, match=f"^{name} {message}"):
            attempt()
    assert [param.tolist(), other.tolist(), *(x.tolist() for x in optimizer.velocity)] == before


def test_the_advice_for_strided_tensors(backend):
    with pytest.raises(ValueError, match=r"; pass a contiguous copy, its \.contiguous\(\)$"):
        gdm.sgd(floats(N), floats(2 * N)[::2], lr=0.1)
    with pytest.raises(ValueError, match=r"; if you passed a copy, only the copy would be updated"):
        gdm.SGD(floats(N, N)[:, 1])


def test_shards_are_trained_by_their_local_tensors(backend):
    """As FSDP2 keeps them."""
    told, values = python(
        """
        import torch, torch.distributed, gdm
        from torch.distributed.tensor import DTensor, Shard, init_device_mesh
        from torch.testing._internal.distributed.fake_pg import FakeStore

        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        mesh = init_device_mesh("cpu", (2,))
        param, grad = (DTensor.from_local(torch.ones(3), mesh, [Shard(0)], run_check=False) for _ in range(2))
        param = torch.nn.Parameter(param)
        try:
            gdm.SGD([param])
        except TypeError as error:
            print(error)
        optimizer = gdm.SGD([param.to_local()], lr=0.25)
        optimizer.step([grad.to_local()])
        optimizer.step([grad.to_local()])
        print(param.to_local().tolist())
        """,
        GDM_BACKEND=backend,
    ).splitlines()
    assert told == "params[0] must be a plain tensor, not DTensor; pass its .to_local()"
    assert values == "[0.5, 0.5, 0.5]"


def test_what_torch_vectorises_has_no_memory(backend):
    def attempt(x):
        with pytest.raises(TypeError, match=r"^grads must be a plain tensor, not Tensor: Cannot access data pointer"):
            gdm.grad_norm(x)
        return x

    torch.vmap(attempt)(floats(2, N))


def test_a_parameter_given_twice_is_refused(backend):
    """As shared ones are, if parameters are not taken from a module."""
    p = torch.nn.Parameter(floats(N))
    for params in ([p, p], [p, p.detach()], [p, p.detach()[3:]]):
        with pytest.raises(gdm.OverlapError, match=r"^params\[0\] and params\[1\] share memory"):
            gdm.SGD(params)
    with pytest.raises(gdm.OverlapError, match="share memory"):
        gdm.sgd(p, p.detach(), lr=0.1)


# ---- memory that moves -----------------------------------------------------------------------------------------------


def _other_data(x):
    x.data = x.data.clone()


def _shorter_data(x):
    x.data = x.data[:-1]


def _double_data(x):
    x.data = x.data.double()


def _negative_data(x):
    x.data = torch._neg_view(x.data)


def _swap(x):
    torch.utils.swap_tensors(x, torch.nn.Parameter(floats(*x.shape)))


MOVES = {
    "data": _other_data,
    "shorter data": _shorter_data,
    "another dtype": _double_data,
    "negative bit": _negative_data,
    "set_": lambda x: x.set_(floats(*x.shape)),
    "share_memory_": lambda x: x.share_memory_(),
    "resize_": lambda x: x.resize_(2, 4),
    "t_": lambda x: x.t_(),
    "swap_tensors": _swap,
}


@pytest.mark.parametrize("which", ["param", "grad"])
@pytest.mark.parametrize("change", MOVES)
def test_a_tensor_that_comes_to_mean_other_memory_is_found(backend, which, change):
    """Before a byte of the old memory, which may be gone, or of the new one is written."""
    kind = torch.nn.Parameter if change == "swap_tensors" else lambda x: x
    params, grads = ([kind(floats(3)), kind(floats(4, 4))] for _ in range(2))
    optimizer = gdm.SGD(params, lr=0.5, momentum=0.5)
    optimizer.bind(grads)
    optimizer.step()
    MOVES[change]({"param": params, "grad": grads}[which][1])
    before = [x.detach().clone() for x in params]
    attempts = [optimizer.step]
    if which == "param":
        attempts += [lambda f=f: f([floats(3), floats(4, 4)]) for f in (optimizer.step, optimizer.bind)]
    for attempt in attempts:
        with pytest.raises(gdm.StaleBufferError, match=rf"^{which}s\[1\] has moved, been resized, or changed"):
            attempt()
    for x, y in zip(params, before, strict=True):
        assert torch.equal(x, y)


def test_a_tensor_that_means_the_same_memory_goes_on(backend):
    """By another shape, and after a change and back."""
    param, grad = floats(4, 4), floats(4, 4)
    optimizer = gdm.SGD([param], lr=0.25)
    optimizer.bind([grad])
    for x in (param, grad):
        x.resize_(2, 8)
    optimizer.step()
    data = param.data
    param.data = floats(2, 8)
    with pytest.raises(gdm.StaleBufferError):
        optimizer.step()
    param.data = data
    optimizer.step()
    assert bool((data == 0.5).all())


def test_torch_does_not_free_what_an_optimizer_keeps(backend):
    """PyTorch refuses to resize memory that NumPy sees; and the old memory lives as long as the optimizer."""
    param = torch.nn.Parameter(floats(N))
    optimizer = gdm.SGD([param])
    for free in (lambda: param.data.resize_(1000), lambda: param.untyped_storage().resize_(0)):
        with pytest.raises(RuntimeError, match="not resizable"):
            free()
    optimizer.step([floats(N)])


SHARED_DURING_A_CALL = """
    import numpy as np, torch, gdm

    class Hook:
        def __init__(self, x):
            self.x = x

        def __dlpack__(self, **keywords):
            victim.share_memory_()  # frees its memory
            return self.x.__dlpack__(**keywords)

        def __dlpack_device__(self):
            return 1, 0

    N = 1_000_000  # the memory is given back at once: to read it ends the process
    for attempt in (
        lambda: gdm.momentum(victim, np.zeros(N), Hook(np.ones(N)), lr=0.1),
        lambda: gdm.momentum(np.zeros(N), victim, Hook(np.ones(N)), lr=0.1),
        lambda: gdm.SGD([victim, np.zeros(N)]).step([np.zeros(N), Hook(np.ones(N))]),
        lambda: gdm.SGD([np.zeros(N), np.zeros(N)]).step([victim, Hook(np.ones(N))]),
        lambda: gdm.SGD([np.zeros(N), np.zeros(N)]).bind([victim, Hook(np.ones(N))]),
        lambda: gdm.grad_norm([victim, Hook(np.ones(N))]),
    ):
        victim = torch.zeros(N, dtype=torch.float64)
        try:
            attempt()
        except gdm.StaleBufferError as error:
            print(error)
            assert bool((victim == 0).all())
        else:  # it was looked at again, where it is now
            assert bool((victim == victim[0]).all())
"""


def test_a_tensor_that_is_freed_during_a_call_is_found_out(backend):
    found = python(SHARED_DURING_A_CALL, GDM_BACKEND=backend).splitlines()
    assert all("has moved" in line for line in found)
    assert any(line.startswith("params[0]") for line in found)  # kept, so not looked at again


# ---- hints ----


def test_those_who_use_autograd_are_told_of_gdm_torch(backend):
    for params, hint in (([torch.ones(3, requires_grad=True)], True), ([torch.ones(3)], False), ([np.ones(3)], False)):
        optimizer = gdm.AdamW(params)
        for method in ("step", "zero_grad"):
            with pytest.raises((RuntimeError, AttributeError), match=r"no gradients|zero_grad") as raised:
                getattr(optimizer, method)()
            assert ("use gdm.torch.AdamW" in str(raised.value)) is hint
