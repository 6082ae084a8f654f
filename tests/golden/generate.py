"""Makes vectors.json, results that every version must give to the bit: ``cd tests && python -m golden.generate``.

A case that the file has already is left as it is, so a run only adds what is new: a rule, a class, a combination of
options. The numbers that go in depend on nothing but the code below: no random generator of a library takes part.
tests/test_golden.py computes every stored case again, with the functions of this module.
"""

from __future__ import annotations

import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

import gdm
from support import DTYPES, IN_TURN, OWN_VALUES, RULES, VALUES, bits, is_legal, names, option_cases, special_values

FILE = Path(__file__).with_name("vectors.json")
ABOUT = """\
Results of gdm, pinned. tests/golden/generate.py makes this file and the inputs; tests/test_golden.py checks it.
A result is the first half of the SHA-256 of the buffer's bytes (little-endian; every NaN is the positive quiet one
without payload). In optimizers and stages some of its elements follow, to look at: those at 0, n // 3 and 2 * (n // 3).
functions: "numbers": 67 elements, states from 0, updates with step = 1, 2, 3, 4, 1000, each with a new gradient;
"special": zeros, subnormals, infinities, NaN and huge numbers in every buffer but lr_scale, one update.
optimizers: five steps of three parameters, the first two in the first group; "exp_avg 1" is the second one's.
stages: three steps of a plan in C with one parameter of 700 elements, stored in these dtypes; bfloat16 as integers.
schedules: only steps at which the rate cannot depend on the C library (its sin and pow may round differently)."""

STEPS = (1, 2, 3, 4, 1000)
LENGTH = 67  # a number of whole vectors on no instruction set
SHAPES = ((67,), (5, 13), (9,))

# At these values NAdam's own power of 0.96 and the C library's differ.
VALUES = {**VALUES, "momentum_decay": [*VALUES["momentum_decay"], 1.7, 12.5, 40.0]}

Arrays = dict[str, np.ndarray]
Results = dict[str, str]


# ---- Inputs and what is stored of results ----------------------------------------------------------------------------


@functools.cache
def numbers(label: str, dtype: np.dtype, n: int) -> np.ndarray:
    """Numbers of both signs, below 32 and mostly above 2**-11: splitmix64 from the label's CRC, converted exactly."""
    z = zlib.crc32(label.encode()) + np.arange(1, n + 1, dtype=np.uint64) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    digits = np.finfo(dtype).nmant + 1
    exponent = (z & 15).astype(np.int32) - 10
    x = np.ldexp((z.view(np.int64) >> (64 - digits)).astype(dtype), exponent - (digits - 1))
    x.flags.writeable = False
    return x


def special(label: str, dtype: np.dtype) -> np.ndarray:
    """Special values: every pair of them in param and grad, and something of each in the other buffers."""
    values = special_values(dtype)
    if label == "param":
        return np.repeat(values, len(values))
    if label == "grad":
        return np.tile(values, len(values))
    return np.abs(np.roll(np.tile(values, len(values)), zlib.crc32(label.encode()) % 100))


def digest(x: np.ndarray) -> str:
    """What pins a buffer."""
    x = np.ascontiguousarray(x)
    pattern = (bits(x) if x.dtype.kind == "f" else x.view(f"u{x.itemsize}")).ravel()
    return hashlib.sha256(pattern.astype(pattern.dtype.newbyteorder("<")).tobytes()).hexdigest()[:32]


def summary(x: np.ndarray) -> str:
    """The digest, and some elements to look at."""
    samples = np.ascontiguousarray(x).ravel()[:: max(1, x.size // 3)][:3]
    return " ".join([digest(x), *(float(value).hex() for value in samples)])


# ---- The functions ---------------------------------------------------------------------------------------------------


def function_cases() -> list[dict]:
    """Every combination of options, and every value of those that only change numbers."""
    cases = []
    for rule in RULES:
        chosen = option_cases(rule)
        chosen += [
            {**chosen[0], name: value}
            for name in IN_TURN
            if name in chosen[0]
            for value in OWN_VALUES.get((rule, name)) or VALUES[name]
            if is_legal(rule, name, value)
        ]
        for options in chosen:
            buffers = names(rule, options) + list(RULES[rule]["scalars"])
            constants = {name: value for name, value in options.items() if name not in ("step", "lr_scale")}
            case = {"rule": rule, "options": constants, "takes_step": "step" in options, "buffers": buffers}
            if case not in cases:
                cases.append(case)
    return cases


def python_update(rule: str, arrays: Arrays, options: dict) -> None:
    getattr(gdm, rule)(**arrays, **options)


def function_results(case: dict, dtype: np.dtype, update: Callable[[str, Arrays, dict], None]) -> dict[str, Results]:
    """The buffers after the case's updates: from plain numbers, and from special values."""
    results = {}
    for kind, steps in {"numbers": STEPS, "special": STEPS[:1]}.items():
        arrays = {}
        for name in case["buffers"]:
            if name in RULES[case["rule"]]["scalars"]:
                arrays[name] = np.array([RULES[case["rule"]]["scalars"][name]])
            elif name == "lr_scale":
                arrays[name] = np.abs(numbers(name, dtype, LENGTH if kind == "numbers" else len(arrays["param"])))
            elif kind == "special":
                arrays[name] = special(name, dtype)
            else:
                arrays[name] = numbers(name, dtype, LENGTH).copy() if name == "param" else np.zeros(LENGTH, dtype)
        for step in steps:
            if kind == "numbers":
                arrays["grad"][...] = numbers(f"grad {step}", dtype, LENGTH)
            update(case["rule"], arrays, {**case["options"], **({"step": step} if case["takes_step"] else {})})
        results[kind] = {name: digest(x) for name, x in arrays.items() if name not in ("grad", "lr_scale")}
    return results


# ---- The optimizers --------------------------------------------------------------------------------------------------

# At the fifth step a third of the cosine is behind it: every libm's sin(pi / 6) is the same, as it is very close to a
# double.
COSINE = "cosine(0.0625, steps=6, warmup=3)"
OPTIMIZERS = [  # class, options of both groups, options of the second group
    ("SGD", {}, {}),
    ("SGD", {"momentum": 0.9}, {"momentum": 0.0}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}, {"dampening": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "decoupled_weight_decay": True}, {"nesterov": True}),
    ("SGD", {"momentum": 0.9, "form": "classic"}, {"weight_decay": 0.0}),
    ("SGD", {"momentum": 0.9, "form": "classic", "nesterov": True}, {"decoupled_weight_decay": True}),
    ("Adagrad", {}, {}),
    ("Adagrad", {"lr_decay": 0.1, "weight_decay": 0.1}, {"initial_accumulator_value": 0.5, "eps": 1e-3}),
    ("RMSprop", {}, {"alpha": 0.9}),
    ("RMSprop", {"centered": True, "weight_decay": 0.1}, {"eps": 1e-3}),
    ("RMSprop", {"momentum": 0.9}, {"momentum": 0.0, "centered": True}),
    ("RMSprop", {"momentum": 0.9, "centered": True}, {"alpha": 0.5}),
    ("Adam", {}, {"betas": [0.5, 0.7]}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1}, {"amsgrad": False, "eps": 1e-3}),
    ("AdamW", {}, {"betas": [0.5, 0.7]}),
    ("AdamW", {"amsgrad": True, "weight_decay": 0.2}, {"amsgrad": False}),
    ("NAdam", {}, {"betas": [0.5, 0.7]}),
    ("NAdam", {"weight_decay": 0.1, "momentum_decay": 0.1}, {"decoupled_weight_decay": True}),
    ("RAdam", {}, {"betas": [0.5, 0.9]}),
    ("RAdam", {"weight_decay": 0.1, "betas": [0.5, 0.8]}, {"decoupled_weight_decay": True}),
    ("Adamax", {}, {"betas": [0.5, 0.7]}),
    ("Adamax", {"weight_decay": 0.1}, {"eps": 1e-3}),
    ("Adadelta", {}, {"rho": 0.5}),
    ("Adadelta", {"weight_decay": 0.1, "eps": 1e-3}, {"rho": 0.99}),
    ("Lion", {}, {"betas": [0.5, 0.7]}),
    ("Lion", {"weight_decay": 0.1}, {"betas": [0.8, 0.9]}),
    ("LARS", {"trust_coefficient": 0.1}, {"adapt": False}),
    ("LARS", {"weight_decay": 0.1}, {"trust_coefficient": 0.5, "momentum": 0.5}),
    ("LAMB", {}, {"betas": [0.5, 0.7]}),
    ("LAMB", {"weight_decay": 0.1}, {"adapt": False, "eps": 1e-3}),
    ("Signum", {}, {"momentum": 0.0}),
    ("Signum", {"weight_decay": 0.1}, {"momentum": 0.5, "decoupled_weight_decay": True}),
    ("Signum", {"momentum": 0.0, "weight_decay": 0.1}, {"decoupled_weight_decay": True}),
    ("Rprop", {}, {"etas": [0.25, 1.75]}),
    ("Rprop", {"step_sizes": [0.01, 0.1]}, {"maximize": False}),
    ("ASGD", {"t0": 1}, {"alpha": 0.0}),
    ("ASGD", {"lambd": 0.1, "alpha": 1.5, "weight_decay": 0.1}, {"lambd": 0.0, "t0": 0.5}),
    ("AdEMAMix", {}, {"betas": [0.5, 0.7, 0.9]}),
    ("AdEMAMix", {"weight_decay": 0.2, "t_alpha": 4, "t_beta3": 9}, {"alpha": 1.0, "t_beta3": 3}),
    ("ScheduleFreeSGD", {}, {"momentum": 0.5, "warmup_steps": 3}),
    ("ScheduleFreeSGD", {"weight_decay": 0.1, "r": 1.0}, {"weight_lr_power": 0.5}),
    ("ScheduleFreeAdamW", {}, {"betas": [0.5, 0.7]}),
    ("ScheduleFreeAdamW", {"weight_decay": 0.1, "warmup_steps": 4}, {"r": 0.5, "weight_lr_power": 0.0}),
]


def optimizer_cases() -> list[dict]:
    """The first group has factors of its learning rate, a number and an array; the second one a schedule."""
    first, second = {"lr_scale": [0.5, "array"]}, {"lr": COSINE, "weight_decay": 0.05, "maximize": True}
    without_decay = {key: x for key, x in second.items() if key != "weight_decay"}
    return [
        {
            "class": name,
            "options": {"lr": 0.03, **options},
            "groups": [first, {**(without_decay if name == "Rprop" else second), **others}],
        }
        for name, options, others in OPTIMIZERS
    ]


def optimizer_results(case: dict, dtype: np.dtype) -> Results:
    """The parameters and states after five steps; "exp_avg 1" is the second parameter's."""
    params = [numbers(f"param {k}", dtype, np.prod(shape)).reshape(shape).copy() for k, shape in enumerate(SHAPES)]
    first, second = ({**group} for group in case["groups"])
    factors = np.abs(numbers("lr_scale", dtype, params[1].size)).reshape(SHAPES[1])
    first["lr_scale"] = [factors if x == "array" else x for x in first["lr_scale"]]
    second["lr"] = schedule(second["lr"])
    groups = [{"params": params[:2], **first}, {"params": params[2:], **second}]
    optimizer = getattr(gdm, case["class"])(groups, **case["options"])
    for step in range(5):
        grads = [numbers(f"grad {k} {step}", dtype, x.size).reshape(x.shape) for k, x in enumerate(params)]
        optimizer.step([grads[:2], grads[2:]])
    results = {f"param {k}": summary(x) for k, x in enumerate(params)}
    for name in sorted({name for rule in RULES.values() for name in rule["states"]}):
        in_groups = getattr(optimizer, name, [])
        states = [x for group in in_groups for x in group]
        results |= {f"{name} {k}": summary(x) for k, x in enumerate(states) if x is not None}
    return results


# ---- The stages ------------------------------------------------------------------------------------------------------

RANDOM = {"rounding": 1, "seed": 2**63 + 5}
STAGED_OPTIONS = {
    "adam": {"amsgrad": True, "weight_decay": 0.1, "decoupled_weight_decay": True},
    "rmsprop": {"centered": True, "momentum": 0.5},
    "momentum": {"momentum": 0.9, "dampening": 0.1},
}
STAGES = [  # rule, how its entry is stored, the fields of gdm_step_args
    ("adam", {"param": "bfloat16", "grad": "bfloat16", "state": "bfloat16"}, RANDOM),
    ("adam", {"param": "float16", "grad": "float16", "state": "float16"}, RANDOM),
    ("adam", {"param": "bfloat16", "grad": "float32", "state": "float32"}, {}),
    ("adam", {"param": "float32", "grad": "bfloat16", "state": "int8", "copy": "bfloat16"}, {"seed": 7}),
    ("rmsprop", {"param": "float64", "grad": "float32", "state": "int8", "copy": "float16"}, {}),
    (
        "momentum",
        {"param": "bfloat16", "split": True, "grad": "bfloat16", "state": "int8", "average": "float16"},
        {"scale": 0.75, "max_grad_norm": 1.5, "max_grad_value": 0.01, "average_decay": 0.9, "average_correction": 1},
    ),
]


def stage_cases() -> list[dict]:
    return [
        {"rule": rule, "options": STAGED_OPTIONS[rule], "stored": stored, "around": around}
        for rule, stored, around in STAGES
    ]


def stage_results(case: dict) -> Results:
    """The buffers after three steps, in C. Each step is also compared with the stages in NumPy."""
    from cplan import DTYPE
    from cstages import Plan

    def fill(name: str, n: int) -> np.ndarray:
        states = RULES[case["rule"]]["states"]
        return np.zeros(n) if name in states else numbers(name, np.dtype(np.float64), n)

    stored = {name: DTYPE.get(dtype, dtype) for name, dtype in case["stored"].items()}
    with Plan() as plan:
        entry = plan.entry(plan.group(case["rule"], lr=0.03, **case["options"]), 700, fill=fill, **stored)
        plan.set(**case["around"])
        for step in range(3):
            entry.grad.set(numbers(f"grad {step}", np.dtype(np.float64), 700))
            plan.step()
    buffers = {"param": entry.param, "copy": entry.copy, "average": entry.average, **entry.state}
    arrays = {"low_bits": entry.param.low}
    for name, buffer in buffers.items():
        if buffer is not None:
            arrays |= {name: buffer.memory, f"scales of {name}": buffer.scales}
    return {name: summary(x) for name, x in arrays.items() if x is not None}


# ---- The schedules ---------------------------------------------------------------------------------------------------

SCHEDULES: dict[str, Iterable[int]] = {
    "constant(0.1, warmup=3)": range(5),
    "piecewise([0.1, 0.03, 0.001], [2, 5])": range(7),
    "step(0.3, every=2, factor=0.5, warmup=3)": range(9),
    "exponential(0.3, factor=0.5, every=3)": (0, 3, 6, 30),  # between them a root
    "inverse_sqrt(0.3, warmup=3)": range(9),
    "polynomial(0.3, steps=9, warmup=2, end=0.01)": range(11),
    "cosine(0.3, steps=9, warmup=3, end=0.01)": (0, 1, 2, 3, 5, 9, 100),
    # At these steps the sine and its square are very close to a double: they round the same way everywhere.
    "cosine(0.0, steps=22, end=0.3)": (1, 3, 13, 17),
    "cosine(0.3, steps=24)": (7, 8, 18),
    "cosine(0.3, steps=12, restarts=1, stretch=3)": (0, 1, 3, 6, 12),
    "one_cycle(0.3, steps=12, warmup=3)": (0, 1, 3, 6, 12, 100),
    "warmup(polynomial(0.7, steps=3), 3, start=0.1)": range(8),
    "join([constant(0.3), polynomial(0.7, steps=3), inverse_sqrt(0.1, warmup=2)], [2, 6])": range(12),
}


def schedule(expression: str) -> Callable[[int], float]:
    return eval(expression, {}, vars(gdm.schedules))


# ---- The file --------------------------------------------------------------------------------------------------------


def key(case: dict) -> str:
    """What makes a case: all but its results."""
    return json.dumps({name: value for name, value in case.items() if name != "results"})


def merged(stored: list[dict], made: list[dict]) -> list[dict]:
    """The stored cases, and what is new: cases behind them, or results for another dtype in them."""
    cases = {key(case): case for case in stored}
    for case in made:
        known = cases.setdefault(key(case), case)
        known["results"] = {**case["results"], **known["results"]}
    return list(cases.values())


def as_text(vectors: dict[str, list]) -> str:
    """JSON with one line for each case."""
    lists = [f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, items)) + "\n]" for name, items in vectors.items()]
    return "{\n" + ",\n".join(lists) + "\n}\n"


def main() -> None:
    functions, optimizers = function_cases(), optimizer_cases()
    for case in functions:
        case["results"] = {suffix: function_results(case, dtype, python_update) for suffix, dtype in DTYPES.items()}
    for case in optimizers:
        case["results"] = {suffix: optimizer_results(case, dtype) for suffix, dtype in DTYPES.items()}
    schedules = [
        {"schedule": text, "results": {str(step): schedule(text)(step).hex() for step in steps}}
        for text, steps in SCHEDULES.items()
    ]
    stages = [{**case, "results": stage_results(case)} for case in stage_cases()]
    made = {"functions": functions, "optimizers": optimizers, "stages": stages, "schedules": schedules}
    stored = json.loads(FILE.read_text()) if FILE.exists() else {}
    vectors = {"about": ABOUT.split("\n"), **{name: merged(stored.get(name, []), made[name]) for name in made}}
    FILE.write_text(as_text(vectors))


if __name__ == "__main__":
    main()
