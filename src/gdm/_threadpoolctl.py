"""Registers gdm's threads with threadpoolctl, so that ``threadpool_limits(1)`` also limits them."""

from __future__ import annotations

import os

import threadpoolctl

from . import __version__
from ._backend import get_num_threads, native, set_num_threads


class _Controller(threadpoolctl.LibController):  # type: ignore[misc]
    user_api = "gdm"
    internal_api = "gdm"
    filename_prefixes = ("_core.",)

    def get_version(self) -> str:
        # Other packages have a _core too. threadpoolctl ignores a library whose controller raises OSError.
        if native is None or os.path.realpath(native.__file__ or "") != self.filepath:
            raise OSError(f"{self.filepath} is not gdm's")
        return __version__

    def get_num_threads(self) -> int:
        return get_num_threads()

    def set_num_threads(self, num_threads: int) -> None:
        set_num_threads(max(1, num_threads))


threadpoolctl.register(_Controller)
