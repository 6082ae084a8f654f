"""A child process under ptrace: it can be killed at any of its system calls, and any of them can be made to fail.

The child is a fork, so that everything is imported before its first system call is counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable
from ctypes import c_long, c_ulong, c_void_p

TRACEME, POKEUSER, SYSCALL, SETOPTIONS, GET_SYSCALL_INFO = 0, 6, 24, 0x4200, 0x420E
TRACESYSGOOD, EXITKILL = 1, 1 << 20
RAX, RDX, ORIG_RAX = 10 * 8, 12 * 8, 15 * 8  # where the registers are in struct user of x86-64

# The system calls of x86-64 that work on files. All others are left alone: the C library may end the process when a
# futex fails.
NAMES = {
    **{0: "read", 1: "write", 2: "open", 3: "close", 4: "stat", 5: "fstat", 6: "lstat", 8: "lseek", 16: "ioctl"},
    **{17: "pread64", 18: "pwrite64", 20: "writev", 21: "access", 26: "msync", 72: "fcntl", 74: "fsync"},
    **{75: "fdatasync", 77: "ftruncate", 82: "rename", 83: "mkdir", 84: "rmdir", 87: "unlink", 89: "readlink"},
    **{90: "chmod", 91: "fchmod", 217: "getdents64", 257: "openat", 258: "mkdirat", 262: "newfstatat"},
    **{263: "unlinkat", 264: "renameat", 267: "readlinkat", 268: "fchmodat", 269: "faccessat", 285: "fallocate"},
    **{296: "pwritev", 316: "renameat2", 326: "copy_file_range", 332: "statx", 439: "faccessat2"},
}
CAN_FAIL = platform.machine() == "x86_64"

if sys.platform.startswith("linux"):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [c_long, c_long, c_void_p, c_void_p]
    libc.ptrace.restype = c_long


class Stop:
    """The child has stopped before or after its `index`-th system call."""

    def __init__(self, pid: int, index: int, entry: bool, number: int) -> None:
        self.pid, self.index, self.entry = pid, index, entry
        self.name = NAMES.get(number) if CAN_FAIL else None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def skip(self) -> None:
        """The call that has just been entered is not made."""
        ptrace(POKEUSER, self.pid, ORIG_RAX, c_ulong(-1).value)

    def returns(self, error: int) -> None:
        """The call that has just returned gives this error."""
        ptrace(POKEUSER, self.pid, RAX, c_ulong(-error).value)

    def shorten(self, size: int) -> None:
        """The write() that has just been entered writes that many bytes at most."""
        ptrace(POKEUSER, self.pid, RDX, size)


def ptrace(request: int, pid: int, address: int, value: int) -> int:
    done = libc.ptrace(request, pid, address, value)
    if done < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace({request:#x}): {os.strerror(error)}")
    return done


def child(act: Callable[[], object]) -> None:
    """What the child does: it ends with the number that `act` returns, or with 255 after an exception."""
    status = 255
    try:
        ptrace(TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        status = int(act() or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status & 255)


def trace(act: Callable[[], object], at: Callable[[Stop], object]) -> int:
    """Calls `act` in a child, and `at` before and after each of its system calls.

    Returns the child's exit status, or minus the number of the signal that ended it.
    """
    pid = os.fork()
    if not pid:
        child(act)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status):
        raise OSError("the child may not be traced")
    ptrace(SETOPTIONS, pid, 0, TRACESYSGOOD | EXITKILL)
    index, handed_on = -1, 0
    info = (ctypes.c_uint64 * 11)()
    while True:
        with contextlib.suppress(ProcessLookupError):  # it has been killed, and waits to be waited for
            ptrace(SYSCALL, pid, 0, handed_on)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        handed_on = os.WSTOPSIG(status)
        if handed_on != signal.SIGTRAP | 0x80:
            continue  # a signal, which the child gets
        handed_on = 0
        ptrace(GET_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.addressof(info))
        entry = info[0] & 255 == 1
        if index < 0 and not entry:
            continue  # of the kill() that began it all
        index += entry
        number = info[3] if entry else number  # noqa: F821 (an entry comes first)
        at(Stop(pid, index, entry, number))


if __name__ == "__main__":  # says why processes may not be traced here, if they may not
    stops: list[Stop] = []
    try:
        ended = trace(lambda: 0, stops.append)
        print("" if ended == 0 and stops else f"a child ended with status {ended} after {len(stops)} stops")
    except OSError as error:
        print(error)
