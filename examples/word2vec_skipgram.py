"""Word2Vec, skip-gram with negative sampling: which of several words stands near a given one.

    tpcompile compile examples/word2vec_skipgram.py:make

The score of a pair is the inner product of two embeddings; the word that was found near the given one is told from
words drawn at random by logistic regression (Mikolov et al., arXiv:1310.4546). The network is linear with one hidden
layer, as in Tensor Programs IV (Yang & Hu, arXiv:2011.14522). ``make`` is in the maximal update parametrization,
``make_ntk`` in the NTK parametrization. The text is that of ``word2vec_cbow``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from word2vec_cbow import RADIUS, WORDS, load_text

NEGATIVES = 5
LEARNING_RATE = 40.0


class SkipGram(nn.Module):
    """Scores ``(N, 1 + NEGATIVES)`` of word numbers ``(N, 2 + NEGATIVES)``: the given word, a neighbour, others."""

    def __init__(self, width: int, multiplier: float, readout_std: float) -> None:
        super().__init__()
        self.given = nn.Embedding(WORDS, width)
        self.near = nn.Embedding(WORDS, width)
        self.multiplier = multiplier
        nn.init.normal_(self.given.weight)
        nn.init.normal_(self.near.weight, std=readout_std)

    def forward(self, words: Tensor) -> Tensor:
        return self.multiplier * (self.given(words[:, :1]) * self.near(words[:, 1:])).sum(-1)


def make(width: int, lr: float = LEARNING_RATE) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = SkipGram(width, multiplier=1.0, readout_std=1 / width)
    groups = [
        {"params": model.given.parameters(), "lr": lr * width},
        {"params": model.near.parameters(), "lr": lr / width},
    ]
    return model, torch.optim.SGD(groups, lr=lr)


def make_ntk(width: int, lr: float = LEARNING_RATE) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = SkipGram(width, multiplier=width**-0.5, readout_std=1.0)
    return model, torch.optim.SGD(model.parameters(), lr=lr)


def load_pairs(train: int, test: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Words and labels, training and test: pairs from the first part of the text and from the rest.

    The other words are drawn by their frequency to the power 3/4.
    """
    ids = load_text()
    generator = torch.Generator().manual_seed(seed)
    frequency = ids.bincount(minlength=WORDS).double() ** 0.75

    def draw(part: Tensor, count: int) -> tuple[Tensor, Tensor]:
        place = torch.randint(RADIUS, len(part) - RADIUS, (count,), generator=generator)
        distance = torch.randint(1, RADIUS + 1, (count,), generator=generator)
        side = 2 * torch.randint(2, (count,), generator=generator) - 1
        others = torch.multinomial(frequency, count * NEGATIVES, replacement=True, generator=generator)
        words = torch.cat([part[place, None], part[place + side * distance, None], others.reshape(count, -1)], 1)
        return words, F.one_hot(torch.zeros(count, dtype=torch.int64), 1 + NEGATIVES).float()

    cut = len(ids) * train // (train + test)
    return *draw(ids[:cut], train), *draw(ids[cut:], test)


inputs, targets, test_inputs, test_targets = load_pairs(train=256, test=64)
loss = F.binary_cross_entropy_with_logits
steps = 20
