"""The default number of threads where a cgroup limits the CPUs: containers mostly have fewer than the machine shows."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from gdm._backend import native
from support import python

pytestmark = [
    pytest.mark.skipif(native is None, reason="NOT TESTED: the limits of cgroups, which the compiled module reads"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="NOT TESTED: cgroups, which only Linux has"),
    pytest.mark.skipif(not shutil.which("cc"), reason="NOT TESTED: the limits of cgroups, which needs a C compiler"),
]

# Before libc: a machine with 16 CPUs, whose files of cgroups are in a folder.
MACHINE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set) {
    (void)pid;
    memset(set, 0, size);
    for (int cpu = 0; cpu < 16; cpu++) CPU_SET(cpu, set);
    return 0;
}

FILE *fopen(const char *path, const char *mode) {
    FILE *(*libc)(const char *, const char *) = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen");
    char own[4096];
    if (strncmp(path, "/sys/fs/cgroup", 14) && strcmp(path, "/proc/self/cgroup")) return libc(path, mode);
    snprintf(own, sizeof own, "%s%s", getenv("MACHINE"), path);
    return libc(own, mode);
}
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A shared library to be loaded before libc."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "machine.c").write_text(MACHINE)
    library = folder / "machine.so"
    subprocess.run(["cc", "-shared", "-fPIC", folder / "machine.c", "-ldl", "-o", library], check=True)
    return library


V1 = "sys/fs/cgroup/cpu/cpu.cfs_{}_us"
OWN = "0::/pod/container\n"
LONG = "/" + "/".join(["part" * 50] * 5)


def v1(path, quota):
    """The files of one cgroup of version 1."""
    return {f"sys/fs/cgroup/cpu{path}/cpu.cfs_{name}_us": str(x) for name, x in (("quota", quota), ("period", 100000))}


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({}, 16),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 16),
        ({"sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
        ({"sys/fs/cgroup/cpu.max": "250000 100000"}, 3),
        ({"sys/fs/cgroup/cpu.max": "1000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "9900000 100000"}, 16),
        ({"sys/fs/cgroup/cpu.max": "nonsense"}, 16),
        ({V1.format("quota"): "-1", V1.format("period"): "100000"}, 16),
        ({V1.format("quota"): "-300000", V1.format("period"): "100000"}, 16),
        ({V1.format("quota"): "450000", V1.format("period"): "100000"}, 5),
        ({V1.format("quota"): "450000"}, 16),
        ({"proc/self/cgroup": OWN, "sys/fs/cgroup/pod/container/cpu.max": "400000 100000"}, 4),
        ({"proc/self/cgroup": "3:cpu:/\n" + OWN, "sys/fs/cgroup/pod/container/cpu.max": "400000 100000"}, 4),
        ({"proc/self/cgroup": "3:cpu:/pod/container\n", "sys/fs/cgroup/pod/container/cpu.max": "400000 100000"}, 16),
        (
            {
                "proc/self/cgroup": OWN,
                "sys/fs/cgroup/cpu.max": "200000 100000",
                "sys/fs/cgroup/pod/container/cpu.max": "400000 100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": OWN,
                "sys/fs/cgroup/cpu.max": "400000 100000",
                "sys/fs/cgroup/pod/container/cpu.max": "200000 100000",
            },
            2,
        ),
        (  # a slice between the root and the process's own cgroup
            {
                "proc/self/cgroup": OWN,
                "sys/fs/cgroup/pod/cpu.max": "200000 100000",
                "sys/fs/cgroup/pod/container/cpu.max": "400000 100000",
            },
            2,
        ),
        ({"proc/self/cgroup": OWN, "sys/fs/cgroup/pod/cpu.max": "500000 100000"}, 5),
        (  # what lies beside the path says nothing
            {
                "proc/self/cgroup": OWN,
                "sys/fs/cgroup/po/cpu.max": "2000 1000",
                "sys/fs/cgroup/container/cpu.max": "2 1",
            },
            16,
        ),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/pod/container\n", **v1("/pod/container", 350000)}, 4),
        ({"proc/self/cgroup": "4:cpuacct,cpu:/pod/container\n", **v1("/pod", 350000)}, 4),
        ({"proc/self/cgroup": "4:cpu:/pod/container\n", **v1("/pod", 700000), **v1("/pod/container", 650000)}, 7),
        ({"proc/self/cgroup": "4:cpu:/pod/container\n", **v1("/pod", 650000), **v1("/pod/container", 800000)}, 7),
        ({"proc/self/cgroup": "4:cpu:/pod\n", **v1("", 250000), **v1("/pod", 800000)}, 3),
        ({"proc/self/cgroup": "4:cpu:/\n", **v1("", 250000)}, 3),
        ({"proc/self/cgroup": "4:cpuset,memory:/pod\n1:name=cpu:/pod\n", **v1("/pod", 250000)}, 16),
        ({"proc/self/cgroup": "no colons\n4:cpu\n4:cpu:/pod", **v1("/pod", 250000)}, 3),
        ({"proc/self/cgroup": f"0::{LONG}\n", f"sys/fs/cgroup{LONG}/cpu.max": "300000 100000"}, 3),
    ],
)
def test_the_default_number_of_threads_is_at_most_what_the_cgroup_allows(machine, tmp_path, files, threads):
    """Rounded up, and the least of all limits that hold for this process."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    show = "import gdm; print(gdm.get_num_threads())"
    assert python(show, LD_PRELOAD=str(machine), MACHINE=str(tmp_path)) == str(threads)


def test_a_number_that_is_asked_for_is_not_limited(machine, tmp_path):
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("200000 100000")
    show = "import gdm; print(gdm.get_num_threads())"
    assert python(show, LD_PRELOAD=str(machine), MACHINE=str(tmp_path), GDM_NUM_THREADS="12") == "12"
