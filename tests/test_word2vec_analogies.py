"""Word2Vec on a whole text, tiny: limit, finite widths, kernel regime, and the questions."""

from __future__ import annotations

import math

import pytest
import torch
from test_examples import load

import tpcompile as tp

example = load("word2vec_analogies")
TEXT = [["the", "file", "of", "files"] * 3, ["a", "line", "of", "the", "lines"] * 3, ["read", "the", "file"] * 2]
NUMBER = example.vocabulary(TEXT, 6)
KEEP = torch.ones(6)
WORDS = torch.arange(6)
LOSSES = {
    "skip-gram": example.softmax_loss(example.skip_gram(TEXT, NUMBER, KEEP)),
    "negative sampling": example.sampling_loss(example.skip_gram(TEXT, NUMBER, KEEP)),
    "bag of words": example.softmax_loss(example.bag_of_words(TEXT, NUMBER, KEEP, seen=1)),
}


def make(width: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    return example.make(width, lr=1.0, words=6)


def test_counts_of_a_text():
    corpus = example.skip_gram([["a", "b", "a"]], {"a": 0, "b": 1}, torch.ones(2), radius=2)
    # "a b" twice and "a a" once, each in both orders
    assert torch.allclose(corpus.shares, torch.tensor([[2.0, 2.0], [2.0, 0.0]]) / 6)
    bags = example.bag_of_words([["a", "b", "a", "b"]], {"a": 0, "b": 1}, torch.ones(2), seen=1)
    assert bags.contexts.tolist() == [[0, 0], [1, 1]]
    assert torch.allclose(bags.shares, torch.tensor([[0.0, 0.5], [0.5, 0.0]]))


@pytest.mark.parametrize("name", LOSSES)
def test_finite_widths_tend_to_the_limit(name):
    compiled = tp.compile(make, WORDS, WORDS, LOSSES[name], steps=12)
    limit = compiled.evaluate()
    assert limit.evaluator == "exact"
    assert limit.loss is not None
    assert limit.loss[-1] < 0.95 * limit.loss[0]
    rms = {}
    for width in (128, 2048):
        errors = [compiled.simulate(width, seed).outputs.double() - limit.outputs for seed in range(6)]
        rms[width] = float(torch.stack(errors).square().mean().sqrt())
    assert math.log(rms[128] / rms[2048]) / math.log(16) == pytest.approx(0.5, abs=0.15)


def test_kernel_regime_with_zero_outputs():
    """The compiled limit is gradient descent with the kernel, and embeddings stay where they are."""

    def make_ntk(width: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        return example.make_ntk(width, lr=1.0, words=6)

    loss = LOSSES["skip-gram"]
    result = tp.compile(make_ntk, WORDS, WORDS, loss, steps=5).evaluate(output_init="zero")
    assert result.evaluator == "exact"
    kernel = tp.kernel(lambda width: make_ntk(width)[0], WORDS[0]).ntk(WORDS).double()
    scores = torch.zeros(6, 6, dtype=torch.float64)
    for t in range(5):
        assert torch.allclose(result.outputs[t], scores, atol=1e-6)  # shares of the text in single precision
        scores.requires_grad_()
        scores = (scores - kernel @ torch.autograd.grad(loss(scores, WORDS), scores)[0]).detach()
    assert torch.allclose(result.feature_kernel("embedding"), torch.eye(6, dtype=torch.float64).expand(6, 6, 6))


def test_analogies():
    number = {word: i for i, word in enumerate(["name", "names", "file", "files", "read", "write"])}
    asked = example.questions(number)
    assert asked["number"].tolist() == [[0, 1, 2, 3], [2, 3, 0, 1], [1, 0, 3, 2], [3, 2, 1, 0]]
    assert asked["opposite"].shape == (0, 4)  # one pair is no analogy
    base, plural = torch.eye(4)[:2], torch.eye(4)[2]
    embeddings = torch.stack([base[0], base[0] + plural, base[1], base[1] + plural, torch.eye(4)[3], -torch.eye(4)[3]])
    assert example.analogies(embeddings @ embeddings.T, asked["number"]) == 100
    assert example.analogies(torch.eye(6), asked["number"]) == pytest.approx(100 / 3)  # three words are left
