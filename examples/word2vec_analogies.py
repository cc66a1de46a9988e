"""Word2Vec on a whole text, for word analogies: "file" is to "files" as "line" is to what?

    tpcompile compile examples/word2vec_analogies.py:make

The model of Tensor Programs IV (Yang & Hu, arXiv:2011.14522), linear with one hidden layer: scores ``V u`` of all words
from the embedding u of a word, or from the mean of the embeddings of several, since the scores are linear in them. The
text enters as the numbers of times that words occur together, so that a step of gradient descent is on all of it: the
expectation of what sampled windows and negative samples give. ``make`` is in the maximal update parametrization,
``make_ntk`` in the NTK parametrization, in which embeddings do not move at infinite width.

The text is the source of Python's standard library, identifiers split into their words.
"""

import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORDS = 48
NEGATIVES = 5
COMMON = 1e-3  # words more frequent than this are thinned out, to the root of their excess
LEARNING_RATE = 20.0
PACKAGES = ("json", "email", "logging", "importlib")  # of the small example

PAIRS = {
    "number": "name file error line value type object key string module call method function option event header "
    "argument attribute item window flag warning part field global character parameter instance list element "
    "class command result node byte thread group action tag package",  # with an s
    "opposite": "encode/decode read/write get/set open/close start/stop first/last input/output source/target "
    "left/right add/remove before/after old/new min/max encoding/decoding reader/writer client/server",
    "form": "use/used call/called raise/raised return/returned create/created close/closed pass/passed set/setting "
    "encode/encoded decode/decoded define/defined open/opened",
}


class Word2Vec(nn.Module):
    """Scores ``(N, words)`` of all words from word numbers ``(N,)``."""

    def __init__(self, words: int, width: int, multiplier: float, readout_std: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.readout = nn.Linear(width, words, bias=False)
        self.multiplier = multiplier
        nn.init.normal_(self.embedding.weight)
        nn.init.normal_(self.readout.weight, std=readout_std)

    def forward(self, words: Tensor) -> Tensor:
        return self.multiplier * self.readout(self.embedding(words))


def make(width: int, lr: float = LEARNING_RATE, words: int = WORDS) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Word2Vec(words, width, multiplier=1.0, readout_std=1 / width)
    groups = [
        {"params": model.embedding.parameters(), "lr": lr * width},
        {"params": model.readout.parameters(), "lr": lr / width},
    ]
    return model, torch.optim.SGD(groups, lr=lr)


def make_ntk(width: int, lr: float = LEARNING_RATE, words: int = WORDS) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Word2Vec(words, width, multiplier=width**-0.5, readout_std=1.0)
    return model, torch.optim.SGD(model.parameters(), lr=lr)


# The text ------------------------------------------------------------------------------------


def load_text(packages: Sequence[str] | None = None) -> list[list[str]]:
    """The words of every file of the standard library, its tests left out; of some packages only, if given."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "tests", "idle_test", "lib2to3", "encodings"}
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if left_out.isdisjoint(parts) and (packages is None or parts[0] in packages):
            text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path.read_text(encoding="utf-8", errors="ignore"))
            found.append(re.findall(r"[a-z]+", text.lower()))
    return found


@dataclass(frozen=True)
class Corpus:
    """Contexts of ``r`` word numbers ``(contexts, r)`` and the share ``(contexts, words)`` of every word in them."""

    contexts: Tensor
    shares: Tensor


def vocabulary(text: Sequence[Sequence[str]], words: int) -> dict[str, int]:
    """The most frequent words by their numbers."""
    ranked = Counter(word for file in text for word in file).most_common(words)
    return {word: i for i, (word, _) in enumerate(ranked)}


def kept(text: Sequence[Sequence[str]], number: dict[str, int]) -> Tensor:
    """The share of its occurrences at which a word counts (Mikolov et al., arXiv:1310.4546)."""
    count = Counter(word for file in text for word in file)
    frequency = torch.tensor([count[word] for word in number]) / count.total()
    return (COMMON / frequency).sqrt().clamp(max=1)


def skip_gram(text: Sequence[Sequence[str]], number: dict[str, int], keep: Tensor, radius: int = 4) -> Corpus:
    """Words as contexts, and the words up to ``radius`` around them."""
    size = len(number)
    counts = torch.zeros(size * size)
    for file in text:
        ids = torch.tensor([number.get(word, -1) for word in file], dtype=torch.int64)
        for distance in range(1, radius + 1):
            a, b = ids[:-distance], ids[distance:]
            both = (a >= 0) & (b >= 0)
            counts += torch.bincount(a[both] * size + b[both], minlength=size * size)
    counts = counts.reshape(size, size)
    shares = (counts + counts.T) * keep[:, None] * keep
    return Corpus(torch.arange(size)[:, None], shares / shares.sum())


def bag_of_words(text: Sequence[Sequence[str]], number: dict[str, int], keep: Tensor, seen: int = 5) -> Corpus:
    """The words before and behind a word, in either order, as contexts; those that occur ``seen`` times or more."""
    size = len(number)
    keys = []
    for file in text:
        ids = torch.tensor([number.get(word, -1) for word in file], dtype=torch.int64)
        if len(ids) > 2:
            before, word, behind = ids[:-2], ids[1:-1], ids[2:]
            known = (before >= 0) & (word >= 0) & (behind >= 0)
            low, high = torch.minimum(before, behind)[known], torch.maximum(before, behind)[known]
            keys.append((low * size + high) * size + word[known])
    found, counts = torch.cat(keys).unique(return_counts=True)
    pairs, place = (found // size).unique(return_inverse=True)
    shares = torch.zeros(len(pairs), size)
    shares[place, found % size] = counts.float()
    often = shares.sum(1) >= seen
    pairs, shares = pairs[often], shares[often]
    contexts = torch.stack([pairs // size, pairs % size], 1)
    shares *= keep[contexts].prod(1, keepdim=True) * keep
    return Corpus(contexts, shares / shares.sum())


# Losses --------------------------------------------------------------------------------------

Loss = Callable[[Tensor, Tensor], Tensor]
"""From the scores ``(words, words)`` of all single words; the second argument (their numbers) is not used."""


def softmax_loss(corpus: Corpus) -> Loss:
    """Cross-entropy of the words in their contexts."""

    def loss(scores: Tensor, _: Tensor) -> Tensor:
        score = scores[corpus.contexts].mean(1)
        return -(corpus.shares.to(scores) * score.log_softmax(-1)).sum()

    return loss


def sampling_loss(corpus: Corpus) -> Loss:
    """Negative sampling: telling a word in its context from others, drawn by their frequency to the power 3/4."""
    noise = corpus.shares.sum(0) ** 0.75
    others = NEGATIVES * corpus.shares.sum(1, keepdim=True) * noise / noise.sum()

    def loss(scores: Tensor, _: Tensor) -> Tensor:
        score = scores[corpus.contexts].mean(1)
        return -(corpus.shares.to(scores) * F.logsigmoid(score) + others.to(scores) * F.logsigmoid(-score)).sum()

    return loss


# Analogies -----------------------------------------------------------------------------------


def questions(number: dict[str, int]) -> dict[str, Tensor]:
    """``(questions, 4)`` word numbers "a is to b as c is to d" of every kind, of pairs in the vocabulary."""
    found = {}
    for kind, text in PAIRS.items():
        pairs = [tuple(p.split("/")) if "/" in p else (p, p + "s") for p in text.split()]
        known = [[number[word] for word in pair] for pair in pairs if all(word in number for word in pair)]
        known += [pair[::-1] for pair in known]
        asked = [[*a, *b] for a, b in permutations(known, 2) if a != b[::-1] and _same_way(a, b, known)]
        found[kind] = torch.tensor(asked, dtype=torch.int64).reshape(-1, 4)
    return found


def _same_way(a: list[int], b: list[int], known: list[list[int]]) -> bool:
    """Both pairs as written, or both turned."""
    half = len(known) // 2
    return (known.index(a) < half) == (known.index(b) < half)


def analogies(gram: Tensor, asked: Tensor) -> float:
    """Per cent of questions whose d has the direction nearest to ``b - a + c``, by the Gram matrix of the embeddings.

    Directions are those of embeddings of length one; a, b and c do not count, ties are broken at random.
    """
    inverse = gram.diagonal().rsqrt()
    cosine = gram.double() * inverse[:, None] * inverse
    a, b, c, d = asked.T
    score = cosine[b] - cosine[a] + cosine[c]
    score.scatter_(1, asked[:, :3], -torch.inf)
    best = score >= score.max(1, keepdim=True).values - 1e-9
    return 100 * float((best.gather(1, d[:, None])[:, 0] / best.sum(1)).mean())


text = load_text(PACKAGES)
number = vocabulary(text, WORDS)
inputs = targets = torch.arange(WORDS)
loss = softmax_loss(skip_gram(text, number, kept(text, number)))
steps = 40
