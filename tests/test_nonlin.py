"""Tests of the nonlinearities, generated from their registry: a new record needs no new test."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import sympy as sp
import torch
from torch import Tensor

from tpcompile import nonlin
from tpcompile.errors import TpcompileError, UnsupportedOperationError, UsageError
from tpcompile.nonlin import Backward, Nonlinearity
from tpcompile.nonlin.registry import index_targets

RECORDS = nonlin.all_nonlinearities()
CASES = [
    pytest.param(record, parameters, id=f"{record.name}({', '.join(f'{k}={v}' for k, v in given.items())})")
    for record in RECORDS
    for given in ({}, *record.examples)
    for parameters in [nonlin.complete(record, given)]
]
BACKWARD = [
    pytest.param(*case.values, backward, id=f"{case.id}-{backward.target.split('.')[1]}-{backward.saved}")
    for case in CASES
    for backward in case.values[0].backward  # type: ignore[attr-defined]
]
each_case = pytest.mark.parametrize(("record", "parameters"), CASES)
LOWEST = {"positive": 0.2, "above -1": -0.8, "real": -4.0, "nonzero": -4.0}


def aten(target: str) -> Any:
    _, packet, overload = target.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def points(
    record: Nonlinearity, parameters: dict[str, Any], dtype: torch.dtype = torch.float64, reach: float = 4.0
) -> Tensor:
    """Random points of the domain, away from kinks and poles."""
    domain = record.domain(**parameters)
    low = max(LOWEST[domain], -reach) if reach <= 4 or domain in ("positive", "above -1") else -reach
    x = low + (reach - low) * torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for kink in record.kinks(**parameters):
        x = x[(x - kink).abs() > 0.05]
    return (x[x.abs() > 0.2] if domain == "nonzero" else x).to(dtype)


def orders(record: Nonlinearity, parameters: dict[str, Any], highest: int = 3) -> range:
    return range(int(min(highest, record.smoothness(**parameters))) + 1)


def autograd(function: Any, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    y = function(x)
    if not y.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(y.sum(), x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


@each_case
def test_derivatives_agree_with_autograd(record: Nonlinearity, parameters: dict[str, Any]) -> None:
    x = points(record, parameters)
    for order in orders(record, parameters)[1:]:
        lower = nonlin.derivative(record.name, order - 1, **parameters)
        torch.testing.assert_close(
            nonlin.evaluate(record.name, x, order, **parameters), autograd(lower, x), rtol=1e-7, atol=1e-8
        )


@each_case
def test_derivatives_agree_with_finite_differences(record: Nonlinearity, parameters: dict[str, Any]) -> None:
    x, step = points(record, parameters), 1e-5
    for order in orders(record, parameters)[1:]:
        lower = nonlin.derivative(record.name, order - 1, **parameters)
        difference = (lower(x + step) - lower(x - step)) / (2 * step)
        torch.testing.assert_close(
            nonlin.evaluate(record.name, x, order, **parameters), difference, rtol=1e-5, atol=1e-6
        )


@each_case
def test_sympy_form_agrees_with_the_function(record: Nonlinearity, parameters: dict[str, Any]) -> None:
    if record.sympy is None:
        pytest.skip("no sympy form")
    symbol = sp.Symbol("x", real=True)
    expression = sp.sympify(record.sympy(symbol, **parameters))
    x = points(record, parameters)[:7]
    expected = [float(expression.subs(symbol, sp.Float(value, 20)).evalf(20)) for value in x.tolist()]  # type: ignore[union-attr]
    torch.testing.assert_close(
        nonlin.evaluate(record.name, x, **parameters), torch.tensor(expected, dtype=x.dtype), rtol=1e-8, atol=2e-8
    )


@each_case
def test_no_overflow_and_float32_is_accurate(record: Nonlinearity, parameters: dict[str, Any]) -> None:
    x = points(record, parameters, torch.float32, reach=50.0)
    if record.domain(**parameters) == "real":
        x = torch.cat([x, torch.tensor([-50.0, 0.0, 50.0])])
    for order in orders(record, parameters, highest=4):
        single = nonlin.evaluate(record.name, x, order, **parameters)
        double = nonlin.evaluate(record.name, x.double(), order, **parameters)
        assert single.dtype == torch.float32
        assert double.dtype == torch.float64
        assert single.shape == x.shape
        assert single.isfinite().all()
        assert double.isfinite().all()
        torch.testing.assert_close(single, double.float(), rtol=1e-4, atol=2e-5)


@each_case
def test_parity(record: Nonlinearity, parameters: dict[str, Any]) -> None:
    if record.domain(**parameters) not in ("real", "nonzero"):
        assert record.parity(**parameters) is None
        return
    x = points(record, parameters)
    for order in orders(record, parameters):
        here, there = (nonlin.evaluate(record.name, at, order, **parameters) for at in (x, -x))
        match nonlin.parity(record.name, order, **parameters):
            case "even":
                torch.testing.assert_close(here, there)
            case "odd":
                torch.testing.assert_close(here, -there)
            case None if order == 0:  # a parity that the record fails to declare
                assert not torch.allclose(here, there)
                assert not torch.allclose(here, -there)


@each_case
def test_homogeneity(record: Nonlinearity, parameters: dict[str, Any]) -> None:
    x, c = points(record, parameters), 1.7
    for order in orders(record, parameters):
        y, scaled = (nonlin.evaluate(record.name, at, order, **parameters) for at in (x, c * x))
        degree = nonlin.homogeneity(record.name, order, **parameters)
        if degree is not None:
            torch.testing.assert_close(scaled, c**degree * y)
        elif order == 0:  # a degree that the record fails to declare
            ratio = (scaled / y)[scaled.isfinite() & (torch.maximum(y.abs(), scaled.abs()) > 1e-3)]
            assert not torch.allclose(ratio, ratio[:1])


@each_case
def test_smoothness_is_where_a_derivative_jumps(record: Nonlinearity, parameters: dict[str, Any]) -> None:
    smoothness, kinks = record.smoothness(**parameters), record.kinks(**parameters)
    assert math.isinf(smoothness) == (not kinks)
    for kink in kinks:
        beside = torch.tensor([kink - 1e-6, kink + 1e-6], dtype=torch.float64)
        for order in range(int(smoothness) + 1):
            left, right = nonlin.evaluate(record.name, beside, order, **parameters).tolist()
            assert (abs(right - left) > 1e-3) == (order == smoothness)
    if kinks:
        above = int(smoothness) + 1
        assert not nonlin.has_derivative(record.name, above, **parameters)
        with pytest.raises(UnsupportedOperationError, match=rf"order {above} of '{record.name}'.*delta"):
            nonlin.evaluate(record.name, torch.zeros(1), above, **parameters)


@each_case
def test_growth(record: Nonlinearity, parameters: dict[str, Any]) -> None:
    def at(x: float) -> float:
        return nonlin.evaluate(record.name, torch.tensor([x], dtype=torch.float64), **parameters).item()

    far = 1e8
    match record.growth(**parameters):
        case ("bounded", left, right):
            assert at(far) == pytest.approx(right, abs=1e-3)
            assert left is None or at(-far) == pytest.approx(left, abs=1e-3)
        case ("oscillating", lower, upper):
            y = nonlin.evaluate(record.name, torch.linspace(-50, 50, 9999), **parameters)
            assert (y.min().item(), y.max().item()) == pytest.approx((lower, upper), abs=1e-3)
        case ("polynomial", degree, left, right):
            assert at(far) / far**degree == pytest.approx(right, abs=1e-6)
            assert left is None or at(-far) / far**degree == pytest.approx(left, abs=1e-6)
        case ("logarithmic",):
            assert 1 < at(far) < 30
        case ("exponential",):
            assert max(abs(at(50.0)), abs(at(-50.0))) > 1e12
        case other:
            pytest.fail(f"unknown growth {other}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("record", "parameters", "backward"), BACKWARD)
def test_backward_operation_is_gradient_times_factor(
    record: Nonlinearity, parameters: dict[str, Any], backward: Backward, dtype: torch.dtype
) -> None:
    x = points(record, parameters, dtype)
    saved = x if backward.saved == "input" else record.fn(x, **parameters)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    operation = aten(backward.target)
    tensors = iter([grad, saved, torch.exp(-x.abs())])  # the last is the buffer of log_sigmoid_backward
    known = {"threshold": 0.0, **parameters, **dict([backward.flag] if backward.flag else [])}
    arguments = {
        a.name: next(tensors) if "Tensor" in str(a.type) else known[a.name] for a in operation._schema.arguments
    }
    expected = operation(**arguments)
    call = nonlin.bind_backward(backward.target, (), arguments)
    assert call is not None
    assert call.backward.flag == backward.flag
    assert call.grad is grad
    assert call.saved is saved
    torch.testing.assert_close(grad * call.factor(nonlin.evaluate), expected, rtol=1e-5, atol=1e-6)
    scalars = {name: value for name, value in call.scalars.items() if name in arguments}
    torch.testing.assert_close(
        grad * backward.factor(saved, nonlin.evaluate, **scalars), expected, rtol=1e-5, atol=1e-6
    )


# The registry itself.


def test_targets_exist_in_torch_and_lead_back() -> None:
    for record in RECORDS:
        assert nonlin.lookup(record.name) is record
        assert set(record.tuple_targets) <= set(record.targets)
        for target in record.targets:
            assert aten(target)
            assert nonlin.by_target(target) is record
        for backward in record.backward:
            assert aten(backward.target)
            assert (record, backward) in nonlin.backward_by_target(backward.target)
    assert nonlin.by_target("aten.mm.default") is None
    assert nonlin.backward_by_target("aten.mm.default") == ()
    assert nonlin.bind("aten.mm.default", ()) is None
    assert nonlin.bind_backward("aten.mm.default", ()) is None


def test_variants_of_one_backward_operation_are_told_apart() -> None:
    for target in {b.target for record in RECORDS for b in record.backward}:
        variants = nonlin.backward_by_target(target)
        for (_, one), (_, other) in itertools.combinations(variants, 2):
            if one.flag != other.flag:
                continue
            x = torch.linspace(-2, 2, 9)  # the same call: the factors must agree
            torch.testing.assert_close(
                one.factor(x, nonlin.evaluate, threshold=0.5), other.factor(x, nonlin.evaluate, threshold=0.5)
            )


def test_arguments_are_bound_by_schema_whatever_their_kind() -> None:
    call = nonlin.bind("aten.clamp_max.default", ("a node", 2.0))
    assert call is not None
    assert (call.nonlinearity.name, call.x, call.parameters) == ("clamp", "a node", {"min": None, "max": 2.0})
    call = nonlin.bind("aten.pow.Scalar", (3.0, "a node"))
    assert call is not None
    assert (call.nonlinearity.name, call.x, call.parameters) == ("exp_base", "a node", {"base": 3.0})
    call = nonlin.bind("aten.gelu.default", ("a node",), {"approximate": "tanh"})
    assert call is not None
    assert call.parameters == {"approximate": "tanh"}


def test_errors_say_what_was_asked_for() -> None:
    with pytest.raises(UnsupportedOperationError, match="'swoosh'"):
        nonlin.lookup("swoosh")
    with pytest.raises(UsageError, match="'relu' has no parameter 'slope'"):
        nonlin.evaluate("relu", torch.zeros(1), slope=1.0)
    assert issubclass(UnsupportedOperationError, TpcompileError)


def test_a_new_file_is_a_new_nonlinearity(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "more_nonlinearities"
    package.mkdir()
    (package / "__init__.py").touch()
    text = (
        "from tpcompile.nonlin.record import Nonlinearity, always\n"
        "NEW = Nonlinearity(name='{name}', fn=lambda x: x, growth=always(('polynomial', 1, -1.0, 1.0)))\n"
    )
    (package / "new.py").write_text(text.format(name="new"))
    monkeypatch.syspath_prepend(tmp_path)
    assert list(nonlin.scan("more_nonlinearities")) == ["new"]
    (package / "twin.py").write_text(text.format(name="new"))
    with pytest.raises(UsageError, match="two nonlinearities are named 'new'"):
        nonlin.scan("more_nonlinearities")


def test_one_target_has_one_record() -> None:
    growth = nonlin.always(("polynomial", 1, -1.0, 1.0))
    twins = [Nonlinearity(name=n, fn=torch.relu, growth=growth, targets=("aten.relu.default",)) for n in "ab"]
    with pytest.raises(UsageError, match=r"'aten.relu.default' is claimed by the nonlinearities 'a' and 'b'"):
        index_targets(twins)


def test_table_has_a_row_for_each() -> None:
    rows = {row.name: row for row in nonlin.table()}
    assert set(rows) == {record.name for record in RECORDS}
    assert (rows["relu"].parity, rows["relu"].smoothness, rows["relu"].homogeneity) == ("neither", 1, 1)
    assert rows["tanh"].backward_targets == ("aten.tanh_backward.default",)


def test_derivatives_are_compiled_once_and_inherit_facts() -> None:
    assert nonlin.derivative("gelu", 5) is nonlin.derivative("gelu", 5)
    assert nonlin.smoothness("elu", 1) == 1
    assert nonlin.parity("sin", 1) == "even"
    assert nonlin.parity("leaky_relu", negative_slope=-1) == "even"
    assert nonlin.homogeneity("relu", 1) == 0
