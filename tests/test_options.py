"""Hyperparameters: checked when an optimizer is made and whenever they are set."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gdm
from classes import every_class, four_arrays, gradients
from gdm import _checks


def test_hyperparameters_are_checked_when_set(backend):
    optimizer = gdm.SGD([{"params": np.ones(2)}, {"params": np.ones(2), "momentum": 0.5, "nesterov": True}], lr=0.5)
    for name, value, error in [
        ("lr", -1.0, ValueError),
        ("lr", "fast", TypeError),
        ("weight_decay", float("nan"), ValueError),
        ("momentum", 1.0, ValueError),
        ("momentum", 0.0, ValueError),  # the second group has nesterov
        ("maximize", "yes", TypeError),
    ]:
        before = repr(optimizer)
        with pytest.raises(error, match=name):
            setattr(optimizer, name, value)
        with pytest.raises(error, match=name):
            setattr(optimizer.groups[1], name, value)
        assert repr(optimizer) == before
    with pytest.raises(AttributeError, match="form is fixed"):
        optimizer.form = "classic"
    with pytest.raises(AttributeError, match="no hyperparameter 'rate'"):
        optimizer.groups[0].rate = 1.0
    with pytest.raises(AttributeError, match="no hyperparameter 'rate'"):
        _ = optimizer.groups[0].rate
    assert "lr" in dir(optimizer.groups[0])


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_numbers_must_be_finite_in_the_arithmetic(backend, name):
    """The first number that is rounded to infinity is refused. The one before it is not."""
    infinite = float(np.finfo(np.float32).max) + 2.0**103
    options = {"lr": 0.5, name: np.nextafter(infinite, 0.0)}
    param, grad = np.zeros((2, 3), np.float32)
    gdm.sgd(param, grad, **options)
    optimizer = gdm.SGD(param, **options)
    for call in (lambda **x: gdm.sgd(param, grad, **x), lambda **x: gdm.SGD(param, **x)):
        with pytest.raises(ValueError, match=f"{name} must be finite in float32"):
            call(**{**options, name: infinite})
    with pytest.raises(ValueError, match=f"{name} must be finite in float32"):
        setattr(optimizer, name, infinite)
    gdm.SGD(np.zeros(3), **{**options, name: infinite})


def test_messages_show_at_most_80_characters_of_a_value():
    for n, shown in ((78, "'" + 78 * "x" + "'"), (79, "'" + 76 * "x" + "...")):
        with pytest.raises(TypeError) as caught:
            gdm.SGD(np.ones(2), lr=0.5, maximize=n * "x")
        assert str(caught.value).endswith(f"must be True or False, not str ({shown})")


def test_hyperparameters_are_checked_by_the_constructor():
    for options, error in [
        ({"lr": -1}, ValueError),
        ({"momentum": 1.0}, ValueError),
        ({"nesterov": True}, ValueError),
        ({"momentum": 0.9, "nesterov": True, "dampening": 0.1}, ValueError),
        ({"form": "keras"}, ValueError),
        ({"weight_decay": "a"}, TypeError),
    ]:
        with pytest.raises(error):
            gdm.SGD(np.ones(2), **options)
    with pytest.raises(ValueError, match=r"params\[1\] has an option 'betas' that SGD does not know; it knows lr,"):
        gdm.SGD([{"params": np.ones(2)}, {"params": np.ones(2), "betas": 1}])
    with pytest.raises(TypeError, match="params must be an array, or a sequence or mapping of arrays, not int"):
        gdm.SGD(3)
    with pytest.raises(TypeError, match=r"^SGD has no argument 'learning_rate'; it has params, lr, .*, state_dtype, "):
        gdm.SGD(np.ones(2), learning_rate=0.1)
    with pytest.raises(TypeError, match=r"^Adam has no argument 'beta1'; it has params, lr, betas, "):
        gdm.Adam(np.ones(2), beta1=0.9)


@every_class
def test_hyperparameters_can_be_set_between_steps(name, backend):
    """A new value is that of an optimizer made with it; a bad one changes nothing."""
    params, optimizer = four_arrays(), None
    optimizer = getattr(gdm, name)(params, lr=0.1)
    for option, value in optimizer._snapshot.options[0].items():
        if option in ("form", "initial_accumulator_value", "nesterov", "lr_scale", "dampening"):
            continue
        several = {"betas": (0.5, 0.25, 0.75)[: 3 if name == "AdEMAMix" else 2]}
        several |= {"etas": (0.25, 1.5), "step_sizes": (0.5, 0.75)}
        new = not value if isinstance(value, bool) else several.get(option, 0.25)
        setattr(optimizer, option, new)
        assert getattr(optimizer, option) == new
        before = repr(optimizer)
        with pytest.raises((TypeError, ValueError), match=f"^{option}"):
            setattr(optimizer, option, "bad")
        assert repr(optimizer) == before
        optimizer.step(gradients(0))


@every_class
def test_a_misspelt_hyperparameter_is_an_error_that_names_the_others(name):
    optimizer = getattr(gdm, name)(four_arrays())
    with pytest.raises(AttributeError, match=f"{name} has no hyperparameter 'learning_rate'; it has lr,"):
        optimizer.learning_rate = 0.1
    with pytest.raises(AttributeError, match=f"{name} has no attribute 'learning_rate'; it has lr,"):
        _ = optimizer.learning_rate


def test_the_number_of_threads_stays_through_changes_and_in_copies(backend):
    """Through changes of the table, and in copies."""
    optimizer = gdm.SGD(np.ones(3), threads=2)
    optimizer.momentum = 0.5
    optimizer.add_group({"params": np.ones(2)})
    optimizer.remove_group(0)
    assert optimizer.threads == 2
    assert copy.deepcopy(optimizer).threads == 2
    assert pickle.loads(pickle.dumps(optimizer)).threads == 2


def test_what_an_option_means_depends_on_the_name_of_the_rule_alone():
    """In ASGD and AdEMAMix alpha is a factor, in RMSprop a share of an average."""
    for rule in ("asgd", "ademamix"):
        assert _checks.options(rule, {"alpha": 2.0}) == {"alpha": 2.0}
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\), got 2.0"):
        _checks.options("rmsprop", {"alpha": 2.0})
    assert _checks.options("ademamix", {"betas": (0.5, 0.5, 0.5)}) == {"betas": (0.5, 0.5, 0.5)}
    with pytest.raises(TypeError, match="betas must be a pair of real numbers"):
        _checks.options("adam", {"betas": (0.5, 0.5, 0.5)})


def test_repr_has_the_class_the_sizes_and_the_hyperparameters():
    text = repr(gdm.SGD([np.ones(2000), np.ones(345)], lr=0.1, momentum=0.9))
    assert text.startswith("<SGD of 2 arrays, 2,345 elements: Group(lr=0.1, momentum=0.9")
