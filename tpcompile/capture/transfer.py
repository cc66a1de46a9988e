"""What each operation does to cells: the table from ATen operations to transfer rules.

A rule returns the cells of the operation's targets, or a string that says what it does not cover (the
law of the result is then unknown, unless all inputs are constants).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tpcompile.capture.draws import Cells, QFactor, RFactor, SignOfR
from tpcompile.capture.recorder import Call, Rule, affine
from tpcompile.laws import Normal, Orthogonal, TruncatedNormal, Uniform

aten = torch.ops.aten
NEGLIGIBLE = 1e-14  # probability mass that double precision does not resolve in a distribution function

RULES: dict[Any, Rule] = {}


def rule(*operations: Any) -> Any:
    def register(function: Rule) -> Rule:
        for operation in operations:
            RULES[operation] = function
        return function

    return register


# -- draws --------------------------------------------------------------------------------------


@rule(aten.randn, aten.randn_like)
def _standard_normal(call: Call) -> Cells:
    return call.draw(Normal(1.0))


@rule(aten.rand, aten.rand_like)
def _standard_uniform(call: Call) -> Cells:
    return call.draw(Uniform(0.0, 1.0))


@rule(aten.uniform_, aten.uniform)
def _uniform(call: Call) -> Cells:
    low, high = float(call.args["from"]), float(call.args["to"])
    if low == high:
        return _constant(call.targets[0], low)
    return call.draw(Uniform(low, high))


@rule(aten.normal_, aten.normal_functional, aten.normal)
def _normal(call: Call) -> Cells | str:
    mean, std = call.cells("mean"), call.cells("std")
    if bool((mean.draw != 0).any()) or bool((std.draw != 0).any()):
        return "its mean or standard deviation is itself random"
    values = call.targets[0].detach().to("cpu", torch.float64)
    scale, shift = (c.shift.expand(values.shape).clone() for c in (std, mean))
    standard = torch.where(scale == 0, 0.0, (values - shift) / scale)
    names = call.ledger.add(Normal(1.0), standard, stretch=call.stretch)
    return Cells(names, scale, shift)


# -- fills and copies ---------------------------------------------------------------------------


def _constant(target: Tensor, value: float) -> Cells:
    return affine(torch.zeros(target.shape, dtype=torch.int64), 0.0, value)


@rule(aten.zeros, aten.zeros_like, aten.new_zeros, aten.zero_, aten.zero)
def _zeros(call: Call) -> Cells:
    return _constant(call.targets[0], 0.0)


@rule(aten.ones, aten.ones_like, aten.new_ones)
def _ones(call: Call) -> Cells:
    return _constant(call.targets[0], 1.0)


@rule(aten.full, aten.full_like, aten.new_full, aten.scalar_tensor)
def _full(call: Call) -> Cells:
    return _constant(call.targets[0], float(call.args["fill_value" if "fill_value" in call.args else "s"]))


@rule(aten.fill_, aten.fill)
def _fill(call: Call) -> Cells:
    return _expand(call.cells("value"), call.targets[0].shape)


@rule(aten.empty, aten.empty_like, aten.empty_strided, aten.empty_permuted, aten.new_empty, aten.new_empty_strided)
def _empty(call: Call) -> Cells:
    unknown = call.ledger.unknown("has entries that are never written (torch.empty)")
    return affine(torch.full(call.targets[0].shape, unknown), 0.0, 0.0)


def _expand(cells: Cells, shape: torch.Size) -> Cells:
    return Cells(*(part.expand(shape) for part in cells))


@rule(aten.clone, aten._to_copy, aten.lift_fresh_copy, aten.detach_copy, aten.copy, aten.copy_, aten.contiguous)
def _copy(call: Call) -> Cells:
    return _expand(call.cells("src" if "src" in call.args else "self"), call.targets[0].shape)


# -- rearrangements: the same operation on the cells ----------------------------------------------


def _rearrange(functional: Any, fill: tuple[str, ...] = (), index: tuple[str, ...] = ()) -> Rule:
    """A rule that moves entries: ``functional`` runs on each part of the cells.

    ``fill`` names numbers that are written, ``index`` the arguments that say where and keep their values.
    """

    def transfer(call: Call) -> Cells | str:
        for name in index:
            for tensor in _tensors(call.args[name]):
                if bool((call.recorder.cells(tensor).draw != 0).any()):
                    return "its index is random or unknown"
        name = call.func._overloadname
        if name.endswith("out"):
            name = name.removesuffix("out").rstrip("_") or "default"
        overload = getattr(functional, name, None)
        if overload is None:
            return "in this form"
        names = {argument.name for argument in overload._schema.arguments}
        parts = []
        for part in range(3):

            def convert(value: Any, part: int = part) -> Any:
                if isinstance(value, Tensor):
                    return call.recorder.cells(value)[part]
                return [convert(v) for v in value] if isinstance(value, (list, tuple)) else value

            arguments = {k: v for k, v in call.args.items() if k in names}
            for k, v in arguments.items():
                if k in index:
                    arguments[k] = _to_cpu(v)
                elif k in fill and not isinstance(v, Tensor):
                    arguments[k] = (0 if v is None else v) if part == 2 else 0
                elif isinstance(v, Tensor) or (isinstance(v, (list, tuple)) and _tensors(v)):
                    arguments[k] = convert(v)
            parts.append(overload(**arguments))
        return Cells(*parts)

    return transfer


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, (list, tuple)) else []


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    return [_to_cpu(v) for v in value] if isinstance(value, (list, tuple)) else value


_MOVES = """
    cat stack repeat flip roll tril triu diag_embed slice_scatter select_scatter diagonal_scatter
    diagonal_copy t_copy transpose_copy view_copy permute_copy unsqueeze_copy squeeze_copy expand_copy
"""
for _op in _MOVES.split():
    RULES[getattr(aten, _op)] = _rearrange(getattr(aten, _op))
for _op in ("tril", "triu"):
    RULES[getattr(aten, _op + "_")] = _rearrange(getattr(aten, _op))
RULES[aten.constant_pad_nd] = _rearrange(aten.constant_pad_nd, fill=("value",))
for _op, _numbers, _index in (
    ("index", (), ("indices",)),
    ("index_select", (), ("index",)),
    ("gather", (), ("index",)),
    ("where", ("self", "other"), ("condition",)),
    ("masked_fill", ("value",), ("mask",)),
    ("index_fill", ("value",), ("index",)),
    ("index_copy", (), ("index",)),
    ("index_put", (), ("indices",)),
):
    RULES[getattr(aten, _op)] = _rearrange(getattr(aten, _op), _numbers, _index)
    if hasattr(aten, _op + "_"):
        RULES[getattr(aten, _op + "_")] = _rearrange(getattr(aten, _op), _numbers, _index)


@rule(aten.index_put, aten.index_put_)
def _index_put(call: Call) -> Any:
    if call.args["accumulate"]:
        return "with accumulate=True"
    return _rearrange(aten.index_put, (), ("indices",))(call)


# -- arithmetic ---------------------------------------------------------------------------------


def _pair(first: Cells, second: Cells) -> tuple[Cells, Cells]:
    shape = torch.broadcast_shapes(first.draw.shape, second.draw.shape)
    return _expand(first, shape), _expand(second, shape)


def _either(first: Tensor, second: Tensor) -> Tensor:
    """The draw of an entry one of whose operands is constant; unknown wins."""
    return torch.where(second < 0, second, torch.where(first != 0, first, second))


@rule(aten.mul, aten.mul_)
def _mul(call: Call) -> Cells | str:
    a, b = _pair(call.cells("self"), call.cells("other"))
    if bool(((a.draw > 0) & (b.draw > 0)).any()):
        return _haar(call, a, b) or _haar(call, b, a) or "a product of two random values"
    return Cells(_either(a.draw, b.draw), a.scale * b.shift + b.scale * a.shift, a.shift * b.shift)


@rule(aten.div, aten.div_)
def _div(call: Call) -> Cells | str:
    if call.args.get("rounding_mode") is not None:
        return "with rounding"
    a, b = _pair(call.cells("self"), call.cells("other"))
    if bool((b.draw > 0).any()):
        return "a division by a random value"
    if bool((b.shift == 0).any() & (b.draw == 0).any()):
        return "a division by zero"
    return Cells(_either(a.draw, b.draw), a.scale / b.shift, a.shift / b.shift)


@rule(aten.neg, aten.neg_)
def _neg(call: Call) -> Cells:
    a = call.cells("self")
    return Cells(a.draw, -a.scale, -a.shift)


@rule(aten.add, aten.add_)
def _add(call: Call) -> Cells | str:
    return _sum(call, call.cells("self"), call.cells("other"), float(call.args["alpha"]))


@rule(aten.sub, aten.sub_)
def _sub(call: Call) -> Cells | str:
    return _sum(call, call.cells("self"), call.cells("other"), -float(call.args["alpha"]))


@rule(aten.rsub)
def _rsub(call: Call) -> Cells | str:
    return _sum(call, call.cells("other"), call.cells("self"), -float(call.args["alpha"]))


def _sum(call: Call, first: Cells, second: Cells, alpha: float) -> Cells | str:
    """``first + alpha * second``; two independent normal values make a normal one."""
    a, b = _pair(first, Cells(second.draw, alpha * second.scale, alpha * second.shift))
    draw, scale, shift = _either(a.draw, b.draw), a.scale + b.scale, a.shift + b.shift
    both = (a.draw > 0) & (b.draw > 0) & (a.draw != b.draw)
    if not bool(both.any()):
        return Cells(draw, scale, shift)
    ledger = call.ledger
    x, y = a.draw[both], b.draw[both]
    std, mean = [], torch.zeros(x.shape, dtype=torch.float64)
    for names, factor in ((x, a.scale[both]), (y, b.scale[both])):
        spread = torch.empty(names.shape, dtype=torch.float64)
        index = ledger.group_index(names)
        for i in index.unique().tolist():
            law = ledger.groups[i].law
            if not isinstance(law, Normal):
                return "a sum of random values that are not all normal"
            spread[index == i], mean[index == i] = law.std, mean[index == i] + law.mean * factor[index == i]
        std.append(factor * spread)
    p, q = ledger.primitives(x), ledger.primitives(y)
    if p is None or q is None:
        return "a sum of too many draws"
    shared = (p[:, :, None] == q[:, None, :]) & (p[:, :, None] != 0)
    if bool(shared.any()) or ledger.uses(x) or ledger.uses(y) or _streams_repeat(call, x, y):
        return "a sum of values that depend on each other"
    scale[both], shift[both] = torch.hypot(*std), shift[both] + mean
    values = call.targets[0].detach().to("cpu", torch.float64).expand(draw.shape)[both]
    parents = torch.cat([p, q], dim=1)
    draw = draw.clone()
    draw[both] = ledger.add(Normal(1.0), (values - shift[both]) / scale[both], parents=parents)
    return Cells(draw, scale, shift)


def _streams_repeat(call: Call, x: Tensor, y: Tensor) -> bool:
    # Entries that share a draw crosswise (w + w.T) are found when the law is read; here only resets matter.
    reason = call.ledger.dependence(call.ledger.footprint(x), call.ledger.footprint(y))
    return reason is not None and "random bits" in reason


# -- transforms of laws ---------------------------------------------------------------------------


@rule(aten.erfinv, aten.erfinv_)
def _erfinv(call: Call) -> Cells | str:
    """The inverse error function of a uniform value is a (truncated) normal value of variance 1/2."""
    from scipy.special import erfinv

    cells = call.cells("self")
    single = call.ledger.single_group(cells)
    if single is None or not isinstance(single[0].law, Uniform):
        return "of values that are not uniform with one law"
    group, scale, shift = single
    assert isinstance(group.law, Uniform)
    low, high = sorted((shift + scale * group.law.low, shift + scale * group.law.high))
    if low < -1 or high > 1:
        return "of values outside [-1, 1]"
    std = math.sqrt(0.5)
    law = Normal(std) if (low, high) == (-1, 1) else TruncatedNormal(std, float(erfinv(low)), float(erfinv(high)))
    return call.derive(law, cells)


@rule(aten.clamp, aten.clamp_)
def _clamp(call: Call) -> Cells | str:
    """Clamping where there is no probability (the last step of an older ``trunc_normal_``)."""
    cells = call.cells("self")
    single = call.ledger.single_group(cells)
    bounds = [call.args["min"], call.args["max"]]
    if single is None or not isinstance(single[0].law, Normal | TruncatedNormal | Uniform):
        return "of values that are not normal or uniform with one law"
    if any(isinstance(bound, Tensor) for bound in bounds):
        return "with tensors as bounds"
    group, scale, shift = single
    low, high = (-math.inf if bounds[0] is None else bounds[0]), (math.inf if bounds[1] is None else bounds[1])
    law = group.law
    if isinstance(law, Uniform):
        ends = sorted((shift + scale * law.low, shift + scale * law.high))
        return (
            call.derive(Uniform(ends[0], ends[1]), cells)
            if low <= ends[0] and ends[1] <= high
            else "that cuts off values"
        )
    assert isinstance(law, Normal | TruncatedNormal)
    mean, std = shift + scale * law.mean, abs(scale) * law.std
    ends = [-math.inf, math.inf]
    if isinstance(law, TruncatedNormal):
        ends = sorted((shift + scale * law.low, shift + scale * law.high))
    cdf = lambda x: 0.5 * (1 + math.erf((x - mean) / std / math.sqrt(2)))
    if cdf(low) - cdf(ends[0]) > NEGLIGIBLE or cdf(ends[1]) - cdf(high) > NEGLIGIBLE:
        return "that cuts off values"
    if isinstance(law, Normal):
        return call.derive(Normal(std, mean), cells)
    # Bounds that went through a distribution function and back are exact again after the clamp.
    ends = [c if abs(cdf(c) - cdf(e)) <= NEGLIGIBLE else e for c, e in zip((low, high), ends, strict=True)]
    return call.derive(TruncatedNormal(std, ends[0], ends[1], mean), cells)


# -- QR with sign correction: the Haar law ----------------------------------------------------------


@rule(aten.linalg_qr)
def _qr(call: Call) -> list[Cells] | str:
    cells, ledger = call.cells("A"), call.ledger
    law = ledger.read(cells, call.args["A"])
    if cells.draw.ndim != 2 or call.args["mode"] != "reduced" or not isinstance(law, Normal) or law.mean != 0:
        return "of a matrix that is not independent centred normal values"
    primitives = ledger.primitives(cells.draw.reshape(-1))
    assert primitives is not None  # read() followed them
    uses = ledger.group_index(primitives[primitives > 0]).unique().tolist()
    q, r = call.targets
    r_names = ledger.add(RFactor(), r, uses=uses)
    q_law = QFactor(q.shape[1], int(r_names.reshape(-1)[0]), r.shape[1])
    return [affine(ledger.add(q_law, q, uses=uses), 1.0, 0.0), affine(r_names, 1.0, 0.0)]


@rule(aten.sign, aten.sign_, aten.sgn)
def _sign(call: Call) -> Cells | str:
    cells = call.cells("self")
    single = call.ledger.single_group(cells)
    if single is None or not isinstance(single[0].law, RFactor) or single[1:] != (1.0, 0.0):
        return "of random values"
    return call.derive(SignOfR(), cells)


def _haar(call: Call, q: Cells, signs: Cells) -> Cells | str | None:
    """``Q * sign(diag(R))`` if that is what a product is."""
    q_single, s_single = call.ledger.single_group(q), call.ledger.single_group(signs)
    if q_single is None or s_single is None or not isinstance(s_single[0].law, SignOfR):
        return None
    group, law = q_single[0], q_single[0].law
    primitives = call.ledger.primitives(signs.draw.reshape(-1))
    names = torch.arange(group.start, group.start + group.values.numel()).reshape(group.shape)
    if not isinstance(law, QFactor) or q_single[1:] + s_single[1:] != (1.0, 0.0) * 2 or primitives is None:
        return None
    diagonal = law.r_start + torch.arange(law.columns) * (law.r_columns + 1)
    if q.draw.shape != names.shape or bool((q.draw != names).any()):
        return None
    if bool((primitives.reshape(names.shape) != diagonal).any()):
        return None
    return call.derive(Orthogonal(), q)
