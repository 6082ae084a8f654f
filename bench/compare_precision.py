"""Times narrow storage, and what is done around a step, against PyTorch's composition of it: ``make bench-precision``.

The contestants take turns, and the medians of the rounds are compared. Before that, their parameters must agree.

    python bench/compare_precision.py                    all parts, some minutes
    python bench/compare_precision.py --parts offload    one of them
    python bench/compare_precision.py --deepspeed        also DeepSpeedCPUAdam, which is compiled first
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

import gdm
from gdm.bench._limit import move_bytes
from gdm.bench.report import heading
from gdm.bench.workloads import MODELS, SMALL_NETWORK, Shapes, elements

Contestants = dict[str, Callable[[], object]]
Refill = Callable[[], object]  # called before each call that is timed
RATE, DECAY, CLIP, AVERAGE, SCALE = 1e-3, 0.01, 1.0, 0.999, 1 / 1024


def nothing() -> None:
    """Gradients that stay need not be filled again."""


def timed(contestants: Contestants, seconds: float, refill: Refill = nothing) -> dict[str, float]:
    """The median of each contestant's seconds for a call."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    gc.disable()
    end, rounds = perf_counter() + seconds, 0
    while perf_counter() < end or rounds < 7:
        for name, call in contestants.items():
            refill()
            call()  # the other contestants have filled the caches
            refill()
            begin = perf_counter()
            call()
            found[name].append(perf_counter() - begin)
        rounds += 1
    gc.enable()
    return {name: median(times) for name, times in found.items()}


def numbers(shapes: Shapes, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def bits(x: torch.Tensor) -> Any:
    """A tensor of bfloat16 as the array of uint16 that shares its memory."""
    return x.view(torch.int16).numpy().view(np.uint16)


def agree(ours: Any, theirs: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(torch.as_tensor(ours).float(), theirs.detach().float(), rtol=tolerance, atol=tolerance)


# ---- the parts -------------------------------------------------------------------------------------------------------


def offload(n: int, deepspeed: bool) -> Contestants:
    """AdamW with bfloat16 gradients times a scale, float32 masters and states, and a bfloat16 copy."""
    (value,) = numbers([(n,)], 0)
    (grad,) = (x.bfloat16() for x in numbers([(n,)], 1))
    ours, copy = value.numpy().copy(), torch.empty(n, dtype=torch.bfloat16)
    optimizer = gdm.AdamW(ours, lr=RATE, weight_decay=DECAY, copies=bits(copy), dtype="bfloat16")
    narrow = bits(grad)

    master = torch.nn.Parameter(value.clone())
    theirs = torch.optim.AdamW([master], lr=RATE, weight_decay=DECAY, fused=True)
    wide, their_copy = torch.empty(n), torch.empty(n, dtype=torch.bfloat16)

    def compose() -> None:
        wide.copy_(grad).mul_(SCALE)
        master.grad = wide
        theirs.step()
        their_copy.copy_(master.detach())

    contestants: Contestants = {"gdm": lambda: optimizer.step(narrow, scale=SCALE), "torch": compose}
    for call in contestants.values():
        call()
    agree(ours, master, 1e-5)
    agree(copy.float(), their_copy, 1e-2)
    if deepspeed:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        param = torch.nn.Parameter(value.bfloat16())
        other = DeepSpeedCPUAdam([param], lr=RATE, weight_decay=DECAY, adamw_mode=True)
        param.grad = grad
        contestants["DeepSpeed on bfloat16"] = lambda: other.step()
        # DeepSpeed has no masters and no copy here. gdm without them:
        same = gdm.AdamW(bits(value.bfloat16()), lr=RATE, weight_decay=DECAY, dtype="bfloat16")
        contestants["gdm on bfloat16"] = lambda: same.step(narrow)
    return contestants


def storage(n: int) -> Contestants:
    """One large parameter, in several storages."""
    value = numbers([(n,)], 0)[0].numpy()
    grad = numbers([(n,)], 1)[0].numpy()
    narrow = bits(torch.tensor(grad).bfloat16())
    made: dict[str, Any] = {
        "AdamW": gdm.AdamW(value.copy()),
        "AdamW, bf16 states": gdm.AdamW(value.copy(), state_dtype="bfloat16"),
        "AdamW, bf16 states, stochastic": gdm.AdamW(value.copy(), state_dtype="bfloat16", rounding="stochastic"),
        "AdamW, int8 states": gdm.AdamW(value.copy(), state_dtype="int8"),
        "momentum": gdm.SGD(value.copy(), lr=RATE, momentum=0.9),
    }
    for rounding in ("nearest", "stochastic"):
        param = bits(torch.tensor(value).bfloat16())
        made[f"momentum, all bf16, {rounding}"] = gdm.SGD(
            param, lr=RATE, momentum=0.9, state_dtype="bfloat16", dtype="bfloat16", rounding=rounding
        )
    for name, optimizer in made.items():
        optimizer.bind(narrow if "all bf16" in name else grad)
    return {name: optimizer.step for name, optimizer in made.items()}


def around(shapes: Shapes) -> tuple[Contestants, Refill]:
    """Clipping by the global norm, AdamW with decay, a moving average, and clearing the gradients."""
    values, grads = numbers(shapes, 0), numbers(shapes, 1)
    ours, plain, our_grads, plain_grads = ([x.numpy().copy() for x in xs] for xs in (values, values, grads, grads))
    optimizer = gdm.AdamW(ours, lr=RATE, weight_decay=DECAY, max_grad_norm=CLIP, average=AVERAGE, clear_grads=True)
    optimizer.bind(our_grads)
    simple = gdm.AdamW(plain, lr=RATE, weight_decay=DECAY)
    simple.bind(plain_grads)

    params = [torch.nn.Parameter(x.clone()) for x in values]
    theirs = torch.optim.AdamW(params, lr=RATE, weight_decay=DECAY, fused=True)
    their_grads, averages = [x.clone() for x in grads], [x.clone() for x in values]
    for param, grad in zip(params, their_grads, strict=True):
        param.grad = grad
    multi_avg = torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE)

    def compose() -> None:
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        theirs.step()
        multi_avg(averages, params, 1)
        for grad in their_grads:
            grad.zero_()

    def refill() -> None:
        for x, y, z in zip(our_grads, their_grads, grads, strict=True):
            x[...] = z.numpy()
            y.copy_(z)

    optimizer.step()
    compose()
    for x, y in zip(ours, params, strict=True):
        agree(x, y, 1e-5)
    for x, y in zip(optimizer.averages, averages, strict=True):
        agree(x, y, 1e-5)
    contestants: Contestants = {"gdm": optimizer.step, "plain step": simple.step, "torch": compose}
    # The same bytes: param, two states, average and gradient are read and written, and the gradient is read once more.
    streams = [np.zeros(elements(shapes), np.float32) for _ in range(6)]
    variant = 0
    while move_bytes(variant, *streams):
        contestants[f"limit {variant}"] = partial(move_bytes, variant, *streams)
        variant += 1
    return contestants, refill


# ---- the command -----------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parts = ("offload", "storage", "around")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="default: all")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, os.cpu_count() or 1], help="default: 1 and all")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each case (default: %(default)s)")
    parser.add_argument("--isa", choices=gdm.available_isas(), help="default: the best one")
    parser.add_argument("--deepspeed", action="store_true", help="also DeepSpeedCPUAdam (needs deepspeed and ninja)")
    parser.add_argument("--large", type=int, default=26, help="the large arrays have 2 to this power elements")
    parser.add_argument("--out", type=Path, default=Path("out"), help="the folder for bench-precision.json")
    options = parser.parse_args()
    if options.isa:
        gdm.set_isa(options.isa)
    print(f"{heading()}\n{gdm.isa()}")
    results = []

    def report(
        part: str, case: str, threads: int, n: int, first: str, contestants: Contestants, refill: Refill = nothing
    ) -> None:
        seconds = timed(contestants, options.seconds * (3 if n > 1e7 else 1), refill)
        limits = [seconds.pop(name) for name in contestants if name.startswith("limit")]
        if limits:
            seconds["limit"] = min(limits)
        results.append({"part": part, "case": case, "threads": threads, "elements": n, "seconds": seconds})
        print(f"{part}, {case}, {threads} thread{'s' * (threads > 1)}")
        for name, x in seconds.items():
            print(f"    {name:34}{x / n * 1e9:9.3f} ns an element   {x / seconds[first]:6.2f} x {first}", flush=True)

    large = 1 << options.large
    for threads in dict.fromkeys(options.threads):
        torch.set_num_threads(threads)
        gdm.set_num_threads(threads)
        if "offload" in options.parts:
            for n in (1 << 14, 1 << 17, 1 << 20, large >> 2):
                report("offload", f"{n} elements", threads, n, "gdm", offload(n, options.deepspeed))
        if "storage" in options.parts:
            report("storage", f"{large} elements", threads, large, "AdamW", storage(large))
        if "around" in options.parts:
            for case, shapes in {"50,000 in 6 arrays": SMALL_NETWORK, "GPT-2 small": MODELS["GPT-2 small"]()}.items():
                report("around", case, threads, elements(shapes), "gdm", *around(shapes))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench-precision.json").write_text(json.dumps({"machine": heading(), "results": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
