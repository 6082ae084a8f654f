"""Loads state dictionaries that are damaged into optimizers: see Subject.check."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["gdm"]):
    import gdm  # noqa: F401

from damage import any_value, damaged
from subjects import MAKERS, Subject

SUBJECTS = [Subject(make) for make in MAKERS]


def test_one_input(text: bytes) -> None:
    data = atheris.FuzzedDataProvider(text)
    subject = data.PickValueInList(SUBJECTS)
    state = damaged(subject.state, data, any_value)
    optimizer = subject.optimizer
    subject.check(lambda: optimizer.load_state_dict(state), lambda: optimizer.load_state_dict(optimizer.state_dict()))


# libFuzzer runs itself by its first argument when it merges.
atheris.Setup([f"{sys.executable} {__file__}", *sys.argv[1:]], test_one_input)
atheris.Fuzz()
