"""Times steps of gdm.torch against those of torch.optim, and of DeepSpeed if it is asked for: ``make bench-torch``.

Every step gets fresh gradient tensors. The contestants take turns, each has its own parameters, and the medians of the
rounds are compared. Before that, their parameters must agree after three steps.

    python bench/compare_torch.py                       the main cases, some minutes
    python bench/compare_torch.py --sweep               also 2**4 ... 2**26 elements in one tensor
    python bench/compare_torch.py --deepspeed           also DeepSpeedCPUAdam, which is compiled first
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import torch

import gdm
from gdm.bench.report import heading
from gdm.bench.workloads import MODELS, Shapes, elements, resnet18

METHODS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 1e-3, "momentum": 0.9},
    "AdamW": {"lr": 1e-3},
    "Adam": {"lr": 1e-3},
    "Adagrad": {"lr": 1e-2},
}
GOALS = {"1 x 64": 2.0, "1000 x 64": 6.0, "MLP": 1.3, "ResNet-18": 1.3, "GPT-2 small": 1.05}
LEAST = 0.97  # in the sweep
REST = 0.01  # seconds before each round with several threads: OpenMP's threads spin for some milliseconds


class Contestant:
    """An optimizer with parameters of its own."""

    def __init__(self, name: str, make: Callable[[list[torch.nn.Parameter]], Any], values: list[torch.Tensor]) -> None:
        self.name = name
        self.params = [torch.nn.Parameter(x.clone()) for x in values]
        self.optimizer = make(self.params)
        self.seconds: list[float] = []

    def take(self, grads: list[torch.Tensor]) -> None:
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad

    def timed_step(self) -> float:
        step = self.optimizer.step
        begin = perf_counter()
        step()
        return perf_counter() - begin


def contestants(method: str, shapes: Shapes, deepspeed: bool) -> list[Contestant]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    options = METHODS[method]
    made = [
        Contestant("gdm.torch", lambda params: getattr(gdm.torch, method)(params, **options), values),
        Contestant("torch fused", lambda params: getattr(torch.optim, method)(params, **options, fused=True), values),
    ]
    if deepspeed and method in ("Adam", "AdamW"):
        made.append(Contestant("DeepSpeed", lambda params: deepspeed_adam(params, method, options), values))
    return made


def deepspeed_adam(params: list[torch.nn.Parameter], method: str, options: dict[str, Any]) -> Any:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    decay = 0.01 if method == "AdamW" else 0.0
    return DeepSpeedCPUAdam(params, **options, weight_decay=decay, adamw_mode=method == "AdamW")


def fresh_grads(shapes: Shapes) -> Iterator[list[torch.Tensor]]:
    """Without end: gradients that the step before did not have."""
    sets = max(2, min(8, (64 << 20) // max(1, elements(shapes))))
    made = [[torch.randn(shape) for shape in shapes] for _ in range(sets)]
    while True:
        yield from made


def compare(method: str, shapes: Shapes, seconds: float, *, threads: int, deepspeed: bool) -> dict[str, float]:
    """The median of each contestant's seconds for a step."""
    runners, source = contestants(method, shapes, deepspeed), fresh_grads(shapes)
    for _ in range(3):
        grads = next(source)
        for runner in runners:
            runner.take(grads)
            runner.optimizer.step()
    for runner in runners[1:]:
        for ours, theirs in zip(runners[0].params, runner.params, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    gc.disable()
    end, rounds = perf_counter() + seconds, 0
    while perf_counter() < end or rounds < 7:
        for runner in runners:
            if threads > 1:
                sleep(REST)
            for warm in (True, False):  # the other contestants have filled the caches
                runner.take(next(source))
                taken = runner.timed_step()
                if not warm:
                    runner.seconds.append(taken)
        rounds += 1
    gc.enable()
    return {runner.name: median(runner.seconds) for runner in runners}


# ---- right after other work of PyTorch's, whose threads still spin ----


def network(widths: tuple[int, ...]) -> torch.nn.Module:
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def after_backward(method: str, widths: tuple[int, ...], seconds: float) -> dict[str, float]:
    """The time of a step that follows a real backward pass at once."""
    names, inputs = ("gdm.torch", "torch fused"), torch.randn(256, widths[0])
    runs = []
    for name in names:
        model = network(widths)
        module, more = (gdm.torch, {}) if name == "gdm.torch" else (torch.optim, {"fused": True})
        runs.append((model, getattr(module, method)(model.parameters(), **METHODS[method], **more), []))
    end = perf_counter() + seconds
    while perf_counter() < end or len(runs[0][2]) < 15:
        for model, optimizer, times in runs:
            for _ in range(2):
                optimizer.zero_grad()
                model(inputs).square().mean().backward()
                begin = perf_counter()
                optimizer.step()
                taken = perf_counter() - begin
            times.append(taken)
    return {name: median(times) for name, (_, _, times) in zip(names, runs, strict=True)}


def after_matmuls(method: str, shapes: Shapes, seconds: float) -> dict[str, float]:
    """The time of a step that follows five matrix products at once."""
    runners, source, a = contestants(method, shapes, False), fresh_grads(shapes), torch.randn(512, 512)
    end = perf_counter() + seconds
    while perf_counter() < end or len(runners[0].seconds) < 15:
        for runner in runners:
            for _ in range(2):
                runner.take(next(source))
                for _ in range(5):
                    a @ a
                taken = runner.timed_step()
            runner.seconds.append(taken)
    return {runner.name: median(runner.seconds) for runner in runners}


# ---- the command ----


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sweep", action="store_true", help="also one tensor of 2**4 ... 2**26 elements")
    parser.add_argument("--deepspeed", action="store_true", help="also DeepSpeedCPUAdam (needs deepspeed and ninja)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["SGD", "AdamW"], help="default: %(default)s")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="default: 1 2")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each case (default: %(default)s)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("out"), help="the folder for bench-torch.json")
    options = parser.parse_args()
    print(heading())
    results = []

    def report(threads: int, method: str, case: str, seconds: dict[str, float], goal: float | None) -> None:
        ours = seconds["gdm.torch"]
        ratios = {name: x / ours for name, x in seconds.items() if name != "gdm.torch"}
        note = "" if goal is None or ratios["torch fused"] >= goal else f"   (goal: {goal}x)"
        shown = "".join(f"{name} {ratio:6.2f}x   " for name, ratio in ratios.items())
        print(
            f"{threads} thread{'s' * (threads > 1)}  {method:8}{case:28}{ours * 1e6:12.2f} us   {shown}{note}",
            flush=True,
        )
        results.append({"threads": threads, "method": method, "case": case, "seconds": seconds, "goal": goal})

    models = {"MLP": MODELS["MLP"](), "ResNet-18": resnet18(), "GPT-2 small": MODELS["GPT-2 small"]()}
    cases: dict[str, Shapes] = {"1 x 64": [(64,)], "1000 x 64": [(64,)] * 1000, **models}
    if options.sweep:
        cases |= {f"2^{k}": [(1 << k,)] for k in range(4, 27)}
    for threads in options.threads:
        torch.set_num_threads(threads)
        pin(threads)
        for method in options.methods:
            for case, shapes in cases.items():
                if options.only in case:
                    large = elements(shapes) > 10_000_000
                    found = compare(
                        method,
                        shapes,
                        options.seconds * (4 if large else 1),
                        threads=threads,
                        deepspeed=options.deepspeed,
                    )
                    report(threads, method, case, found, LEAST if case.startswith("2^") else GOALS[case])
            for widths in ((64, 128, 10), (256, 512, 512, 10), (1024, 2048, 2048, 10)):
                case = "backward, then " + "-".join(map(str, widths))
                if options.only in case:
                    report(threads, method, case, after_backward(method, widths, options.seconds), 1.0)
            for k in (12, 16, 18, 20, 22, 24):
                case = f"5 products, then 2^{k}"
                if options.only in case:
                    report(threads, method, case, after_matmuls(method, [(1 << k,)], options.seconds), 1.0)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench-torch.json").write_text(json.dumps({"machine": heading(), "results": results}, indent=1))
    return 0


def pin(threads: int) -> None:
    """Lets a process with one thread run on one CPU only."""
    if sys.platform == "linux":
        cpus = sorted(range(os.cpu_count() or 1))
        os.sched_setaffinity(0, cpus[:1] if threads == 1 else cpus)


if __name__ == "__main__":
    sys.exit(main())
