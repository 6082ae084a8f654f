"""A file system that fails, and a process that is killed, at each system call of `save` and `load`."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest

import gdm
import tracing
from checkpoint_files import assert_alone, assert_same, assert_saves_through, tree
from faults_table import FULL
from gdm._checkpoint import load, save
from support import python

TESTS = str(Path(__file__).parent)
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="NOT TESTED: other users and file systems, which needs root"
)
EACH = 1 if FULL else 4  # of so many places at which something can fail, one is tried
LEFT_BEHIND = r"[.]\w{8}[.]gdm-tmp"


@pytest.fixture(scope="session")
def ptrace():
    """A process may trace a child of its own."""
    if not sys.platform.startswith("linux"):
        pytest.skip("NOT TESTED: failures at each system call, which need Linux")
    why_not = subprocess.run([sys.executable, tracing.__file__], capture_output=True, text=True, check=True).stdout
    if why_not.strip():
        pytest.skip(f"NOT TESTED: failures at each system call, which need ptrace: {why_not.strip()}")


needs_ptrace = pytest.mark.usefixtures("ptrace")

# What the processes below share: two states, one of which is in the file, and what is found there afterwards.
COMMON = """
    import errno, os, re, shutil
    import numpy as np
    import safetensors.numpy
    import tracing
    from gdm._checkpoint import load, save

    EACH = {each}
    path = {path!r}
    folder, name = os.path.split(path)
    states = [{{"k": k, "x": np.full({size}, float(k)), "y": [np.full(7, k, np.int64)]}} for k in range(2)]
    save(path, states[0])
    save(path, states[1])  # all that is imported on use has been imported
    load(path)

    def found():
        '''Which of the states is in the file, whole; and what is beside the file.'''
        got = load(path)
        state = states[got["k"]]
        assert got.keys() == state.keys() and len(got["y"]) == 1
        assert got["x"].tobytes() == state["x"].tobytes() and got["x"].dtype == state["x"].dtype
        assert got["y"][0].tobytes() == state["y"][0].tobytes()
        left = [other for other in os.listdir(folder) if other != name]
        for other in left:
            assert re.fullmatch(re.escape(name) + {left_behind!r}, other), other
            shutil.rmtree(os.path.join(folder, other))
        return got["k"], bool(left)
"""


def in_a_process(path, code: str, size: int = 50_000) -> str:
    """The output of the code in a process of its own, after COMMON."""
    common = textwrap.dedent(COMMON.format(path=str(path), size=size, left_behind=LEFT_BEHIND, each=EACH))
    return python(common + textwrap.dedent(code), PYTHONPATH=TESTS, timeout=600)


@needs_ptrace
def test_a_process_killed_at_any_system_call_leaves_a_whole_state(path, counted):
    """Before and after each call: the old or the new state is there, whole, and the next process saves as ever."""
    done = in_a_process(
        path,
        """
        points, new, interrupted = 0, 0, 0
        while True:
            save(path, states[0])

            def kill(stop, seen=[]):
                seen.append(stop)
                if len(seen) == points + 1:
                    stop.kill()

            ended = tracing.trace(lambda: save(path, states[1]), kill)
            k, left = found()
            if ended == 0:
                assert k == 1 and not left
                break
            assert ended == -9, ended
            assert k or not new, points  # once there, always there
            new += k
            interrupted += left
            points += EACH
        assert new and interrupted and points - new > 0, (points, new, interrupted)
        print(points // EACH, new, interrupted)
        """,
    )
    kills, new, interrupted = map(int, done.split())
    counted("save", "kills at system calls", kills, f"{new} times the new file, {interrupted} times a directory left")


# Lets each system call fail in turn while `act` runs.
FAILING = """
    SAVED, REFUSED, UNNAMED, OTHER = range(4)

    def attempt(act):
        try:
            act()
        except OSError as error:
            return REFUSED if error.filename == path and path in str(error) else UNNAMED
        except Exception:
            import traceback; traceback.print_exc()
            return OTHER
        return SAVED

    def failures(act, error, names, sticky=False):
        '''For each of the calls: its name, and what became of the attempt in which it failed.'''
        point = 0
        while True:
            save(path, states[0])
            seen, failed = 0, []

            def fail(stop):
                nonlocal seen
                if stop.name is None or names and stop.name not in names:
                    return
                seen += stop.entry
                if seen == point + 1 or sticky and seen > point:
                    failed.append(stop.name)
                    if error == "short":
                        stop.shorten(1000)
                    elif not stop.entry:
                        stop.returns(error)
                    elif stop.name != "close":  # which closes, and then fails
                        stop.skip()

            ended = tracing.trace(lambda: attempt(act), fail)
            if not failed:
                assert ended == SAVED, ended
                return
            yield failed[0], ended
            point += EACH
"""
needs_registers = pytest.mark.skipif(
    not tracing.CAN_FAIL, reason="NOT TESTED: system calls that fail, on another machine than x86-64"
)
WRITE = ("write", "pwrite64", "writev", "ftruncate", "fallocate", "mkdir", "rename", "renameat", "openat", "fsync")
REPEATED = ("write", "read", "openat", "fsync")  # after EINTR


def count_failures(path, code: str) -> int:
    """The number that the code prints, which runs after FAILING."""
    return int(in_a_process(path, textwrap.dedent(FAILING) + textwrap.dedent(code)))


@needs_ptrace
@needs_registers
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize(("error", "names"), [("EIO", ()), ("ENOSPC", WRITE)], ids=["EIO", "ENOSPC"])
def test_whichever_system_call_of_save_fails(path, counted, error, names, sticky):
    """Either the new file is there, whole, or an error names the file and the old one is there, and nothing beside it.

    Only a call that fails while the temporary directory is removed may leave that there.
    """
    calls = count_failures(
        path,
        f"""
        calls = 0
        for call, ended in failures(lambda: save(path, states[1]), errno.{error}, {names!r}, {sticky}):
            k, left = found()
            assert (ended, k) in [(SAVED, 1), (REFUSED, 0)], (calls, call, ended, k)
            assert not left or k or {sticky}, (calls, call)
            calls += 1
        print(calls)
        """,
    )
    counted("save", f"{error} {'from a system call on' if sticky else 'at system calls'}", calls)


@needs_ptrace
@needs_registers
@pytest.mark.parametrize(
    ("error", "names"), [("'short'", ("write",)), ("errno.EINTR", REPEATED)], ids=["short", "EINTR"]
)
def test_a_call_that_is_made_again_does_not_matter(path, counted, error, names):
    """write() may write less than it was asked to, and a signal may interrupt a call."""
    calls = count_failures(
        path,
        f"""
        calls = 0
        for call, ended in failures(lambda: save(path, states[1]), {error}, {names!r}):
            assert ended == SAVED and found() == (1, False), (calls, call, ended)
            calls += 1
        print(calls)
        """,
    )
    counted("save", "short writes" if "short" in error else "EINTR at system calls", calls)


@needs_ptrace
@needs_registers
def test_whichever_system_call_of_load_fails(path, counted):
    """The error names the file; or what failed did not matter, and the state is whole."""
    calls = count_failures(
        path,
        """
        def act():
            assert load(path)["x"].tobytes() == states[0]["x"].tobytes()

        calls = refused = 0
        for call, ended in failures(act, errno.EIO, ()):
            assert ended in (SAVED, REFUSED), (calls, call, ended)
            calls, refused = calls + 1, refused + (ended == REFUSED)
        assert refused, "nothing mattered"
        print(calls)
        """,
    )
    counted("load", "EIO at system calls", calls)


@pytest.mark.skipif(not shutil.which("strace"), reason="NOT TESTED: the order of system calls, which needs strace")
def test_the_file_is_synced_before_the_rename_and_the_directory_after_it(path, tmp_path_factory):
    record = tmp_path_factory.mktemp("strace") / "record"
    code = f"import numpy as np; from gdm._checkpoint import save; save({str(path)!r}, {{'x': np.arange(9.0)}})"
    command = ["strace", "-f", "-y", "-e", "trace=rename,renameat,renameat2,fsync,fdatasync,write", "-o", record]
    done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True)
    if "ptrace" in done.stderr.lower():
        pytest.skip("NOT TESTED: the order of system calls, since strace may not trace here")
    assert done.returncode == 0, done.stderr
    folder, temporary = re.escape(str(path.parent)), re.escape(str(path)) + LEFT_BEHIND
    order = [
        rf"write\(\d+<{temporary}/[^>]+>, ",
        rf"fsync\(\d+<{temporary}/new>\) += 0",
        rf'rename\w*\([^\n]*"{temporary}/new", [^\n]*"{re.escape(str(path))}"\S*\) += 0',
        rf"fsync\(\d+<{folder}>\) += 0",
    ]
    text = record.read_text()
    assert re.search(".*".join(order), text, re.DOTALL), text


# ---- several processes -----------------------------------------------------------------------------------------------


def test_processes_may_save_at_once(path, counted):
    """Readers meanwhile see one of the states, whole; afterwards nothing is left beside the file."""
    rounds = 60 if FULL else 8
    done = in_a_process(
        path,
        f"""
        def state(k):
            return {{"k": k, "x": np.full(20_000, float(k)), "y": [np.full(7, k, np.int64)]}}

        def check(got):
            assert got["k"] in range(8) and got["x"].tobytes() == state(got["k"])["x"].tobytes()
            assert got["y"][0].tobytes() == state(got["k"])["y"][0].tobytes()

        def write(k):
            for _ in range({rounds}):
                save(path, state(k))

        def read():
            for _ in range(4 * {rounds}):
                check(load(path))

        children = []
        for k in range(10):
            child = os.fork()
            if not child:
                try:
                    write(k) if k < 8 else read()
                    os._exit(0)
                except BaseException:
                    import traceback; traceback.print_exc()
                    os._exit(1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 10
        check(load(path))
        assert os.listdir(folder) == [name], os.listdir(folder)
        print(8 * {rounds})
        """,
        size=20_000,
    )
    counted("save", "saves to one path by 8 processes", int(done))


# ---- file systems and users ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with room for 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "gdm-test", folder], capture_output=True).returncode:
        pytest.skip("NOT TESTED: a full disk; a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@needs_root
def test_a_disk_that_is_full_keeps_the_old_file(small_disk, counted):
    """With each number of free pages, from none to all."""
    path = small_disk / "state"
    save(path, tree())
    before, new = path.read_bytes(), {"x": np.arange(30_000.0)}
    free, refused = os.statvfs(small_disk).f_bavail, 0
    for left in range(0, free + 1, 1 if FULL else 8):
        filler = small_disk / "filler"
        filler.write_bytes(bytes((free - left) * os.statvfs(small_disk).f_bsize))
        said = None
        try:
            save(path, new)
        except OSError as error:
            said = str(error)
        if said:
            assert str(path) in said
            assert "No space left on device" in said
            assert path.read_bytes() == before
            refused += 1
        else:
            assert_same(load(path), new)
            path.write_bytes(before)
        assert sorted(os.listdir(small_disk)) == ["filler", "state"]
        filler.unlink()
    assert refused > 2
    save(path, new)
    counted("save", "disks with too little room", refused)


@needs_root
def test_a_link_to_another_file_system_stays_and_its_file_is_replaced(tmp_path, small_disk):
    link, target = tmp_path / "link", small_disk / "state"
    link.symlink_to(target)
    assert_saves_through(link, target)
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match=r"[Rr]ead-only") as caught:
        save(link, tree(3.0))
    assert str(target) in str(caught.value)
    assert_same(load(link), tree(2.0))


@pytest.fixture
def public():
    """A folder that every user may enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@needs_root
def test_a_user_without_permission_changes_nothing(public):
    """A folder that may not be written, a file that may not be, a folder that may not be entered."""
    (public / "open").mkdir()
    os.chmod(public / "open", 0o777)
    (public / "closed").mkdir(mode=0o700)
    for name in ("state", "open/state"):
        save(public / name, tree())
        os.chmod(public / name, 0o644)
    done = python(
        f"""
        import os
        from gdm._checkpoint import load, save

        os.chdir("/")
        save({str(public / "open/other")!r}, {{}})  # all that is imported on use has been imported
        os.unlink({str(public / "open/other")!r})
        os.setgroups([])
        os.setgid(12345)
        os.setuid(12345)
        for place in ("new", "state", "open/state", "closed/state"):
            path = os.path.join({str(public)!r}, place)
            try:
                save(path, {{"k": 1}})
            except PermissionError as error:
                assert path in str(error), error
                print(place, "is refused:", error.strerror)
        load({str(public / "state")!r})
        """
    )
    assert done.splitlines() == [
        "new is refused: the checkpoint could not be written: Permission denied",
        "state is refused: the file is read-only",
        "open/state is refused: the file is read-only",
        "closed/state is refused: Permission denied",
    ]
    assert sorted(os.listdir(public)) == ["closed", "open", "state"]
    assert os.listdir(public / "closed") == []
    for name in ("state", "open/state"):
        assert_same(load(public / name), tree())
    assert_alone(public / "open/state")


def test_a_name_that_is_too_long_is_refused(tmp_path):
    for path in (tmp_path / ("x" * 256), tmp_path.joinpath(*["y" * 200] * 25)):
        with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)) as caught:
            save(path, tree())
        assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_an_optimizer_goes_on_after_a_save_that_failed(tmp_path):
    optimizer, twin = (gdm.Adam([np.ones(5)], lr=0.1) for _ in range(2))
    with pytest.raises(FileNotFoundError, match="could not be written"):
        optimizer.save(tmp_path / "nowhere" / "state")
    for each, name in ((optimizer, "one"), (twin, "two")):
        each.step([np.full(5, 0.5)])
        each.save(tmp_path / name)
    assert_same(load(tmp_path / "one"), load(tmp_path / "two"))
