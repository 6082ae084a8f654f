"""Trains with master weights and optimizer states in host memory, as one does when an accelerator's memory is scarce.

    pip install '.[torch]' scikit-learn      in a checkout
    python examples/torch/offload.py

The model computes in bfloat16. In each step its gradients arrive in one host buffer; one call of gdm.torch.functional
updates float32 master weights and states, and writes the new bfloat16 weights into a second buffer, which goes back to
the model. Nothing is converted in a pass of its own. The same training is made once more as one would write it with
torch.optim: gradients to float32, step, weights to bfloat16.

Without an accelerator the model lies in host memory, too, and the copies between the two are only copies.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from statistics import median
from time import perf_counter

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from gdm.torch import functional

BATCH, TEST_IMAGES = 64, 297
OPTIONS = {"lr": 2e-3, "weight_decay": 0.01}


class Host:
    """One flat buffer for each kind of number, with a part for each parameter of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.params = list(model.parameters())
        sizes = [param.numel() for param in self.params]
        self.device_grads = [torch.zeros_like(param) for param in self.params]
        pin = self.params[0].device.type == "cuda"  # pinned memory is copied while the device computes
        self.grads, self.weights = (torch.empty(sum(sizes), dtype=torch.bfloat16, pin_memory=pin) for _ in range(2))
        self.master = torch.cat([param.detach().float().cpu().view(-1) for param in self.params])
        self.ends = [0, *torch.tensor(sizes).cumsum(0).tolist()]

    def parts(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The part of each parameter, in its shape."""
        return [flat[a:b].view(param.shape) for (a, b), param in zip(pairwise(self.ends), self.params, strict=True)]

    def take_grads(self) -> None:
        for part, param in zip(self.parts(self.grads), self.params, strict=True):
            part.copy_(param.grad, non_blocking=True)
        if self.grads.is_pinned():
            torch.cuda.synchronize()

    @torch.no_grad()
    def give_weights(self) -> None:
        for part, param in zip(self.parts(self.weights), self.params, strict=True):
            param.copy_(part, non_blocking=True)


class ByGdm:
    """One pass: bfloat16 gradients in, float32 in the middle, bfloat16 weights out."""

    def __init__(self, host: Host) -> None:
        self.host, self.steps = host, 0
        self.exp_avg, self.exp_avg_sq = (torch.zeros_like(host.master) for _ in range(2))

    def step(self) -> None:
        host = self.host
        self.steps += 1
        functional.adamw(
            [host.master],
            [host.grads],
            [self.exp_avg],
            [self.exp_avg_sq],
            self.steps,
            copies=[host.weights],
            **OPTIONS,
        )


class ByTorch:
    """Three passes, and a float32 buffer for the gradients."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.master.grad = torch.zeros_like(host.master)
        self.optimizer = torch.optim.AdamW([host.master], fused=True, **OPTIONS)

    def step(self) -> None:
        self.host.master.grad.copy_(self.host.grads)
        self.optimizer.step()
        self.host.weights.copy_(self.host.master)


def network(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return model.to(device, torch.bfloat16)


def train(kind: type[ByGdm | ByTorch], steps: int, device: torch.device) -> tuple[list[float], float, float]:
    """The losses, the accuracy on images that were not trained on, and the median time of a step on the host."""
    model = network(device)
    host = Host(model)
    optimizer, losses, times = kind(host), [], []
    images, labels = (torch.from_numpy(x) for x in load_digits(return_X_y=True))
    images, labels = (images / 16).to(device, torch.bfloat16), labels.to(device)
    tests, trains = (slice(None, TEST_IMAGES), slice(TEST_IMAGES, None))
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randint(len(labels) - TEST_IMAGES, (BATCH,), generator=generator).to(device)
        model.zero_grad()
        loss = cross_entropy(model(images[trains][chosen]).float(), labels[trains][chosen])
        loss.backward()
        losses.append(loss.item())
        host.take_grads()
        start = perf_counter()
        optimizer.step()
        times.append(perf_counter() - start)
        host.give_weights()
    with torch.no_grad():
        right = model(images[tests]).argmax(1) == labels[tests]
    return losses, right.float().mean().item(), median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="how many steps to train (default: %(default)s)")
    parser.add_argument("--device", help="where the model is (default: cuda if there is one, else cpu)")
    options = parser.parse_args()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for name, kind in (("torch.optim", ByTorch), ("gdm.torch", ByGdm)):
        losses, accuracy, seconds = train(kind, options.steps, device)
        last = sum(losses[-20:]) / len(losses[-20:])
        print(f"{name:12} loss {losses[0]:.3f} -> {last:.4f}   accuracy {accuracy:.1%}   a step {seconds * 1e6:.0f} us")


if __name__ == "__main__":
    main()
