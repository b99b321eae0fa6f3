"""Linear models, perceptrons and convolutional networks, as plain torch modules."""

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from ..errors import check_whole


def linear(num_features, num_outputs=1):
    """Make x Wᵀ + b, from (N, num_features) to (N, num_outputs): linear regression, or the logits of a classifier."""
    check_whole("num_features", num_features, 1)
    check_whole("num_outputs", num_outputs, 1)
    return nn.Linear(num_features, num_outputs)


def mlp(sizes, activation=nn.ReLU):
    """A multi-layer perceptron: linear layers with `activation` between them, none after the last.

    Args:
        sizes: the widths from input to output, at least two; [784, 100, 10] has 79,510 parameters.
        activation: a function without arguments that makes a module.

    Returns:
        An nn.Sequential, which first flattens its input (N, ...) to (N, sizes[0]). Lessons 04, 07.

    Raises:
        ValueError: `sizes` is not a list of at least two whole numbers of at least 1.
    """
    if (
        not isinstance(sizes, list | tuple)
        or len(sizes) < 2
        or any(not isinstance(size, int) or size < 1 for size in sizes)
    ):
        raise ValueError(f"sizes={sizes!r}: a list of at least two whole numbers of at least 1 is needed")
    layers = [nn.Flatten()]
    for width, next_width in pairwise(sizes):
        layers += [nn.Linear(width, next_width), activation()]
    return nn.Sequential(*layers[:-1])


class _ImageClassifier(nn.Sequential):
    """Named layers, one after the other, from grey images (N, 1, size, size) to logits (N, num_classes)."""

    def __init__(self, size, **layers):
        super().__init__(OrderedDict(layers))
        self.size = size

    def forward(self, x):
        if x.dim() != 4 or x.shape[1:] != (1, self.size, self.size):
            raise ValueError(
                f"{type(self).__name__}(size={self.size}) takes images of shape (N, 1, {self.size}, {self.size}), "
                f"not {tuple(x.shape)}"
            )
        return super().forward(x)


class LeNet(_ImageClassifier):
    """LeNet-5: two rounds of convolution and pooling, then a convolution that sees everything, then two layers.

    It has 61,706 parameters with 10 classes, and its layers have the paper's names: model.c1, s2, c3, s4, c5, f6,
    output. Unlike in the paper, pooling has no trainable coefficients, every map of c3 sees every map of s2, and the
    output is linear. Lesson 05.

    Args:
        size: height and width of the input: 32 as in the paper, or 28 as in MNIST, for which c1 pads by 2.
        num_classes: the length of the output.

    Raises:
        ValueError: `size` is another, or the input has another shape.

    Source: LeCun et al. (1998), section II.B.
    """

    def __init__(self, size=32, num_classes=10):
        if size not in (28, 32):
            raise ValueError(f"size={size!r}: 28 or 32 is needed")
        super().__init__(
            size,
            c1=nn.Conv2d(1, 6, 5, padding=(32 - size) // 2),
            tanh1=nn.Tanh(),
            s2=nn.AvgPool2d(2),
            c3=nn.Conv2d(6, 16, 5),
            tanh3=nn.Tanh(),
            s4=nn.AvgPool2d(2),
            c5=nn.Conv2d(16, 120, 5),
            tanh5=nn.Tanh(),
            flatten=nn.Flatten(),
            f6=nn.Linear(120, 84),
            tanh6=nn.Tanh(),
            output=nn.Linear(84, num_classes),
        )


class SimpleCNN(_ImageClassifier):
    """One 3 × 3 convolution with 32 channels, then two linear layers, which hold nearly all of the parameters.

    It has 2,770,634 parameters for 28 × 28 pixels and 10 classes. Lesson 05.

    Args:
        size: height and width of the input, at least 3.
        num_classes: the length of the output.

    Raises:
        ValueError: `size` is smaller, or the input has another shape.
    """

    def __init__(self, size=28, num_classes=10):
        check_whole("size", size, 3)
        super().__init__(
            size,
            conv=nn.Conv2d(1, 32, 3),
            relu1=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(32 * (size - 2) ** 2, 128),
            relu2=nn.ReLU(),
            fc2=nn.Linear(128, num_classes),
        )


def parameter_count(module, trainable_only=False):
    """Count the numbers in the parameters of `module`. Shared parameters count once, and buffers do not count.

    Args:
        module: any nn.Module.
        trainable_only: whether to leave out parameters with requires_grad=False.
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)
