"""gdm.Muon: matrices, AdamW for the other parameters, and code of other people's in the middle of a step."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import pickle

import ml_dtypes
import numpy as np
import pytest

import gdm
from gdm._backend import native
from support import assert_same_bits, numbers

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": BF16, "float16": np.float16}
SHAPES = [((30, 50), "C"), ((40, 7), "F"), ((1, 5), "C"), ((6, 1), "C"), ((0, 3), "C"), ((16, 16), "F")]
BACKENDS = ("native", "reference") if native is not None else ("reference",)


def signs(matrix):
    """Stands for an orthogonalization: it needs no matrix products, so its bits are the same everywhere."""
    return np.sign(matrix) / 4 + matrix / 8


def arrays(dtype="float32", seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [np.array(rng.standard_normal(shape), DTYPES[dtype], order=order) for shape, order in shapes]


def everything(optimizer):
    """Copies of all that a step may change."""
    held = [x for state in optimizer.state_dict()["groups"] for p in state["params"] for x in p["state"].values()]
    progress = optimizer._progress()._replace(grad_norm=None), optimizer.last_grad_norm
    return [np.array(x) for x in [*optimizer._snapshot.params, *held]], progress


def assert_unchanged(optimizer, before):
    after = everything(optimizer)
    assert after[1] == before[1]
    for x, y in zip(after[0], before[0], strict=True):
        assert x.tobytes() == y.tobytes()


# ---- the formula ----


def test_class_is_its_function_around_the_orthogonalization(backend):
    """With the factor for the shape, a schedule, a factor for each parameter and one for each element."""
    params, plain = arrays("float64"), arrays("float64")
    scales = [0.5, 1.0, np.linspace(0, 2, 5), 2.0, 1.0, 1.5]
    schedule = gdm.schedules.cosine(0.05, steps=12, warmup=3)
    options = {"momentum": 0.8, "weight_decay": 0.3, "maximize": True}
    optimizer = gdm.Muon(params, schedule, lr_scale=scales, adjust_lr_fn="match_rms_adamw", **options)
    velocities = [np.zeros_like(x) for x in params]
    for step in range(4):
        grads = arrays("float64", seed=step + 1)
        optimizer.step(grads)
        for p, v, g, scale in zip(plain, velocities, grads, scales, strict=True):
            u, factor = np.zeros_like(p), scale if isinstance(scale, float) else 1.0
            given = {"lr": schedule(step) * factor, **options}
            if not isinstance(scale, float):
                given["lr_scale"] = np.asarray(np.broadcast_to(scale, p.shape), order="C").copy()
            gdm.muon(p, v, u, g, **given, prepare=True)
            ratio = 0.2 * math.sqrt(max(p.shape))
            u[...] = ratio * gdm.newton_schulz(u).astype(np.float64)
            gdm.muon(p, v, u, g, **given)
        for x, y in zip([*params, *optimizer.velocity], [*plain, *velocities], strict=True):
            assert_same_bits(x, y)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr_fn", [None, "original", "match_rms_adamw"])
def test_the_formula_in_one_line_each(backend, nesterov, adjust_lr_fn):
    """Against the paper, in float64 and with an exact orthogonalization."""

    def polar(matrix):
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        return left @ right

    rng = np.random.default_rng(3)
    for shape in ((8, 3), (3, 8), (5, 5)):
        p, v = rng.standard_normal(shape), np.zeros(shape)
        theta = p.copy()
        optimizer = gdm.Muon(
            p, 0.02, momentum=0.9, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn=adjust_lr_fn, orthogonalize=polar
        )
        for _ in range(50):
            g = rng.standard_normal(shape)
            optimizer.step(g)
            v = 0.9 * v + 0.1 * g
            ratio = 0.2 * max(shape) ** 0.5 if adjust_lr_fn == "match_rms_adamw" else max(1, shape[0] / shape[1]) ** 0.5
            theta = theta * (1 - 0.02 * 0.1) - 0.02 * ratio * polar(0.9 * v + 0.1 * g if nesterov else v)
        np.testing.assert_allclose(p, theta, rtol=0, atol=1e-12 * np.abs(theta).max())


@pytest.mark.skipif(native is None, reason="needs both backends")
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "float16", "int8"])
@pytest.mark.parametrize(("param", "grad"), list(itertools.product(DTYPES, ["float32", "bfloat16", "float16"])))
def test_both_backends_give_the_same_bits(param, grad, state_dtype):
    """For every storage, and with everything around the rule. One gradient is missing in one step."""
    around = {"max_grad_norm": 1.0, "max_grad_value": 0.02, "average": 0.9, "clear_grads": True, "seed": 3}
    for rounding, split, nesterov in (("nearest", False, True), ("stochastic", False, False), ("nearest", True, True)):
        results = []
        for backend in BACKENDS:
            gdm.set_backend(backend)
            params, copies = arrays(param), arrays("float16", seed=9)
            groups = [
                {"params": params[:3], "copies": copies[:3]},
                {"params": params[3:4], "method": "adamw", "lr": 0.003, "copies": copies[3:4]},
                {"params": params[4:], "copies": copies[4:]},
            ]
            for group in groups:
                del group["copies"]
            optimizer = gdm.Muon(
                groups,
                0.01,
                nesterov=nesterov,
                orthogonalize=signs,
                state_dtype=state_dtype,
                rounding=rounding,
                split_masters=split,
                copies=[copies[:3], copies[3:4], copies[4:]],
                **around,
            )
            for step in range(3):
                grads = arrays(grad, seed=step + 1)
                grads[1] = None if step == 1 else grads[1]
                optimizer.step([grads[:3], grads[3:4], grads[4:]], scale=0.5)
            held = [x for state in optimizer._snapshot.states for name, x in state.items() if name != "update"]
            results.append([x.tobytes() for x in [*params, *copies, *held]])
            assert not any(x.any() for x in grads[2:])
        assert results[0] == results[1]


def test_every_isa_and_thread_count_gives_the_same_bits(isa):
    wanted = None
    for threads in (1, 3):
        params = [numbers(np.float32, 300_000, 1).reshape(600, 500), numbers(np.float32, 64, 2).reshape(8, 8)]
        optimizer = gdm.Muon(params, 0.01, orthogonalize=signs, threads=threads)
        for step in range(3):
            optimizer.step([numbers(np.float32, x.size, step + 5).reshape(x.shape) for x in params])
        wanted = wanted or [x.copy() for x in params]
        for x, y in zip(params, wanted, strict=True):
            assert_same_bits(x, y)
    gdm.set_backend("reference")
    params = [numbers(np.float32, 300_000, 1).reshape(600, 500), numbers(np.float32, 64, 2).reshape(8, 8)]
    optimizer = gdm.Muon(params, 0.01, orthogonalize=signs)
    for step in range(3):
        optimizer.step([numbers(np.float32, x.size, step + 5).reshape(x.shape) for x in params])
    for x, y in zip(params, wanted, strict=True):
        assert_same_bits(x, y)


# ---- AdamW in the same optimizer ----


def test_groups_with_adamw_are_adamw(backend):
    """To the bit, with its defaults, whatever Muon's arguments are; and matrices may go there, too."""
    given, alone = arrays(), arrays()
    vector, its_twin = np.ones(7), np.ones(7)
    optimizer = gdm.Muon(
        [{"params": given[:2], "name": "hidden"}, {"params": [given[2], vector], "method": "adamw", "name": "rest"}],
        lr=0.02,
        momentum=0.5,
        weight_decay=0.3,
        eps=1e-3,
    )
    adamw, muon = gdm.AdamW([alone[2], its_twin]), gdm.Muon(alone[:2], 0.02, momentum=0.5, weight_decay=0.3, eps=1e-3)
    for step in range(4):
        grads = arrays(seed=step + 1)
        optimizer.step([grads[:2], [grads[2], np.full(7, step - 1.5)]])
        muon.step(grads[:2])
        adamw.step([grads[2], np.full(7, step - 1.5)])
    for x, y in zip([*given[:3], vector], [*alone[:3], its_twin], strict=True):
        assert_same_bits(x, y)
    assert optimizer.groups["rest"].betas == (0.9, 0.999)
    assert optimizer.groups["rest"].weight_decay == 0.01
    assert optimizer.velocity[1] == [None, None]
    assert optimizer.exp_avg[0] == [None, None]
    assert_same_bits(optimizer.exp_avg_sq[1][1], adamw.exp_avg_sq[1])


def test_what_is_set_for_all_is_set_where_it_is(backend):
    optimizer = gdm.Muon([{"params": [np.ones((2, 2))]}, {"params": [np.ones(3)], "method": "adamw"}], maximize=True)
    assert [group.maximize for group in optimizer.groups] == [True, True]
    optimizer.momentum, optimizer.betas, optimizer.lr = 0.5, (0.5, 0.75), 0.25
    assert (optimizer.groups[0].momentum, optimizer.groups[1].betas, optimizer.lr) == (0.5, (0.5, 0.75), 0.25)
    optimizer.groups[0].ns_steps = 3
    assert optimizer.ns_steps == 3
    with pytest.raises(AttributeError, match="has no hyperparameter 'betas'"):
        _ = optimizer.groups[0].betas
    with pytest.raises(ValueError, match="option 'betas' that Muon does not know"):
        optimizer.groups[0].betas = (0.5, 0.5)
    with pytest.raises(AttributeError, match="method is fixed"):
        optimizer.groups[0].method = "adamw"
    with pytest.raises(ValueError, match="no group has betas"):
        _ = gdm.Muon(np.ones((2, 2))).betas


def test_groups_come_and_go(backend):
    matrix, vector = np.ones((2, 2)), np.ones(3)
    optimizer = gdm.Muon([{"params": matrix}])
    optimizer.add_group({"params": vector, "method": "adamw", "lr": 0.5, "name": "bias"})
    optimizer.step([np.ones((2, 2)), np.ones(3)])
    optimizer.remove_group("bias")
    before = vector.copy()
    optimizer.step([np.ones((2, 2))])
    np.testing.assert_array_equal(vector, before)
    assert (before < 0.51).all()
    assert optimizer.steps == 2


# ---- what is refused ----


@pytest.mark.parametrize(
    ("params", "label"),
    [
        ({"w": np.ones((2, 2)), "b": np.ones(3)}, r"params\['b'\] has shape \(3,\)"),
        ([np.ones((2, 2, 2))], r"params\[0\] has shape \(2, 2, 2\)"),
        ([{"params": [np.ones((2, 2)), np.ones(())]}], r"params\[0\]\['params'\]\[1\] has shape \(\)"),
    ],
)
def test_what_is_no_matrix_is_named(backend, params, label):
    with pytest.raises(ValueError, match=label + ".*'method': 'adamw'"):
        gdm.Muon(params)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\)"),
        ({"ns_steps": 100}, ValueError, "ns_steps must be from 0 to 99"),
        ({"ns_steps": 2.0}, TypeError, "ns_steps must be a whole number"),
        ({"ns_coefficients": (1.0, 2.0)}, TypeError, "ns_coefficients must be three real numbers"),
        ({"ns_coefficients": (1.0, 2.0, math.nan)}, ValueError, r"ns_coefficients\[2\] must be a finite real number"),
        ({"eps": -1.0}, ValueError, "eps must be finite and not negative"),
        ({"adjust_lr_fn": "other"}, ValueError, "adjust_lr_fn must be 'original', 'match_rms_adamw' or None"),
        ({"orthogonalize": 3}, TypeError, "orthogonalize must be a function or None"),
        ({"betas": (0.9, 0.9)}, TypeError, "betas"),
    ],
)
def test_wrong_options(backend, options, error, message):
    with pytest.raises(error, match=message):
        gdm.Muon([np.ones((2, 2))], **options)


@pytest.mark.parametrize("huge", [1e39, -1e39])
def test_coefficients_that_are_too_large_for_the_products(backend, huge):
    options = {"ns_coefficients": (1.0, huge, 2.0)}
    with pytest.raises(ValueError, match=r"ns_coefficients\[1\] must be finite in float32"):
        gdm.Muon([np.ones((2, 2), np.float32)], **options)


def test_wrong_options_of_groups(backend):
    matrix = np.ones((2, 2))
    with pytest.raises(ValueError, match="group 0: method must be 'muon' or 'adamw', got 'sgd'"):
        gdm.Muon([{"params": matrix, "method": "sgd"}])
    with pytest.raises(ValueError, match="option 'momentum' that Muon does not know; it knows lr, betas"):
        gdm.Muon([{"params": matrix, "method": "adamw", "momentum": 0.5}])
    with pytest.raises(ValueError, match=r"group 0: betas\[0\] must be in"):
        gdm.Muon([{"params": matrix, "method": "adamw", "betas": (1.0, 0.5)}])


def test_nesterov_without_momentum_is_the_gradient(backend):
    """As in torch; elsewhere gdm refuses it."""
    seen = []
    optimizer = gdm.Muon(np.ones((2, 2)), momentum=0.0, orthogonalize=lambda x: seen.append(x.copy()) or x)
    optimizer.step(np.full((2, 2), 0.75))
    np.testing.assert_array_equal(seen[0], 0.75)


# ---- the orthogonalization ----


def stretched(rows, columns, seed=0, dtype=np.float32):
    """A matrix whose singular values are between 0.05 and 1 times the largest."""
    rng = np.random.default_rng(seed)
    left, _, right = np.linalg.svd(rng.standard_normal((rows, columns)), full_matrices=False)
    return ((left * np.geomspace(0.05, 1, min(rows, columns))) @ right).astype(dtype)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (8, 8), (5, 40), (40, 5), (64, 64), (130, 30)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e15, 1e30])
def test_singular_values_come_into_the_band(shape, dtype, order, scale):
    """Whatever the scale of the matrix is, though its squares overflow in float32."""
    matrix = np.asarray(stretched(*shape, dtype=dtype) * dtype(scale), order=order)
    before = matrix.copy()
    result = gdm.newton_schulz(matrix)
    assert_same_bits(matrix, before)
    assert (result.dtype, result.shape) == (np.float32, shape)
    values = np.linalg.svd(result.astype(np.float64), compute_uv=False)
    assert values.min() > 0.67
    assert values.max() < 1.21
    left, _, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    between = left.T @ result @ right.T  # it has the singular vectors of the matrix
    np.testing.assert_allclose(between, np.diag(np.diag(between)), atol=2e-5)


def test_newton_schulz_is_its_polynomial():
    """On a diagonal matrix, each singular value by itself."""
    values = np.array([0.9, 0.4, 0.1, 0.01])
    x = values / np.sqrt((values**2).sum())
    for _ in range(3):
        x = 1.5 * x - 0.5 * x**3 + 0.125 * x**5
    found = gdm.newton_schulz(np.diag(values), ns_coefficients=(1.5, -0.5, 0.125), ns_steps=3)
    np.testing.assert_allclose(found, np.diag(x), atol=2e-7)
    np.testing.assert_allclose(gdm.newton_schulz(np.diag(values), ns_steps=0), np.diag(values) / 0.99, atol=3e-3)


def test_newton_schulz_of_nothing_little_and_nan():
    assert not gdm.newton_schulz(np.zeros((3, 4))).any()
    assert not gdm.newton_schulz(np.zeros((3, 4)), eps=0.0).any()
    assert gdm.newton_schulz(np.zeros((0, 4))).shape == (0, 4)
    little = gdm.newton_schulz(np.full((2, 2), 1e-9), ns_steps=0)  # below eps
    np.testing.assert_allclose(little, 1e-2, rtol=1e-6)
    assert np.isnan(gdm.newton_schulz(np.full((2, 3), np.nan))).all()
    for wrong, error in (
        (np.ones(3), ValueError),
        (np.ones((2, 2), int), TypeError),
        (np.ones((2, 2), complex), TypeError),
    ):
        with pytest.raises(error, match=r"^matrix must "):
            gdm.newton_schulz(wrong)
    for huge in (1e39, -1e39):
        with pytest.raises(ValueError, match=r"^ns_coefficients\[0\] must be finite in float32"):
            gdm.newton_schulz(np.eye(2), ns_coefficients=(huge, 0.0, 0.0))


# ---- failures in the middle of a step ----


class Stop(Exception):
    pass


def fail(error):
    def orthogonalize(matrix):
        raise error

    return orthogonalize


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (fail(Stop("by the user")), Stop, "by the user"),
        (fail(KeyboardInterrupt()), KeyboardInterrupt, "^$"),
        (fail(MemoryError()), MemoryError, "^$"),
        (lambda x: np.full_like(x, np.nan), gdm.NonFiniteError, r"NaN or infinite for params\[0\]\['params'\]\[1\]"),
        (lambda x: np.where(x == x.max(), np.inf, x), gdm.NonFiniteError, r"params\[0\]\['params'\]\[1\]"),
        (lambda x: x * 1e300, gdm.NonFiniteError, r"params\[0\]\['params'\]\[1\]"),
        (
            lambda x: x[:, :1],
            ValueError,
            r"returned shape \(40, 1\) for params\[0\]\['params'\]\[1\]; expected \(40, 7\)",
        ),
        (lambda x: x.T, ValueError, r"returned shape \(7, 40\)"),
        (lambda x: None, TypeError, r"returned dtype object for params\[0\]\['params'\]\[1\]; expected floats"),
        (lambda x: x.astype(complex), TypeError, "returned dtype complex128"),
    ],
)
@pytest.mark.parametrize("bound", [False, True])
def test_nothing_changes_if_the_orthogonalization_fails(backend, wrong, error, message, bound):
    """Not even when it fails for the second matrix, with AdamW's parameters in another group."""
    params = [*arrays()[:3], np.ones(5, np.float32)]
    groups = [{"params": params[:3]}, {"params": params[3:], "method": "adamw"}]
    optimizer = gdm.Muon(groups, max_grad_norm=1.0, average=0.5, state_dtype="int8")
    grads = [*arrays(seed=1)[:3], np.ones(5, np.float32)]
    given = [grads[:3], grads[3:]]
    optimizer.step(given)
    if bound:
        optimizer.bind(given)
    before, count = everything(optimizer), 0

    def sometimes(matrix):
        nonlocal count
        count += 1
        return wrong(matrix.astype(np.float64)) if count == 2 else signs(matrix)

    optimizer.orthogonalize = sometimes
    grads[0] *= 3  # a norm of its own
    with pytest.raises(error, match=message):
        optimizer.step(*([] if bound else [given]))
    assert count == 2
    assert_unchanged(optimizer, before)
    optimizer.orthogonalize = None
    optimizer.step(given)
    assert optimizer.steps == 2


def test_code_of_the_users_cannot_change_the_optimizer(backend):
    params, messages = arrays()[:2], []

    def meddle(matrix):
        for act in (
            lambda: optimizer.step([np.ones_like(x) for x in params]),
            lambda: setattr(optimizer, "momentum", 0.5),
            lambda: optimizer.add_group({"params": np.ones((2, 2))}),
            lambda: optimizer.load_state_dict(saved),
        ):
            with pytest.raises(RuntimeError, match="already in the middle of a step"):
                act()
            messages.append(1)
        gc.collect()
        return signs(matrix)

    optimizer = gdm.Muon(params, orthogonalize=meddle)
    saved = optimizer.state_dict()
    optimizer.step(arrays(seed=1)[:2])
    assert len(messages) == 8
    assert optimizer.steps == 1
    assert optimizer.momentum == 0.95


@pytest.mark.parametrize("what", ["param", "grad"])
@pytest.mark.parametrize("bound", [False, True])
def test_arrays_that_go_away_meanwhile_are_noticed(backend, what, bound):
    """Their memory is not written or read any more; the other parameter has not changed."""
    params, grads = arrays(shapes=SHAPES[:2]), arrays(seed=1, shapes=SHAPES[:2])

    def resize(matrix):
        (params if what == "param" else grads)[1].resize((0, 7), refcheck=False)
        return signs(matrix)

    optimizer = gdm.Muon(params, orthogonalize=resize)
    if bound:
        optimizer.bind(grads)
    before = params[0].copy()
    if what == "grad" and backend == "reference":
        pytest.skip("the reference has read the gradient by then")
    with pytest.raises(gdm.StaleBufferError):
        optimizer.step(*([] if bound else [grads]))
    assert_same_bits(params[0], before)
    assert optimizer.steps == 0


def test_the_callers_list_may_change_meanwhile(backend):
    """The step uses the gradients that it was given."""
    params, wanted = arrays()[:2], arrays()[:2]
    grads = arrays(seed=1)[:2]

    def clear(matrix):
        grads.clear()
        gc.collect()
        return signs(matrix)

    gdm.Muon(wanted, orthogonalize=signs).step(arrays(seed=1)[:2])
    gdm.Muon(params, orthogonalize=clear).step(grads)
    for x, y in zip(params, wanted, strict=True):
        assert_same_bits(x, y)


def test_the_matrix_may_be_changed_and_kept(backend):
    kept, params, wanted = [], arrays()[:2], arrays()[:2]

    def in_place(matrix):
        kept.append(matrix)
        matrix[...] = signs(matrix)
        return matrix

    optimizer, other = gdm.Muon(params, orthogonalize=in_place), gdm.Muon(wanted, orthogonalize=signs)
    for step in range(3):
        for matrix in kept:
            matrix[...] = np.nan
        optimizer.step(arrays(seed=step)[:2])
        other.step(arrays(seed=step)[:2])
    for x, y in zip(params, wanted, strict=True):
        assert_same_bits(x, y)


# ---- gradients that are not finite, and absent ones ----


def test_nan_in_a_gradient_propagates_unless_the_caller_says_otherwise(backend):
    params = arrays()[:1]
    grads = [np.full_like(params[0], np.nan)]
    before = params[0].copy()
    skipping = gdm.Muon(params, nonfinite="skip", orthogonalize=fail(Stop()))
    skipping.step(grads)  # without an orthogonalization
    assert (skipping.skipped_steps, skipping.steps) == (1, 0)
    raising = gdm.Muon(params, nonfinite="raise", orthogonalize=fail(Stop()))
    with pytest.raises(gdm.NonFiniteError, match=r"grads\[0\] has NaN or infinite elements: 1500 of "):
        raising.step(grads)
    assert_same_bits(params[0], before)
    gdm.Muon(params).step(grads)
    assert np.isnan(params[0]).all()


def test_a_matrix_without_a_gradient_is_left_out(backend):
    params, alone = arrays()[:3], arrays()[:3]
    together, each = gdm.Muon(params), [gdm.Muon([x]) for x in alone]
    for step, present in enumerate([(0, 1, 2), (1,), (), (0, 2), (0, 1, 2)]):
        grads = [x if k in present else None for k, x in enumerate(arrays(seed=step)[:3])]
        together.step(grads)
        for k in present:
            each[k].step([grads[k]])
        for x, y in zip(params, alone, strict=True):
            assert_same_bits(x, y)
    assert together.param_steps == [3, 3, 3]
    assert together.steps == 5


# ---- saving ----


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), "state_dict", "file"])
@pytest.mark.parametrize("state_dtype", [None, "int8"])
def test_a_copy_goes_on_to_the_bit(backend, way, state_dtype, tmp_path):
    def make(params):
        groups = [{"params": params[:2]}, {"params": params[2:], "method": "adamw", "lr": 0.02}]
        return gdm.Muon(groups, 0.05, orthogonalize=signs, state_dtype=state_dtype, adjust_lr_fn="match_rms_adamw")

    params = [*arrays()[:2], np.ones(9, np.float32)]
    optimizer = make(params)
    for step in range(3):
        optimizer.step([arrays(seed=step)[:2], [np.full(9, 0.5, np.float32)]])
    optimizer.groups[0].ns_steps = 4
    if callable(way):
        others, other = way((params, optimizer))
        assert other.orthogonalize is signs
    else:
        others = [x.copy(order="K") for x in params]
        other = make(others)
        if way == "file":
            optimizer.save(tmp_path / "state")
            other.load(tmp_path / "state")
        else:
            other.load_state_dict(optimizer.state_dict())
    assert [group.ns_steps for group in other.groups if group.method == "muon"] == [4]
    for step in range(3, 6):
        for x in (optimizer, other):
            x.step([arrays(seed=step)[:2], [np.full(9, -0.5, np.float32)]])
    for x, y in zip(others, params, strict=True):
        assert_same_bits(x, y)


def test_the_work_matrix_is_no_state(backend):
    """It is not saved, no attribute shows it, and it counts in nbytes."""
    optimizer = gdm.Muon(np.ones((30, 40), np.float32), state_dtype="bfloat16")
    optimizer.step(np.ones((30, 40), np.float32))
    [entry] = optimizer.state_dict()["groups"][0]["params"]
    assert list(entry["state"]) == ["velocity"]
    assert optimizer.nbytes == 30 * 40 * (2 + 4)
    assert not hasattr(optimizer, "update")
    assert "update" not in dir(optimizer)
    work = optimizer._snapshot.states[0]["update"]
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer._snapshot.states[0]["update"] is work


def test_a_state_with_another_method_is_refused(backend):
    matrix = np.ones((2, 2))
    optimizer = gdm.Muon([{"params": matrix, "method": "adamw"}])
    with pytest.raises(gdm.CheckpointError, match="group 0 has options"):
        gdm.Muon([{"params": matrix}]).load_state_dict(optimizer.state_dict())
