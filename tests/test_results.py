from __future__ import annotations

import json
import math

import pytest
import torch

from tpcompile.errors import TpcompileError, UsageError
from tpcompile.metrics import alignment, entropy_rank, participation_ratio, target_matrix
from tpcompile.report.tables import chosen_steps, entry_name, result_dict, result_tables, with_error
from tpcompile.results import LimitResult, SimulationResult, TangentKernel, load_result


def limit(k=1, ntk=None, source=None, targets=None, **kw):
    g = torch.Generator().manual_seed(0)
    steps, n, n_test = 3, 4, 2

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    kernels, changes = {}, {}
    for name in ("hidden.0", "hidden.1"):
        x = draw(steps + 1, n + n_test, 50)
        kernels[name] = x @ x.mT / 50
        changes[name] = (x - x[0]).square().mean(-1)
    values = {
        "outputs": draw(steps + 1, n, k),
        "outputs_stderr": draw(steps + 1, n, k).abs() * 1e-3,
        "test_outputs": draw(steps + 1, n_test, k),
        "test_outputs_stderr": torch.zeros(steps + 1, n_test, k, dtype=torch.float64),
        "loss": draw(steps + 1).abs(),
        "loss_stderr": torch.zeros(steps + 1, dtype=torch.float64),
        "activations": ("hidden.0", "hidden.1"),
        "kernels": kernels,
        "kernels_stderr": {name: torch.zeros_like(value) for name, value in kernels.items()},
        "feature_changes": changes,
        "targets": torch.tensor([0, 1, 2, 1]) if targets is None else targets,
        "ntk_shares": ntk,
        "ntk_source": source,
        "evaluator": "particles",
        "why": "because",
        "particles": 64,
        "replicas": 2,
    }
    return LimitResult(**(values | kw))


def shares(k=1):
    g = torch.Generator().manual_seed(1)
    return {p: torch.randn(4, 4, 4, k, k, generator=g, dtype=torch.float64) for p in ("a.weight", "b.weight")}


def test_shapes_and_names():
    result = limit()
    assert (result.steps, result.inputs_count, result.test_inputs_count) == (3, 4, 2)
    assert result.output_shape == (1,)
    assert result.feature_kernel("hidden.0").shape == (4, 6, 6)
    assert not result.feature_kernel_stderr("hidden.1").any()
    assert "particles" in repr(result)
    assert "tensor" not in repr(result)
    with pytest.raises(UsageError, match=r"did you mean 'hidden\.1'.*'hidden\.0', 'hidden\.1'"):
        result.feature_kernel("hiden.1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("outputs_stderr", torch.zeros(4, 3, 1)),
        ("loss_stderr", None),
        ("kernels", {}),
        ("feature_changes", {"hidden.0": torch.zeros(4, 5), "hidden.1": torch.zeros(4, 6)}),
        ("ntk_shares", {"p": torch.zeros(4, 4, 4)}),
    ],
)
def test_shapes_that_do_not_fit(field, value):
    with pytest.raises(UsageError):
        limit(**{field: value})


@pytest.mark.parametrize(("k", "shape"), [(1, (4, 4, 4)), (3, (4, 4, 4, 3, 3))])
def test_ntk_is_the_sum_of_shares_and_lazy(k, shape):
    calls = []
    result = limit(k=k, source=lambda: calls.append(1) or shares(k))
    assert not calls
    total = result.ntk()
    parts = result.ntk(by_parameter=True)
    assert calls == [1]
    assert total.shape == shape
    assert set(parts) == {"a.weight", "b.weight"}
    torch.testing.assert_close(total, sum(parts.values()))
    assert not result.ntk_stderr().any()


def test_ntk_errors_are_kept():
    one = {p: torch.full_like(v, 0.1) for p, v in shares().items()}
    result = limit(ntk=TangentKernel(shares(), one, torch.full((4, 4, 4, 1, 1), 0.15)))
    assert result.ntk_stderr().shape == (4, 4, 4)
    assert float(result.ntk_stderr(by_parameter=True)["a.weight"][0, 0, 0]) == pytest.approx(0.1)


def test_no_ntk_says_what_to_do():
    with pytest.raises(TpcompileError, match="ntk=True"):
        limit().ntk()


def assert_identical(a, b):
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b) or (a.isnan() == b.isnan()).all()
    elif hasattr(a, "items"):
        assert list(a) == list(b)
        for key in a:
            assert_identical(a[key], b[key])
    else:
        assert a == b


def test_save_and_load_bit_for_bit(tmp_path):
    cov = torch.randn(4, 4, 4, dtype=torch.float64)
    why = 'a "reason" with ε'
    result = limit(source=shares, outputs_cov=cov, outputs_cov_stderr=cov.abs() * 1e-3, why=why, output_shape=())
    result.save(tmp_path / "run")  # no suffix is added
    loaded = load_result(tmp_path / "run")
    assert isinstance(loaded, LimitResult)
    for name in ("outputs", "test_outputs", "loss", "activations", "kernels", "feature_changes", "targets"):
        assert_identical(getattr(result, name), getattr(loaded, name))
    assert_identical(result.feature_changes_stderr, loaded.feature_changes_stderr)
    for name in ("outputs_cov", "outputs_cov_stderr", "why", "evaluator", "particles", "output_shape"):
        assert_identical(getattr(result, name), getattr(loaded, name))
    assert torch.equal(loaded.ntk(), result.ntk())


def test_save_without_ntk_and_of_a_simulation(tmp_path):
    zeros = torch.zeros(2, 3, 1)
    result = SimulationResult(
        outputs=zeros, outputs_stderr=zeros, width=64, seed=3, targets=torch.ones(3, dtype=torch.bfloat16)
    )
    result.save(tmp_path / "s.npz", ntk=False)
    loaded = load_result(tmp_path / "s.npz")
    assert isinstance(loaded, SimulationResult)
    assert (loaded.width, loaded.seed, loaded.loss) == (64, 3, None)
    assert loaded.targets is not None
    assert loaded.targets.dtype == torch.bfloat16
    with pytest.raises(TpcompileError, match="saved with ntk=False"):
        loaded.ntk()


def test_load_refuses_other_files(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        load_result(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UsageError, match="not a result"):
        load_result(tmp_path / "text")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(UsageError, match="not a result"):
        load_result(tmp_path / "empty")


def test_effective_ranks_and_alignment():
    eye = torch.eye(5, dtype=torch.float64)
    ones = torch.ones(5, 5, dtype=torch.float64)
    assert float(participation_ratio(eye)) == pytest.approx(5)
    assert float(entropy_rank(eye)) == pytest.approx(5)
    assert float(participation_ratio(ones)) == pytest.approx(1)
    assert float(entropy_rank(ones)) == pytest.approx(1)
    assert float(alignment(3 * eye + ones, eye)) == pytest.approx(1)  # centring removes a constant
    assert math.isnan(float(alignment(ones, eye)))
    y = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [1.0]], dtype=torch.float64)
    assert float(alignment(y @ y.T, y @ y.T)) == pytest.approx(1)


def test_class_targets_are_one_hot():
    assert target_matrix(torch.tensor([0, 2, 1]), 3).tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert target_matrix(torch.tensor([1, -1]), 2).tolist() == [[1], [-1]]
    assert target_matrix(torch.zeros(2, 3, dtype=torch.long), 2).shape == (2, 3)


def test_metrics_of_a_run():
    result = limit()
    metrics = result.metrics()
    assert list(metrics) == ["hidden.0", "hidden.1"]
    values = metrics["hidden.0"]
    assert values["feature_change"].shape == (4,)
    assert float(values["feature_change"][0]) == 0
    assert float(values["kernel_change"][0]) == 0
    assert float(values["start_alignment"][0]) == pytest.approx(1)
    expected = (result.feature_changes["hidden.0"].mean(-1) / result.kernels["hidden.0"][0].diagonal().mean()).sqrt()
    torch.testing.assert_close(values["feature_change"], expected)
    torch.testing.assert_close(metrics.function["loss"], result.loss)
    rows = metrics.table()
    assert len(rows) == 8
    assert rows[5]["activation"] == "hidden.1"
    assert "alignment" in str(metrics)
    json.dumps(metrics.to_dict(), allow_nan=False)
    with pytest.raises(UsageError, match="did you mean"):
        metrics["hidden.7"]


def test_metrics_without_targets_or_activations():
    zeros = torch.zeros(1, 3, 1)
    metrics = SimulationResult(outputs=zeros, outputs_stderr=zeros, width=8).metrics()
    assert len(metrics) == 0
    assert metrics.table() == []
    assert str(metrics)


def test_dict_is_json_and_tables_print(capsys):
    from rich.console import Console

    result = limit(k=3, ntk=shares(3))
    assert result.loss is not None
    bad = result.loss.clone()
    bad[1] = math.nan
    result = limit(k=3, ntk=shares(3), loss=bad)
    data = json.loads(json.dumps(result_dict(result, ntk=True), allow_nan=False))
    assert data["loss"][1] is None
    assert data["kind"] == "limit"
    Console(width=120).print(result_tables(result))
    text = capsys.readouterr().out
    assert "64 particles" in text
    assert "Test outputs" in text


def test_numbers_in_words():
    assert with_error(0.123456, 0.0012) == "0.1235 ± 0.0012"
    assert with_error(0.5, 0.0) == "0.5"
    assert chosen_steps(3, 6) == [0, 1, 2, 3]
    assert chosen_steps(100, 5) == [0, 25, 50, 75, 100]
    assert entry_name(5, torch.zeros(1, 4, 3)) == "input 1 [2]"
    assert entry_name(2, torch.zeros(1, 4, 1)) == "input 2"
