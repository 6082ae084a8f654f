"""A progress bar on stderr."""

from __future__ import annotations

import sys
from types import TracebackType

WIDTH = 30


class Progress:
    """Shows how many epochs, or other units, are done: a bar on a terminal, otherwise one line at the end."""

    def __init__(self, label: str, total: int, unit: str = "epochs") -> None:
        self._label, self._total, self._unit, self._done = label, total, unit, 0
        self._live = sys.stderr.isatty()

    def update(self, done: int) -> None:
        """Shows that so many are done."""
        self._done = done
        if self._live:
            bar = "#" * (WIDTH * done // self._total)
            self._write(f"\r{self._label:<34} [{bar:.<{WIDTH}}] {done}/{self._total} {self._unit}")

    def __enter__(self) -> Progress:
        self.update(0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._write("\n" if self._live else f"{self._label:<34} {self._done}/{self._total} {self._unit}\n")

    def _write(self, text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)
