from __future__ import annotations

import os
import shutil
import sys
import warnings

import pytest

# test_backend.py runs other tests once more as if there were no compiled module.
WITHOUT_CORE = "GDM_TEST_RULES" in os.environ
if WITHOUT_CORE:
    sys.modules["gdm._core"] = None  # type: ignore[assignment]
    sys.modules["gdm.schedules._formulas"] = None  # type: ignore[assignment]
    warnings.simplefilter("ignore")

import gdm  # noqa: E402

if WITHOUT_CORE:
    warnings.simplefilter("error")

from built_once import built_once  # noqa: E402
from byhand import COMPILERS, build  # noqa: E402
from checkpoint_files import tree  # noqa: E402
from clibrary import compile_shared, loaded  # noqa: E402
from faults_table import counted, pytest_terminal_summary  # noqa: E402, F401
from gdm._checkpoint import save  # noqa: E402
from support import HAS_SAFETENSORS, ISAS, NO_SAFETENSORS  # noqa: E402
from thread_unsafe import why  # noqa: E402


def pytest_configure(config):
    if not config.pluginmanager.has_plugin("run-parallel"):
        config.addinivalue_line("markers", "thread_unsafe(reason): must run in one thread (pytest-run-parallel)")


def pytest_collection_modifyitems(items):
    for item in items:
        reason = why(item)
        if reason:
            item.add_marker(pytest.mark.thread_unsafe(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Where safetensors cannot be had, as for Pythons without the GIL, a test that saves is skipped."""
    try:
        return (yield)
    except ImportError as error:
        if HAS_SAFETENSORS or "needs safetensors" not in str(error):
            raise
        pytest.skip(NO_SAFETENSORS)


@pytest.fixture(autouse=True)
def _restore_dispatch():
    """No test leaves another backend, instruction set or number of threads behind."""
    backend, isa, threads = gdm.backend(), gdm.isa(), gdm.get_num_threads()
    yield
    gdm.set_backend(backend)
    gdm.set_num_threads(threads)
    if not WITHOUT_CORE:
        gdm.set_isa(isa)


@pytest.fixture(params=[] if WITHOUT_CORE else ISAS)
def isa(request):
    """Each instruction set that this CPU has, in use. One that gdm does not find is an error, not a skip."""
    gdm.set_isa(request.param)
    assert gdm.isa() == request.param
    return request.param


@pytest.fixture(params=["reference"] if WITHOUT_CORE else ["native", "reference"])
def backend(request):
    gdm.set_backend(request.param)
    return request.param


@pytest.fixture
def float64_by_default():
    """Float64 as torch's default dtype, in which it keeps counts of steps, and NAdam's product of momenta."""
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def by_hand(tmp_path_factory):
    """The folder in which build() has been run, for a compiler and flags."""

    def folder(compiler, flags=""):
        name = f"by-hand-{compiler}{flags}"
        return built_once(tmp_path_factory, name, lambda folder: build(compiler, folder, cflags=flags))

    return folder


@pytest.fixture(scope="module", params=COMPILERS)
def library(request, tmp_path_factory):
    """The C core, compiled by hand."""
    if not shutil.which(request.param):
        pytest.skip(f"NOT TESTED: the core under {request.param}, which is not here")
    folder = built_once(
        tmp_path_factory, f"shared-{request.param}", lambda folder: compile_shared(request.param, folder)
    )
    return loaded(folder)


@pytest.fixture
def path(tmp_path):
    """Where a checkpoint file may be."""
    return tmp_path / "state.safetensors"


@pytest.fixture
def saved(path):
    """A checkpoint file."""
    save(path, tree())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """For examples of hypothesis, which share it."""
    return tmp_path_factory.mktemp("trees")
