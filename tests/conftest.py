from __future__ import annotations

import pytest
from support import ISAS

import gdm


@pytest.fixture(autouse=True)
def _restore_dispatch():
    """No test leaves another backend or instruction set behind."""
    backend, isa = gdm.backend(), gdm.isa()
    yield
    gdm.set_backend(backend)
    gdm.set_isa(isa)


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set that this CPU has, in use. One that gdm does not find is an error, not a skip."""
    gdm.set_isa(request.param)
    assert gdm.isa() == request.param
    return request.param


@pytest.fixture(params=["native", "reference"])
def backend(request):
    gdm.set_backend(request.param)
    return request.param
