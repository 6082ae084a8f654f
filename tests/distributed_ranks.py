"""Processes of a torch.distributed group, which run functions of distributed_worker.py one after the other.

To start a process and import torch takes seconds, a training of this size a fraction of one. So the processes are kept.
After a failure they are killed, since a rank may wait for another one that is gone.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist

import gdm

START_SECONDS = 120
CALL_SECONDS = 60
# How long the others may take after one rank has failed.
GRACE_SECONDS = 3


class RankError(AssertionError):
    """Says which ranks failed, and where."""


class Ranks:
    def __init__(self, world: int, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.processes: list[Any] = []
        self.pipes: list[Any] = []
        self.groups = 0

    def __call__(self, function: str, **arguments: Any) -> list[Any]:
        """What the function returns, on each rank."""
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send((function, arguments))
        return self._answers(CALL_SECONDS)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.groups += 1
        rendezvous = self.folder / f"rendezvous-{self.world}-{self.groups}"  # each group needs a new file
        for rank in range(self.world):
            ours, theirs = context.Pipe()
            arguments = (rank, self.world, str(rendezvous), theirs)
            # A daemon does not outlive the tests, even if they are stopped.
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)
        self._answers(START_SECONDS)

    def _answers(self, seconds: float) -> list[Any]:
        answers: list[Any] = [None] * self.world
        failures = []
        waiting = dict(zip(self.pipes, range(self.world), strict=True))
        end = monotonic() + seconds
        while waiting and (ready := wait(list(waiting), max(0.0, end - monotonic()))):
            for pipe in ready:
                rank = waiting.pop(pipe)
                try:
                    failure, answers[rank] = pipe.recv()
                except EOFError:
                    self.processes[rank].join(GRACE_SECONDS)
                    failure = f"ended with exit code {self.processes[rank].exitcode}"
                if failure:
                    failures.append(f"rank {rank}: {failure}")
                    end = min(end, monotonic() + GRACE_SECONDS)
        failures += [f"rank {rank}: no answer" for rank in waiting.values()]
        if failures:
            self.close()
            raise RankError("\n".join(failures))
        return answers

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.kill()
            process.join()
        self.processes, self.pipes = [], []


# ---- in the processes ----


def serve(rank: int, world: int, rendezvous: str, pipe: Connection) -> None:
    """Joins the group, then runs what is asked for until the other end of the pipe is closed."""
    torch.set_num_threads(1)
    gdm.set_num_threads(1)
    # Otherwise gloo listens at the address that belongs to the machine's name.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world, timeout=timedelta(seconds=CALL_SECONDS)
    )
    # Imported here, since it imports parts of torch that warn, as errors in pytest, of other parts of torch.
    functions = importlib.import_module("distributed_worker")
    pipe.send((None, None))
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        pipe.send(outcome(getattr(functions, function), arguments))


def outcome(function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[str | None, Any]:
    """What went wrong, or None; and what the function returned."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return None, function(**arguments)
    except BaseException:  # such as torch's CheckpointException
        return traceback.format_exc(), None
