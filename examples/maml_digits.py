"""First-order MAML: an initialisation from which one gradient step on five images tells five new classes apart.

    tpcompile compile examples/maml_digits.py:make

The network is linear with one hidden layer, as in the experiment of Tensor Programs IV (Yang & Hu, arXiv:2011.14522).
The inner step is taken inside ``forward`` with ``torch.autograd.grad``; since it builds no graph of its own, the outer
gradient is that of first-order MAML (Finn et al., arXiv:1703.03400). ``make`` is in the maximal update parametrization,
``make_ntk`` in the NTK parametrization, in which the hidden layer does not move at infinite width.

A class is a digit, upright or turned by 90 degrees, its images moved by up to a pixel; a task is five of them, with one
labelled image of each (the support) and five further ones (the queries). Tasks for training are made of the digits 0
to 6, test tasks of 7, 8 and 9. Needs scikit-learn, which ships the digits.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

WAYS, QUERIES = 5, 5
SIDE = 10  # of the images: 8 and the room to move in
PIXELS = SIDE * SIDE
TRAIN_DIGITS, TEST_DIGITS = range(7), range(7, 10)
LEARNING_RATE, INNER_RATE = 0.1, 30.0


class Maml(nn.Module):
    """Logits ``(tasks, WAYS, WAYS * QUERIES)`` of the queries after the inner steps.

    A task ``(WAYS + WAYS * QUERIES, PIXELS + WAYS)`` holds images and their classes as unit vectors, the support first.
    ``rates`` are the inner learning rates of the hidden and the readout weights.
    """

    def __init__(self, width: int, multiplier: float, readout_std: float, rates: tuple[float, float]) -> None:
        super().__init__()
        self.hidden = nn.Linear(PIXELS, width, bias=False)
        self.readout = nn.Linear(width, WAYS, bias=False)
        self.multiplier, self.rates, self.inner_steps = multiplier, rates, 1
        nn.init.normal_(self.hidden.weight)
        nn.init.normal_(self.readout.weight, std=readout_std)

    def logits(self, weights: Sequence[Tensor], images: Tensor) -> Tensor:
        """Each task by weights of its own: ``(tasks, items, WAYS)``."""
        hidden, readout = weights
        return self.multiplier * (images @ hidden.mT) @ readout.mT

    def forward(self, tasks: Tensor) -> Tensor:
        support, queries = tasks[:, :WAYS], tasks[:, WAYS:, :PIXELS]
        images, labels = support[..., :PIXELS], support[..., PIXELS:]
        with torch.enable_grad():  # under no_grad, too, a task is adapted to
            weights = [w.expand(len(tasks), *w.shape) for w in (self.hidden.weight, self.readout.weight)]
            for _ in range(self.inner_steps):
                loss = -(labels * self.logits(weights, images).log_softmax(-1)).sum() / WAYS
                gradients = torch.autograd.grad(loss, weights)
                weights = [w - r * g for w, r, g in zip(weights, self.rates, gradients, strict=True)]
        return self.logits(weights, queries).mT


def make(
    width: int, lr: float = LEARNING_RATE, inner_lr: float = INNER_RATE
) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Maml(width, multiplier=1.0, readout_std=1 / width, rates=(inner_lr * width, inner_lr / width))
    groups = [
        {"params": model.hidden.parameters(), "lr": lr * width},
        {"params": model.readout.parameters(), "lr": lr / width},
    ]
    return model, torch.optim.SGD(groups, lr=lr)


def make_ntk(
    width: int, lr: float = LEARNING_RATE, inner_lr: float = INNER_RATE
) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Maml(width, multiplier=width**-0.5, readout_std=1.0, rates=(inner_lr, inner_lr))
    return model, torch.optim.SGD(model.parameters(), lr=lr)


def load_classes(digits: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Images of every class made of these digits, ``(count, PIXELS)`` each, of mean 0 and length 1."""
    data, target = load_digits(return_X_y=True)
    images = torch.tensor(data, dtype=torch.float32).reshape(-1, 8, 8)
    classes = []
    for digit in digits:
        upright = images[torch.tensor(target == digit)]
        for turned in (upright, upright.rot90(1, (1, 2))):
            moved = torch.zeros(len(turned), SIDE, SIDE)
            corners = torch.randint(SIDE - 8 + 1, (len(turned), 2), generator=generator).tolist()
            for image, (i, j), small in zip(moved, corners, turned, strict=True):
                image[i : i + 8, j : j + 8] = small
            flat = moved.flatten(1)
            classes.append(F.normalize(flat - flat.mean(1, keepdim=True), dim=1))
    return classes


def draw_tasks(digits: Sequence[int], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tasks and the classes ``(count, WAYS * QUERIES)`` of their queries; the images of a task are different ones."""
    generator = torch.Generator().manual_seed(seed)
    classes = load_classes(digits, generator)

    def some(of: Sequence[Tensor] | Tensor, kept: int) -> list[int]:
        return torch.randperm(len(of), generator=generator)[:kept].tolist()

    tasks = []
    for _ in range(count):
        chosen = [classes[i] for i in some(classes, WAYS)]
        images = torch.stack([c[some(c, 1 + QUERIES)] for c in chosen], 1)
        labels = torch.eye(WAYS).repeat(1 + QUERIES, 1)
        tasks.append(torch.cat([images.flatten(0, 1), labels], 1))
    return torch.stack(tasks), torch.arange(WAYS).repeat(count, QUERIES)


inputs, targets = draw_tasks(TRAIN_DIGITS, count=128, seed=0)
test_inputs, test_targets = draw_tasks(TEST_DIGITS, count=128, seed=1)
loss = F.cross_entropy
steps = 40
