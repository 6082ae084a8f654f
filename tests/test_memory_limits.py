"""Memory that runs out during a change of an optimizer: at any allocation, of Python, of NumPy, or of the C core."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig

import numpy as np
import pytest

import gdm
from conftest import WITHOUT_CORE
from faults_table import FULL
from gdm import _checkpoint
from support import python

# Stands before the C library's functions. After fail_at(n) the n-th allocation of this thread fails; if a library is
# named, the n-th that is called from there. fail_at(0) ends that, and returns whether the allocation is still to come.
ALLOCATOR = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);
static __thread long left;
static long blocks; /* that have not been given back */
static const char *only_from = "";
void only_calls_from(const char *library) { only_from = library; }
long live_blocks(void) { return __atomic_load_n(&blocks, __ATOMIC_RELAXED); }
int fail_at(long n) { const int waits = left > 0; left = n; return waits; }
static int fails(void *caller) {
    Dl_info info;
    if (!left) return 0;
    if (*only_from && (!dladdr(caller, &info) || !strstr(info.dli_fname, only_from))) return 0;
    if (--left) return 0;
    errno = ENOMEM;
    return 1;
}
static void *count(void *new, void *old) {
    if (!new != !old) __atomic_fetch_add(&blocks, new ? 1 : -1, __ATOMIC_RELAXED);
    return new;
}
#define ATTEMPT(call, old) (fails(__builtin_return_address(0)) ? NULL : count(call, old))
void *malloc(size_t n) { return ATTEMPT(__libc_malloc(n), NULL); }
void *calloc(size_t n, size_t size) { return ATTEMPT(__libc_calloc(n, size), NULL); }
void *realloc(void *p, size_t n) { return ATTEMPT(__libc_realloc(p, n), p); }
void *memalign(size_t to, size_t n) { return ATTEMPT(__libc_memalign(to, n), NULL); }
void *aligned_alloc(size_t to, size_t n) { return ATTEMPT(__libc_memalign(to, n), NULL); }
int posix_memalign(void **p, size_t to, size_t n) {
    void *memory = ATTEMPT(__libc_memalign(to, n), NULL);
    if (memory) *p = memory;
    return memory ? 0 : ENOMEM;
}
void free(void *p) {
    count(NULL, p);
    __libc_free(p);
}
"""


@pytest.fixture(scope="module")
def allocator(tmp_path_factory):
    if not sys.platform.startswith("linux") or not hasattr(os, "confstr") or "glibc" not in libc():
        pytest.skip("NOT TESTED: memory that runs out, which needs glibc")
    if not shutil.which("cc"):
        pytest.skip("NOT TESTED: memory that runs out, which needs a C compiler")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("NOT TESTED: memory that runs out; a Python without the GIL has an allocator of its own")
    folder = tmp_path_factory.mktemp("allocator")
    (folder / "allocator.c").write_text(ALLOCATOR)
    library = folder / "allocator.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", folder / "allocator.c", "-o", library], check=True)
    return library


def libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ""


CHANGES = {
    "make": "cls(new, lr=0.1)",
    "lr": "optimizer.lr = 0.3",
    "lr of a group": "optimizer.groups[2].lr = 0.3",
    "schedule": "optimizer.groups[0].lr = gdm.schedules.cosine(0.1, steps=20)",
    "weight_decay": "optimizer.weight_decay = 0.25",
    "more states": "optimizer.amsgrad = True",
    "fewer states": "optimizer.momentum = 0.0",
    "lr_scale": "optimizer.groups[0].lr_scale = {'a': np.full(300, 0.25), 'b': 0.125}",
    "add_group": "optimizer.add_group({'params': new, 'lr_scale': [0.3, np.full(3, 0.1)]})",
    "remove_group": "optimizer.remove_group(0)",
    "load": "optimizer.load_state_dict(saved)",
    "load with fewer states": "optimizer.load_state_dict(fewer)",
    "state_dict": "optimizer.state_dict()",
    "deepcopy": "copy.deepcopy(optimizer)",
    "bind": "optimizer.bind(grads)",
    "step": "optimizer.step(grads)",
    "step with None": "optimizer.step([{'a': grads[0]['a'], 'b': None}, None, grads[2]])",
    "bound step": "optimizer.step()",
    "function": "gdm.reference.sgd(x, x2, lr=0.5) if backend == 'reference' else gdm.sgd(x, x2, lr=0.5)",
    "grad_norm": "gdm.grad_norm(grads)",
    "accumulate": "gdm.accumulate([x], [x2], scale=0.5)",
    "schedule of pieces": "gdm.schedules.warmup(gdm.schedules.cosine(0.1, steps=20), steps=5)",
    "make with stages": (
        "cls(new, state_dtype='int8', average=0.5, copies=[np.zeros(4, 'f2'), None], max_grad_norm=1.0, "
        "nonfinite='skip').step([np.ones(4), None])"
    ),
}

# With a file. They also call libraries that end the process where they get no memory.
FILES = {"save": "optimizer.save(path)", "load a file": "optimizer.load(path)"}

CODE = """
    import contextlib, copy, ctypes, gc, tempfile
    import numpy as np
    import gdm
    import gdm.schedules
    from gdm import _checkpoint  # nothing is imported while memory runs out

    allocator = ctypes.CDLL(None)
    allocator.fail_at.argtypes = [ctypes.c_long]
    allocator.live_blocks.restype = ctypes.c_long
    fail_at, live_blocks = allocator.fail_at, allocator.live_blocks
    backend, library = {backend!r}, {library!r}.encode()
    allocator.only_calls_from(library)
    gdm.set_backend(backend)

    def parameters(seed=1):
        rng = np.random.default_rng(seed)
        groups = [
            {{
                "params": {{"a": rng.random(300), "b": rng.random((2, 3))}},
                "lr_scale": {{"a": np.full(300, 0.5), "b": 0.5}},
            }},
            {{"params": [rng.random(7).astype("f4")], "lr": gdm.schedules.polynomial(0.1, steps=50)}},
            {{"params": rng.random(5), "lr_scale": 2.0}},
        ]
        return groups

    def gradients():
        return [group["params"] for group in parameters(2)]

    cls = gdm.Adam if "amsgrad" in {action!r} else gdm.SGD
    options = {{}} if cls is gdm.Adam else {{"momentum": 0.5}}

    def make(**changes):
        optimizer = cls(parameters(), **{{**options, **changes}})
        optimizer.step(gradients())
        optimizer.bind(gradients())
        return optimizer

    def plain(x):
        if isinstance(x, np.ndarray):
            return x.dtype.str, x.shape, x.tobytes()
        if isinstance(x, dict):
            return {{key: plain(value) for key, value in x.items()}}
        return [plain(value) for value in x] if isinstance(x, (list, tuple)) else x

    def everything(optimizer):
        return plain([
            optimizer._snapshot.user_arrays,
            optimizer.state_dict(),
            [group.current_lr for group in optimizer.groups],
        ])

    def goes_on(optimizer):
        '''All that it is, before a step and after it; with other memory in the place of what was given back.'''
        litter = [np.full(n, 9.0) for n in (300, 6, 7, 5)] * 5
        before = everything(optimizer)
        layout = optimizer._snapshot.layout
        optimizer.step(layout.unflatten([np.full_like(x, 0.5) for x in optimizer._snapshot.params]))
        del litter
        return before, everything(optimizer)

    other = make()
    other.step()
    saved, fewer = other.state_dict(), make(**({{}} if cls is gdm.Adam else {{"momentum": 0.0}})).state_dict()
    grads, x, x2 = gradients(), np.ones(3), np.ones(3)
    folder = tempfile.TemporaryDirectory()
    path = folder.name + "/state"
    if "path" in {action!r}:
        other.save(path)
        other.load(path)

    def act(optimizer, new):
        {action}

    unchanged, changed = make(), make()
    act(changed, [np.ones(4), np.ones(3)])
    wanted = [goes_on(unchanged), goes_on(changed)]
    def sweep():
        '''Lets each allocation fail in turn. Returns how many calls failed.'''
        first, in_a_row, failed = 0, 0, 0
        while in_a_row < 3:  # that had all the memory they wanted
            first += 1
            optimizer, new, raised = make(), [np.ones(4), np.ones(3)], None
            try:
                fail_at(first)
                act(optimizer, new)
            except BaseException as error:
                raised = type(error), repr(error)
            try:
                waits = fail_at(0)
            except BaseException:
                waits = True  # it came here
                fail_at(0)
            in_a_row = in_a_row + 1 if waits else 0
            failed += raised is not None
            # Where NumPy and Python themselves lose an error, Python raises a SystemError.
            lost = raised and raised[0] is SystemError
            assert raised is None or lost or issubclass(raised[0], MemoryError), f"allocation {{first}}: {{raised}}"
            found = goes_on(optimizer)
            assert found in wanted, f"allocation {{first}}: {{raised}}"
            assert raised or found == wanted[1], f"allocation {{first}}: nothing was done, and nothing raised"
        return failed

    def attempt(k):
        '''Whether a call fails with its k-th allocation.'''
        optimizer, new, failed = make(), [np.ones(4), np.ones(3)], False
        try:
            fail_at(k)
            act(optimizer, new)
        except BaseException:
            failed = True
        fail_at(0)
        return failed

    gc.collect()
    gc.disable()
    failed = sweep()
    k, repeats = 1, {repeats}
    while repeats and attempt(k):
        for _ in range(10):  # what Python keeps for later becomes less and less; a leak does not
            gc.collect()
            before = live_blocks()
            for _ in range(repeats):
                attempt(k)
            gc.collect()
            grown = live_blocks() - before
            if grown < repeats // 2:
                break
        else:
            raise AssertionError(f"allocation {{k}}: {{grown}} blocks are left of {{repeats}} calls")
        k += 1
    print(failed)
"""


def run(allocator, change: str, backend: str, library: str = "", repeats: int = 0) -> int:
    """How many calls failed, with each allocation in turn, of those that the library calls."""
    code = CODE.format(backend=backend, action={**CHANGES, **FILES}[change], library=library, repeats=repeats)
    return int(python(code, LD_PRELOAD=str(allocator), PYTHONMALLOC="malloc"))


@pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="NOT TESTED: from 3.12 on the interpreter itself crashes where some of its own allocations fail",
)
@pytest.mark.parametrize("change", [*CHANGES, "load a file"])
def test_whichever_allocation_fails(allocator, backend, change, counted):
    """The optimizer is as before or as after, MemoryError is what is raised, and it goes on."""
    count = run(allocator, change, backend)
    if count or backend != "native" or change not in ("bound step", "function"):  # which may allocate nothing
        counted(f"{change} ({backend})", "allocations that fail", count)


ALLOCATES = ("make", "more states", "lr_scale", "add_group", "remove_group", "load", "make with stages")


@pytest.mark.skipif(WITHOUT_CORE, reason="of the compiled module")
@pytest.mark.parametrize(
    ("change", "library"),
    [(change, "gdm/_core") for change in ALLOCATES]
    + [(change, "_multiarray_umath") for change in (*ALLOCATES, *FILES) if change != "remove_group"],
)
def test_whichever_allocation_of_the_core_or_of_numpys_fails(allocator, change, library, counted):
    """`make faults` also repeats each failure: nothing is leaked."""
    repeats = 100 if FULL and change in ("make", "add_group") else 0
    count = run(allocator, change, "native", library, repeats)
    assert count >= 6 or "core" not in library
    counted(change, f"allocations of {'the core' if 'core' in library else 'NumPy'} that fail", count)


@pytest.mark.parametrize("change", FILES)
def test_whichever_allocation_of_the_checksums_fails(allocator, change, counted):
    """It is no ValueError, as hashlib says, and no damaged file."""
    pytest.importorskip("safetensors")
    if "libcrypto" not in python("import _hashlib; print(open('/proc/self/maps').read())"):
        pytest.skip("NOT TESTED: checksums without memory; Python's OpenSSL is no library of its own")
    count = run(allocator, change, "reference" if WITHOUT_CORE else "native", "libcrypto")
    assert count
    counted(change, "allocations of OpenSSL that fail", count)


@pytest.mark.skipif(WITHOUT_CORE, reason="of the compiled module")
def test_the_one_allocation_of_the_core_for_an_option_fails(allocator):
    assert run(allocator, "weight_decay", "native", "gdm/_core") >= 1


class OutOfMemory(dict):
    """A state for which there is no memory when it is read."""

    def __getitem__(self, key):
        raise MemoryError


def test_no_memory_is_no_damaged_state(backend, tmp_path, monkeypatch):
    optimizer = gdm.SGD([np.ones(3)], momentum=0.5)
    with pytest.raises(MemoryError):
        optimizer.load_state_dict(OutOfMemory(optimizer.state_dict()))
    optimizer.save(tmp_path / "state")

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(_checkpoint, "_read_tensor", fail)
    with pytest.raises(MemoryError):
        optimizer.load(tmp_path / "state")


def test_no_memory_is_no_damaged_state_of_torchs(backend):
    if not importlib.util.find_spec("torch"):
        pytest.skip("NOT TESTED: torch's states, without torch")
    import gdm.torch

    class State(dict):
        def __getitem__(self, key):
            raise MemoryError

    with pytest.raises(MemoryError):
        gdm.torch.load_state_dict(gdm.SGD([np.ones(3)]), State(state={}, param_groups=[]))
