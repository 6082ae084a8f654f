"""Results pinned in golden/vectors.json: Python, the reference and C give them to the bit, now and in every version."""

from __future__ import annotations

import json

import pytest

import gdm
from cheader import update
from golden import generate
from support import CLASSES, DTYPES, ISAS, RULES, describe

VECTORS = json.loads(generate.FILE.read_text())
every_rule = pytest.mark.parametrize("rule", list(dict.fromkeys(case["rule"] for case in VECTORS["functions"])))
every_dtype = pytest.mark.parametrize("suffix", list(DTYPES))
every_isa = pytest.mark.parametrize("instructions", ISAS)
every_optimizer = pytest.mark.parametrize(
    "case", VECTORS["optimizers"], ids=lambda case: f"{case['class']}-{describe(case['options'])}"
)
every_stage = pytest.mark.parametrize(
    "case", VECTORS["stages"], ids=lambda case: f"{case['rule']}-{describe(case['stored'])}"
)
every_schedule = pytest.mark.parametrize("case", VECTORS["schedules"], ids=lambda case: case["schedule"])


@pytest.fixture(params=["reference", *ISAS])
def engine(request):
    """The reference, and the compiled kernels with each instruction set."""
    gdm.set_backend("reference" if request.param == "reference" else "native")
    if request.param != "reference":
        gdm.set_isa(request.param)
    return request.param


def differences(what: str, stored: dict, found: dict) -> list[str]:
    """For each buffer that is not what was stored: which one, and the hash and some elements of both."""
    return [
        f"{what}: {name} differs\n  stored {value}\n  found  {found.get(name, 'nothing')}"
        for name, value in stored.items()
        if found.get(name) != value
    ]


def assert_functions(rule, suffix, update):
    """Every combination of the rule's options; a failure lists all that differ."""
    wrong = []
    for case in VECTORS["functions"]:
        if case["rule"] == rule:
            found = generate.function_results(case, DTYPES[suffix], update)
            for kind, stored in case["results"][suffix].items():
                what = f"{rule} {suffix}, {kind}, {case['options']}, buffers {', '.join(case['buffers'])}"
                wrong += differences(what, stored, found[kind])
    assert not wrong, f"{len(wrong)} buffers differ\n" + "\n".join(wrong)


@every_dtype
@every_rule
def test_functions(rule, suffix, engine):
    assert_functions(rule, suffix, generate.python_update)


@every_isa
@every_dtype
@every_rule
def test_c_functions(library, rule, suffix, instructions):
    assert library.gdm_set_isa(instructions.encode()) == 0

    def call(rule, arrays, options):
        assert update(library, rule, suffix, arrays, options) == "OK"

    assert_functions(rule, suffix, call)


@every_dtype
@every_optimizer
def test_optimizers(case, suffix, engine):
    what = f"{case['class']} {suffix}, {case['options']}, groups {case['groups']}"
    wrong = differences(what, case["results"][suffix], generate.optimizer_results(case, DTYPES[suffix]))
    assert not wrong, "\n".join(wrong)


@every_stage
@every_isa
def test_stages(case, instructions):
    gdm.set_isa(instructions)
    what = f"{case['rule']} stored as {case['stored']}, {case['around']}"
    wrong = differences(what, case["results"], generate.stage_results(case))
    assert not wrong, "\n".join(wrong)


@every_schedule
def test_schedules(case):
    rate = generate.schedule(case["schedule"])
    found = {step: rate(int(step)).hex() for step in case["results"]}
    wrong = differences(case["schedule"], case["results"], found)
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_out():
    """A new rule, option, class or kind of schedule has its vectors: ``cd tests && python -m golden.generate``."""
    made = {
        "functions": generate.function_cases(),
        "optimizers": generate.optimizer_cases(),
        "stages": generate.stage_cases(),
    }
    for name, cases in made.items():
        assert {generate.key(case) for case in cases} <= {generate.key(case) for case in VECTORS[name]}
    assert {case["rule"] for case in VECTORS["functions"]} == set(RULES)
    assert {case["class"] for case in VECTORS["optimizers"]} == {cls.__name__ for cls in CLASSES}
    kinds = {case["schedule"].split("(")[0] for case in VECTORS["schedules"]}
    assert kinds == set(gdm.schedules.__all__) - {"Schedule", "from_dict", "plot", "to_dict"}
    for case in VECTORS["functions"] + VECTORS["optimizers"]:
        assert set(case["results"]) == set(DTYPES)
