"""The functions of the C core by themselves, compiled without Python; and their own checks of arguments."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

import gdm
from cheader import ARGS, HEADER, RULE, STATUS, args
from clibrary import ROOT, STRICT
from cplan import EVAL, buffer, entry_args
from support import RULES

MomentumArgs = ARGS["momentum"]


class Newer(MomentumArgs):
    """The struct of a caller from the future."""

    _fields_ = (("future", ctypes.c_double),)


def pointer(x):
    return None if x is None else ctypes.c_void_p(x.ctypes.data)


def momentum(library, p, v, g, n, args, suffix="f32"):
    call = getattr(library, f"gdm_momentum_{suffix}")
    return STATUS[
        call(pointer(p), pointer(v), pointer(g), ctypes.c_size_t(n), None if args is None else ctypes.byref(args))
    ]


def good_args(cls=MomentumArgs, **options):
    return cls(**{"size": ctypes.sizeof(cls), "lr": 0.1, "momentum": 0.9, **options})


def arrays(dtype=np.float32, n=100):
    return [np.full(n, x, dtype) for x in (1.0, 0.5, 0.25)]


@pytest.mark.parametrize(("suffix", "dtype"), [("f32", np.float32), ("f64", np.float64)])
def test_functions_have_the_bits_of_the_reference(library, suffix, dtype):
    p, v, g = arrays(dtype)
    assert momentum(library, p, v, g, 100, good_args(nesterov=1, weight_decay=0.01), suffix) == "OK"
    q, w, g = arrays(dtype)
    gdm.reference.momentum(q, w, g, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    np.testing.assert_array_equal(p, q)
    np.testing.assert_array_equal(v, w)
    call = getattr(library, f"gdm_sgd_{suffix}")
    options = args("sgd", weight_decay=0.01, maximize=1, decoupled_weight_decay=1)
    assert call(pointer(p), pointer(g), ctypes.c_size_t(100), ctypes.byref(options)) == 0
    gdm.reference.sgd(q, g, lr=0.1, weight_decay=0.01, maximize=True, decoupled_weight_decay=True)
    np.testing.assert_array_equal(p, q)


nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("status", "options"),
    [
        *(("ERR_LR", {"lr": x}) for x in (-1.0, nan, inf)),
        *(("ERR_MOMENTUM", {"momentum": x}) for x in (-0.1, 1.0, nan, inf)),
        *(("ERR_DAMPENING", {"dampening": x}) for x in (-0.1, 1.1, nan)),
        *(("ERR_WEIGHT_DECAY", {"weight_decay": x}) for x in (-0.1, inf, nan)),
        ("ERR_NESTEROV", {"nesterov": 1, "momentum": 0.0}),
        ("ERR_DAMPENING", {"nesterov": 1, "dampening": 0.1}),
        ("ERR_DAMPENING", {"form": 1, "dampening": 0.1}),
        ("ERR_FORM", {"form": 2}),
        ("ERR_FORM", {"form": -1}),
        ("ERR_STRUCT_SIZE", {"size": 0}),
        ("ERR_STRUCT_SIZE", {"size": 8}),
    ],
)
def test_bad_options_have_a_status_and_change_nothing(library, status, options):
    p, v, g = arrays()
    before = p.copy(), v.copy()
    assert momentum(library, p, v, g, 100, good_args(**options)) == status
    np.testing.assert_array_equal(p, before[0])
    np.testing.assert_array_equal(v, before[1])


@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_options_must_be_finite_in_the_compute_dtype(library, option):
    """Half of the last digit more than the largest float is the first number that is rounded to infinity."""
    infinite = float(np.finfo(np.float32).max) + 2.0**103
    p, v, g = arrays()
    before = p.copy(), v.copy()
    assert momentum(library, p, v, g, 100, good_args(**{option: infinite})) == f"ERR_{option.upper()}"
    np.testing.assert_array_equal(p, before[0])
    np.testing.assert_array_equal(v, before[1])
    assert momentum(library, p, v, g, 100, good_args(**{option: np.nextafter(infinite, 0.0)})) == "OK"
    assert momentum(library, *arrays(np.float64), 100, good_args(**{option: infinite}), "f64") == "OK"


def test_bad_buffers_have_a_status_and_change_nothing(library):
    p, v, g = arrays()
    before = p.copy(), v.copy()
    args = good_args()
    shifted = np.frombuffer(bytearray(404), np.uint8)[1:]
    for status, call in [
        ("ERR_NULL", (p, v, g, 100, None)),
        ("ERR_NULL", (None, v, g, 100, args)),
        ("ERR_NULL", (p, None, g, 100, args)),
        ("ERR_NULL", (p, v, None, 100, args)),
        ("ERR_ALIGNMENT", (p, v, shifted, 100, args)),
        ("ERR_OVERLAP", (p, p, g, 100, args)),
        ("ERR_OVERLAP", (p, v, p, 100, args)),
        ("ERR_OVERLAP", (p, v, v[1:], 99, args)),
        ("ERR_OVERLAP", (p[1:], p, g, 2, args)),
        ("ERR_LENGTH", (p, v, g, 2**62, args)),
        ("ERR_LENGTH", (p, v, g, 2**64 - 1, args)),
    ]:
        assert momentum(library, *call) == status
    np.testing.assert_array_equal(p, before[0])
    np.testing.assert_array_equal(v, before[1])
    assert momentum(library, None, None, None, 0, args) == "OK"


def test_buffers_are_aligned_as_their_elements(library):
    """Four bytes off is fine for float and wrong for double."""
    memory = np.zeros(3 * 128 + 8, np.uint8)
    start = -memory.ctypes.data % 8 + 4
    v, g = np.zeros(16), np.ones(16)
    assert momentum(library, memory[start:], v, g, 16, good_args(), "f64") == "ERR_ALIGNMENT"
    assert momentum(library, v, memory[start:], g, 16, good_args(), "f64") == "ERR_ALIGNMENT"
    assert momentum(library, v, g, memory[start:], 16, good_args(), "f64") == "ERR_ALIGNMENT"
    assert not memory.any()
    assert not v.any()
    assert momentum(library, memory[start:], v, g, 16, good_args()) == "OK"


@pytest.mark.parametrize(("suffix", "itemsize"), [("f32", 4), ("f64", 8)])
def test_no_buffer_reaches_beyond_the_address_space(library, suffix, itemsize):
    """Lengths up to half of it, and no buffer that wraps around."""
    call, args = getattr(library, f"gdm_momentum_{suffix}"), good_args()
    buffers = [x.ctypes.data for x in arrays(np.float64)]

    def status(pointers, n):
        return STATUS[call(*map(ctypes.c_void_p, pointers), ctypes.c_size_t(n), ctypes.byref(args))]

    most = (2**64 - 1) // 2 // itemsize
    assert status(buffers, most) == "ERR_OVERLAP"  # a length that may be; but not of three buffers so close
    for n in (most + 1, 2**64 // itemsize - 1, 2**64 // itemsize, 2**64 // itemsize + 1, 2**64 - 1):
        assert status(buffers, n) == "ERR_LENGTH"
    param, _, grad = buffers
    wrapping = 2**64 - 8 * itemsize
    for n in (9, 100):
        # The NULL is found later, and keeps a library without this check from writing there.
        assert status([wrapping, None, grad], n) == "ERR_LENGTH"
        assert status([param, None, wrapping], n) == "ERR_LENGTH"


def test_structs_of_absurd_sizes_are_refused(library):
    """A size that no version will have is a mistake, and is not read to its end."""
    p, v, g = arrays()
    memory = ctypes.create_string_buffer(8192)
    args = MomentumArgs.from_buffer(memory)
    args.lr = 0.1
    for size, status in [(4096, "OK"), (4097, "ERR_STRUCT_SIZE"), (2**64 - 1, "ERR_STRUCT_SIZE")]:
        args.size = size
        assert momentum(library, p, v, g, 100, args) == status


def test_numbers_of_threads_are_checked(library):
    before = library.gdm_get_num_threads()
    assert 1 <= before <= 256
    for n in (3, 1, 256):
        assert library.gdm_set_num_threads(n) == 0
        for wrong in (0, -1, 257, -(2**31), 2**31 - 1):
            assert STATUS[library.gdm_set_num_threads(wrong)] == "ERR_THREADS"
            assert library.gdm_get_num_threads() == n
    assert library.gdm_set_num_threads(before) == 0


def test_structs_of_other_versions_work(library):
    """An older caller's shorter struct works, the missing fields off; a newer one's as long as it asks nothing new."""
    expected, q, g = arrays()
    assert momentum(library, expected, q, g, 100, good_args()) == "OK"
    older = good_args(form=99)
    older.size = MomentumArgs.form.offset  # so that the nonsense in form is not looked at
    p, v, g = arrays()
    assert momentum(library, p, v, g, 100, older) == "OK"
    np.testing.assert_array_equal(p, expected)
    p, v, g = arrays()
    assert momentum(library, p, v, g, 100, good_args(Newer)) == "OK"
    np.testing.assert_array_equal(p, expected)
    assert momentum(library, p, v, g, 100, good_args(Newer, future=1.0)) == "ERR_STRUCT_SIZE"
    np.testing.assert_array_equal(p, expected)


def test_version_messages_and_instruction_sets_are_found(library):
    assert library.gdm_version().decode() == gdm.__version__
    words = [library.gdm_strerror(i).decode() for i in STATUS]
    assert len(set(words)) == len(words)
    assert "unknown status" not in words
    assert library.gdm_strerror(999) == b"unknown status"
    available = [library.gdm_available_isa(i).decode() for i in range(len(gdm.available_isas()))]
    assert available == gdm.available_isas()
    assert library.gdm_available_isa(len(available)) is None
    assert STATUS[library.gdm_set_isa(b"sse9")] == "ERR_ISA"
    assert STATUS[library.gdm_set_isa(None)] == "ERR_ISA"
    for isa in available:
        assert library.gdm_set_isa(isa.encode()) == 0
        assert library.gdm_isa().decode() == isa


def test_a_wrong_gdm_isa_is_told_by_every_call_that_computes(library, tmp_path, monkeypatch):
    """The environment is read when something is computed first. Nothing is written, and no step is counted."""
    monkeypatch.setenv("GDM_ISA", "sse9")
    own = ctypes.CDLL(shutil.copy(library._name, tmp_path / "own.so"))  # which has computed nothing yet
    assert own.gdm_isa() == 0
    p, z, g = arrays()
    w, one, hundred = np.zeros_like(p), ctypes.c_size_t(1), ctypes.byref(ctypes.c_size_t(100))
    total, grad = ctypes.byref(buffer(p)), ctypes.byref(buffer(g))
    assert momentum(own, p, z, g, 100, good_args()) == "ERR_ISA"
    assert STATUS[own.gdm_reduce(0, grad, hundred, one, ctypes.byref(ctypes.c_double()))] == "ERR_ISA"
    assert STATUS[own.gdm_accumulate(total, grad, hundred, one, ctypes.c_double(1.0))] == "ERR_ISA"
    for rule, states, call in (
        ("schedule_free_sgd", [z], lambda plan: own.gdm_plan_step(plan)),
        ("schedule_free_sgd", [z], lambda plan: own.gdm_plan_swap(plan, EVAL)),
        ("muon", [z, w], lambda plan: own.gdm_plan_prepare(plan)),
    ):
        plan, index, steps = ctypes.c_void_p(), ctypes.byref(ctypes.c_size_t()), ctypes.c_uint64(9)
        assert own.gdm_plan_create(ctypes.byref(plan)) == 0
        assert own.gdm_plan_add_group(plan, RULE[rule], ctypes.byref(args(rule, momentum=0.9)), index) == 0
        assert own.gdm_plan_add(plan, ctypes.byref(entry_args(0, p, states, g)), index) == 0
        assert STATUS[call(plan)] == "ERR_ISA"
        assert own.gdm_plan_get_group_steps(plan, ctypes.c_size_t(0), ctypes.byref(steps)) == 0
        assert steps.value == 0
        own.gdm_plan_destroy(plan)
    for x, wanted in zip((p, z, g), arrays(), strict=True):
        np.testing.assert_array_equal(x, wanted)
    assert not w.any()


def test_the_library_can_be_unloaded(library, tmp_path):
    """Its threads end before: they must not run code that is no longer there."""
    program = tmp_path / "unload"
    subprocess.run(["cc", "-I", ROOT / "include", ROOT / "tests/c/unload.c", "-ldl", "-o", program], check=True)
    done = subprocess.run([program, library._name], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("compiler", "language"), [("gcc", "c11"), ("g++", "c++17"), ("clang", "c11"), ("clang++", "c++17")]
)
def test_the_header_stands_alone(compiler, language, tmp_path):
    if not shutil.which(compiler):
        pytest.skip(f"NOT TESTED: the header under {compiler}, which is not here")
    source = tmp_path / "header.c"
    source.write_text("#include <gdm/gdm.h>\nint main(void) { return GDM_OK; }\n")
    kind = "c++" if "++" in language else "c"
    subprocess.run(
        [compiler, "-x", kind, f"-std={language}", *STRICT, "-I", ROOT / "include", "-fsyntax-only", source],
        check=True,
    )


def test_every_rule_is_in_the_header():
    for rule in RULES:
        assert f"gdm_{rule}_f32(" in HEADER
        assert f"gdm_{rule}_f64(" in HEADER
