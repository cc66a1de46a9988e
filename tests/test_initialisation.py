"""Every law is recorded exactly."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from initialisation_helpers import HALF, WIDTHS, close, inplace, law, laws_of, reason
from torch import Tensor, nn

from tpcompile.capture.initialisation import fit_law, record
from tpcompile.errors import InitialisationError, UsageError
from tpcompile.laws import Constant, Law, Normal, Orthogonal, Pieces, TruncatedNormal, Uniform, mean_and_std


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda n: torch.randn(n, n), Normal(1.0)),
        (lambda n: torch.randn_like(torch.empty(n, n)), Normal(1.0)),
        (lambda n: nn.Parameter(torch.randn(n, 3) * n**-0.5), Normal(1.0, width_exponent=-HALF)),
        (lambda n: torch.randn(n, n) / math.sqrt(n), Normal(1.0, width_exponent=-HALF)),
        (lambda n: torch.randn(n, n) / torch.tensor(float(n)).sqrt(), Normal(1.0, width_exponent=-HALF)),
        (lambda n: torch.normal(0.0, 2.0 / n, (n, n)), Normal(2.0, width_exponent=Fraction(-1))),
        (lambda n: torch.normal(0.0, torch.full((n, n), 1 / n)), Normal(1.0, width_exponent=Fraction(-1))),
        (lambda n: torch.normal(torch.ones(n), 2.0), Normal(2.0, 1.0)),
        (lambda n: -3 * torch.randn(n) + 1, Normal(3.0, 1.0)),
        (lambda n: 1 - torch.randn(n), Normal(1.0, 1.0)),
        (lambda n: torch.randn(n) - 0.5, Normal(1.0, -0.5)),
        (lambda n: torch.rand(n), Uniform(0.0, 1.0)),
        (lambda n: torch.rand_like(torch.ones(n)) * 2 - 1, Uniform(-1.0, 1.0)),
        (lambda n: (torch.rand(n) * 2 - 1) / n ** (1 / 3), Uniform(-1.0, 1.0, Fraction(-1, 3))),
        (lambda n: torch.zeros(n), Constant(0.0)),
        (lambda n: torch.full((n,), 0.1), Constant(0.1)),
        (lambda n: torch.full_like(torch.randn(n), 0.1), Constant(0.1)),
        (lambda n: torch.randn(n).new_zeros(3), Constant(0.0)),
        (lambda n: torch.randn(n).new_full((3,), 1 / n), Constant(1.0, Fraction(-1))),
        (lambda n: torch.ones(n) * n, Constant(1.0, Fraction(1))),
        (lambda n: torch.tensor([0.5] * n), Constant(0.5)),
        (lambda n: torch.from_numpy(np.zeros(n)), Constant(0.0)),
        (lambda n: torch.randn(n, n) * 0, Constant(0.0)),
        (lambda n: torch.randn(n, n) + torch.randn(n, n), Normal(math.sqrt(2))),
        (lambda n: 0.6 * torch.randn(n, n) + (0.8 * torch.randn(n, n) - 1), Normal(1.0, -1.0)),
        (lambda n: torch.randn(n) + torch.randn(n) + 2 * torch.randn(n), Normal(math.sqrt(6))),
        (lambda n: (lambda w: w + w)(torch.randn(n)), Normal(2.0)),
        (lambda n: torch.cat([torch.randn(n, n), torch.randn(3, n)]), Normal(1.0)),
        (lambda n: torch.stack([torch.randn(n), torch.empty(n).normal_()]), Normal(1.0)),
        (lambda n: torch.randn(3 * n, n).chunk(3)[1], Normal(1.0)),
        (lambda n: torch.randn(4, n).split(2)[0].t()[1:].reshape(-1).unsqueeze(0), Normal(1.0)),
        (lambda n: torch.randn(n, 2, 3).transpose(0, 2).contiguous().view(6, n), Normal(1.0)),
        (lambda n: torch.randn(n, n).flip(0)[torch.zeros(1, dtype=torch.long)], Normal(1.0)),
        (lambda n: torch.randn(n).double(), Normal(1.0)),
        (lambda n: torch.randn(n).to(torch.bfloat16) * 0.5, Normal(0.5)),
        (lambda n: torch.randn(n).clone().detach().data, Normal(1.0)),
        (lambda n: nn.Parameter(torch.Tensor(n, n)).data.normal_(0, 0.02), Normal(0.02)),
        (lambda n: torch.randn(n, n, generator=torch.Generator().manual_seed(3)), Normal(1.0)),
        (lambda n: torch.cat([torch.randn(n), torch.randn(n)], out=torch.empty(2 * n)), Normal(1.0)),
        (lambda n: torch.mul(torch.randn(n), 2.0, out=torch.empty(n)), Normal(2.0)),
        (lambda n: torch.where(torch.ones(n) > 0, torch.randn(n), 0.5), Normal(1.0)),
        (lambda n: torch.empty(0), Constant(0.0)),
    ],
)
def test_draws_and_arithmetic(make: Callable[[int], Tensor], expected: Law) -> None:
    assert close(law(make), expected, rel=1e-7)


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        (lambda w, n: nn.init.normal_(w, std=n**-0.5), Normal(1.0, width_exponent=-HALF)),
        (lambda w, n: nn.init.normal_(w, mean=2 / n, std=3 / n), Normal(3.0, 2.0, Fraction(-1))),
        (lambda w, n: nn.init.normal_(w, std=0.0), Constant(0.0)),
        (lambda w, n: nn.init.uniform_(w, -1 / n, 1 / n), Uniform(-1.0, 1.0, Fraction(-1))),
        (lambda w, n: nn.init.constant_(w, 0.3), Constant(0.3)),
        (lambda w, n: nn.init.zeros_(w), Constant(0.0)),
        (lambda w, n: nn.init.ones_(w), Constant(1.0)),
        (lambda w, n: nn.init.xavier_uniform_(w), Uniform(-math.sqrt(3), math.sqrt(3), -HALF)),
        (lambda w, n: nn.init.xavier_normal_(w), Normal(1.0, width_exponent=-HALF)),
        (lambda w, n: nn.init.kaiming_uniform_(w), Uniform(-math.sqrt(6), math.sqrt(6), -HALF)),
        (lambda w, n: nn.init.kaiming_normal_(w), Normal(math.sqrt(2), width_exponent=-HALF)),
        (lambda w, n: nn.init.orthogonal_(w, gain=2.0), Orthogonal(2.0)),
        (lambda w, n: nn.init.trunc_normal_(w), TruncatedNormal(1.0, -2.0, 2.0)),
        (lambda w, n: nn.init.trunc_normal_(w, std=0.02), Normal(0.02)),
        (lambda w, n: w.fill_(torch.tensor(0.5)), Constant(0.5)),
        (lambda w, n: w.normal_().mul_(n**-0.5), Normal(1.0, width_exponent=-HALF)),
        (lambda w, n: w.normal_().div_(n).neg_(), Normal(1.0, width_exponent=Fraction(-1))),
        (lambda w, n: w.copy_(torch.randn(n, n) * 0.1), Normal(0.1)),
        (lambda w, n: w.normal_().zero_(), Constant(0.0)),
        (lambda w, n: w.uniform_().sub_(0.5).mul_(2 / n), Uniform(-1.0, 1.0, Fraction(-1))),
        (lambda w, n: w.zero_().add_(torch.randn(n, n), alpha=0.5), Normal(0.5)),
        (lambda w, n: (w[0].normal_(), w[1:].normal_()), Normal(1.0)),
        (lambda w, n: w.data.copy_(torch.randn(n, n).t()), Normal(1.0)),
        (lambda w, n: w.zero_().masked_fill_(torch.ones(n, n, dtype=torch.bool), 2.0), Constant(2.0)),
    ],
)  # fmt: skip
def test_in_place(fill: Callable[[Tensor, int], Any], expected: Law) -> None:
    assert close(law(inplace(fill)), expected)


def test_truncated_normal_with_bounds_of_the_width() -> None:
    found = law(inplace(lambda w, n: nn.init.trunc_normal_(w, std=1 / n, a=-2 / n, b=3 / n)))
    assert close(found, TruncatedNormal(1.0, -2.0, 3.0, width_exponent=Fraction(-1)))
    with_fixed_bounds = inplace(lambda w, n: nn.init.trunc_normal_(w, std=8 / n, a=-2.0, b=2.0))
    assert "different" in reason(with_fixed_bounds)


def test_older_truncated_normal_by_the_inverse_error_function() -> None:
    def fill(w: Tensor, n: int, bound: float) -> None:
        p = math.erf(bound / math.sqrt(2))
        w.uniform_(-p, p).erfinv_().mul_(math.sqrt(2) / n).add_(0.0).clamp_(min=-bound / n, max=bound / n)

    expected = TruncatedNormal(1.0, -2.0, 2.0, width_exponent=Fraction(-1))
    assert close(law(inplace(lambda w, n: fill(w, n, 2.0))), expected)
    expected = TruncatedNormal(1.0, -6.0, 6.0, width_exponent=Fraction(-1))
    assert close(law(inplace(lambda w, n: fill(w, n, 6.0))), expected)
    assert close(law(inplace(lambda w, n: fill(w, n, 100.0))), Normal(1.0, width_exponent=Fraction(-1)))
    assert "clamp_" in reason(inplace(lambda w, n: w.normal_().clamp_(-1, 1)))


def test_linear_defaults() -> None:
    def make(n: int) -> nn.Module:
        return nn.Sequential(nn.Linear(3, n), nn.Linear(n, n), nn.Linear(n, 2))

    found = laws_of(make)
    a = 1 / math.sqrt(3)
    for name in ("0.weight", "0.bias"):
        assert close(found[name], Uniform(-a, a))
    for name in ("1.weight", "1.bias", "2.weight", "2.bias"):
        assert close(found[name], Uniform(-1.0, 1.0, -HALF))


def test_layer_defaults() -> None:
    def make(n: int) -> nn.Module:
        return nn.ModuleDict(
            {
                "conv": nn.Conv2d(n, n, 3),
                "embedding": nn.Embedding(5, n),
                "gru": nn.GRU(n, n),
                "lstm": nn.LSTM(4, n, proj_size=0, bidirectional=True),
                "norm": nn.LayerNorm(n),
                "batch": nn.BatchNorm1d(n),
                "attention": nn.MultiheadAttention(n, 4),
            }
        )

    found = laws_of(make)
    assert close(found["conv.weight"], Uniform(-1 / 3, 1 / 3, -HALF))
    assert close(found["embedding.weight"], Normal(1.0))
    for name in found:
        if name.startswith(("gru", "lstm")):
            assert close(found[name], Uniform(-1.0, 1.0, -HALF))
    assert found["norm.weight"] == Constant(1.0)
    assert found["norm.bias"] == Constant(0.0)
    assert found["batch.running_var"] == Constant(1.0)
    assert found["batch.num_batches_tracked"] == Constant(0.0)
    bound = math.sqrt(6 / 4)  # fan_in + fan_out = n + 3 n
    assert close(found["attention.in_proj_weight"], Uniform(-bound, bound, -HALF))
    assert found["attention.in_proj_bias"] == Constant(0.0)
    assert close(found["attention.out_proj.weight"], Uniform(-1.0, 1.0, -HALF))


def test_tied_parameters() -> None:
    class Tied(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, n)
            self.head = nn.Linear(n, 5, bias=False)
            self.head.weight = self.embed.weight

    found = laws_of(Tied)
    assert found["embed.weight"] == found["head.weight"] == Normal(1.0)


def test_constant_buffers_survive_deepcopy() -> None:
    found = laws_of(lambda n: copy.deepcopy(nn.BatchNorm1d(n)))
    assert found["running_mean"] == Constant(0.0)
    assert found["running_var"] == Constant(1.0)


def test_random_buffers_survive_deepcopy() -> None:
    def make(n: int) -> nn.Module:
        module = nn.Module()
        module.register_buffer("w", torch.rand(n))
        return copy.deepcopy(module)

    assert laws_of(make)["w"] == Uniform(0.0, 1.0)


def test_reset_generators() -> None:
    def same_seed(n: int) -> dict[str, Tensor]:
        torch.manual_seed(1)
        a = torch.randn(n)
        torch.manual_seed(1)
        return {"a": a, "b": torch.rand(n)}

    assert "same random bits" in reason(same_seed)

    def other_seeds(n: int) -> dict[str, Tensor]:
        torch.manual_seed(1)
        a = torch.randn(n)
        torch.manual_seed(2)
        return {"a": a, "b": torch.randn(n), "c": torch.randn(n, generator=torch.Generator().manual_seed(3))}

    assert set(laws_of(other_seeds)) == {"a", "b", "c"}

    def resumed(n: int) -> dict[str, Tensor]:
        a = torch.randn(n)
        state = torch.get_rng_state()
        torch.manual_seed(2)
        torch.randn(n)
        torch.set_rng_state(state)
        return {"a": a, "b": torch.randn(n)}

    assert set(laws_of(resumed)) == {"a", "b"}

    def added(n: int) -> Tensor:
        torch.manual_seed(1)
        a = torch.randn(n)
        torch.manual_seed(1)
        return a + torch.randn(n)

    assert "depend on each other" in reason(added)


def test_changes_through_numpy_are_noticed() -> None:
    def make(n: int) -> Tensor:
        w = torch.randn(n, n)
        w.numpy()[:] *= 2
        return w

    assert "did not see" in reason(make)


def test_load_state_dict_is_foreign_but_constants_pass() -> None:
    saved = {n: nn.Linear(n, n).state_dict() | {"bias": torch.ones(n)} for n in WIDTHS}

    def make(n: int) -> nn.Module:
        layer = nn.Linear(n, n)
        layer.load_state_dict(saved[n])
        return layer

    message = reason(make)
    assert message == (
        "parameter 'weight' was copied from data that tpcompile did not see being drawn; "
        "give its law with init={'weight': tp.Normal(std=..., width_exponent=...)}"
    )
    given = Normal(1.0, width_exponent=-HALF)
    assert laws_of(make, {"weight": given}) == {"weight": given, "bias": Constant(1.0)}


def test_meta_tensors_and_a_training_step_in_the_factory() -> None:
    def make(n: int) -> nn.Module:
        with torch.device("meta"):
            nn.Linear(n, n)
        model = nn.Sequential(nn.LazyLinear(n), nn.ReLU(), nn.Linear(n, 2).double().float())
        model(torch.randn(3, n)).sum().backward()
        if trained:
            torch.optim.SGD(model.parameters(), lr=0.1).step()
        return model

    trained = False
    assert close(laws_of(make)["2.weight"], Uniform(-1.0, 1.0, -HALF))
    trained = True
    assert "parameter '0.weight' is a result of aten." in reason(make)
    assert "dense" in reason(lambda n: nn.Linear(n, n, device="meta"))


def test_custom_operations_are_not_followed() -> None:
    with torch.library._scoped_library("tpcompile_test", "FRAGMENT") as library:
        library.define("draw(int n) -> Tensor")
        library.impl("draw", lambda n: torch.full((n,), 0.5), "CompositeExplicitAutograd")
        assert "tpcompile_test.draw" in reason(lambda n: torch.ops.tpcompile_test.draw(n))


def test_the_callers_random_state_and_torch_are_untouched() -> None:
    state, function = torch.get_rng_state(), nn.init._no_grad_trunc_normal_
    recording = record(lambda n: nn.init.trunc_normal_(torch.empty(n)), 8)
    assert torch.equal(state, torch.get_rng_state())
    assert nn.init._no_grad_trunc_normal_ is function
    again = record(lambda n: nn.init.trunc_normal_(torch.empty(n)), 8)
    assert torch.equal(recording.result, again.result)

    def fails(n: int) -> None:
        torch.randn(n)
        raise KeyError("from the factory")

    with pytest.raises(KeyError):
        record(fails, 8)
    assert torch.equal(state, torch.get_rng_state())
    assert nn.init._no_grad_trunc_normal_ is function


def test_law_at_one_width() -> None:
    recording = record(lambda n: nn.Linear(n, n), 4)
    assert close(recording.law_of(recording.result.weight), Uniform(-0.5, 0.5))
    assert recording.dependence(recording.result.weight, recording.result.bias) is None
    with pytest.raises(InitialisationError, match="did not see"):
        recording.law_of(torch.randn(3))


def test_fit_law() -> None:
    assert close(fit_law("w", {n: Normal(3 * n**-0.75) for n in WIDTHS}), Normal(3.0, 0.0, Fraction(-3, 4)))
    assert fit_law("w", {n: Constant(0.0) for n in WIDTHS}) == Constant(0.0)
    rounded = {n: Normal(float(np.float32(n**-0.5))) for n in WIDTHS}
    assert close(fit_law("w", rounded), Normal(1.0, 0.0, -HALF), rel=1e-6)
    with pytest.raises(InitialisationError, match=r"'w'.*not c \* n\^e.*width 8: Normal\(std=0.333"):
        fit_law("w", {n: Normal(1 / math.sqrt(n + 1)) for n in WIDTHS})
    with pytest.raises(InitialisationError, match="std as n\\^-1/2, mean as n\\^0"):
        fit_law("w", {n: Normal(n**-0.5, 1.0) for n in WIDTHS})
    with pytest.raises(InitialisationError, match="different kind of law"):
        fit_law("w", {8: Normal(1.0), 12: Uniform(-1.0, 1.0), 24: Normal(1.0)})
    with pytest.raises(InitialisationError, match="not c"):
        fit_law("w", {8: Constant(1.0), 12: Constant(0.0), 24: Constant(1.0)})
    with pytest.raises(UsageError, match="three widths"):
        fit_law("w", {8: Normal(1.0), 12: Normal(1.0)})


def test_names_must_match() -> None:
    with pytest.raises(UsageError, match="nope"):
        laws_of(lambda n: torch.randn(n), {"nope": Normal(1.0)})
    with pytest.raises(UsageError, match="other names"):
        laws_of(lambda n: {f"w{n}": torch.randn(n)})


@pytest.mark.parametrize(
    "make",
    [
        lambda n: nn.init.trunc_normal_(torch.empty(60, n), a=-1.0, b=0.5) * 2 + 1,
        lambda n: torch.rand(60, n) * -3 + 1,
        lambda n: 0.5 * torch.randn(60, n) + (torch.randn(60, n) - 1),
    ],
)
def test_laws_agree_with_samples(make: Callable[[int], Tensor]) -> None:
    """The recorded law has the mean and standard deviation of the tensor, up to sampling."""
    recording = record(make, 100)
    found = recording.law_of(recording.result)
    assert not isinstance(found, Pieces)
    mean, std = mean_and_std(found)
    values = recording.result.double()
    assert float(values.mean()) == pytest.approx(mean, abs=5 * std / math.sqrt(values.numel()))
    assert float(values.std()) == pytest.approx(std, rel=0.05)
