"""Trains a network on handwritten digits twice, with torch.optim and with gdm.torch, and draws how both went.

    pip install '.[torch,demo]'      in a checkout
    python examples/torch/digits.py

Both trainings start from the same weights and see the same batches, and take turns after each epoch. The program prints
what part of the time the forward pass, the backward pass and the step took, and draws out/torch-digits.png.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import gdm

BATCH = 32
TEST_IMAGES = 450
PARTS = ("forward", "backward", "step")
LOOKS = {
    "torch.optim, fused": {"color": "#56B4E9", "linewidth": 6.0, "alpha": 0.6},
    "gdm.torch": {"color": "#003A63", "linewidth": 1.6, "linestyle": "--", "marker": "o", "markersize": 3},
}


@dataclass
class Training:
    """A network, its optimizer, and what has been measured."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def epoch(self, images: torch.Tensor, labels: torch.Tensor, order: torch.Tensor) -> None:
        """Goes once through the images, in full batches."""
        for start in range(0, len(order) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            self.optimizer.zero_grad()
            times = [perf_counter()]
            loss = functional.cross_entropy(self.model(images[batch]), labels[batch])
            times.append(perf_counter())
            loss.backward()
            times.append(perf_counter())
            self.optimizer.step()
            times.append(perf_counter())
            for part, begin, end in zip(PARTS, times, times[1:], strict=False):
                self.seconds[part].append(end - begin)

    @torch.no_grad()
    def record(self, images: torch.Tensor, labels: torch.Tensor, tests: torch.Tensor, answers: torch.Tensor) -> None:
        """Notes the loss of the training images and the accuracy on the test images."""
        self.losses.append(functional.cross_entropy(self.model(images), labels).item())
        self.accuracies.append((self.model(tests).argmax(1) == answers).float().mean().item())


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def draw(path: Path, trainings: dict[str, Training]) -> None:
    """The losses, the accuracies, and the time of each part of an iteration."""
    figure = Figure(figsize=(12.0, 3.8), dpi=110, layout="constrained")
    loss, accuracy, time = figure.subplots(1, 3)
    for name, training in trainings.items():
        loss.plot(training.losses, label=name, **LOOKS[name])
        accuracy.plot([100 * x for x in training.accuracies], **LOOKS[name])
    loss.set(title="Loss of the training images", xlabel="epoch", ylabel="cross-entropy", yscale="log")
    loss.legend()
    accuracy.set(title="Accuracy on the test images", xlabel="epoch", ylabel="%", ylim=(85, 100))
    for i, training in enumerate(trainings.values()):
        left = 0.0
        for part, color in zip(PARTS, ("#CCCCCC", "#999999", "#D55E00"), strict=True):
            width = median(training.seconds[part]) * 1e6
            time.barh(i, width, left=left, color=color, label=part if i == 0 else None)
            time.text(left + width / 2, i, f"{width:.0f}", ha="center", va="center", fontsize=9)
            left += width
    time.set(title="One iteration: median time of its parts", xlabel="µs", yticks=range(2), yticklabels=list(trainings))
    time.set_ylim(1.6, -1.0)
    time.legend(loc="upper center", ncols=3, fontsize=9, columnspacing=1.2)
    for axes in (loss, accuracy):
        axes.grid(color="0.9")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=30, help="passes over the data (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, and so of gdm (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="for weights, split and batches (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="the picture's folder (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    images, labels = (torch.from_numpy(x) for x in load_digits(return_X_y=True))
    images = (images / 16).float()
    shuffled = torch.randperm(len(images))
    tests, trains = shuffled[:TEST_IMAGES], shuffled[TEST_IMAGES:]
    sets = images[trains], labels[trains], images[tests], labels[tests]

    theirs, ours = network(options.seed), network(options.seed)
    trainings = {
        "torch.optim, fused": Training(theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-3, fused=True)),
        "gdm.torch": Training(ours, gdm.torch.AdamW(ours.parameters(), lr=1e-3)),
    }
    for training in trainings.values():
        training.record(*sets)
    for epoch in range(1, options.epochs + 1):
        order = torch.randperm(len(trains))
        for training in trainings.values():
            training.epoch(sets[0], sets[1], order)
            training.record(*sets)
        if epoch % 10 == 0 or epoch == options.epochs:
            shown = ", ".join(f"{name} {t.losses[-1]:.4f}" for name, t in trainings.items())
            print(f"epoch {epoch:3}: loss with {shown}")

    for name, training in trainings.items():
        parts = {part: median(times) * 1e6 for part, times in training.seconds.items()}
        total = sum(parts.values())
        shown = ", ".join(f"{part} {x:.0f} µs ({x / total:.0%})" for part, x in parts.items())
        print(f"{name:20} accuracy {training.accuracies[-1]:.1%}; {shown}")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "torch-digits.png"
    draw(path, trainings)
    print(path)


if __name__ == "__main__":
    main()
