"""The shapes of the parameters of real models."""

from __future__ import annotations

Shapes = list[tuple[int, ...]]


def mlp() -> Shapes:
    """A multi-layer perceptron for 28 x 28 images: 784-512-256-10, 6 tensors, 0.5 M elements."""
    shapes: Shapes = []
    for inputs, outputs in ((784, 512), (512, 256), (256, 10)):
        shapes += [(outputs, inputs), (outputs,)]
    return shapes


def _convolution(outputs: int, inputs: int, size: int) -> Shapes:
    """A convolution, with the weight and bias of its batch norm."""
    return [(outputs, inputs, size, size), (outputs,), (outputs,)]


def resnet18() -> Shapes:
    """ResNet-18 (K. He et al., 2015), torchvision's layout: 62 tensors, 11.7 M elements."""
    shapes = _convolution(64, 3, 7)
    inputs = 64
    for width in (64, 128, 256, 512):
        for _ in range(2):
            shapes += _convolution(width, inputs, 3) + _convolution(width, width, 3)
            if inputs != width:
                shapes += _convolution(width, inputs, 1)
            inputs = width
    return [*shapes, (1000, 512), (1000,)]


def resnet50() -> Shapes:
    """ResNet-50 (K. He et al., 2015), torchvision's layout: 161 tensors, 25.6 M elements."""
    shapes = _convolution(64, 3, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += _convolution(width, inputs, 1) + _convolution(width, width, 3) + _convolution(4 * width, width, 1)
            if block == 0:
                shapes += _convolution(4 * width, inputs, 1)
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def gpt2_small() -> Shapes:
    """GPT-2 small (A. Radford et al., 2019): 148 tensors, 124.4 M elements."""
    width = 768
    layer: Shapes = [
        (width,), (width,),
        (width, 3 * width), (3 * width,), (width, width), (width,),
        (width,), (width,),
        (width, 4 * width), (4 * width,), (4 * width, width), (width,),
    ]  # fmt: skip
    return [(50257, width), (1024, width), *(layer * 12), (width,), (width,)]


# 50,000 parameters in 6 arrays.
SMALL_NETWORK: Shapes = [(200, 200), (200,), (40, 200), (40,), (40, 40), (160,)]
MODELS = {"MLP": mlp, "ResNet-50": resnet50, "GPT-2 small": gpt2_small}


def elements(shapes: Shapes) -> int:
    """How many elements tensors of these shapes have."""
    total = 0
    for shape in shapes:
        size = 1
        for n in shape:
            size *= n
        total += size
    return total
