"""The infinitely wide relu network on all ten digits: its Gaussian process, and its training with the tangent kernel.

    tpcompile kernel examples/kernel_digits.py:make

No network is trained. With ``k = tp.kernel(make, inputs[0])``, the test images are classified by

- the Gaussian process (the network at initialisation, conditioned on the training images):
  ``k.gp(inputs, targets, noise=1e-3).predict(test_inputs, covariance=None).mean``;
- gradient flow of the squared error to its end, the tangent kernel's regression:
  ``k.gradient_flow(inputs, targets, output_init="zero").predict(test_inputs, covariance=None).mean``;
- gradient flow of the cross-entropy until ``TIME``, an ordinary differential equation for the outputs:
  ``k.gradient_flow(inputs, classes, loss=F.cross_entropy, output_init="zero", outputs=(CLASSES,))`` and
  ``.predict(test_inputs, t=TIME, covariance=None).mean``.

Each is right on more than nine in ten (``accuracy``). Needs scikit-learn, which ships the digits.
"""

import itertools

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

TRAIN, TEST, CLASSES = 200, 400, 10
TIME = 100.0  # of gradient flow of the cross-entropy


class Net(nn.Module):
    """Two hidden layers in the NTK parametrization: standard normal weights, multipliers of variance 2 / fan-in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (64, width, width, CLASSES)
        self.weights = nn.ParameterList(torch.randn(o, i) for i, o in itertools.pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self.weights
        x = x @ first.T
        for weight in others:
            x = F.relu(x) @ weight.T * (2 / weight.shape[1]) ** 0.5
        return x


def make(width: int) -> nn.Module:
    return Net(width)


data, target = load_digits(return_X_y=True)
order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
images = torch.tensor(data, dtype=torch.float32)[order]
images = F.normalize(images - images.mean(-1, keepdim=True), dim=-1)
labels = torch.tensor(target)[order]
inputs, test_inputs = images[:TRAIN], images[TRAIN : TRAIN + TEST]
classes, test_classes = labels[:TRAIN], labels[TRAIN : TRAIN + TEST]
targets = F.one_hot(classes, CLASSES) - 1 / CLASSES


def accuracy(outputs: torch.Tensor) -> float:
    """Share of test images whose largest output is that of their class."""
    return float((outputs.argmax(-1) == test_classes).float().mean())
