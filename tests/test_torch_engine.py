"""How gdm.torch reads tensors and runs steps: by libtorch or DLPack, on any number of threads, in forked processes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import gdm

torch = pytest.importorskip("torch", reason="NOT TESTED: the engine of gdm.torch; there is no torch here")

from gdm.torch import tensors  # noqa: E402
from gdm.torch.arrange import Arrangement  # noqa: E402
from support import python  # noqa: E402
from test_memory_limits import allocator  # noqa: E402, F401
from torch_cases import CLASSES  # noqa: E402

SHAPES = [(3, 5), (), (0,), (70,), (2, 3, 4, 5)]


def params_of(shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def walk(name, shapes, dtype=torch.float32, steps=4, threads=None, **options):
    """The parameters and states after some steps."""
    params = params_of(shapes, dtype)
    optimizer = getattr(gdm.torch, name)(params, threads=threads, **options)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for i, param in enumerate(params):
            grad = torch.randn(param.shape, generator=generator, dtype=dtype)
            param.grad = None if (step + i) % 4 == 3 else grad
        optimizer.step()
    states = [optimizer.state[param] for param in params]
    return [*params, *(state[key] for state in states for key in sorted(state))]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


@pytest.fixture
def by_dlpack():
    assert tensors.connect(use_libtorch=False) == "dlpack"
    yield
    tensors.connect()


def test_tensors_are_read_by_libtorch():
    """The fast way is found in this version of PyTorch; else all tests here would test DLPack only."""
    assert tensors.connect() == "libtorch"
    offset = tensors._offset()
    assert all(tensors._keys(offset))
    if os.path.exists("/proc/self/mem"):
        assert all(tensors._grads(offset))
        assert all(tensors._versions(offset))


@pytest.mark.parametrize("counted_by", ["gdm", "PyTorch"])
def test_a_step_counts_one_version_of_what_it_changes_and_of_nothing_else(counted_by, monkeypatch):
    if counted_by == "PyTorch":
        monkeypatch.setattr(tensors, "_versions", lambda offset: (0, 0))
    tensors.connect()
    try:
        flat = torch.zeros(12)
        params = [*params_of([(4,), (2, 3)]), torch.nn.Parameter(flat[:5]), flat[5:9].requires_grad_()]
        absent, views = torch.nn.Parameter(torch.zeros(3)), [param.detach() for param in params]
        optimizer = gdm.torch.AdamW([*params, absent])
        for param in params:
            param.grad = torch.ones_like(param)
        untouched = [absent, torch.zeros(3), flat.data, *(param.grad for param in params)]
        for step in (1, 2, 3):
            optimizer.step()
            counts = [step, step, 2 * step, 2 * step]  # the last two share the counter of `flat`
            assert [x._version for x in params] == [x._version for x in views] == counts
            assert [x._version for x in untouched] == [0] * len(untouched)
        (param,) = params_of([(3,)])
        loss = (param**2).sum()
        param.grad = torch.ones(3)
        gdm.torch.SGD([param], lr=0.1).step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    finally:
        monkeypatch.undo()
        tensors.connect()


@pytest.mark.parametrize("known", ["keys, not grads", "nothing"])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_what_is_not_known_of_a_tensor_is_asked_in_python(name, known, monkeypatch):
    ours = walk(name, SHAPES)
    with monkeypatch.context() as patch:
        patch.setattr(tensors, "_grads", lambda offset: (0, 0, 0))
        if known == "nothing":
            patch.setattr(tensors, "_keys", lambda offset: (0, 0, 0))
        assert tensors.connect() == "libtorch"
        try:
            assert_same(ours, walk(name, SHAPES))
            (param,) = params_of([(4,)])
            before = param.detach().clone()
            param.grad = torch._neg_view(torch.ones(4))
            gdm.torch.SGD([param], lr=1.0).step()
            np.testing.assert_array_equal(param.detach().numpy(), (before + 1).numpy())
        finally:
            patch.undo()
            tensors.connect()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", CLASSES)
def test_dlpack_gives_the_same_bits(name, dtype, request):
    ours = walk(name, SHAPES, dtype)
    request.getfixturevalue("by_dlpack")
    assert_same(ours, walk(name, SHAPES, dtype))


def test_dlpack_sees_changes(by_dlpack):
    (param,) = params_of([(4,)])
    optimizer = gdm.torch.SGD([param], lr=1.0, momentum=0.5)
    param.grad = torch.ones(4)
    optimizer.step()
    param.data = torch.zeros(4)
    param.grad = torch._neg_view(torch.ones(4))
    optimizer.step()
    np.testing.assert_array_equal(param.detach().numpy(), [0.5] * 4)
    param.grad = torch.ones(4).to_sparse()
    optimizer.step()
    np.testing.assert_array_equal(param.detach().numpy(), [-0.25] * 4)


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("torchs", [1, 2, 8])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_threads_do_not_change_the_bits(name, torchs, threads):
    """On PyTorch's threads and on gdm's, for sizes at which the work is cut in the middle of a tensor."""
    shapes = [(300_001,), (64, 3), (4096 * 40,), (17,)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(torchs)
        assert_same(walk(name, shapes, threads=threads), walk(name, shapes, threads=1))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("torchs", ["asleep", "awake"])
def test_large_steps_right_after_pytorchs_work_and_later(torchs):
    """On PyTorch's threads while these are awake, else on gdm's: the same bits."""
    before = torch.get_num_threads()
    results = []
    try:
        torch.set_num_threads(2)
        a = torch.ones(300, 300)
        for threads in (None, 1):
            (param,) = params_of([(1 << 20,)])
            optimizer = gdm.torch.AdamW([param], lr=1e-3, threads=threads)
            for step in range(6):
                param.grad = torch.full_like(param, float(step))
                if torchs == "awake":
                    a @ a
                else:
                    time.sleep(0.005)
                optimizer.step()
            results.append([param])
        assert_same(*results)
    finally:
        torch.set_num_threads(before)


def test_more_threads_than_pytorchs_are_gdms_own():
    """These have its name."""
    code = """
import os, torch, gdm
torch.set_num_threads(2)
param = torch.nn.Parameter(torch.zeros(1 << 23))
optimizer = gdm.torch.SGD([param], lr=1e-3, momentum=0.9, threads=4)
for _ in range(3):
    param.grad = torch.ones_like(param)
    optimizer.step()
print(sum(open(f"/proc/self/task/{task}/comm").read() == "gdm\\n" for task in os.listdir("/proc/self/task")))
"""
    if not os.path.exists("/proc/self/task"):
        pytest.skip("NOT TESTED: whose threads large steps use; there is no /proc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="NOT TESTED: forks; this system has none")
def test_a_forked_child_steps_and_does_not_hang():
    """OpenMP hangs in a child of a process that has used it. So the child's step must not use PyTorch's threads."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        (param,) = params_of([(1 << 21,)])
        optimizer = gdm.torch.SGD([param], lr=1.0)
        param.grad = torch.ones_like(param)
        optimizer.step()
        expected = (param.detach() - 1).sum().item()
        child = os.fork()
        if child == 0:
            optimizer.step()
            torch.set_num_threads(1)
            os._exit(0 if float(np.sum(param.detach().numpy(), dtype=np.float64)) == pytest.approx(expected) else 1)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0
                return
            time.sleep(0.01)
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    finally:
        torch.set_num_threads(before)


def test_optimizers_step_in_many_threads_at_once():
    """Each thread has an optimizer of its own, and all of them use the same pool."""
    expected = walk("AdamW", [(200_000,), (5,)], steps=8)
    found = [None] * 4

    def run(i):
        found[i] = walk("AdamW", [(200_000,), (5,)], steps=8)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found:
        assert_same(result, expected)


def test_gradients_may_be_replaced_by_another_thread_during_steps():
    """A step holds the gradients that it reads, so that nobody frees them meanwhile."""
    params = params_of([(50_000,)] * 8)
    optimizer = gdm.torch.SGD(params, lr=1e-3, momentum=0.9)
    stop = threading.Event()

    def replace():
        while not stop.is_set():
            for param in params:
                param.grad = torch.ones_like(param)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(100):
            optimizer.step()
    finally:
        stop.set()
        thread.join()
    assert all(torch.isfinite(param).all() for param in params)


@pytest.mark.parametrize("name", CLASSES)
def test_a_gradient_that_another_thread_sets_while_a_step_is_arranged_is_used(name, monkeypatch):
    params, expected = params_of([(4,), (3,)]), params_of([(4,), (3,)])
    begin = Arrangement.begin

    def begin_late(self):
        params[1].grad = torch.ones_like(params[1])
        begin(self)

    monkeypatch.setattr(Arrangement, "begin", begin_late)
    optimizers = [getattr(gdm.torch, name)(x) for x in (params, expected)]
    for some in (params[:1], expected):
        for param in some:
            param.grad = torch.ones_like(param)
    for optimizer in optimizers:
        optimizer.step()
    assert_same(params, expected)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    assert [list(states[0][i]) for i in states[0]] == [list(states[1][i]) for i in states[1]]


def test_a_step_whose_gradients_never_stop_changing_is_refused(monkeypatch):
    params = params_of([(4,), (3,)])
    values = copy.deepcopy([x.detach() for x in params])
    optimizer = gdm.torch.AdamW(params)
    begin = Arrangement.begin

    def begin_late(self):
        there, missing = params if params[0].grad is not None else params[::-1]
        begin(self)
        there.grad, missing.grad = None, torch.ones_like(missing)

    monkeypatch.setattr(Arrangement, "begin", begin_late)
    params[0].grad = torch.ones_like(params[0])
    with pytest.raises(RuntimeError, match="changed during its step"):
        optimizer.step()
    assert_same(params, values)
    assert not any(optimizer.state.values())


@pytest.mark.parametrize("name", CLASSES)
def test_a_step_that_fails_before_it_writes_takes_its_new_states_back(name, monkeypatch):
    params = params_of([(4,), (3,)])
    optimizer = getattr(gdm.torch, name)(params)
    for param in params:
        param.grad = torch.ones_like(param)
    values, keys = copy.deepcopy([x.detach() for x in params]), [sorted(x) for x in optimizer.state.values()]

    def fail(*args):
        raise MemoryError("no memory for an engine")

    with monkeypatch.context() as patch:
        patch.setattr(gdm._backend.native, "TensorEngine", fail)
        with pytest.raises(MemoryError, match="no memory for an engine"):
            optimizer.step()
    assert_same(params, values)
    assert [sorted(x) for x in optimizer.state.values()] == keys
    optimizer.step()
    assert not torch.equal(params[0], values[0])


def test_a_backend_that_is_set_between_steps_is_used(monkeypatch):
    (param,) = params_of([(4,)])
    optimizer = gdm.torch.SGD([param], lr=1.0)
    param.grad = torch.ones(4)
    optimizer.step()
    used = []
    monkeypatch.setattr(gdm.reference.formula, "update", lambda rule, *args, **options: used.append(rule) or {})
    gdm.set_backend("reference")
    optimizer.step()
    gdm.set_backend("native")
    optimizer.step()
    assert used == ["sgd"]


def test_large_states_have_memory_of_their_own():
    """So that the state of one parameter can be freed, and is saved alone."""
    large, small, other = params_of([(1 << 19,), (5,), (6,)])
    optimizer = gdm.torch.Adam([large, small, other])
    for param in (large, small, other):
        param.grad = torch.ones_like(param)
    optimizer.step()
    for param in (large, small, other):
        for key in ("exp_avg", "exp_avg_sq"):
            assert optimizer.state[param][key].untyped_storage().nbytes() == param.nbytes


def test_states_begin_at_a_distance_from_their_parameter():
    """As for gdm's other optimizers: docs/decisions.md, "Where states lie"."""
    (param,) = params_of([(1 << 20,)])
    optimizer = gdm.torch.Adam([param])
    param.grad = torch.ones_like(param)
    optimizer.step()
    distances = [
        (optimizer.state[param][key].data_ptr() - param.data_ptr()) % (1 << 17) for key in ("exp_avg", "exp_avg_sq")
    ]
    assert distances == [17 << 10, 34 << 10]


@pytest.mark.parametrize("n", [0, 257, "2"])
def test_threads_are_checked(n):
    with pytest.raises((TypeError, ValueError), match="threads"):
        gdm.torch.SGD(params_of([(3,)]), threads=n)
    optimizer = gdm.torch.SGD(params_of([(3,)]), threads=3)
    with pytest.raises((TypeError, ValueError), match="threads"):
        optimizer.threads = n
    assert optimizer.threads == 3
    assert copy.deepcopy(optimizer).threads == 3


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_default_device_does_not_matter(device):
    """Neither for what is found out when gdm.torch is imported, nor for the states. Adagrad's are made by PyTorch."""
    names = [name for name in CLASSES if name != "Adagrad"]
    code = f"""
import torch
torch.set_default_device("{device}")
import gdm
from gdm.torch import tensors
offset = tensors._offset()
print(all(tensors._keys(offset)), all(tensors._grads(offset)), all(tensors._versions(offset)))
for name in {names}:
    param = torch.nn.Parameter(torch.zeros(3, device="cpu"))
    param.grad = torch.ones(3, device="cpu")
    optimizer = getattr(gdm.torch, name)([param], lr=0.5)
    for _ in range(3):
        optimizer.step()
    print(name, param.tolist(), [str(x.device) for x in optimizer.state[param].values()])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found, *steps) = done.stdout.splitlines()
    assert not os.path.exists("/proc/self/mem") or found == "True True True"
    assert len(steps) == len(names)
    assert "meta" not in done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="NOT TESTED: forks; this system has none")
def test_a_child_that_imports_gdm_after_the_fork_does_not_hang():
    """Its parent may have used PyTorch's threads, of which the child knows, but which it does not have."""
    code = """
import os, numpy, torch
torch.set_num_threads(2)
a = torch.ones(1 << 22)
a + a
child = os.fork()
if child == 0:
    import gdm
    param = torch.nn.Parameter(torch.from_numpy(numpy.ones(1 << 22, numpy.float32)))
    param.grad = torch.from_numpy(numpy.ones(1 << 22, numpy.float32))
    optimizer = gdm.torch.SGD([param], lr=0.5)
    for _ in range(3):
        optimizer.step()
    os._exit(0 if (param.detach().numpy() == -0.5).all() else 1)
print(os.waitpid(child, 0)[1])
"""
    if not tensors._is_forked() and not os.path.exists("/proc/self/stat"):
        pytest.skip("NOT TESTED: forks before the import of gdm; this system does not tell that there was one")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.communicate(timeout=60)[0].strip() == "0"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        pytest.fail("the child hangs")


# ---- one step at a time ----


def in_the_middle(monkeypatch, what):
    """Calls a function in the middle of the next step that is arranged."""
    begin = Arrangement.begin

    def begin_late(self):
        monkeypatch.setattr(Arrangement, "begin", begin)
        what()
        begin(self)

    monkeypatch.setattr(Arrangement, "begin", begin_late)


def refusal(step):
    """What a step says that is refused in another thread."""
    found = []

    def run():
        try:
            step()
        except RuntimeError as error:
            found.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found


@pytest.mark.parametrize("backend_name", ["native", "reference"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_second_step_in_the_middle_of_one_that_is_arranged_is_refused(begun, backend_name, monkeypatch):
    gdm.set_backend(backend_name)
    (param,) = params_of([(4,)])
    optimizer = gdm.torch.AdamW([param])
    param.grad = torch.ones(4)
    if begun:
        optimizer.step()
        optimizer.state[param]["step"] = optimizer.state[param]["step"].clone()
    found, copies = [], []

    def meanwhile():
        found.append(refusal(optimizer.step))
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
        found.append(refusal(optimizer.step))
        del optimizer.grad_scale, optimizer.found_inf
        copies.append(copy.deepcopy(optimizer))
        copies[0].step()

    in_the_middle(monkeypatch, meanwhile)
    optimizer.step()
    assert [len(x) for x in found] == [1, 1]
    assert all("in the middle of a step" in message for (message,) in found)
    assert bool((param.grad == 1).all())
    assert optimizer.state[param]["step"] == 1 + begun
    optimizer.step()


def test_a_step_that_fails_lets_the_next_one_begin(monkeypatch):
    (param,) = params_of([(4,)])
    optimizer = gdm.torch.AdamW([param])
    param.grad = torch.ones(4)

    def fail():
        raise KeyboardInterrupt

    in_the_middle(monkeypatch, fail)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    optimizer.step()
    assert optimizer.state[param]["step"] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="NOT TESTED: forks; this system has none")
def test_a_forked_child_is_not_in_the_step_of_its_parent(monkeypatch):
    (param,) = params_of([(4,)])
    optimizer = gdm.torch.AdamW([param])
    param.grad = torch.ones(4)
    ends = []

    def fork():
        child = os.fork()
        if child == 0:
            try:
                optimizer.step()
                os._exit(0 if optimizer.state[param]["step"] == 1 else 1)
            finally:
                os._exit(2)
        ends.append(os.waitpid(child, 0)[1])

    in_the_middle(monkeypatch, fork)
    optimizer.step()
    assert ends == [0]


@pytest.mark.parametrize("threads", [1, 2])
def test_subnormals_that_torch_flushes_to_zero_are_not(threads):
    """And torch still does so afterwards."""
    sizes, tiny = [(70,), (1_100_000,)], torch.finfo(torch.float32).tiny

    def stepped():
        params = params_of(sizes)
        optimizer = gdm.torch.SGD(params, lr=0.5, momentum=0.5, threads=threads)
        for param, grad in zip(params, grads, strict=True):
            param.data.mul_(0)
            param.grad = grad.clone()
        optimizer.step()
        return [param.detach().view(torch.int32) for param in params]

    grads = [param.detach() * tiny for param in params_of(sizes, seed=1)]
    wanted = stepped()
    if not torch.set_flush_denormal(True):
        pytest.skip("NOT TESTED: torch does not flush subnormals to zero here")
    try:
        found = stepped()
        assert (torch.full((8,), tiny) * 0.5).count_nonzero() == 0
    finally:
        torch.set_flush_denormal(False)
    assert_same(found, wanted)
    assert min(x.count_nonzero() / x.numel() for x in found) > 0.9


WITHOUT_MEMORY = """
    import ctypes
    import torch
    import gdm.torch

    allocator = ctypes.CDLL(None)
    allocator.fail_at.argtypes = [ctypes.c_long]
    allocator.only_calls_from(b"gdm/_core")

    def make():
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n)) for n in (1, 70, 3000)]
        for p in params:
            p.grad = torch.randn_like(p)
        return params, gdm.torch.AdamW(params, lr=0.1, amsgrad=True)

    def is_same(xs, ys):
        return all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))

    start, _ = make()
    end, optimizer = make()
    optimizer.step()
    failed = 0
    while True:
        params, optimizer = make()
        try:
            allocator.fail_at(failed + 1)
            optimizer.step()
        except MemoryError:
            allocator.fail_at(0)
            assert is_same(params, start), failed
            optimizer.step()
            assert is_same(params, end), failed
            failed += 1
            continue
        assert allocator.fail_at(0), "an allocation has failed, and nothing was raised"
        break
    print(failed)
"""


def test_whichever_allocation_of_the_core_fails(allocator, counted):  # noqa: F811
    """Nothing has changed, and the next step is the first one."""
    count = int(python(WITHOUT_MEMORY, LD_PRELOAD=str(allocator), PYTHONMALLOC="malloc"))
    assert count > 5
    counted("gdm.torch: the first step", "allocations of the core that fail", count)
