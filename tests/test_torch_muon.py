"""gdm.torch.Muon: against torch.optim.Muon, with AdamW beside it, and when the orthogonalization fails."""

from __future__ import annotations

import copy
import inspect
import io
from functools import partial

import numpy as np
import pytest

import gdm
from support import assert_same_bits
from torch_cases import (
    assert_close,
    assert_same_tensors,
    clones,
    everything,
    give_gradients,
    parameters,
    torch,
)

from torch.optim import _muon as torchs  # isort: skip
from gdm.torch import muon  # isort: skip

SHAPES = [(7, 3), (4, 9), (6, 6), (1, 5)]
MIXED = [(5,), (7, 3), (), (4, 9)]


def in_float64(matrix, ns_coefficients=(3.4445, -4.775, 2.0315), ns_steps=5, eps=1e-7):
    """PyTorch's orthogonalization, without its rounding to bfloat16."""
    a, b, c = ns_coefficients
    x = matrix.double()
    x = x.T if x.size(0) > x.size(1) else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.size(0) > matrix.size(1) else x


def signs(matrix):
    """Stands for an orthogonalization: its bits are the same everywhere."""
    return matrix.sign() / 4 + matrix / 8


def groups_of(params, **options):
    """The matrices among them for Muon, the others for AdamW, in two groups of which the second has the matrices."""
    return [
        {"params": [p for p in params if p.ndim != 2], "method": "adamw", **options},
        {"params": [p for p in params if p.ndim == 2]},
    ]


# ---- the formula ----


@pytest.mark.parametrize("seed", range(12))
def test_200_steps_are_those_of_torch(seed, monkeypatch):
    """Both of gdm's classes, with random options; all three with the same orthogonalization, in float64."""
    monkeypatch.setattr(torchs, "_zeropower_via_newtonschulz", in_float64)
    rng = np.random.default_rng(seed)
    options = {
        "lr": float(rng.uniform(0.001, 0.1)),
        "momentum": float(rng.choice([0.0, rng.uniform(0, 0.99)])),
        "weight_decay": float(rng.choice([0.0, rng.uniform(0, 0.5)])),
        "nesterov": bool(rng.integers(2)),
        "adjust_lr_fn": [None, "original", "match_rms_adamw"][rng.integers(3)],
        "ns_steps": int(rng.integers(1, 7)),
        "eps": float(rng.choice([1e-7, 10.0])),
    }
    ours, theirs = parameters(shapes=SHAPES), parameters(shapes=SHAPES)
    plain = [p.detach().numpy().copy() for p in ours]
    ns = {"ns_steps": options["ns_steps"], "eps": options["eps"]}
    first = gdm.torch.Muon(ours, **options, orthogonalize=lambda x: in_float64(x, **ns))
    second = torch.optim.Muon(theirs, **options)
    third = gdm.Muon(plain, **options, orthogonalize=lambda x: in_float64(torch.from_numpy(x), **ns).numpy())
    for step in range(200):
        give_gradients(step, ours, theirs)
        first.step()
        second.step()
        third.step([p.grad.numpy() for p in ours])
    for p, q, x in zip(ours, theirs, plain, strict=True):
        assert_close(p, q, tolerance=1e-12)
        assert_close(torch.from_numpy(x), q.detach(), tolerance=1e-12)
        assert_close(first.state[p]["momentum_buffer"], second.state[q]["momentum_buffer"], tolerance=1e-12)
        assert list(first.state[p]) == list(second.state[q]) == ["momentum_buffer"]


@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (40, 5), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None])
@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e30])
def test_singular_values_come_into_the_band(shape, dtype, scale):
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
    matrix = ((left * torch.linspace(0.05, 1, min(shape))) @ right * scale).float()
    before = matrix.clone()
    result = gdm.torch.newton_schulz(matrix, dtype=dtype)
    assert torch.equal(matrix, before)
    assert result.shape == matrix.shape
    values = torch.linalg.svdvals(result.double())
    loose = 0.0 if result.dtype == torch.float32 else 0.06
    assert values.min() > 0.67 - loose
    assert values.max() < 1.21 + loose
    if result.dtype == torch.float32:
        np.testing.assert_allclose(result.numpy(), gdm.newton_schulz(matrix.numpy()), atol=1e-5)


@pytest.mark.parametrize(("side", "dtype"), [(127, torch.float32), (128, torch.bfloat16)])
@pytest.mark.parametrize("turned", [False, True])
def test_large_matrices_are_bfloat16_where_that_is_fast(monkeypatch, side, dtype, turned):
    matrix = torch.randn((side, 200), generator=torch.Generator().manual_seed(0))
    matrix = matrix.T if turned else matrix
    monkeypatch.setattr(muon, "has_fast_bfloat16", lambda: True)
    assert gdm.torch.newton_schulz(matrix).dtype == dtype
    monkeypatch.setattr(muon, "has_fast_bfloat16", lambda: False)
    assert gdm.torch.newton_schulz(matrix).dtype == torch.float32


def test_what_is_no_matrix_of_floats_cannot_be_orthogonalized():
    for wrong, error in ((torch.ones(3), ValueError), (torch.ones(2, 2, dtype=torch.int32), TypeError)):
        with pytest.raises(error, match=r"^matrix must "):
            gdm.torch.newton_schulz(wrong)
    assert not gdm.torch.newton_schulz(torch.zeros(2, 3), eps=0.0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"rounding": "stochastic", "state_dtype": "bfloat16"}])
def test_both_backends_give_the_same_bits(dtype, options):
    """With AdamW beside it, copies, missing gradients, and a matrix whose axes are exchanged."""
    results = []
    for backend in ("native", "reference"):
        gdm.set_backend(backend)
        params = parameters(dtype, MIXED)
        params[3].data = params[3].data.T.contiguous().T
        copies = {p: torch.empty_like(p, dtype=torch.float16) for p in params[:2]}
        optimizer = gdm.torch.Muon(groups_of(params), lr=0.02, orthogonalize=signs, seed=5, **options)
        optimizer.copies = copies
        for step in range(4):
            give_gradients(step, params, absent=lambda step, i: (step + i) % 3 == 0)
            params[3].grad = None if params[3].grad is None else params[3].grad.T.contiguous().T
            optimizer.step()
        results.append([*everything(optimizer), *copies.values()])
    assert_same_tensors(*results)


def test_bits_are_those_of_arrays():
    ours = parameters(torch.float32, MIXED)
    arrays = [p.detach().numpy().copy() for p in ours]
    optimizer = gdm.torch.Muon(groups_of(ours, lr=0.01), lr=0.02, orthogonalize=signs)
    other = gdm.Muon(
        [{"params": [arrays[0], arrays[2]], "method": "adamw", "lr": 0.01}, {"params": [arrays[1], arrays[3]]}],
        lr=0.02,
        orthogonalize=lambda x: signs(torch.from_numpy(x)).numpy(),
    )
    for step in range(5):
        give_gradients(step, ours)
        optimizer.step()
        grads = [p.grad.numpy() for p in ours]
        other.step([[grads[0], grads[2]], [grads[1], grads[3]]])
    for p, x in zip(ours, arrays, strict=True):
        assert_same_bits(p.detach().numpy(), x)


# ---- AdamW in the same optimizer ----


def test_groups_with_adamw_are_adamw():
    """To the bit; in their place among the groups, with PyTorch's defaults."""
    ours = parameters(torch.float32, MIXED)
    twins = clones(ours)
    optimizer = gdm.torch.Muon(groups_of(ours, amsgrad=True), lr=0.02, momentum=0.5, weight_decay=0.3)
    adamw = gdm.torch.AdamW([twins[0], twins[2]], amsgrad=True)
    muon = gdm.torch.Muon([twins[1], twins[3]], lr=0.02, momentum=0.5, weight_decay=0.3)
    for step in range(4):
        give_gradients(step, ours, twins)
        for x in (optimizer, adamw, muon):
            x.step()
    assert_same_tensors(ours, twins)
    first, second = optimizer.param_groups
    assert (first["method"], first["lr"], first["weight_decay"], first["eps"]) == ("adamw", 1e-3, 0.01, 1e-8)
    assert (second["lr"], second["weight_decay"]) == (0.02, 0.3)
    assert "method" not in second
    assert list(optimizer.state[ours[0]]) == ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    first["lr"] = 0.5
    before = ours[0].detach().clone()
    give_gradients(9, ours)
    optimizer.step()
    assert (ours[0] - before).abs().max() > 0.1


def test_a_scheduler_changes_all_groups():
    ours = parameters(torch.float64, MIXED)
    optimizer = gdm.torch.Muon(groups_of(ours, lr=0.1), lr=0.2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    give_gradients(0, ours)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]
    optimizer.step()


# ---- states ----


def test_states_go_to_torch_and_back(monkeypatch):
    monkeypatch.setattr(torchs, "_zeropower_via_newtonschulz", in_float64)
    ours, theirs = parameters(shapes=SHAPES), parameters(shapes=SHAPES)
    first = gdm.torch.Muon(ours, lr=0.05, orthogonalize=in_float64)
    second = torch.optim.Muon(theirs, lr=0.05)
    for step in range(6):
        give_gradients(step, ours, theirs)
        first.step()
        second.step()
        if step == 2:
            mine, other = copy.deepcopy(first.state_dict()), copy.deepcopy(second.state_dict())
            assert mine.keys() == other.keys()
            assert mine["param_groups"] == other["param_groups"]
            first.load_state_dict(other)
            second.load_state_dict(mine)
    for p, q in zip(ours, theirs, strict=True):
        assert_close(p, q, tolerance=1e-12)


@pytest.mark.parametrize("way", [copy.deepcopy, "torch.save"])
def test_a_copy_goes_on_to_the_bit(way):
    params = parameters(torch.float32, MIXED)
    optimizer = gdm.torch.Muon(groups_of(params), lr=0.02, orthogonalize=signs)
    give_gradients(0, params)
    optimizer.step()
    if callable(way):
        others, other = way((params, optimizer))
        assert other.orthogonalize is signs
    else:
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        others = clones(params)
        other = gdm.torch.Muon(groups_of(others), lr=0.5, orthogonalize=signs)
        other.load_state_dict(torch.load(file))
    for step in (1, 2):
        give_gradients(step, params, others)
        optimizer.step()
        other.step()
    assert_same_tensors(params, others)


def test_arrays_take_over_torchs_state_and_give_theirs(monkeypatch):
    """gdm.torch.load_state_dict and to_state_dict."""
    monkeypatch.setattr(torchs, "_zeropower_via_newtonschulz", in_float64)
    theirs = parameters(shapes=SHAPES)
    second = torch.optim.Muon(theirs, lr=0.05, nesterov=False, adjust_lr_fn="match_rms_adamw")
    arrays = [p.detach().numpy().copy() for p in theirs]
    optimizer = gdm.Muon(arrays, orthogonalize=lambda x: in_float64(torch.from_numpy(x)).numpy())
    give_gradients(0, theirs)
    gdm.torch.load_state_dict(optimizer, second.state_dict())  # before the first step
    for step in range(6):
        give_gradients(step, theirs)
        second.step()
        optimizer.step([p.grad.numpy() for p in theirs])
        if step == 2:
            gdm.torch.load_state_dict(optimizer, second.state_dict())
        if step == 3:
            second.load_state_dict(gdm.torch.to_state_dict(optimizer))
    assert (optimizer.lr, optimizer.nesterov, optimizer.adjust_lr_fn) == (0.05, False, "match_rms_adamw")
    for p, x in zip(theirs, arrays, strict=True):
        assert_close(torch.from_numpy(x), p.detach(), tolerance=1e-12)


def test_what_torchs_muon_does_not_have_is_not_converted():
    matrix = np.ones((2, 2))
    with pytest.raises(ValueError, match="group 0 has method='adamw', which torch"):
        gdm.torch.to_state_dict(gdm.Muon([{"params": matrix, "method": "adamw"}]))
    with pytest.raises(ValueError, match="group 0 has maximize"):
        gdm.torch.to_state_dict(gdm.Muon(matrix, maximize=True))


# ---- what is refused ----


def test_signature_is_torchs_and_more():
    ours, theirs = (inspect.signature(x).parameters for x in (gdm.torch.Muon, torch.optim.Muon))
    assert list(ours)[: len(theirs)] == list(theirs)
    assert "orthogonalize" in ours
    assert all(ours[name].default == x.default for name, x in theirs.items())
    assert issubclass(gdm.torch.Muon, torch.optim.Muon)


def test_torchs_own_configurations_and_errors(monkeypatch, float64_by_default):
    """Its list of what an optimizer must do and refuse."""
    pytest.importorskip("expecttest", reason="NOT TESTED: torch's list of optimizers; its module needs expecttest")
    from torch.testing._internal.common_optimizers import optim_db

    monkeypatch.setattr(torchs, "_zeropower_via_newtonschulz", in_float64)
    [info] = [info for info in optim_db if info.optim_cls is torch.optim.Muon]
    cases = info.optim_inputs_func(device="cpu", dtype=torch.float64)
    for case in cases:
        ours, theirs = parameters(shapes=SHAPES), parameters(shapes=SHAPES)
        ns = {name: x for name, x in case.kwargs.items() if name in ("ns_coefficients", "ns_steps", "eps")}
        first = gdm.torch.Muon(ours, **case.kwargs, orthogonalize=partial(in_float64, **ns))
        second = torch.optim.Muon(theirs, **case.kwargs)
        for step in range(8):
            give_gradients(step, ours, theirs, absent=lambda step, i: (step + i) % 4 == 3)
            first.step()
            second.step()
        for p, q in zip(ours, theirs, strict=True):
            assert_close(p, q, case.desc, tolerance=1e-12)
    errors = info.optim_error_inputs_func(device="cpu", dtype=torch.float64)
    for case in errors:
        given = case.optimizer_error_input
        with pytest.raises(case.error_type, match=case.error_regex):
            gdm.torch.Muon(given.params, **given.kwargs).step()
    assert len(cases) > 3
    assert len(errors) > 2


def test_what_is_no_matrix_is_refused_in_torchs_words():
    with pytest.raises(
        ValueError, match=r"Muon only supports 2D parameters .*\[3\]\)\. It is param_groups\[0\]\['params'\]\[1\]"
    ):
        gdm.torch.Muon([torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(3))])
    optimizer = gdm.torch.Muon([torch.nn.Parameter(torch.ones(2, 2))])
    with pytest.raises(ValueError, match="Muon only supports 2D"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="method must be 'muon' or 'adamw', got 'sgd'"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "method": "sgd"})
    with pytest.raises(ValueError, match="Adjust learning rate function other"):
        gdm.torch.Muon([torch.nn.Parameter(torch.ones(2, 2))], adjust_lr_fn="other")
    with pytest.raises(TypeError, match="orthogonalize must be a function or None"):
        gdm.torch.Muon([torch.nn.Parameter(torch.ones(2, 2))], orthogonalize=3)


def test_a_message_names_the_place_where_a_group_was_given():
    """Groups for AdamW are added after the others; that changes no index."""
    matrix, vector, no_memory = (
        torch.nn.Parameter(torch.ones(*shape, device=device))
        for shape, device in (((2, 2), "cpu"), ((3,), "cpu"), ((3,), "meta"))
    )
    others = [{"params": [vector], "method": "adamw"}, {"params": [matrix]}]
    with pytest.raises(ValueError, match=r"2D parameters .* It is param_groups\[2\]\['params'\]\[1\]"):
        gdm.torch.Muon([*others, {"params": [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(3))]}])
    with pytest.raises(ValueError, match=r"^param_groups\[0\]\['params'\]\[0\] is on the device 'meta'"):
        gdm.torch.Muon([{"params": [no_memory], "method": "adamw"}, *others[1:]])
    optimizer = gdm.torch.Muon(others)
    with pytest.raises(ValueError, match=r"^param_groups\[2\]\['params'\]\[0\] is on the device 'meta'"):
        optimizer.add_param_group({"params": [no_memory], "method": "adamw"})


def test_torch_updates_what_gdm_cannot():
    """A matrix with gaps in its memory; not with a function of the user's, and not by AdamW."""
    ours = torch.nn.Parameter(torch.ones(4, 6)[:, ::2])
    theirs = torch.nn.Parameter(torch.ones(4, 3))
    first, second = gdm.torch.Muon([ours], lr=0.1), torch.optim.Muon([theirs], lr=0.1)
    for p in (ours, theirs):
        p.grad = torch.arange(12.0).reshape(4, 3)
    first.step()
    second.step()
    assert_close(ours.detach().clone(), theirs.detach(), tolerance=1e-2)  # torch computes in bfloat16
    first.orthogonalize = signs
    before = everything(first)
    with pytest.raises(RuntimeError, match=r"gdm cannot update param_groups\[0\]\['params'\]\[0\].*no orthogonalize"):
        first.step()
    assert_same_tensors(everything(first), before)
    other = gdm.torch.Muon([{"params": [theirs]}, {"params": [ours], "method": "adamw"}])
    with pytest.raises(RuntimeError, match=r"cannot update param_groups\[1\]\['params'\]\[0\] by AdamW"):
        other.step()


# ---- failures in the middle of a step ----


class Stop(Exception):
    pass


def stop(matrix):
    raise Stop


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (stop, Stop, None),
        (lambda x: x * float("nan"), gdm.NonFiniteError, "NaN or infinite"),
        (lambda x: x[:1], ValueError, "orthogonalize returned shape"),
        (lambda x: None, TypeError, "orthogonalize returned NoneType"),
        (lambda x: x.to(torch.int32), TypeError, "orthogonalize returned dtype torch.int32"),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_nothing_changes_if_the_orthogonalization_fails(backend, wrong, error, message, begun):
    """Not in the second matrix either, and no states are made."""
    params, count = parameters(torch.float32, MIXED), 0

    def sometimes(matrix):
        nonlocal count
        count += 1
        return wrong(matrix) if count == 2 else signs(matrix)

    optimizer = gdm.torch.Muon(groups_of(params), lr=0.02, orthogonalize=signs)
    give_gradients(0, params)
    if begun:
        optimizer.step()
    optimizer.orthogonalize = sometimes
    before, states = everything(optimizer), copy.deepcopy(dict(optimizer.state))
    with pytest.raises(error, match=message):
        optimizer.step()
    assert_same_tensors(everything(optimizer), before)
    assert len(states) == len(optimizer.state)
    optimizer.step()  # the next one succeeds
    assert count == 4


def test_a_gradient_that_is_given_meanwhile_is_prepared_too():
    """The step begins anew: nothing has been written."""
    params, twins = parameters(torch.float32, SHAPES), parameters(torch.float32, SHAPES)
    late = torch.ones_like(params[3])

    def give(matrix):
        params[3].grad = late
        return signs(matrix)

    optimizer, other = gdm.torch.Muon(params, orthogonalize=signs), gdm.torch.Muon(twins, orthogonalize=signs)
    for x, given in ((optimizer, params), (other, twins)):
        give_gradients(0, given)
        x.step()
    give_gradients(1, params, twins)
    params[3].grad, twins[3].grad = None, late.clone()
    optimizer.orthogonalize = give
    optimizer.step()
    other.step()
    assert_same_tensors(params, twins)


def test_a_step_within_a_step_is_refused():
    params = parameters(torch.float32, SHAPES)

    def meddle(matrix):
        optimizer.step()

    optimizer = gdm.torch.Muon(params, orthogonalize=meddle)
    give_gradients(0, params)
    before = everything(optimizer)
    with pytest.raises(RuntimeError, match="already in the middle of a step"):
        optimizer.step()
    assert_same_tensors(everything(optimizer), before)


# ---- one update, without an optimizer ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_function_makes_the_two_passes(backend, dtype):
    params = parameters(dtype, SHAPES)
    twins = clones(params)
    optimizer = gdm.torch.Muon(twins, lr=0.02, orthogonalize=signs, adjust_lr_fn="original")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    buffers = [torch.zeros_like(p) for p in params]
    updates = [torch.zeros_like(p, dtype=wide) for p in params]
    for step in range(3):
        give_gradients(step, params, twins)
        optimizer.step()
        before = [x.detach().clone() for x in (*params, *buffers)]
        grads = [p.grad for p in params]
        with torch.no_grad():
            gdm.torch.functional.muon(params, grads, buffers, updates, lr=0.02, prepare=True)
            assert_same_tensors([*params, *buffers], before)
            for x in updates:
                x.copy_(signs(x) * max(1.0, x.shape[0] / x.shape[1]) ** 0.5)
            gdm.torch.functional.muon(params, grads, buffers, updates, lr=0.02)
    assert_same_tensors(params, twins)
    assert_same_tensors(buffers, [optimizer.state[p]["momentum_buffer"] for p in twins])


def test_the_first_pass_writes_the_updates_and_nothing_else(backend):
    param, grad, buffer, update, copy = (torch.full((2, 2), float(x)) for x in range(1, 6))
    before = [x.clone() for x in (param, grad, buffer, copy)]
    options = {"lr": 0.1, "copies": [copy], "prepare": True}
    gdm.torch.functional.muon([param], [grad], [buffer], [update], **options)
    assert_same_tensors([param, grad, buffer, copy], before)
    assert not update.eq(4).any()
    assert [x._version for x in (param, buffer, copy)] == [0, 0, 0]
    assert update._version == 1


def test_a_muon_without_matrices_is_adamw():
    ours, theirs = clones(parameters(shapes=[(3,)])), clones(parameters(shapes=[(3,)]))
    muon = gdm.torch.Muon([{"params": ours, "method": "adamw", "lr": 0.01}])
    adamw = gdm.torch.AdamW(theirs, lr=0.01)
    assert [len(group["params"]) for group in muon.param_groups] == [1]
    for step in range(3):
        give_gradients(step, ours, theirs)
        muon.step()
        adamw.step()
    assert_same_tensors(ours, theirs)
    with pytest.raises(ValueError, match="empty parameter list"):
        gdm.torch.Muon([])


def test_the_function_refuses_before_it_writes():
    p, g, u = torch.ones(2, 2), torch.ones(2, 2), torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"updates\[0\] has shape"):
        gdm.torch.functional.muon([p], [g], [torch.zeros(2, 2)], [torch.zeros(3)], lr=0.1, prepare=True)
    with pytest.raises(gdm.OverlapError, match="share memory"):
        gdm.torch.functional.muon([p], [g], [u], [u], lr=0.1, prepare=True)
    with pytest.raises(ValueError, match="updates are needed"):
        gdm.torch.functional.muon([p], [g], [u], None, lr=0.1)
    assert not u.any()
    assert p.eq(1).all()
