"""Loads checkpoint files that are damaged into optimizers: see Subject.check.

Some are damaged as bytes. Others are damaged as what they hold, and put together again with the right checksums, so
that the damage is not found at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["gdm"]):
    import gdm  # noqa: F401

from damage import damaged, plain_value
from subjects import MAKERS, Subject

FOLDER = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
PATH = Path(FOLDER.name, "state.gdm")


class Saved(Subject):
    """An optimizer, the file of its state, and what that consists of."""

    def __init__(self, make: Any) -> None:
        super().__init__(make)
        self.optimizer.save(PATH)
        self.file = PATH.read_bytes()
        length = int.from_bytes(self.file[:8], "little")
        self.header = json.loads(self.file[8 : 8 + length])
        self.payload = self.file[8 + length :]
        self.content = json.loads(self.header["__metadata__"]["gdm"].split(" ", 2)[2])


SUBJECTS = [Saved(make) for make in MAKERS]
# A length in a file must not make a load take memory: more than this ends in a MemoryError, which is a finding.
MOST = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (256 << 20)


def file_of(header: Any, payload: bytes) -> bytes:
    text = json.dumps(header).encode(errors="replace")
    return len(text).to_bytes(8, "little") + text + payload


def metadata_of(content: Any) -> str:
    text = json.dumps(content, separators=(",", ":"))
    return f"1 {hashlib.sha256(text.encode()).hexdigest()} {text}"


def damaged_bytes(file: bytes, data: atheris.FuzzedDataProvider) -> bytes:
    for _ in range(data.ConsumeIntInRange(1, 3)):
        begin = data.ConsumeIntInRange(0, len(file))
        end = min(len(file), begin + data.ConsumeIntInRange(0, 16))
        file = file[:begin] + data.ConsumeBytes(data.ConsumeIntInRange(0, 16)) + file[end:]
    return file[: data.ConsumeIntInRange(0, len(file))] if data.ConsumeBool() else file


def damaged_tensor(saved: Saved, data: atheris.FuzzedDataProvider) -> bytes:
    """The description of a tensor, in both places where it is."""
    header, content = json.loads(json.dumps(saved.header)), json.loads(json.dumps(saved.content))
    tensors = content["tensors"]
    name = data.PickValueInList(sorted(tensors))
    what = data.PickValueInList(["dtype", "shape", "sha256", "path"])
    value = damaged({"value": tensors[name][what]}, data, plain_value)
    tensors[name][what] = value.get("value") if isinstance(value, dict) else value
    if what in ("dtype", "shape"):
        header[name][what] = tensors[name][what]
    header["__metadata__"]["gdm"] = metadata_of(content)
    return file_of(header, saved.payload)


def file_for(saved: Saved, data: atheris.FuzzedDataProvider) -> bytes:
    how = data.ConsumeIntInRange(0, 4)
    if how == 0:
        return damaged_bytes(saved.file, data)
    if how == 1:
        return file_of(damaged(saved.header, data, plain_value), saved.payload)
    if how == 2:
        content = damaged(saved.content, data, plain_value)
        return file_of({**saved.header, "__metadata__": {"gdm": metadata_of(content)}}, saved.payload)
    if how == 3:
        return damaged_tensor(saved, data)
    return data.PickValueInList([2, 100, 10**8, 2**60, 2**64 - 1]).to_bytes(8, "little") + data.ConsumeBytes(200)


def test_one_input(text: bytes) -> None:
    data = atheris.FuzzedDataProvider(text)
    saved = data.PickValueInList(SUBJECTS)
    PATH.write_bytes(file_for(saved, data))
    optimizer = saved.optimizer

    def load() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MOST, resource.RLIM_INFINITY))
        try:
            optimizer.load(PATH)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def save_and_load() -> None:
        optimizer.save(PATH)
        optimizer.load(PATH)

    saved.check(load, save_and_load)


# libFuzzer runs itself by its first argument when it merges.
atheris.Setup([f"{sys.executable} {__file__}", *sys.argv[1:]], test_one_input)
atheris.Fuzz()
