"""Python code on Windows and macOS, as far as that can be seen here: where what only Linux or Unix has is missing."""

from __future__ import annotations

import pytest

import gdm
from support import needs_safetensors, python

# In place of the standard library's os there is one without the names that Windows does not have. A directory cannot be
# opened, /proc and /sys are not there, and modules that only Unix has cannot be imported. The standard library and
# NumPy are imported before: they have their own ways.
WINDOWS = r'''
import builtins, contextlib, importlib, json, os, pathlib, pkgutil, shutil, subprocess, sys, tempfile, types
import numpy as np
with contextlib.suppress(ImportError):
    import safetensors.numpy

GONE = """
    chown chroot confstr copy_file_range ctermid eventfd fchdir fchmod fchown fdatasync fork forkpty fpathconf getegid
    geteuid getgid getgroups getloadavg getpgid getpgrp getpriority getrandom getresuid getsid getuid getxattr
    initgroups killpg lchown lockf major makedev memfd_create minor mkfifo mknod nice openpty pathconf pidfd_open pipe2
    posix_fadvise posix_fallocate posix_spawn posix_spawnp pread preadv pwrite pwritev readv register_at_fork
    sched_get_priority_max sched_getaffinity sched_getparam sched_rr_get_interval sched_setaffinity
    sched_setscheduler sched_yield sendfile setgid setpgid setpriority setsid setuid setxattr splice statvfs fstatvfs
    sync sysconf tcgetpgrp tcsetpgrp ttyname uname wait wait3 wait4 waitid writev
    O_ASYNC O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_LARGEFILE O_NOATIME O_NOCTTY O_NOFOLLOW O_NONBLOCK O_PATH O_RSYNC
    O_SYNC O_TMPFILE WNOHANG WIFEXITED WEXITSTATUS WIFSIGNALED WTERMSIG
""".split()
windows = types.ModuleType("os")
windows.__dict__.update({name: value for name, value in vars(os).items() if name not in GONE}, name="nt")

def open_file(path, flags, *args, **kwargs):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return os.open(path, flags, *args, **kwargs)

def open_here(path, *args, **kwargs):
    if str(path).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", path)
    return plain_open(path, *args, **kwargs)

windows.open, plain_open, builtins.open = open_file, open, open_here
sys.modules["os"] = windows
for name in ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios"):
    sys.modules[name] = None

import gdm
'''


def test_nothing_is_imported_that_only_unix_has():
    """By the package and the modules that need no other library."""
    code = """
names = [m.name for m in pkgutil.walk_packages(gdm.__path__, "gdm.", onerror=lambda name: None)]
needs = ("gdm.torch", "gdm.thinc", "gdm.sklearn", "gdm.scipy", "gdm.demo", "gdm.__main__", "gdm.schedules.plotting",
         "gdm.bench.peers", "gdm.bench.report", "gdm._threadpoolctl")
names = [name for name in names if not name.startswith(needs)]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    assert int(python(WINDOWS + code)) > 40


@needs_safetensors
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_an_optimizer_steps_saves_and_loads(backend, tmp_path):
    """Also over a file that is there already."""
    code = f"""
path = {str(tmp_path / "state.safetensors")!r}
def trained(steps):
    optimizer = gdm.AdamW([np.ones(100_000, np.float32), np.ones(3)], lr=0.1, threads=4)
    for step in range(steps):
        optimizer.step([np.full(100_000, 0.5, np.float32), np.ones(3)])
    return optimizer
first = trained(2)
first.save(path)
first = trained(3)
first.save(path)
second = trained(0)
second.load(path)
assert second.steps == 3
assert all(np.array_equal(a, b) for a, b in zip(first.exp_avg, second.exp_avg))
print(gdm.backend(), *sorted(x.name for x in pathlib.Path(path).parent.iterdir()))
"""
    assert python(WINDOWS + code, GDM_BACKEND=backend) == f"{backend} state.safetensors"


@needs_safetensors
def test_a_failure_of_safetensors_has_the_systems_own_words(tmp_path):
    """Its number is no errno on Windows."""
    code = f"""
def full(*args, **kwargs):
    raise safetensors.SafetensorError("There is not enough space on the disk. (os error 112)")
safetensors.numpy.save_file = full
try:
    gdm.SGD(np.ones(3), lr=0.1).save({str(tmp_path / "state.safetensors")!r})
except OSError as error:
    print(error.strerror)
"""
    assert "There is not enough space on the disk." in python(WINDOWS + code)


def test_the_command_line_says_how_it_was_built():
    code = """
import gdm.__main__
sys.argv = ["gdm", "info"]
gdm.__main__.main()
"""
    assert gdm.__version__ in python(WINDOWS + code)
