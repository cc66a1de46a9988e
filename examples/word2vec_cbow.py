"""Word2Vec, the continuous bag of words (CBOW): a word from the mean embedding of the four words around it.

    tpcompile compile examples/word2vec_cbow.py:make

The model is linear with one hidden layer, ``softmax(V mean(U[context]))``, as in Tensor Programs IV
(Yang & Hu, arXiv:2011.14522); the width is the dimension of the embeddings. ``make`` is in the maximal update
parametrization, ``make_ntk`` in the NTK parametrization, in which embeddings do not move at infinite width.

The text ships with Python: the language reference behind ``help()``, reduced to a hundred frequent words.
"""

import re
from collections import Counter
from itertools import chain
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORDS = 100
SKIPPED = 50  # the most frequent words say little
RADIUS = 2
LEARNING_RATE = 8.0


class Cbow(nn.Module):
    """Logits over the vocabulary for contexts ``(N, 2 * RADIUS)`` of word numbers."""

    def __init__(self, width: int, multiplier: float, readout_std: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.readout = nn.Linear(width, WORDS, bias=False)
        self.multiplier = multiplier
        nn.init.normal_(self.embedding.weight)
        nn.init.normal_(self.readout.weight, std=readout_std)

    def forward(self, contexts: Tensor) -> Tensor:
        return self.multiplier * self.readout(self.embedding(contexts).mean(1))


def make(width: int, lr: float = LEARNING_RATE) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Cbow(width, multiplier=1.0, readout_std=1 / width)
    groups = [
        {"params": model.embedding.parameters(), "lr": lr * width},
        {"params": model.readout.parameters(), "lr": lr / width},
    ]
    return model, torch.optim.SGD(groups, lr=lr)


def make_ntk(width: int, lr: float = LEARNING_RATE) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Cbow(width, multiplier=width**-0.5, readout_std=1.0)
    return model, torch.optim.SGD(model.parameters(), lr=lr)


def load_text() -> Tensor:
    """The words of the vocabulary in the text, by their numbers, in its order."""
    text = [re.findall(r"[a-z]+", topics[name].lower()) for name in sorted(topics)]
    ranked = Counter(chain.from_iterable(text)).most_common(SKIPPED + WORDS)
    number = {word: i for i, (word, _) in enumerate(ranked[SKIPPED:])}
    return torch.tensor([number[word] for word in chain.from_iterable(text) if word in number])


def load_windows(train: int, test: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Contexts and the words in their middle, of consecutive words of the vocabulary: train and test sets.

    Training windows come from the first half of the text (for equal numbers), test windows from the rest.
    """
    ids = load_text()
    cut = len(ids) * train // (train + test)
    generator = torch.Generator().manual_seed(seed)

    def draw(part: Tensor, count: int) -> tuple[Tensor, Tensor]:
        windows = part.unfold(0, 2 * RADIUS + 1, 1)
        chosen = windows[torch.randperm(len(windows), generator=generator)[:count]]
        return torch.cat([chosen[:, :RADIUS], chosen[:, RADIUS + 1 :]], 1), chosen[:, RADIUS].contiguous()

    return *draw(ids[:cut], train), *draw(ids[cut:], test)


inputs, targets, test_inputs, test_targets = load_windows(train=128, test=32)
loss = F.cross_entropy
steps = 20
