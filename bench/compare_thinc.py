"""Trains a spaCy text classifier with thinc's optimizers and with gdm's: the time in the optimizer, losses and scores.

    python bench/compare_thinc.py [--rounds 5] [--epochs 5]

Trainings are interleaved. Each begins with the same weights and sees the same texts in the same order. The optimizers
run in one thread, as thinc's do.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import spacy
import thinc.api
from spacy.training import Example

import gdm
import gdm.thinc

GOOD = ["brilliant", "warm", "clever", "moving", "lively", "honest", "bright", "tender", "witty", "superb"]
BAD = ["dull", "cold", "clumsy", "boring", "lifeless", "false", "grim", "harsh", "silly", "dreadful"]
PLAIN = [
    "the",
    "film",
    "has",
    "a",
    "story",
    "about",
    "people",
    "in",
    "town",
    "and",
    "their",
    "work",
    "while",
    "music",
    "plays",
    "in",
    "scenes",
]
# spaCy's defaults for a training by a config, and those of a program that does not name an optimizer.
SETTINGS = {
    "config": {"L2": 0.01, "use_averages": False},
    "program": {"L2": 0.0, "use_averages": True},
}


class Training(NamedTuple):
    """What one training gave."""

    losses: list[float]  # of each epoch
    score: float  # on texts that were not trained on, with the averages if there are some
    seconds: float  # in the optimizer
    calls: int  # of the optimizer


class Timed:
    """Passes on calls of an optimizer and adds up their time: that of the thread, without its interruptions."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.seconds, self.calls = optimizer, 0.0, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        start = time.thread_time()
        result = self.optimizer(*args, **options)
        self.seconds += time.thread_time() - start
        self.calls += 1
        return result


def texts(count: int, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Sentences of random words, in which words of one of two kinds say which category they belong to."""
    choose, found = random.Random(seed), []
    for _ in range(count):
        is_good = choose.random() < 0.5
        words = choose.choices(PLAIN, k=10) + choose.choices(GOOD if is_good else BAD, k=2)
        choose.shuffle(words)
        found.append((" ".join(words), {"cats": {"GOOD": float(is_good), "BAD": float(not is_good)}}))
    return found


def train(optimizer: Any, epochs: int, count: int = 256) -> Training:
    """Trains a new classifier, spaCy's default one, from the same beginning each time."""
    thinc.api.fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe("textcat")
    examples = [Example.from_dict(nlp.make_doc(text), given) for text, given in texts(count, 1)]
    tests = [Example.from_dict(nlp.make_doc(text), given) for text, given in texts(64, 2)]
    timed = Timed(optimizer)
    nlp.initialize(lambda: examples, sgd=optimizer)
    losses = []
    for _ in range(epochs):
        of_epoch: dict[str, float] = {}
        for batch in spacy.util.minibatch(examples, 32):
            nlp.update(batch, sgd=timed, losses=of_epoch, drop=0.1)
            optimizer.step_schedules()
        losses.append(of_epoch["textcat"])
    with nlp.use_params(optimizer.averages or {}):
        score = nlp.evaluate(tests)["cats_macro_auc"]
    return Training(losses, score, timed.seconds, timed.calls)


def compare(makers: dict[str, Callable[[], Any]], rounds: int, epochs: int) -> dict[str, list[Training]]:
    """Interleaved trainings with each optimizer."""
    found: dict[str, list[Training]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, make in makers.items():
            found[name].append(train(make(), epochs))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    for setting, options in SETTINGS.items():
        for method in ("Adam", "RAdam", "SGD"):
            makers = {
                "thinc": partial(getattr(thinc.api, method), 0.001, **options),
                "gdm": partial(getattr(gdm.thinc, method), 0.001, **options),
            }
            with gdm.threads(1):
                found = compare(makers, given.rounds, given.epochs)
            times = {name: [x.seconds / x.calls * 1e6 for x in runs] for name, runs in found.items()}
            ratios = [a / b for a, b in zip(times["gdm"], times["thinc"], strict=True)]
            print(f"{method}, {setting} {options}: {found['gdm'][0].calls} calls")
            for name, runs in found.items():
                losses = ", ".join(f"{x:.6g}" for x in runs[0].losses)
                print(f"  {name:6} {median(times[name]):8.2f} µs a call  losses {losses}  score {runs[0].score:.4f}")
            print(f"  gdm / thinc: median {median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
