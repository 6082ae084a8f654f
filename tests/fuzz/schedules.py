"""Makes schedules from dictionaries that are damaged.

Each is refused with a ``ValueError``, or gives a schedule that comes back from its own dictionary, also through JSON,
and whose rates are finite and not negative.
"""

from __future__ import annotations

import json
import math
import sys

import atheris

with atheris.instrument_imports(include=["gdm"]):
    import gdm
    from gdm.schedules.schedule import KINDS

from damage import any_value, damaged, plain_value

make = gdm.schedules
SCHEDULES = [
    make.constant(0.1, warmup=3),
    make.piecewise([0.1, 0.2], [10]),
    make.step(0.1, every=30, warmup=2),
    make.exponential(0.1, factor=0.9, every=5),
    make.inverse_sqrt(0.1, warmup=10),
    make.polynomial(0.1, steps=100, power=2.0),
    make.cosine(0.1, steps=100, warmup=10, restarts=2, stretch=2),
    make.one_cycle(0.1, steps=100),
    make.warmup(make.cosine(0.1, steps=50), 10),
    make.join([make.constant(0.1), make.step(0.1, every=7)], [20]),
]
assert {schedule.kind for schedule in SCHEDULES} == set(KINDS), "a kind of schedule is missing here"
DICTIONARIES = [make.to_dict(schedule) for schedule in SCHEDULES]


def test_one_input(text: bytes) -> None:
    data = atheris.FuzzedDataProvider(text)
    d = damaged(data.PickValueInList(DICTIONARIES), data, plain_value if data.ConsumeBool() else any_value)
    try:
        schedule = make.from_dict(d)
    except ValueError as error:
        if not str(error):
            raise RuntimeError("an error without a text") from error
        return
    plain = make.to_dict(schedule)
    assert make.from_dict(plain) == schedule, "a schedule does not come back"
    assert make.from_dict(json.loads(json.dumps(plain))) == schedule, "a schedule does not come back from JSON"
    assert repr(schedule)
    for step in (0, 1, data.ConsumeIntInRange(0, 2**20), 2**53):
        rate = schedule(step)
        assert 0 <= rate < math.inf, f"a rate of {rate} at step {step}"


# libFuzzer runs itself by its first argument when it merges.
atheris.Setup([f"{sys.executable} {__file__}", *sys.argv[1:]], test_one_input)
atheris.Fuzz()
