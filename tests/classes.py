"""Every class, with options to try it with; and arrays and comparisons for tests of optimizers."""

from __future__ import annotations

import numpy as np
import pytest

import gdm
from support import DTYPES, assert_same_bits, describe, numbers, option_cases

cosine = gdm.schedules.cosine(0.05, steps=12, warmup=3)


# For every class options that switch each of its kernels and states on and off.
CASES = {
    "SGD": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "form": "classic", "maximize": True},
        {"momentum": 0.9, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
    "Adagrad": [{}, {"lr_decay": 0.1, "weight_decay": 0.1}, {"initial_accumulator_value": 0.5, "maximize": True}],
    "RMSprop": [
        {},
        {"centered": True, "weight_decay": 0.1},
        {"momentum": 0.9},
        {"centered": True, "momentum": 0.5, "maximize": True},
    ],
    "Adam": [{}, {"amsgrad": True, "weight_decay": 0.1}, {"betas": (0.5, 0.7), "eps": 1e-3, "maximize": True}],
    "AdamW": [{}, {"amsgrad": True, "weight_decay": 0.2}],
    "NAdam": [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"weight_decay": 0.1, "momentum_decay": 0.1}],
    "RAdam": [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"weight_decay": 0.1, "betas": (0.5, 0.7)}],
    "Adamax": [{}, {"betas": (0.5, 0.7), "eps": 1e-3, "maximize": True}, {"weight_decay": 0.1}],
    "Adadelta": [{}, {"rho": 0.5, "eps": 1e-3, "maximize": True}, {"weight_decay": 0.1}],
    "Lion": [{}, {"weight_decay": 0.1, "betas": (0.8, 0.9)}],
    "LARS": [
        {"trust_coefficient": 0.1},
        {"trust_coefficient": 0.1, "weight_decay": 0.1, "momentum": 0.0},
        {"adapt": False, "weight_decay": 0.1, "maximize": True},
    ],
    "LAMB": [{}, {"weight_decay": 0.1, "eps": 1e-3}, {"adapt": False, "weight_decay": 0.1, "maximize": True}],
    "Signum": [
        {},
        {"momentum": 0.0, "weight_decay": 0.1},
        {"momentum": 0.0, "weight_decay": 0.1, "decoupled_weight_decay": True},
        {"momentum": 0.5, "weight_decay": 0.1, "maximize": True},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
    "Rprop": [{}, {"etas": (0.25, 1.75), "step_sizes": (0.001, 0.1), "maximize": True}],
    "ASGD": [
        {},
        {"t0": 0.5, "lambd": 0.5, "alpha": 1.5},
        {"t0": 2, "weight_decay": 0.1, "lambd": 0.1, "maximize": True},
    ],
    "AdEMAMix": [{}, {"weight_decay": 0.1, "betas": (0.5, 0.7, 0.9), "alpha": 2, "t_alpha": 7, "t_beta3": 9}],
    "ScheduleFreeSGD": [{}, {"momentum": 0.5, "weight_decay": 0.1, "warmup_steps": 3, "r": 0.5}],
    "ScheduleFreeAdamW": [{}, {"betas": (0.8, 0.7), "weight_decay": 0.1, "weight_lr_power": 0.5, "maximize": True}],
}


RATES = {
    "lr": {"lr": 0.03},
    "schedule": {"lr": cosine},
    "scales": {"lr": 0.03, "lr_scale": [0.5, 1.0, np.linspace(0, 2, 257), 2.0]},
}


SGD_CASES = [
    pytest.param("SGD", {name: x for name, x in o.items() if name != "lr_scale"}, id=f"SGD-{describe(o)}")
    for o in option_cases("momentum")
    if not o["lr_scale"]  # the class has factors of another kind
]
CLASS_CASES = [
    pytest.param(name, {**options, **rate}, id=f"{name}-{k}-{how}")
    for name, cases in CASES.items()
    for k, options in enumerate(cases)
    for how, rate in RATES.items()
]
every_case = pytest.mark.parametrize(("name", "options"), CLASS_CASES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
every_class = pytest.mark.parametrize("name", list(CASES))


def three_arrays(dtype=np.float32):
    return [numbers(dtype, n, n) for n in (5, 17, 33)]


def four_arrays(dtype=np.float64):
    return [numbers(dtype, n, n) for n in (1, 16, 257, 40)]


def gradients(step, dtype=np.float64):
    return [numbers(dtype, n, 10 * step + k) for k, n in enumerate((1, 16, 257, 40))]


def states(optimizer):
    """Every state there is, by parameter and name."""
    entries = [entry for group in optimizer.state_dict()["groups"] for entry in group["params"]]
    return {(i, name): x for i, entry in enumerate(entries) for name, x in entry["state"].items()}


def assert_same_training(one, other, params, wanted):
    for x, y in zip(params, wanted, strict=True):
        assert_same_bits(x, y)
    a, b = states(one), states(other)
    assert a.keys() == b.keys()
    for key, x in a.items():
        assert_same_bits(x, b[key], str(key))
    assert [g.steps for g in one.groups] == [g.steps for g in other.groups]
