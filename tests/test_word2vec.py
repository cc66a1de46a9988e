"""Word2Vec from the tokens: the exact limit against finite widths, against its kernel regime, and by minibatch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from test_examples import load
from torch import Tensor

import tpcompile as tp
from tpcompile.errors import UnsupportedOperationError

example = load("word2vec_cbow")
skipgram = load("word2vec_skipgram")
X, Y, TEST = example.inputs[:48], example.targets[:48], example.test_inputs[:48]


def fast(width: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    return example.make(width, lr=16.0)


@pytest.fixture(scope="module")
def compiled():
    return tp.compile(fast, X, Y, F.cross_entropy, steps=12, test_inputs=TEST)


def difference(outputs: Tensor | None, limit: Tensor | None) -> Tensor:
    assert outputs is not None
    assert limit is not None
    return outputs.double() - limit


def test_finite_widths_tend_to_the_limit_as_the_inverse_square_root(compiled):
    limit = compiled.evaluate(evaluator="exact")
    assert limit.evaluator == "exact"
    assert limit.loss[-1] < 0.9 * limit.loss[0]
    rms = {}
    for width in (128, 2048):
        errors = [difference(compiled.simulate(width, seed=s).outputs, limit.outputs) for s in range(4)]
        rms[width] = float(torch.stack(errors).square().mean().sqrt())
    rate = math.log(rms[128] / rms[2048]) / math.log(2048 / 128)
    assert rate == pytest.approx(0.5, abs=0.1)  # thousands of outputs, few of them independent; 4 seeds each


def test_particles_agree_to_rounding(compiled):
    exact = compiled.evaluate(evaluator="exact")
    particles = compiled.evaluate(evaluator="particles", particles=1024, replicas=2)
    assert torch.allclose(particles.test_outputs, exact.test_outputs, atol=1e-8)


def test_the_kernel_is_the_overlap_of_the_bags_of_words():
    kernel = tp.kernel(lambda width: example.make_ntk(width)[0], X[0])
    bags = F.one_hot(X, example.WORDS).double().mean(1)
    assert torch.allclose(kernel.nngp(X).double(), bags @ bags.T, atol=1e-6)
    assert torch.allclose(kernel.ntk(X).double(), 2 * bags @ bags.T, atol=1e-6)


def test_minibatches_of_tokens():
    batches = [X[i : i + 12] for i in (0, 12, 24)], [Y[i : i + 12] for i in (0, 12, 24)]
    compiled = tp.compile(fast, *batches, F.cross_entropy, steps=3, test_inputs=TEST)
    limit = compiled.evaluate(evaluator="exact").test_outputs
    rms = [
        float(difference(compiled.simulate(n, seed=0).test_outputs, limit)[-1].square().mean().sqrt())
        for n in (256, 4096)
    ]
    assert math.log(rms[0] / rms[1]) / math.log(16) == pytest.approx(0.5, abs=0.1)


def test_windows_are_of_the_vocabulary_and_the_same_every_time():
    again = example.load_windows(train=128, test=32)
    found = (example.inputs, example.targets, example.test_inputs, example.test_targets)
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))
    assert [len(x) for x in found] == [128, 128, 32, 32]
    assert set(torch.cat([example.inputs.flatten(), example.targets]).tolist()) <= set(range(example.WORDS))


def test_skip_gram_with_negative_sampling():
    """Inner products of two gathered vectors: linear, so exact; finite widths tend to it as the inverse root."""
    words, labels = skipgram.inputs[:48], skipgram.targets[:48]
    compiled = tp.compile(skipgram.make, words, labels, skipgram.loss, steps=4)
    limit = compiled.evaluate()
    assert limit.evaluator == "exact"
    particles = compiled.evaluate(evaluator="particles", particles=1024, replicas=2)
    assert torch.allclose(particles.outputs, limit.outputs, atol=1e-8)
    rms = {}
    for width in (256, 4096):
        errors = [difference(compiled.simulate(width, seed=s).outputs, limit.outputs)[-1] for s in range(4)]
        rms[width] = float(torch.stack(errors).square().mean().sqrt())
    assert math.log(rms[256] / rms[4096]) / math.log(16) == pytest.approx(0.5, abs=0.15)


def test_the_kernel_of_skip_gram_knows_equal_pairs_only():
    """Words are parts of the inputs: a kernel traced on one input must serve all others."""
    kernel = tp.kernel(lambda width: skipgram.make_ntk(width)[0], skipgram.inputs[0])
    words = skipgram.inputs[:40]
    same = (words[:, None, 1:, None] == words[None, :, None, 1:]) & (
        words[:, None, :1, None] == words[None, :, :1, None]
    )
    assert torch.equal(kernel.nngp(words).double(), same.double())
    assert torch.equal(kernel.ntk(words).double(), 2 * same.double())


class Shifted(torch.nn.Module):
    """Embeds the word before the given one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(9, width)
        self.readout = torch.nn.Linear(width, 1, bias=False)
        torch.nn.init.normal_(self.embedding.weight)
        torch.nn.init.normal_(self.readout.weight, std=width**-0.5)

    def forward(self, words: Tensor) -> Tensor:
        return self.readout(self.embedding(words - 1))


def test_an_index_computed_from_the_inputs_is_refused_by_kernels():
    with pytest.raises(UnsupportedOperationError, match="computed from the inputs"):
        tp.kernel(Shifted, torch.tensor(3))
