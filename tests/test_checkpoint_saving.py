"""Saving a checkpoint is all or nothing, whatever fails; and which files it replaces."""

from __future__ import annotations

import errno
import os
import stat

import pytest

import gdm
from checkpoint_files import assert_alone, assert_same, assert_saves_through, tree
from gdm._checkpoint import load, save
from support import NO_SAFETENSORS, at_once, python

safetensors = pytest.importorskip("safetensors", reason=NO_SAFETENSORS)
save_file = pytest.importorskip("safetensors.numpy").save_file

KILLS = int(os.environ.get("GDM_KILLS", "60"))


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), MemoryError()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["safetensors.numpy.save_file", "os.chmod", "os.fsync", "os.replace"])
def test_a_failure_replaces_nothing(saved, monkeypatch, where, error):
    def fail(*args, **kwargs):
        raise error

    before = saved.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(type(error)):
            save(saved, tree(2.0))
    assert saved.read_bytes() == before
    assert_alone(saved)


def test_what_was_not_written_well_replaces_nothing(saved, monkeypatch):
    before = saved.read_bytes()

    def half(tensors, filename, metadata):
        save_file(tensors, filename, metadata)
        os.truncate(filename, os.path.getsize(filename) - 1)

    monkeypatch.setattr("safetensors.numpy.save_file", half)
    with pytest.raises(gdm.CheckpointError, match="bytes long; expected"):
        save(saved, tree(2.0))
    assert saved.read_bytes() == before
    assert_alone(saved)


def test_the_file_is_on_the_disk_before_it_replaces_the_old_one(saved, monkeypatch):
    """The file is on the disk before it takes the old one's place, and its name before save returns."""
    events = []

    def fsync(handle, fsync=os.fsync):
        events.append("directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else os.fstat(handle).st_ino)
        fsync(handle)

    def replace(old, new, replace=os.replace):
        events.append("replace")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    save(saved, tree(2.0))
    assert events == [saved.stat().st_ino, "replace", "directory"]


def test_a_directory_that_cannot_be_synced_does_not_matter(saved, monkeypatch):
    def fsync(handle, fsync=os.fsync):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    save(saved, tree(2.0))
    assert_same(load(saved), tree(2.0))


def test_a_full_disk_replaces_nothing(saved):
    """A limit on the size of files, at any place of the file: the old one stays, and nothing beside it."""
    before = saved.read_bytes()
    python(
        f"""
        import errno, os, resource
        import numpy as np
        from gdm._checkpoint import load, save

        path, new = {str(saved)!r}, {{"x": np.arange(200_000.0)}}
        save(path + ".whole", new)
        size = os.path.getsize(path + ".whole")
        os.unlink(path + ".whole")
        for limit in [0, 1, 8, 100, 1000, 4096, 10_000, size // 2, size - 1]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                save(path, new)
            except OSError as error:
                assert "could not be written" in str(error) and path in str(error), error
                assert (error.errno, error.filename) == (errno.EFBIG, path), error
            else:
                raise AssertionError(limit)
            assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
        """
    )
    assert saved.read_bytes() == before


@pytest.mark.parametrize(
    ("message", "number"),
    [("I/O error: No space left on device (os error 28)", errno.ENOSPC), ("something new", errno.EIO)],
)
def test_an_error_of_safetensors_is_an_oserror_with_a_number(saved, monkeypatch, message, number):
    def fail(*args, **kwargs):
        raise safetensors.SafetensorError(message)

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="could not be written") as caught:
        save(saved, tree(2.0))
    assert (caught.value.errno, caught.value.filename) == (number, str(saved))
    assert message in str(caught.value.__cause__)


def test_a_process_killed_at_any_moment_leaves_a_whole_state(path):
    """A process that saves two states in turn is killed at any moment: there is always one of them, whole."""
    print(
        python(
            f"""
            import os, random, re, shutil, signal, time
            import numpy as np
            import safetensors.numpy
            from gdm._checkpoint import load, save

            path = {str(path)!r}
            folder, name = os.path.split(path)
            states = [{{"k": k, "x": np.full(50_000, float(k)), "y": [np.full(7, k, np.int64)]}} for k in range(2)]
            save(path, states[0])
            seen, interrupted = [0, 0], 0
            for _ in range({KILLS}):
                child = os.fork()
                if child == 0:
                    while True:
                        save(path, states[1])
                        save(path, states[0])
                time.sleep(random.uniform(0.002, 0.08))
                os.kill(child, signal.SIGKILL)
                assert os.waitpid(child, 0)[1] == signal.SIGKILL  # and not an error of its own
                found = load(path)
                state = states[found["k"]]
                assert found.keys() == state.keys() and len(found["y"]) == 1
                assert found["x"].tobytes() == state["x"].tobytes() and found["x"].dtype == state["x"].dtype
                assert found["y"][0].tobytes() == state["y"][0].tobytes()
                seen[found["k"]] += 1
                left = [other for other in os.listdir(folder) if other != name]
                interrupted += bool(left)
                for other in left:
                    assert re.fullmatch(re.escape(name) + r"[.]\\w{{8}}[.]gdm-tmp", other), other
                    shutil.rmtree(os.path.join(folder, other))
            assert all(seen) and interrupted, (seen, interrupted)
            print({KILLS}, "kills,", interrupted, "in the middle of a save; each state found", seen, "times")
            """,
            timeout=300 + KILLS,
        )
    )


def test_threads_may_save_at_once(path):
    at_once(lambda k: [save(path, tree(float(k))) for _ in range(10)], 4)
    assert any(load(path)["groups"][0]["options"]["lr"] == 0.1 * k for k in range(4))
    assert_alone(path)


def test_permissions_are_those_of_a_new_file_or_of_the_old_one(path):
    done = python(
        f"""
        import os
        from gdm._checkpoint import save

        path = {str(path)!r}
        def mode():
            return oct(os.stat(path).st_mode & 0o7777)

        os.umask(0o027)
        save(path, {{}})
        print(mode())
        for kept in (0o600, 0o664, 0o777):
            os.chmod(path, kept)
            save(path, {{}})
            print(mode())
        """
    )
    assert done.split() == ["0o640", "0o600", "0o664", "0o777"]


def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path):
    """The file that it leads to is replaced, where it is."""
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "state", tmp_path / "link"
    link.symlink_to("there/state")
    assert_saves_through(link, target)
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        save(loop, {})
    assert loop.is_symlink()


def test_only_regular_files_are_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError, match="not a regular file"):
        save(tmp_path / "folder", {})
    with pytest.raises(OSError, match="not a regular file"):
        save(tmp_path / "pipe", {})
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "nothing" / "state", {})
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def test_a_read_only_file_is_not_replaced(saved, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do anything
    with pytest.raises(PermissionError, match="read-only"):
        save(saved, {})
    assert_same(load(saved), tree())


@pytest.mark.parametrize(
    "name", ["x" * 255, "größe ü", os.fsdecode(b"\xff\xfe"), "new\nline", "\N{GRINNING FACE}" * 60]
)
def test_any_name_of_a_file_will_do(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save(name, tree())
    assert_same(load(name), tree())
    assert_alone(tmp_path / name)
