"""Choosing what runs: environment, functions, a machine without AVX, no compiled module at all."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gdm
from support import ISAS, RULES, isas_of_this_cpu


def python(code: str, *, before: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess:
    """Runs the code in a fresh interpreter."""
    return subprocess.run(
        [*before, sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_isa_of_this_cpu_is_available():
    assert set(gdm.available_isas()) == set(ISAS) == set(isas_of_this_cpu())


def test_the_best_isa_comes_first():
    ladder = ["avx512", "avx2", "neon", "baseline"]
    assert gdm.available_isas() == [isa for isa in ladder if isa in ISAS]
    assert python("import gdm; print(gdm.isa())", GDM_ISA="").stdout.strip() == gdm.available_isas()[0]


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_chooses_the_isa(isa):
    assert python("import gdm; print(gdm.isa())", GDM_ISA=isa).stdout.strip() == isa


class Text(str):
    """Not exactly str, which is what the compiled function takes."""


@pytest.mark.parametrize("kind", [np.str_, Text])
def test_an_isa_may_be_another_kind_of_string(isa, kind):
    gdm.set_isa("baseline")
    gdm.set_isa(kind(isa))
    assert gdm.isa() == isa


def test_a_wrong_isa_is_refused():
    for name in ("sse9", "", "AVX2", "neon" if "neon" not in ISAS else "avx2", None):
        with pytest.raises(ValueError, match=r"^name must be one that this machine can run, .*'baseline', got"):
            gdm.set_isa(name)
    assert gdm.isa() in ISAS
    with pytest.raises(ValueError, match=r"got np\.str_"):
        gdm.set_isa(np.str_("sse9"))
    failed = python("import gdm", GDM_ISA="sse9")
    assert "ValueError: the environment variable GDM_ISA must name" in failed.stderr
    assert "'baseline', got 'sse9'" in failed.stderr


def test_the_environment_chooses_the_backend():
    code = "import gdm; print(gdm.backend())"
    assert python(code, GDM_BACKEND="").stdout.strip() == "native"
    assert python(code, GDM_BACKEND="native").stdout.strip() == "native"
    assert python(code, GDM_BACKEND="reference").stdout.strip() == "reference"
    failed = python(code, GDM_BACKEND="torch")
    assert "GDM_BACKEND must be 'native' or 'reference', got 'torch'" in failed.stderr


def test_set_backend_chooses_what_runs(monkeypatch):
    """Under "reference" the NumPy rules really run, for functions and optimizers."""
    ran = []
    update = gdm.reference.formula.update
    monkeypatch.setattr(gdm.reference.formula, "update", lambda *a, **k: ran.append(a[0]) or update(*a, **k))
    param, grad = np.ones(3), np.ones(3)
    gdm.set_backend("reference")
    gdm.sgd(param, grad, lr=0.1)
    gdm.momentum(param, np.zeros(3), grad, lr=0.1)
    gdm.SGD(param, lr=0.1, momentum=0.9).step(grad)
    assert ran == ["sgd", "momentum", "momentum"]
    gdm.set_backend("native")
    gdm.sgd(param, grad, lr=0.1)
    assert len(ran) == 3
    with pytest.raises(ValueError, match=r"^name must be 'native' or 'reference', got 'numpy'"):
        gdm.set_backend("numpy")
    assert gdm.backend() == "native"


WITHOUT_CORE = "import sys; sys.modules['gdm._core'] = None\n"


def test_without_the_compiled_module_the_reference_runs():
    """One warning, then the reference."""
    done = python(
        WITHOUT_CORE + "import gdm, numpy as np\n"
        "p = np.ones(2); gdm.sgd(p, p * 2, lr=0.25); print(p, gdm.backend(), gdm.isa(), gdm.available_isas())\n"
        "for call in (lambda: gdm.set_backend('native'), lambda: gdm.set_isa('avx2')):\n"
        "    try: call()\n"
        "    except (RuntimeError, ValueError) as error: print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning: gdm's compiled module does not load") == 1
    assert "<string>:2" in done.stderr, "the warning should point at the user's import"
    lines = done.stdout.splitlines()
    assert lines[0] == "[0.5 0.5] reference none []"
    assert "only the backend 'reference' is available" in lines[1]
    assert "the compiled module does not load" in lines[2]


# Files whose tests hold on the reference alone.
WITHOUT_THE_MODULE = [
    "test_contract.py",
    "test_any_array.py",
    "test_array_update.py",
    "test_torch_arrays.py",
    "test_class_rules.py",
    "test_layout.py",
    "test_groups.py",
    "test_options.py",
    "test_lr_scale.py",
    "test_schedules_in_steps.py",
    "test_schedule_free.py",
    "test_states.py",
    "test_gradients.py",
    "test_overlap.py",
    "test_user_code.py",
    "test_lifetime.py",
    "test_concurrency.py",
    "test_state_dict.py",
    "test_copies.py",
    "test_forms.py",
    "test_absent.py",
    "test_free_threading.py",
    "test_lock.py",
    "test_reductions.py",
    "test_bases.py",
    "test_groups_identity.py",
    "test_refused_changes.py",
    "test_random_operations.py",
    "test_all_or_nothing.py",
    "test_muon.py",
]


def test_the_tests_pass_without_the_compiled_module():
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not native",
         *(here / name for name in WITHOUT_THE_MODULE)],
        env={**os.environ, "GDM_TEST_RULES": json.dumps(RULES)}, capture_output=True, text=True, timeout=600,
        cwd=here.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 2000


def test_a_machine_without_avx_runs_the_baseline():
    """Under an emulated Nehalem the library starts and steps, on the baseline."""
    qemu = shutil.which("qemu-x86_64")
    if platform.machine() != "x86_64" or not qemu:
        pytest.skip("NOT TESTED: a CPU without AVX; needs qemu-x86_64 (Debian: qemu-user)")
    # NumPy's OpenBLAS takes this emulated CPU for a newer one and dies of it; told the core, it starts.
    done = python(
        "import gdm, numpy as np\n"
        "p, v, g = (np.full(1000, x, 'f') for x in (1, 0.5, 0.25))\n"
        "q, w = p.copy(), v.copy()\n"
        "gdm.momentum(p, v, g, lr=0.1); gdm.reference.momentum(q, w, g, lr=0.1)\n"
        "o = gdm.SGD(p, lr=0.1, momentum=0.9); o.step(g)\n"
        "print(gdm.available_isas(), np.array_equal(v, w), p[0])\n",
        before=(qemu, "-cpu", "Nehalem"),
        OPENBLAS_CORETYPE="Nehalem",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['baseline'] True")


def test_importing_is_cheap():
    """gdm imports nothing heavy: no adapters, no plotting, no command line."""
    code = "import numpy, sys; sys.modules['threadpoolctl'] = None; before = set(sys.modules)\n"
    new = python(code + "import gdm; print(*sorted(set(sys.modules) - before))").stdout.split()
    expected = ("gdm", "_cython", "cython_runtime", "__future__", "importlib")  # the last for an editable install
    assert [name for name in new if not name.startswith(expected)] == []
    assert "gdm.demo" not in new
    assert "gdm.__main__" not in new
