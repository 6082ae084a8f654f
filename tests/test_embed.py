"""gdm inside other programs: the examples of tests/embed are built, run, and give the reference's bits; the library
and the headers keep what docs/embedding.md promises. A toolchain that is not here is a skip that says so."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import gdm
from gdm import _stages

ROOT = Path(__file__).parent.parent
EMBED = ROOT / "tests/embed"
PACKAGE = Path(gdm.get_include()).parent
STRICT = ["-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def need(*names: str) -> None:
    """Skips, loudly, unless these programs and Python packages are here."""
    missing = [name for name in names if not (shutil.which(name) or importlib.util.find_spec(name.replace("-", "_")))]
    if missing:
        pytest.skip(f"NOT TESTED: this way to embed gdm; needs {', '.join(missing)}")


def run(*command, cwd=None, **environment) -> str:
    """The output of a program that must end well."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def config(*options: str) -> list[str]:
    return run(sys.executable, "-m", "gdm", "config", *options).split()


@pytest.fixture
def say(capsys):
    """Prints what is to be seen also when the test passes."""

    def print_it(*what):
        with capsys.disabled():
            print("\n   ", *what, end="")

    return print_it


# ---- the fit that all examples make -----------------------------------------------------------------------------


def blur(x: np.ndarray) -> np.ndarray:
    return np.float32(0.25) * np.roll(x, 1) + x + np.float32(0.25) * np.roll(x, -1)


def expected(n: int = 64, steps: int = 50) -> tuple[np.ndarray, list[float]]:
    """Its parameters and losses, by the reference."""
    measured = blur(np.arange(n, dtype=np.float32) % 7)
    param, velocity = np.zeros(n, np.float32), np.zeros(n, np.float32)
    losses = []
    for step in range(steps + 1):
        residual = blur(param) - measured
        if step % 10 == 0:
            losses.append(float(np.cumsum(0.5 * residual.astype(float) * residual)[-1]))  # cumsum: one after the other
        options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
        gdm.reference.momentum(param, velocity, blur(residual), **options)
    return param, losses


def assert_fits(output: str, n: int = 64, steps: int = 50) -> None:
    """What an example printed is the reference's, to the last bit."""
    lines = [line.split() for line in output.splitlines()]
    param, losses = expected(n, steps)
    assert losses[-1] < losses[0] / 100
    assert [float(x) for name, x in lines if name == "loss"] == losses
    np.testing.assert_array_equal(np.array([x for name, x in lines if name == "param"], np.float32), param[:64])


# ---- C, C++, Fortran, Rust: the static library ------------------------------------------------------------------


def test_c_by_hand(tmp_path):
    need("cc")
    run("cc", EMBED / "c/fit.c", *STRICT, *config("--cflags", "--libs"), "-o", tmp_path / "fit")
    assert_fits(run(tmp_path / "fit"))


def test_a_plan_in_c(tmp_path):
    need("cc")
    run("cc", EMBED / "c/plan.c", *STRICT, *config("--cflags", "--libs"), "-o", tmp_path / "plan")
    assert_fits(run(tmp_path / "plan"))


def test_mixed_precision_in_c(tmp_path):
    """Its losses, norms and parameters are those of the stages and the reference."""
    need("cc")
    run("cc", EMBED / "c/mixed.c", *STRICT, *config("--cflags", "--libs"), "-o", tmp_path / "mixed")
    lines = [line.split() for line in run(tmp_path / "mixed").splitlines()]
    found = {kind: [float(x) for name, x in lines if name == kind] for kind in ("loss", "norm", "param")}

    measured = blur(np.arange(64, dtype=np.float32) % 7)
    param, velocity = np.zeros(64, np.float32), np.zeros(64, np.float32)
    losses, norms = [], []
    for step in range(51):
        weights = _stages.widen(_stages.narrow(param, "bfloat16"), "bfloat16", np.float32)
        residual = blur(weights) - measured
        grad = _stages.widen(_stages.narrow(blur(residual), "bfloat16"), "bfloat16", np.float32)
        norm = gdm.grad_norm([grad])
        if step % 10 == 0:
            losses.append(float(np.cumsum(0.5 * residual.astype(float) * residual)[-1]))
            norms.append(norm)
        clip = 10 / (norm + 1e-6)
        grad = _stages.scaled(grad, clip) if clip < 1 else grad
        new = grad if step == 0 else np.float32(0.9) * velocity + grad
        velocity, param = new, param - np.float32(0.1) * new
    assert losses[-1] < losses[0] / 50
    assert found["loss"] == losses
    assert found["norm"] == norms
    np.testing.assert_array_equal(np.array(found["param"], np.float32), param)


def test_a_training_in_c(tmp_path):
    """AdamW with a schedule: the reference's parameters; and those of a training that was interrupted are the same."""
    need("cc")
    run("cc", EMBED / "c/train.c", *STRICT, *config("--cflags", "--libs"), "-o", tmp_path / "train")
    whole, resumed = (run(tmp_path / "train", *how, cwd=tmp_path).splitlines() for how in ([], ["--resume"]))
    assert whole[5:] == resumed

    measured = blur(np.arange(64, dtype=np.float32) % 7)
    param, *states = (np.zeros(64, np.float32) for _ in range(3))
    losses = []
    for step in range(100):
        residual = blur(param) - measured
        losses.append(float(np.cumsum(0.5 * residual.astype(float) * residual)[-1]))
        lr = 0.5 * (step + 1) / 10 if step < 10 else 0.5 * (100 - step) / 90
        options = {"lr": lr, "weight_decay": 1e-4, "decoupled_weight_decay": True, "step": step + 1}
        gdm.reference.adam(param, *states, blur(residual), **options)
    assert losses[-1] < losses[0] / 1000
    assert [float(line.split()[1]) for line in whole[:10]] == losses[::10]
    np.testing.assert_array_equal(np.array([line.split()[1] for line in whole[10:]], np.float32), param)


def test_a_training_in_c_without_its_file(tmp_path):
    need("cc")
    run("cc", EMBED / "c/train.c", *STRICT, *config("--cflags", "--libs"), "-o", tmp_path / "train")
    done = subprocess.run([tmp_path / "train", "--resume"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "train.state" in done.stderr


def pkg_config(prefix: Path) -> list[str]:
    folders = ":".join(
        map(str, [prefix / "lib/pkgconfig", *prefix.glob("lib/*/pkgconfig"), prefix / "lib64/pkgconfig"])
    )
    assert run("pkg-config", "--modversion", "gdm", PKG_CONFIG_PATH=folders).strip() == gdm.__version__
    return run("pkg-config", "--cflags", "--libs", "gdm", PKG_CONFIG_PATH=folders).split()


def test_c_by_pkg_config(tmp_path):
    need("cc", "pkg-config")
    run("cc", EMBED / "c/fit.c", *STRICT, *pkg_config(PACKAGE), "-o", tmp_path / "fit")
    assert_fits(run(tmp_path / "fit"))


def cmake(source: Path, build: Path, *options: str) -> None:
    run("cmake", "-S", source, "-B", build, *options)
    run("cmake", "--build", build, "--parallel", "2")


def test_c_by_cmake(tmp_path):
    need("cc", "cmake")
    cmake(EMBED / "c", tmp_path, f"-Dgdm_DIR={gdm.get_cmake_dir()}")
    assert_fits(run(tmp_path / "fit"))


def test_cpp(tmp_path):
    need("c++", "cmake")
    cmake(EMBED / "cpp", tmp_path, f"-Dgdm_DIR={gdm.get_cmake_dir()}", f"-DCMAKE_CXX_FLAGS={' '.join(STRICT)}")
    *output, pieces = run(tmp_path / "fit").splitlines()
    assert_fits("\n".join(output), 1 << 20, 20)
    assert int(pieces.split()[1]) >= 2 * 21, "the host's threads were not used"


def test_fortran(tmp_path):
    need("gfortran")
    strict = [flag for flag in STRICT if flag != "-Wpedantic"]
    source = EMBED / "fortran/fit.f90"
    run("gfortran", source, *strict, *config("--libs"), "-J", tmp_path, "-o", tmp_path / "fit")
    assert_fits(run(tmp_path / "fit"))


def test_rust(tmp_path):
    need("rustc")
    flags = ["--edition=2021", "-O", "-Dwarnings", "-L", f"native={PACKAGE / 'lib'}"]
    run("rustc", EMBED / "rust/fit.rs", *flags, "-o", tmp_path / "fit")
    assert_fits(run(tmp_path / "fit"))


# ---- Python's neighbours: the functions of the installed package ------------------------------------------------


@pytest.mark.parametrize("way", ["ctypes", "cffi", "numba"])
def test_address(way):
    need(way)
    assert_fits(run(sys.executable, EMBED / way / "fit.py"))


@pytest.fixture(scope="session")
def cython_modules(tmp_path_factory):
    """The folder in which the modules of the Cython example are installed."""
    need("cc", "Cython", "cython-cmake", "scikit-build-core", "cmake")
    out = tmp_path_factory.mktemp("cython")
    shutil.copytree(EMBED / "cython", out / "source")
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    run(*pip, "--no-build-isolation", "--no-deps", "--no-index", "--target", out / "site", out / "source")
    return out / "site"


def with_modules(folder: Path, code: str, **environment: str) -> str:
    return run(sys.executable, "-c", code, PYTHONPATH=str(folder), **environment)


def test_cython(cython_modules):
    assert_fits(
        with_modules(
            cython_modules,
            """
import gdm_fit
param, losses = gdm_fit.fit()
for loss in losses:
    print("loss", loss)
for p in param:
    print("param", p)
""",
        )
    )


def test_one_pool_for_all_modules(cython_modules):
    """Two modules and gdm itself step large arrays with two threads: the process has one worker."""
    done = with_modules(
        cython_modules,
        """
import pathlib
import numpy as np
import gdm, gdm_call, gdm_fit

def workers():
    return sum(f.read_text() == "gdm\\n" for f in pathlib.Path("/proc/self/task").glob("*/comm"))

gdm.set_num_threads(2)
arrays = np.ones((3, 1 << 21), np.float32)
counts = [workers()]
for step in (
    lambda: gdm_call.calls(*arrays, 3),
    lambda: gdm_fit.fit(1 << 21, 2),
    lambda: gdm.momentum(arrays[0], arrays[1], arrays[2], lr=0.1),
):
    step()
    counts.append(workers())
print(*counts)
""",
    )
    assert done.split() == ["0", "1", "1", "1"]


def test_large_in_cython(cython_modules):
    """The numbers are the same where threads share the work."""
    output = with_modules(
        cython_modules,
        """
import gdm, gdm_fit
gdm.set_num_threads(2)
param, losses = gdm_fit.fit(1 << 20, 20)
for loss in losses:
    print("loss", loss)
for p in param[:64]:
    print("param", p)
""",
    )
    assert_fits(output, 1 << 20, 20)


# ---- what a call costs: figures, for the eye --------------------------------------------------------------------


def test_time_of_a_call_from_c(tmp_path, say):
    need("cc")
    run("cc", EMBED / "c/call.c", *STRICT, *config("--cflags", "--libs"), "-o", tmp_path / "call")
    for isa in gdm.available_isas():
        say("C:", run(tmp_path / "call", GDM_ISA=isa).strip())


def test_time_of_a_call_from_numba(say):
    need("numba")
    say("Numba:", run(sys.executable, EMBED / "numba/call.py").strip())


def test_time_of_a_call_from_cython(cython_modules, say):
    code = """
import statistics, time
import numpy as np
import gdm_call
times = []
buffers = np.zeros((3, 64), np.float32)
for _ in range(501):
    begin = time.perf_counter_ns()
    assert not gdm_call.calls(*buffers, 2000)
    times.append((time.perf_counter_ns() - begin) / 2000)
print(f"call {statistics.median(times):.2f} ns, at best {min(times):.2f}")
"""
    say("Cython:", with_modules(cython_modules, code).strip())


# ---- CMake, without Python --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """gdm built and installed by CMake alone, its own tests passed, then moved."""
    need("cc", "cmake", "ctest")
    out = tmp_path_factory.mktemp("standalone")
    cmake(ROOT, out / "build", "-DCMAKE_DISABLE_FIND_PACKAGE_Python=ON", "-DGDM_WERROR=ON")
    assert "100% tests passed" in run("ctest", "--test-dir", out / "build")
    run("cmake", "--install", out / "build", "--prefix", out / "first")
    (out / "first").rename(out / "second")
    return out / "second"


def test_standalone_by_cmake(prefix, tmp_path):
    cmake(EMBED / "c", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}")
    assert_fits(run(tmp_path / "fit"))


def test_standalone_by_pkg_config(prefix, tmp_path):
    need("pkg-config")
    flags = pkg_config(prefix)
    assert f"-I{prefix}" in " ".join(flags).replace("/lib/pkgconfig/../..", "")
    run("cc", EMBED / "c/fit.c", *STRICT, *flags, "-o", tmp_path / "fit")
    assert_fits(run(tmp_path / "fit"))


@pytest.mark.parametrize(
    "way",
    [
        f"add_subdirectory({ROOT} gdm)",
        f"include(FetchContent)\nFetchContent_Declare(gdm SOURCE_DIR {ROOT})\nFetchContent_MakeAvailable(gdm)",
    ],
    ids=["add_subdirectory", "FetchContent"],
)
def test_as_part_of_another_project(way, tmp_path):
    """Also of one whose wheel scikit-build-core builds, unoptimised; nothing of gdm is installed or tested with it."""
    need("cc", "cmake")
    program = (EMBED / "c/CMakeLists.txt").read_text().replace("find_package(gdm CONFIG REQUIRED)", way)
    assert way in program
    (tmp_path / "CMakeLists.txt").write_text(program)
    shutil.copy(EMBED / "c/fit.c", tmp_path)
    cmake(tmp_path, tmp_path / "build", "-DSKBUILD=2", "-DCMAKE_BUILD_TYPE=Debug")
    assert_fits(run(tmp_path / "build/fit"))
    run("cmake", "--install", tmp_path / "build", "--prefix", tmp_path / "prefix")
    assert not (tmp_path / "prefix").exists()


# ---- the library ------------------------------------------------------------------------------------------------

LIBRARY = PACKAGE / "lib/libgdm.a"


def symbols(*options: str) -> dict[str, set[str]]:
    """Of the library: the kinds of each symbol's occurrences."""
    found: dict[str, set[str]] = {}
    for line in run("nm", *options, LIBRARY).splitlines():
        match = re.fullmatch(r"[0-9a-f ]*([A-Za-z]) (\S+)", line)
        if match:
            found.setdefault(match[2], set()).add(match[1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="nm and the C library's name are another's elsewhere")
def test_what_the_library_needs():
    """libc, libm and pthread (which is in libc nowadays)."""
    need("nm")
    own = symbols("--defined-only")
    libraries = []
    for name in ("libc.so.6", "libm.so.6", "libpthread.so.0"):
        try:
            libraries.append(ctypes.CDLL(name))
        except OSError:
            assert name == "libpthread.so.0"
    by_the_linker = {"_GLOBAL_OFFSET_TABLE_", "pthread_atfork"}  # the second is in the C library's static part
    needed = set(symbols("--undefined-only")) - set(own) - by_the_linker
    assert needed
    assert [name for name in sorted(needed) if not any(hasattr(library, name) for library in libraries)] == []


def test_what_the_library_defines():
    need("nm")
    names = symbols("--extern-only", "--defined-only")
    assert "gdm_momentum_f32" in names
    assert [name for name in names if not name.startswith("gdm_")] == []


def test_size_of_the_library(tmp_path, say):
    need("strip")
    run("strip", "--strip-unneeded", LIBRARY, "-o", tmp_path / "stripped.a")
    size = (tmp_path / "stripped.a").stat().st_size
    say(f"libgdm.a, stripped: {size / 1024:.0f} KiB")
    assert size <= 5 << 18  # 1.25 MiB, with 20 rules for three instruction sets


@pytest.mark.parametrize("module", ["gdm._core", "gdm.schedules._formulas"])
def test_what_the_module_exports(module):
    need("nm")
    file = importlib.util.find_spec(module).origin
    names = [line.split()[-1] for line in run("nm", "-D", "--defined-only", file).splitlines()]
    assert [name for name in names if name not in ("_init", "_fini")] == [f"PyInit_{module.split('.')[-1]}"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX is x86-64's")
def test_avx_is_in_its_own_objects_only(tmp_path):
    """The rest must run on a machine without."""
    need("ar", "objdump")
    run("ar", "x", LIBRARY, cwd=tmp_path)
    objects = {file.name.split(".")[0]: file for file in tmp_path.iterdir()}
    assert {"baseline", "avx2", "avx512", "update", "step", "pool"} <= objects.keys()
    for name, file in objects.items():
        code = run("objdump", "-d", "--no-show-raw-insn", file)
        instructions = re.findall(r"^ +[0-9a-f]+:\t(.*)$", code, re.M)
        vector = [i for i in instructions if re.search(r"%[yz]mm", i) or re.match(r"v(?!er[rw])", i)]
        assert bool(instructions) == (name != "neon")
        assert bool(vector) == (name in ("avx2", "avx512")), f"{name}: {vector[:3]}"


# ---- the headers, and other versions of them --------------------------------------------------------------------


def test_older_argument_struct(tmp_path):
    """A program compiled when gdm_momentum_args had fewer fields links, runs, and gives what it gave."""
    need("cc")
    shutil.copytree(PACKAGE / "include", tmp_path / "include")
    header = tmp_path / "include/gdm/gdm.h"
    start, struct, end = re.split(
        r"(?<=typedef struct gdm_momentum_args \{\n)(.*?)(?=\} gdm_momentum_args;)", header.read_text(), flags=re.S
    )
    fields = struct.splitlines(keepends=True)
    older = "".join(fields[:7])  # up to maximize; up to nesterov, it would end with padding, whose bytes are undefined
    assert " maximize;" in fields[6]
    assert len(fields) > 7
    end, count = re.subn(r"(#define GDM_MOMENTUM_DEFAULTS \{(?:[^,]*, ){6}[^,]*)[^}]*", r"\1", end)
    assert count == 1
    header.write_text(start + older + end)
    source = tmp_path / "fit.c"
    source.write_text(
        f'{(EMBED / "c/fit.c").read_text()}\n_Static_assert(sizeof(gdm_momentum_args) == 48, "not an older struct");\n'
    )
    run("cc", source, *STRICT, f"-I{tmp_path}/include", *config("--libs"), "-o", tmp_path / "fit")
    assert_fits(run(tmp_path / "fit"))


def test_no_argument_struct_ends_with_padding(tmp_path):
    """A field that is added later would lie in it. The bytes that an older program has there are undefined."""
    need("gcc")
    source = tmp_path / "padding.c"
    source.write_text("#include <gdm/gdm.h>\ntypedef struct { double x; int i; } planted_args;\n")
    command = ["gcc", "-fsyntax-only", "-Wpadded", source, *config("--cflags")]
    warnings = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    ends = re.findall(r"padding struct size to alignment boundary.*\n.*\} (\w+);", warnings.stderr)
    assert [name for name in ends if name.endswith("_args")] == ["planted_args"]


MODULE = """
#include <gdm/import.h>

static PyObject *step(PyObject *self, PyObject *unused) {
    float param = 1, grad = 1;
    static gdm_sgd_args args;
    (void)self, (void)unused;
    args.size = sizeof args, args.lr = 0.25;
    int status = (int)gdm_sgd_f32(&param, &grad, 1, &args);
    return Py_BuildValue("id", status, (double)param);
}

static PyObject *import_it(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    if (gdm_import() < 0) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"step", step, METH_NOARGS, NULL}, {"import_it", import_it, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "tiny", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_tiny(void) {
    return PyModule_Create(&module);
}
"""


def tiny(folder: Path, header: str = "", old: str = "", new: str = "", compiler: str = "cc", *flags: str) -> Path:
    """An extension module compiled with gdm's headers, in one of which something is another."""
    need(compiler)
    include = folder / "include/gdm"
    include.mkdir(parents=True)
    for file in (PACKAGE / "include/gdm").iterdir():
        text = file.read_text()
        if file.name == header:
            assert old in text
            text = text.replace(old, new, 1)
        (include / file.name).write_text(text)
    python = sysconfig.get_path("include")
    source = folder / f"tiny.{'cpp' if '++' in compiler else 'c'}"
    source.write_text(MODULE)
    out = folder / f"tiny{sysconfig.get_config_var('EXT_SUFFIX')}"
    strict = [flag for flag in STRICT if flag != "-Wpedantic"]  # Python.h's own affair
    run(compiler, source, *strict, *flags, "-shared", "-fPIC", f"-I{folder}/include", "-isystem", python, "-o", out)
    return folder


TRY = """
import tiny
print(*tiny.step())
try:
    tiny.import_it()
except ImportError as error:
    print("ImportError", error)
print(*tiny.step())
"""
NOT_IMPORTED = "10 1.0"  # GDM_ERR_IMPORT, and nothing written


@pytest.mark.parametrize("flags", [("cc",), ("c++",), ("cc", "-DPy_LIMITED_API=0x030b0000")], ids=" ".join)
def test_import(flags, tmp_path):
    found = with_modules(tiny(tmp_path, "", "", "", *flags), TRY).splitlines()
    assert found == [NOT_IMPORTED, "0 0.75"]


def test_import_of_another_abi(tmp_path):
    folder = tiny(tmp_path, "gdm.h", "#define GDM_ABI 1\n", "#define GDM_ABI 2\n")
    first, error, last = with_modules(folder, TRY).splitlines()
    assert first == last == NOT_IMPORTED
    version = re.escape(gdm.__version__)
    assert re.fullmatch(
        f"ImportError .*compiled for gdm {version}, whose ABI is 2; installed is gdm {version}, whose ABI is 1: .*",
        error,
    )


def test_import_of_a_function_that_is_not_there_yet(tmp_path):
    last = "    X(set_parallel_for, number)\n"
    newer = f"{last[:-1]} X(of_the_future, status)\ngdm_status gdm_of_the_future(void);\n"
    folder = tiny(tmp_path, "import.h", last, newer)
    first, error, _ = with_modules(folder, TRY).splitlines()
    assert first == NOT_IMPORTED
    assert re.fullmatch("ImportError .*installed is gdm .*, which has no gdm_of_the_future: upgrade gdm", error)


def test_import_without_the_compiled_module(tmp_path):
    blocked = "import sys, warnings\nwarnings.simplefilter('ignore')\nsys.modules['gdm._core'] = None\n"
    first, error, last = with_modules(tiny(tmp_path), blocked + TRY).splitlines()
    assert first == last == NOT_IMPORTED
    assert error.startswith("ImportError")


# ---- the page ---------------------------------------------------------------------------------------------------


def test_the_page_shows_the_examples():
    """docs/embedding.md holds every example, as it is."""
    page = (ROOT / "docs/embedding.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"`(tests/embed/\S+)`:\n\n```\w*\n(.*?)```\n", page, re.S))
    examples = {str(f.relative_to(ROOT)) for f in EMBED.rglob("*") if f.is_file() and "call" not in f.name}
    examples = {name for name in examples if "__pycache__" not in name}
    assert shown.keys() == examples
    for name, text in shown.items():
        assert text == (ROOT / name).read_text(encoding="utf-8"), f"{name} and the page differ"
