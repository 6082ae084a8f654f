"""gdm.grad_norm and gdm.count_nonfinite: one number from all gradients, the same bits from both backends."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gdm
from conftest import WITHOUT_CORE
from support import DTYPES, numbers, special_values

SIZES = [0, 1, 31, 32, 33, 257, 4095, 4096, 4097, 8192, 12_289, 100_001]
inf = math.inf
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))


def results(grads):
    return [gdm.grad_norm(grads), gdm.grad_norm(grads, order=inf), gdm.count_nonfinite(grads)]


def of_both_backends(grads):
    gdm.set_backend("reference")
    reference = results(grads)
    gdm.set_backend("native")
    return results(grads), reference


@pytest.mark.skipif(WITHOUT_CORE, reason="of the compiled module")
@every_dtype
def test_native_equals_reference(dtype, isa):
    grads = [numbers(dtype, n, k) for k, n in enumerate(SIZES)]
    for case in ([g] for g in grads):
        native, reference = of_both_backends(case)
        assert native == reference, case[0].size
    native, reference = of_both_backends(grads)
    assert native == reference


@pytest.mark.skipif(WITHOUT_CORE, reason="of the compiled module")
@every_dtype
def test_the_number_of_threads_does_not_matter(dtype):
    grads = [numbers(dtype, n, k) for k, n in enumerate((3_000_000, 5, 1_000_001))]
    found = set()
    for threads in (1, 2, 3, 8):
        with gdm.threads(threads):
            found.add(tuple(results(grads)))
    assert len(found) == 1


@every_dtype
def test_the_result_is_right(backend, dtype):
    grads = {"a": numbers(dtype, 5000, 1).reshape(50, 100), "b": [numbers(dtype, 33, 2), None], "c": np.zeros(0, dtype)}
    flat = np.concatenate([grads["a"].ravel(), grads["b"][0]]).astype(np.float64)
    assert gdm.grad_norm(grads) == pytest.approx(math.sqrt(math.fsum(flat * flat)), rel=1e-14)
    assert gdm.grad_norm(grads, order=inf) == np.abs(flat).max()
    assert gdm.count_nonfinite(grads) == 0
    assert gdm.grad_norm(grads["a"].T.copy(order="F")) == gdm.grad_norm(grads["a"])


@every_dtype
def test_special_values(backend, dtype):
    values = special_values(dtype)
    finite = values[np.isfinite(values)]
    assert gdm.count_nonfinite([values, finite]) == np.count_nonzero(~np.isfinite(values))
    assert math.isnan(gdm.grad_norm(values))
    assert math.isnan(gdm.grad_norm([finite, np.array([np.nan], dtype)], order=inf))
    assert (
        gdm.grad_norm(np.array([1, -np.inf], dtype)) == gdm.grad_norm(np.array([1, -np.inf], dtype), order=inf) == inf
    )
    assert gdm.grad_norm(finite, order=inf) == np.finfo(dtype).max
    smallest = np.finfo(dtype).smallest_subnormal
    assert gdm.grad_norm(np.array([-smallest, 0], dtype), order=inf) == float(smallest)


def test_without_elements(backend):
    for grads in ([], {}, None, [None], np.zeros(0), [np.zeros((0, 3)), None]):
        assert results(grads) == [0.0, 0.0, 0]


def test_gradients_are_only_read(backend):
    grad = np.arange(5.0)
    grad.flags.writeable = False
    assert gdm.grad_norm([grad, memoryview(grad)]) == pytest.approx(math.sqrt(60))


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ([np.ones(3), np.ones(3, int)], TypeError, r"^grads\[1\] has dtype int64"),
        ({"a": [np.ones(4)[::2]]}, ValueError, r"^grads\['a'\]\[0\] is not contiguous"),
        (3, TypeError, "^grads must be a NumPy array"),
        (np.ones(3, ">f4"), TypeError, "^grads is byte-swapped"),
    ],
)
def test_what_is_no_gradient_is_named(backend, grads, error, message):
    for call in (gdm.grad_norm, gdm.count_nonfinite):
        with pytest.raises(error, match=message):
            call(grads)


@pytest.mark.parametrize("order", [1, 0, "inf", None, math.nan])
def test_other_orders_are_refused(order):
    with pytest.raises(ValueError, match="order must be 2 or inf"):
        gdm.grad_norm(np.ones(3), order=order)
