"""The folders of the header and the library, for projects in C, C++ and Cython."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdm

if TYPE_CHECKING:
    from pathlib import Path


def root() -> Path:
    """The folder that contains include/ and lib/. In an editable installation it is not the folder of the sources."""
    from pathlib import Path

    for folder in map(Path, gdm.__path__):
        if (folder / "include/gdm/gdm.h").exists():
            return folder
    raise FileNotFoundError(f"gdm/gdm.h is not in {list(gdm.__path__)}: the installation is not complete")


def get_include() -> str:
    """The folder to add to a C compiler's include path, for ``#include <gdm/gdm.h>``."""
    return str(root() / "include")


def get_cmake_dir() -> str:
    """The folder to give to CMake as ``gdm_DIR``, for ``find_package(gdm CONFIG)``.

    A project that is built by scikit-build-core and has gdm-optim in its build requirements does not need this.
    """
    return str(root() / "lib/cmake/gdm")


def get_libraries() -> str:
    """The compiler's options for linking with the static library."""
    lib = root() / "lib"
    if (lib / "gdm.lib").exists():  # by clang-cl, whose linker takes the file
        return str(lib / "gdm.lib")
    return f"-L{lib} -lgdm -lm -pthread"
