"""Random sequences of everything that can be done to an optimizer: native, reference and a simulation agree to the bit.

The simulation keeps each parameter by itself, with its states, and calls the functions of :mod:`gdm.reference`.
"""

from __future__ import annotations

import copy
import os
import pickle
import random

import numpy as np
import pytest

import gdm
from conftest import WITHOUT_CORE
from gdm import _checks
from support import RULES, assert_same_bits

OPERATIONS = int(os.environ.get("GDM_TEST_OPERATIONS", "250"))  # of each class
CLASSES = {
    "SGD": {
        "momentum": [0.0, 0.5, 0.9],
        "dampening": [0.0, 0.25],
        "weight_decay": [0.0, 0.01],
        "maximize": [False, True],
        "decoupled_weight_decay": [False, True],
    },
    "Adagrad": {"lr_decay": [0.0, 0.1], "eps": [1e-10, 1e-3], "weight_decay": [0.0, 0.01]},
    "RMSprop": {"alpha": [0.9, 0.99], "momentum": [0.0, 0.5], "centered": [False, True], "eps": [1e-8, 1.0]},
    "Adam": {"betas": [(0.9, 0.999), (0.5, 0.25)], "amsgrad": [False, True], "weight_decay": [0.0, 0.01]},
    "AdamW": {"betas": [(0.9, 0.999), (0.0, 0.5)], "amsgrad": [False, True], "weight_decay": [0.0, 0.01]},
    "NAdam": {"betas": [(0.9, 0.999), (0.5, 0.25)], "momentum_decay": [0.004, 1.0], "weight_decay": [0.0, 0.01]},
    "RAdam": {"betas": [(0.9, 0.999), (0.5, 0.75)], "eps": [1e-8, 1.0], "weight_decay": [0.0, 0.01]},
    "Adamax": {"betas": [(0.9, 0.999), (0.5, 0.25)], "eps": [1e-8, 1.0], "weight_decay": [0.0, 0.01]},
    "Adadelta": {"rho": [0.9, 0.5], "eps": [1e-6, 1e-3], "weight_decay": [0.0, 0.01]},
    "Lion": {"betas": [(0.9, 0.99), (0.5, 0.25)], "weight_decay": [0.0, 0.01]},
    "Rprop": {"etas": [(0.5, 1.2), (0.25, 1.5)], "step_sizes": [(1e-6, 50.0), (0.01, 0.1)], "maximize": [False, True]},
    "ASGD": {"lambd": [0.0, 0.1], "alpha": [0.75, 1.5], "t0": [0.0, 5.0, 1e6], "weight_decay": [0.0, 0.01]},
    "AdEMAMix": {"alpha": [5.0, 0.5], "t_alpha": [0.0, 20.0], "t_beta3": [0.0, 30.0], "weight_decay": [0.0, 0.01]},
}
SIZES = [(0,), (1,), (3,), (2, 3), (40,), (300,), ()]
LARGE = (40_000,)  # several threads, and other threads run meanwhile
SCHEDULES = [
    gdm.schedules.cosine(0.1, steps=50, warmup=5),
    gdm.schedules.polynomial(0.2, steps=20),
    gdm.schedules.exponential(0.1, factor=0.9),
    lambda step: 0.1 / (step + 1),
]


class One:
    """A parameter by itself."""

    def __init__(self, array):
        self.array = array.copy(order="K")
        self.states, self.scalars, self.steps, self.begun = {}, {}, 0, False

    def step(self, rule, options, lr, scale, grad):
        info = RULES[rule]
        given = {name: options[name] for name in info["options"] if name in options and name != "lr_scale"}
        given["lr"] = lr * scale if isinstance(scale, float) else lr
        if "step" in info["options"]:
            given["step"] = self.steps + 1
        for name, start in info["scalars"].items():
            given[name] = self.scalars.setdefault(name, np.array([start]))
        for name, needs in info["states"].items():
            if needs is None or options[needs]:
                given[name] = self.states[name]
        if not isinstance(scale, float):
            given["lr_scale"] = scale
        if rule == "momentum" and not self.begun and options["form"] == "torch":
            given["dampening"] = 0.0  # torch's first step: the velocity is the gradient
        getattr(gdm.reference, rule)(param=self.array, grad=grad, **given)
        self.steps += 1
        self.begun = self.begun or bool(info["states"])


class Simulation:
    """What an optimizer should do, group by group and parameter by parameter."""

    def __init__(self, cls):
        self.cls, self.groups = cls, []

    def rule(self, options):
        if self.cls == "SGD":
            return "momentum" if options["momentum"] else "sgd"
        return {"AdamW": "adam"}.get(self.cls, self.cls.lower())

    def add(self, arrays, options, scales):
        options = {"form": "torch", "nesterov": False, "decoupled_weight_decay": self.cls == "AdamW", **options}
        group = {"ones": [One(x) for x in arrays], "options": options, "scales": scales, "steps": 0}
        self.groups.append(group)
        self.begin(group)

    def begin(self, group):
        for name, needs in RULES[self.rule(group["options"])]["states"].items():
            for one in group["ones"]:
                if (needs is None or group["options"][needs]) and name not in one.states:
                    one.states[name] = np.zeros_like(one.array)

    def set(self, index, name, value):
        for group in self.groups if index is None else [self.groups[index]]:
            group["options"] = {**group["options"], name: value}
            self.begin(group)

    def step(self, grads):
        for group, given in zip(self.groups, grads, strict=True):
            lr = group["options"]["lr"]
            lr = lr(group["steps"]) if callable(lr) else lr
            rule = self.rule(group["options"])
            for one, scale, grad in zip(group["ones"], group["scales"], given, strict=True):
                if grad is not None:
                    one.step(rule, group["options"], lr, scale, grad)
            group["steps"] += 1


def random_scales(rng, arrays):
    """An ``lr_scale`` for these arrays, and what it means for each."""
    kind = rng.randrange(4)
    if kind == 0:
        return 1.0, [1.0] * len(arrays)
    if kind == 1:
        number = rng.choice([0.5, 2.0])
        return number, [number] * len(arrays)
    given = []
    for x in arrays:
        shape = rng.choice([None, (), (1,) * x.ndim, x.shape, x.shape[-1:]])
        given.append(0.25 if shape is None else np.array(np.random.default_rng(rng.randrange(99)).random(shape)))
    return given, [x if isinstance(x, float) else like(x, y) for x, y in zip(given, arrays, strict=True)]


def like(x, param):
    """A copy of its numbers in the dtype, shape and order of a parameter."""
    copy = np.empty_like(param)
    copy[...] = x
    return copy


class Play:
    """The same operations on three of them."""

    def __init__(self, cls, seed):
        self.cls, self.rng = cls, random.Random(seed)
        self.values = np.random.default_rng(self.rng.randrange(2**32))
        self.simulation, self.optimizers, self.params = Simulation(cls), [], []
        first = self.group()
        for backend in ("native", "reference"):
            gdm.set_backend("reference" if WITHOUT_CORE else backend)
            arrays, given = self.own(first)
            self.params.append([arrays])
            self.optimizers.append(getattr(gdm, cls)([given], threads=self.rng.choice([None, 1, 3])))
        self.simulation.add(first["arrays"], first["options"], first["scales"])
        self.bound, self.saved = None, None

    def array(self):
        shape = LARGE if self.rng.random() < 0.03 else self.rng.choice(SIZES)
        x = self.values.standard_normal(shape)
        return np.array(x, dtype=self.rng.choice(["f4", "f8"]), order=self.rng.choice("CF"))

    def group(self):
        arrays = [self.array() for _ in range(self.rng.randrange(4))]
        options = {name: self.rng.choice(values) for name, values in CLASSES[self.cls].items()}
        options["lr"] = self.rng.choice([0.1, 0.01, *SCHEDULES])
        scale, scales = random_scales(self.rng, arrays)
        return {"arrays": arrays, "options": options, "lr_scale": scale, "scales": scales}

    def own(self, group):
        arrays = [x.copy(order="K") for x in group["arrays"]]
        return arrays, {"params": arrays, **group["options"], "lr_scale": group["lr_scale"]}

    def each(self, act):
        for k, backend in enumerate(("native", "reference")):
            gdm.set_backend("reference" if WITHOUT_CORE else backend)
            act(k, self.optimizers[k])

    def gradients(self, absent=0.3):
        groups = []
        for group in self.simulation.groups:
            grads = [
                None if self.rng.random() < absent else like(self.values.standard_normal(one.array.shape), one.array)
                for one in group["ones"]
            ]
            groups.append(grads)
        return groups

    def collapsed(self, groups):
        return [None if g and all(x is None for x in g) and self.rng.random() < 0.5 else g for g in groups]

    # ---- operations ----

    def op_step(self):
        grads = self.gradients(self.rng.choice([0.0, 0.0, 0.3, 0.8]))
        given = self.collapsed(grads)
        self.each(lambda _, o: o.step(given))
        self.simulation.step(grads)

    op_step_again = op_step_once_more = op_step

    def op_bind(self):
        self.bound = self.gradients(self.rng.choice([0.0, 0.3]))
        self.each(lambda _, o: o.bind(self.bound))

    def op_step_bound(self):
        if self.bound is None:
            return
        for group in self.bound:
            for x in group:
                if x is not None:
                    x[...] = self.values.standard_normal(x.shape)
        self.each(lambda _, o: o.step())
        self.simulation.step(self.bound)

    def op_set(self):
        name = self.rng.choice([*CLASSES[self.cls], "lr", "lr"])
        values = CLASSES[self.cls].get(name) or [0.1, 0.003, 0.0, *SCHEDULES]
        value = self.rng.choice(values)
        index = self.rng.choice([None, *range(len(self.simulation.groups))])
        if not self.simulation.groups:
            return
        self.each(lambda _, o: setattr(o if index is None else o.groups[index], name, value))
        self.simulation.set(index, name, value)

    def op_lr_scale(self):
        if self.simulation.groups:
            index = self.rng.randrange(len(self.simulation.groups))
            group = self.simulation.groups[index]
            scale, group["scales"] = random_scales(self.rng, [one.array for one in group["ones"]])
            self.each(lambda _, o: setattr(o.groups[index], "lr_scale", scale))

    def op_add_group(self):
        if len(self.simulation.groups) > 4:
            self.op_remove_group()
            return
        group = self.group()

        def add(k, optimizer):
            arrays, given = self.own(group)
            self.params[k].append(arrays)
            optimizer.add_group(given)

        self.each(add)
        self.simulation.add(group["arrays"], group["options"], group["scales"])
        self.bound = self.saved = None

    def op_remove_group(self):
        if not self.simulation.groups:
            return
        index = self.rng.randrange(len(self.simulation.groups))
        self.each(lambda k, o: (o.remove_group(index), self.params[k].pop(index)))
        del self.simulation.groups[index]
        self.bound = self.saved = None

    def op_save(self):
        self.saved = (
            [o.state_dict() for o in self.optimizers],
            copy.deepcopy(
                [
                    [(x.states, x.scalars, x.steps, x.begun) for x in g["ones"]]
                    + [g["options"], g["scales"], g["steps"]]
                    for g in self.simulation.groups
                ]
            ),
        )

    def op_load(self):
        """Each loads what the other one saved."""
        if self.saved is None:
            return
        saved = copy.deepcopy(self.saved[1])
        for group, (*_, options, _, _) in zip(self.simulation.groups, saved, strict=True):
            if callable(options["lr"]) and not isinstance(options["lr"], gdm.schedules.Schedule):
                if not callable(group["options"]["lr"]):  # a function is not saved
                    with pytest.raises(gdm.CheckpointError, match="lr was a function"):
                        self.each(lambda k, o: o.load_state_dict(self.saved[0][1 - k]))
                    return
                options["lr"] = group["options"]["lr"]
        for group, (*ones, options, scales, steps) in zip(self.simulation.groups, saved, strict=True):
            group["options"], group["scales"], group["steps"] = options, scales, steps
            for one, (states, scalars, count, begun) in zip(group["ones"], ones, strict=True):
                one.states, one.scalars, one.steps, one.begun = states, scalars, count, begun
            self.simulation.begin(group)
        self.each(lambda k, o: o.load_state_dict(self.saved[0][1 - k]))

    def op_copy(self):
        """Goes on with a copy, in which nothing is bound."""
        if any(callable(g["options"]["lr"]) for g in self.simulation.groups):
            return  # those from here cannot be pickled
        way = self.rng.choice([copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])

        def go_on(k, optimizer):
            self.params[k], self.optimizers[k] = way((self.params[k], optimizer))

        self.each(go_on)
        self.bound = None

    # ---- what must hold ----

    def check(self, at):
        first, second = (o.state_dict() for o in self.optimizers)
        for a, b, group in zip(first["groups"], second["groups"], self.simulation.groups, strict=True):
            assert a["steps"] == b["steps"] == group["steps"], at
            for x, y, one in zip(a["params"], b["params"], group["ones"], strict=True):
                assert x["steps"] == y["steps"] == one.steps, at
                assert x["begun"] == y["begun"], at
                assert (
                    x["scalars"]
                    == y["scalars"]
                    == {
                        n: one.scalars[n].item() if n in one.scalars else start
                        for n, start in RULES[self.simulation.rule(group["options"])]["scalars"].items()
                    }
                ), at
                assert x["state"].keys() == y["state"].keys() == one.states.keys(), at
                for name, value in one.states.items():
                    assert_same_bits(x["state"][name], value, f"{at} {name}")
                    assert_same_bits(y["state"][name], value, f"{at} {name}")
        for arrays in self.params:
            for of_group, group in zip(arrays, self.simulation.groups, strict=True):
                for x, one in zip(of_group, group["ones"], strict=True):
                    assert_same_bits(x, one.array, at)


@pytest.mark.parametrize("cls", CLASSES)
def test_native_reference_and_simulation_agree(cls):
    """Whatever is done, in whatever order."""
    assert set(_checks.SCALARS) == {name for rule in RULES.values() for name in rule["scalars"]}
    seed = int(os.environ.get("GDM_TEST_SEED", "1"))
    for n in range(0, OPERATIONS, 50):
        play = Play(cls, f"{cls} {seed} {n}")
        operations = [name for name in dir(play) if name.startswith("op_")]
        done = []
        for _ in range(50):
            done.append(play.rng.choice(operations))
            getattr(play, done[-1])()
            play.check(f"seed {seed}, start {n}, after {done[-6:]}, {len(done)} operations")
