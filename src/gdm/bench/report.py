"""The results as a table, as JSON, and as pictures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import gdm

from .._backend import native
from .cases import BUSY, SIZE, SMALL, STORAGE, Result
from .peers import SGD

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour-blind people can distinguish Okabe and Ito's colours. In print without colour the markers differ.
LOOKS: dict[str, dict[str, Any]] = {
    "gdm": {"color": "#000000", "marker": "o", "linewidth": 2.2},
    "gdm, step(grads)": {"color": "#000000", "marker": "o", "markerfacecolor": "w", "linestyle": ":"},
    "gdm, 2 threads": {"color": "#000000", "marker": "s", "linewidth": 2.2, "linestyle": "--"},
    "limit": {"color": "#D55E00", "linestyle": "--", "linewidth": 1.5},
    "NumPy": {"color": "#999999", "marker": "v", "linestyle": ":"},
    "NumPy out=": {"color": "#999999", "marker": "^"},
    "Numba": {"color": "#009E73", "marker": "D"},
    "torch for-loop": {"color": "#0072B2", "marker": "x", "linestyle": ":"},
    "torch foreach": {"color": "#0072B2", "marker": "+", "linestyle": "-."},
    "torch fused": {"color": "#0072B2", "marker": "P"},
    "optax jit": {"color": "#CC79A7", "marker": "*"},
}


FORMAT = 1  # of the JSON file
PICTURES = ("throughput.png", "tensors.png", "storage.png", "busy.png")


def machine() -> dict[str, Any]:
    """The machine and the versions of the libraries."""
    return {
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "caches": dict(_caches()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gdm": gdm.__version__,
        "isa": gdm.isa(),
        "compiler": native.build_info()["compiler"] if native is not None else "none",
        "versions": {name: _version(name) for name in ("numpy", "numba", "torch", "jax", "optax")},
    }


def heading() -> str:
    """The machine in a line or two."""
    facts = machine()
    caches = ", ".join(f"{name} {_bytes(size)}" for name, size in facts["caches"].items())
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    return (
        f"{facts['cpu']}, {facts['cpus']} CPUs, {caches}\n"
        f"gdm {facts['gdm']}, {facts['isa']}; Python {facts['python']}, {versions}"
    )


def table(results: Sequence[Result]) -> str:
    """One line for each case: gdm's time and throughput, and each peer's time divided by gdm's."""
    names = dict.fromkeys(name for result in results for name in result.timings)
    peers = [name for name in names if name != "limit" and not name.startswith("gdm")]
    head = f"{'':40}{'gdm':>9} {'GB/s':>6} {'limit':>6}" + "".join(
        f"{name:>{max(16, len(name) + 2)}}" for name in peers
    )
    lines = [head, "-" * len(head)]
    group = ""
    for result in results:
        if result.case.group != group:
            group = result.case.group
            lines.append(group)
        for name, timing in result.timings.items():
            if name.startswith("gdm") and timing is not result.ours:
                lines.append(f"  {name:<38}{seconds(timing.median):>9}")
        row = f"  {_row_name(result):<38}{seconds(result.ours.median):>9} {result.gigabytes_per_second:>6.1f}"
        row += f" {_limit(result):>6}"
        lines.append(row + "".join(f"{_ratio(result, name):>{max(16, len(name) + 2)}}" for name in peers).rstrip())
        if result.case.busy:
            p95 = ", ".join(f"{name} {seconds(timing.quantile(0.95))}" for name, timing in result.timings.items())
            lines.append(f"    p95: {p95}")
    return "\n".join(lines)


def _row_name(result: Result) -> str:
    first = next(iter(result.timings))
    return result.case.label if first == "gdm" else f"{result.case.label}, {first.removeprefix('gdm, ')}"


def _limit(result: Result) -> str:
    return f"{100 * result.ratio('limit'):.0f}%" if "limit" in result.timings else ""


def _ratio(result: Result, name: str) -> str:
    if name not in result.timings:
        return ""
    ratio = result.ratio(name)
    return f"{ratio:.0f}x" if ratio >= 20 else f"{ratio:.1f}x" if ratio >= 3 else f"{ratio:.2f}x"


def save(path: Path, results: Sequence[Result]) -> None:
    """Writes the machine and the results as JSON."""
    path.write_text(json.dumps(as_json(results), indent=1) + "\n")


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """The content of the JSON file."""
    return {"format": FORMAT, "machine": machine(), "results": [r.as_json() for r in results]}


def draw(folder: Path, results: Sequence[Result]) -> list[Path]:
    """Draws a picture for each of these groups that has results: one tensor, many small tensors, narrow storage,
    a busy machine."""
    from matplotlib.figure import Figure

    paths = []
    drawings = ((_draw_throughput, SIZE), (_draw_tensors, SMALL), (_draw_storage, STORAGE), (_draw_busy, BUSY))
    for name, (draw_results, group) in zip(PICTURES, drawings, strict=True):
        of_group = [result for result in results if result.case.group == group]
        if len(of_group) > 1:
            figure = Figure(figsize=(8.0, 4.6), dpi=110, layout="constrained")
            draw_results(figure.subplots(), of_group)
            figure.savefig(folder / name)
            paths.append(folder / name)
    return paths


def _draw_throughput(axes: Axes, results: Sequence[Result]) -> None:
    for name in _names(results):
        points = [(r.case.elements, r.timings[name].median) for r in results if name in r.timings]
        axes.plot(
            [n for n, _ in points],
            [n * SGD.moved_bytes * 1e-9 / t for n, t in points],
            label=name,
            markersize=5,
            **LOOKS[name],
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(
        xlabel="elements of one float32 tensor", ylabel="bytes moved (GB/s)", title="One momentum step, one thread"
    )
    bottom = axes.get_ylim()[0]
    for name, size in _caches():
        if axes.get_xlim()[0] < size / 12 < axes.get_xlim()[1]:
            axes.axvline(size / 12, color="0.7", linewidth=0.8, zorder=0)
            place = (size / 12, bottom)
            axes.annotate(f"{name} full", place, rotation=90, va="bottom", ha="right", color="0.4", fontsize=8)
    axes.grid(color="0.92")
    axes.legend(fontsize=8, ncols=2)


def _draw_tensors(axes: Axes, results: Sequence[Result]) -> None:
    for name in _names(results):
        points = [(len(r.case.shapes), r.timings[name].median * 1e6) for r in results if name in r.timings]
        axes.plot([n for n, _ in points], [t for _, t in points], label=name, markersize=5, **LOOKS[name])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(
        xlabel="tensors of 64 float32 elements", ylabel="time of a step (µs)", title="Many small tensors, one thread"
    )
    axes.grid(color="0.92")
    axes.legend(fontsize=8, ncols=2)


def _draw_storage(axes: Axes, results: Sequence[Result]) -> None:
    """A bar for each storage and number of threads, for the largest size."""
    largest = [r for r in results if r.case.elements == max(r.case.elements for r in results)]
    threads = sorted({r.case.threads for r in largest})
    names = list(
        dict.fromkeys(
            (r.case.method.name, name) for n in threads for r in largest if r.case.threads == n for name in r.timings
        )
    )
    height = 0.8 / len(threads)
    for k, n in enumerate(threads):
        times = {(r.case.method.name, name): t for r in largest if r.case.threads == n for name, t in r.timings.items()}
        places = np.arange(len(names)) + (k - (len(threads) - 1) / 2) * height
        lengths = [times[x].median / largest[0].case.elements * 1e9 if x in times else np.nan for x in names]
        label = f"{n} thread{'s' * (n > 1)}"
        bars = axes.barh(places, lengths, height, label=label, color=str(0.75 - 0.4 * k), edgecolor="k")
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    labels = [f"{method}, {name.removeprefix('gdm').lstrip(', ') or 'float32'}" for method, name in names]
    axes.set_yticks(np.arange(len(names)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    title = f"{largest[0].case.elements:,} elements: what a step takes with each storage"
    axes.set(xlabel="time for each element (ns)", title=title)
    axes.legend(fontsize=8)


def _draw_busy(axes: Axes, results: Sequence[Result]) -> None:
    bars = [
        (f"{name}\n{r.case.threads} thread{'s' * (r.case.threads > 1)}", t.median * 1e3, t.quantile(0.95) * 1e3)
        for r in results
        for name, t in r.timings.items()
    ]
    places = np.arange(len(bars))
    axes.bar(places - 0.2, [b[1] for b in bars], 0.4, label="median", color="0.75", edgecolor="k")
    axes.bar(places + 0.2, [b[2] for b in bars], 0.4, label="95th percentile", color="0.4", edgecolor="k")
    axes.set_xticks(places, [b[0] for b in bars])
    axes.set(ylabel="time of a step (ms)", title="4 M elements while another process keeps the other core busy")
    axes.legend()


def _names(results: Sequence[Result]) -> list[str]:
    found = dict.fromkeys(name for result in results for name in result.timings)
    return [name for name in LOOKS if name in found]


def _caches() -> Iterable[tuple[str, int]]:
    """The names and sizes (in bytes) of the first CPU's data caches, if the Linux kernel lists them."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            size = (index / "size").read_text().strip()
            yield f"L{(index / 'level').read_text().strip()}", int(size[:-1]) * {"K": 1024, "M": 1 << 20}[size[-1]]


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown CPU"


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _bytes(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def seconds(time: float) -> str:
    """A time in a unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if time * scale >= 1:
            return f"{time * scale:.3g} {unit}"
    return f"{time * 1e9:.3g} ns"
