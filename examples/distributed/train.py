"""Trains a small network on handwritten digits in several processes, with gdm's optimizers for PyTorch.

    pip install '.[torch]' scikit-learn      in a checkout
    torchrun --standalone --nproc-per-node 2 examples/distributed/train.py --engine fsdp

All processes ("ranks") compute on the CPU. Each takes its part of a batch; then the gradients are averaged.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import gdm.torch

BATCH, TEST_IMAGES = 96, 297
OPTIMIZERS = {
    "adamw": (gdm.torch.AdamW, {"lr": 0.003, "weight_decay": 0.01}),
    "sgd": (gdm.torch.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
}
# Names of parameters in place of numbers: a checkpoint then fits any engine and any number of ranks.
BY_NAME = StateDictOptions(flatten_optimizer_state_dict=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engine",
        choices=("ddp", "zero", "fsdp"),
        required=True,
        help="what is distributed beside the batch: nothing (DistributedDataParallel), the optimizer's states "
        "(ZeroRedundancyOptimizer), or parameters, gradients and states (fully_shard)",
    )
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="default: adamw")
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="how many steps to train; default: 200")
    parser.add_argument(
        "--cpu-offload",
        action="store_true",
        help="with fsdp: parameters, gradients and states stay in host memory, and the optimizer steps there",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="at the end, save model and optimizer in this folder (such as out/digits), as step-N; go on from the last "
        "one that is there",
    )
    options = parser.parse_args()
    if options.cpu_offload and options.engine != "fsdp":
        parser.error("--cpu-offload needs --engine fsdp")
    if options.steps < 1:
        parser.error(f"--steps must be 1 or more, not {options.steps}")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        parser.error(
            "this program is started by torchrun, once for each rank:\n"
            f"  torchrun --standalone --nproc-per-node 2 {' '.join(sys.argv)}"
        )
    return options


# ---- the model and the optimizer, distributed ----


def network() -> nn.Sequential:
    """The same weights on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def distribute(options: argparse.Namespace) -> tuple[nn.Module, torch.optim.Optimizer]:
    model: nn.Module = network()
    optimizer, settings = OPTIMIZERS[options.optimizer]
    if options.engine == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        # Memory is pinned for copies to an accelerator, which this example does not use.
        policy = CPUOffloadPolicy(pin_memory=False) if options.cpu_offload else OffloadPolicy()
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh, offload_policy=policy)
        fully_shard(model, mesh=mesh, offload_policy=policy)
        return model, optimizer(model.parameters(), **settings)
    model = DistributedDataParallel(model)
    if options.engine == "zero":
        return model, ZeroRedundancyOptimizer(model.parameters(), optimizer_class=optimizer, **settings)
    return model, optimizer(model.parameters(), **settings)


def local_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """gdm's optimizer, which makes the steps of this rank."""
    return optimizer.optim if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """How much memory the optimizer's states take on this rank."""
    states = [x for state in local_optimizer(optimizer).state.values() for x in state.values() if torch.is_tensor(x)]
    return sum((x.to_local() if isinstance(x, DTensor) else x).nbytes for x in states)


# ---- checkpoints ----


def last_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The checkpoint of the largest step, and that step. The file .metadata is written last: without it, something is
    missing."""
    steps = [int(path.parent.name.removeprefix("step-")) for path in folder.glob("step-*/.metadata")]
    return (folder / f"step-{max(steps)}", max(steps)) if steps else (None, 0)


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every rank writes what it has."""
    model_state, optimizer_state = get_state_dict(model, local_optimizer(optimizer), options=BY_NAME)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=path)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every rank reads what it needs."""
    local = local_optimizer(optimizer)
    model_state, optimizer_state = get_state_dict(model, local, options=BY_NAME)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=path)
    set_state_dict(model, local, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=BY_NAME)
    if local is not optimizer:  # ZeroRedundancyOptimizer sets the local options to its own in each step
        for group, own in zip(optimizer.param_groups, local.param_groups, strict=True):
            group.update({key: value for key, value in own.items() if key != "params"})


# ---- the training ----


class Digits:
    """8 × 8 pixels in [0, 1], and the digit that they show."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        self.images = torch.from_numpy((images[order] / 16).astype(np.float32))
        self.labels = torch.from_numpy(labels[order])

    def part_of_batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The images of this rank."""
        generator = torch.Generator().manual_seed(step)
        batch = torch.randint(TEST_IMAGES, len(self.images), (BATCH,), generator=generator)
        mine = batch[dist.get_rank() :: dist.get_world_size()]
        return self.images[mine], self.labels[mine]

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """The part of the test images that are recognised."""
        answers = model(self.images[:TEST_IMAGES]).argmax(1)
        return (answers == self.labels[:TEST_IMAGES]).float().mean().item()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, digits: Digits, steps: range) -> None:
    iterations, optimizer_steps = [], []
    for step in steps:
        start = perf_counter()
        images, labels = digits.part_of_batch(step)
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        before = perf_counter()
        optimizer.step()
        end = perf_counter()
        iterations.append(1000 * (end - start))
        optimizer_steps.append(1000 * (end - before))
        if step + 1 == steps.stop or (step + 1) % 50 == 0:
            mean_loss = loss.detach().clone()
            dist.all_reduce(mean_loss)
            say(
                f"step {step + 1:4}   loss {mean_loss.item() / dist.get_world_size():.4f}   "
                f"accuracy {100 * digits.accuracy(model):.1f} %   "
                f"{median(iterations):.2f} ms a step, {median(optimizer_steps):.2f} ms of it in optimizer.step()"
            )


def say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)


def run(options: argparse.Namespace) -> None:
    model, optimizer = distribute(options)
    name = type(local_optimizer(optimizer)).__name__
    say(f"gdm.torch.{name}, {options.engine}, {dist.get_world_size()} ranks")
    path, done = last_checkpoint(options.checkpoint) if options.checkpoint else (None, 0)
    if path:
        load(path, model, optimizer)
        say(f"goes on from {path}")
    end = done + options.steps
    train(model, optimizer, Digits(), range(done, end))
    sizes = [0] * dist.get_world_size()
    dist.all_gather_object(sizes, state_bytes(optimizer))
    say("states, in bytes for each rank: " + ", ".join(f"{size:,}" for size in sizes))
    if options.checkpoint:
        save(options.checkpoint / f"step-{end}", model, optimizer)
        say(f"saved as {options.checkpoint / f'step-{end}'}")


def main() -> None:
    options = arguments()
    dist.init_process_group("gloo")
    run(options)
    # The model is gone by now. DistributedDataParallel keeps the group alive; if it is freed after this line, then with
    # the interpreter's lock held, for which a thread of the group may wait that the end of the group waits for.
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
