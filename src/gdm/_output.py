"""The folder that a command of the command line writes its files to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def make_folder(folder: Path, files: Iterable[str]) -> None:
    """Makes the folder and checks that these files can be written in it.

    A command that works for minutes calls this first, so that the user hears of a wrong folder at once. A file that
    exists already keeps its content.

    Raises
    ------
    OSError
        If the folder cannot be made, or one of the files cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        path = folder / name
        is_new = not path.exists()
        with path.open("ab"):
            pass
        if is_new:
            path.unlink()
