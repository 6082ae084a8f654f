"""The same bits: gdm.torch's optimizers by the compiled module, by the reference, and gdm's classes on NumPy arrays."""

from __future__ import annotations

import numpy as np
import pytest

import gdm
from torch_cases import (
    DTYPES,
    FULL,
    OPTIONS,
    SCALARS,
    assert_same_tensors,
    clones,
    come_and_go,
    every_case,
    every_class,
    every_dtype,
    flat_state,
    give_gradients,
    parameters,
    tensor,
    torch,
)

pytestmark = pytest.mark.usefixtures("float64_by_default")
STEPS = 5
# What torch calls states, and gdm.
NAMES = {
    ("SGD", "momentum_buffer"): "velocity",
    ("Adagrad", "sum"): "state_sum",
    ("LARS", "momentum_buffer"): "velocity",
}
SHAPES = [(257,), (3, 5), (), (33, 31)]


def path(name, params, options, *, absent=lambda step, i: False, threads=None):
    """Parameters and states after some steps."""
    optimizer = getattr(gdm.torch, name)(params, lr=0.013, threads=threads, **options)
    for step in range(STEPS):
        give_gradients(step, params, absent=absent)
        optimizer.step()
    return [*params, *flat_state(optimizer)]


@pytest.mark.parametrize("absent", [lambda step, i: False, come_and_go], ids=["all", "come and go"])
@every_dtype
@every_case
def test_native_and_reference_give_the_same_bits(name, options, dtype, absent):
    results = []
    for backend in ("native", "reference"):
        gdm.set_backend(backend)
        results.append(path(name, parameters(dtype, SHAPES), options, absent=absent))
    assert_same_tensors(*results)


@every_dtype
@every_class
def test_they_give_the_same_bits_in_torchs_usual_default_dtype(name, dtype):
    """In which NAdam's product and the counts are float32."""
    torch.set_default_dtype(torch.float32)
    results = []
    for backend in ("native", "reference"):
        gdm.set_backend(backend)
        results.append(path(name, parameters(dtype, SHAPES), FULL[name]))
    assert_same_tensors(*results)


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "strided"])
@every_class
def test_they_give_the_same_bits_for_every_layout(name, layout):
    make = {
        "transposed": lambda: tensor((5, 7), 0).t(),
        "channels_last": lambda: tensor((2, 3, 4, 5), 0).to(memory_format=torch.channels_last),
        "strided": lambda: tensor((12, 5), 0)[::2],
    }[layout]
    results = []
    for backend in ("native", "reference"):
        gdm.set_backend(backend)
        results.append(path(name, [make()], FULL[name]))
    assert_same_tensors(*results)


@every_dtype
@every_class
def test_a_change_of_the_backend_between_steps_does_not_matter(name, dtype):
    results = []
    for change in (False, True):
        params = parameters(dtype, SHAPES)
        optimizer = getattr(gdm.torch, name)(params, lr=0.013, **FULL[name])
        for step in range(6):
            gdm.set_backend("reference" if change and step % 2 else "native")
            give_gradients(step, params)
            optimizer.step()
        results.append([*params, *flat_state(optimizer)])
    assert_same_tensors(*results)


def numpy_path(name, tensors, options, *, absent=lambda step, i: False):
    """The same steps by gdm's class, on copies: parameters, and states by name."""
    arrays = [x.detach().numpy().copy() for x in tensors]
    optimizer = getattr(gdm, name)(arrays, lr=0.013, **options)
    others = clones(tensors)
    for step in range(STEPS):
        give_gradients(step, others, absent=absent)
        optimizer.step([None if p.grad is None else p.grad.numpy() for p in others])
    return arrays, optimizer


@pytest.mark.parametrize("absent", [lambda step, i: False, come_and_go], ids=["all", "come and go"])
@pytest.mark.parametrize("backend", ["native", "reference"])
@every_dtype
@every_case
def test_gdms_class_on_arrays_gives_the_same_bits(name, options, dtype, backend, absent):
    gdm.set_backend(backend)
    start = parameters(dtype, SHAPES)
    arrays, theirs = numpy_path(name, start, options, absent=absent)
    optimizer = getattr(gdm.torch, name)(start, lr=0.013, **options)
    for step in range(STEPS):
        give_gradients(step, start, absent=absent)
        optimizer.step()
    assert_same_tensors(start, [torch.from_numpy(np.asarray(x)) for x in arrays])
    compared = 0
    for i, (p, count) in enumerate(zip(start, theirs.param_steps, strict=True)):
        state = optimizer.state.get(p, {})
        for key, x in state.items():
            if key == "step":
                assert int(x) == count
            elif key in SCALARS:
                entry = theirs.state_dict()["groups"][0]["params"][i]
                assert x.item() == entry["scalars"][key]
            elif count:
                wanted = getattr(theirs, NAMES.get((name, key), key))[i]
                if wanted is None:  # gdm's Signum without momentum has no average
                    assert options["momentum"] == 0
                    continue
                assert_same_tensors([x], [torch.from_numpy(np.asarray(wanted))], f"{key} of parameter {i}")
                compared += 1
    assert compared > 0 or (name in ("SGD", "Signum") and not options.get("momentum"))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_number_of_threads_does_not_matter(threads):
    shapes = [(300_000,), (7,), (100, 1001), ()]
    for name in ("SGD", "AdamW", "NAdam"):
        for dtype in DTYPES.values():
            wanted = path(name, parameters(dtype, shapes), FULL[name], threads=1)
            assert_same_tensors(path(name, parameters(dtype, shapes), FULL[name], threads=threads), wanted)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = path("AdamW", parameters(torch.float32, shapes), FULL["AdamW"])
    finally:
        torch.set_num_threads(before)
    assert_same_tensors(found, path("AdamW", parameters(torch.float32, shapes), FULL["AdamW"], threads=1))


@every_class
def test_every_isa_gives_the_same_bits(isa, name):
    found = path(name, parameters(torch.float32, SHAPES), FULL[name])
    gdm.set_backend("reference")
    assert_same_tensors(found, path(name, parameters(torch.float32, SHAPES), FULL[name]))


@every_class
def test_a_tensor_is_read_by_dlpack_as_by_libtorch(name):
    """Where libtorch's functions are not found."""
    from gdm.torch.tensors import connect

    results = []
    try:
        for use_libtorch in (True, False):
            assert connect(use_libtorch=use_libtorch) == ("libtorch" if use_libtorch else "dlpack")
            params = [*parameters(torch.float32, SHAPES), tensor((4, 6), 0).t(), tensor((9,), 1, torch.bfloat16)]
            results.append(path(name, params, FULL[name], absent=come_and_go))
    finally:
        connect()
    assert_same_tensors(*results)


@every_class
def test_large_parameters_give_the_same_bits(name):
    """Of a size at which several threads work, and the states have blocks of their own."""
    start = parameters(torch.float32, [(500_000,), (100,)])
    arrays, _ = numpy_path(name, start, FULL[name])
    found = path(name, start, FULL[name], threads=2)
    assert_same_tensors(found[:2], [torch.from_numpy(x) for x in arrays])


def test_every_option_of_the_list_is_one_of_both_libraries():
    """So that nothing is compared with defaults that differ."""
    for name, cases in OPTIONS.items():
        for options in cases:
            group = getattr(gdm.torch, name)([torch.ones(1)], **options).param_groups[0]
            theirs = getattr(gdm, name)([np.ones(1)], **options).groups[0]
            for key in group:
                if hasattr(theirs, key) and key not in ("lr", "params"):
                    assert getattr(theirs, key) == group[key], (name, key)
