"""All nonlinearities of the folder, by name and by the ATen operations that compute them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tpcompile.errors import UnsupportedOperationError, UsageError
from tpcompile.nonlin.record import Backward, Nonlinearity


def scan(package: str) -> dict[str, Nonlinearity]:
    """Import every module of ``package`` and collect the records that they define, sorted by name."""
    found: dict[str, Nonlinearity] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, Nonlinearity) and found.setdefault(value.name, value) is not value:
                raise UsageError(f"two nonlinearities are named '{value.name}'", where=module.__name__)
    return dict(sorted(found.items()))


@cache
def _by_name() -> dict[str, Nonlinearity]:
    return scan(__package__ or "tpcompile.nonlin")


def index_targets(records: Iterable[Nonlinearity]) -> dict[str, Nonlinearity]:
    """The record of each forward target; two records must not claim the same one."""
    index: dict[str, Nonlinearity] = {}
    for record in records:
        for target in record.targets:
            if index.setdefault(target, record) is not record:
                raise UsageError(
                    f"'{target}' is claimed by the nonlinearities '{index[target].name}' and '{record.name}'"
                )
    return index


@cache
def _by_target() -> dict[str, Nonlinearity]:
    return index_targets(all_nonlinearities())


@cache
def _by_backward() -> dict[str, tuple[tuple[Nonlinearity, Backward], ...]]:
    index: dict[str, tuple[tuple[Nonlinearity, Backward], ...]] = {}
    for record in all_nonlinearities():
        for backward in record.backward:
            index[backward.target] = (*index.get(backward.target, ()), (record, backward))
    return index


def all_nonlinearities() -> tuple[Nonlinearity, ...]:
    """Every registered nonlinearity, sorted by name."""
    return tuple(_by_name().values())


def lookup(name: str) -> Nonlinearity:
    """The nonlinearity of that name in a program's text."""
    try:
        return _by_name()[name]
    except KeyError:
        raise UnsupportedOperationError(
            f"no nonlinearity is named '{name}'",
            advice=f"known are {', '.join(_by_name())}; a new one is one file in tpcompile/nonlin",
        ) from None


def by_target(target: str) -> Nonlinearity | None:
    """The nonlinearity that an ATen overload computes ("aten.tanh.default"), if it is one."""
    return _by_target().get(target)


def backward_by_target(target: str) -> tuple[tuple[Nonlinearity, Backward], ...]:
    """All variants of a backward operation; empty if it is none.

    One operation may serve several nonlinearities (``threshold_backward``) or saved tensors
    (``elu_backward``). :func:`~tpcompile.nonlin.bind_backward` picks the one that a call means.
    """
    return _by_backward().get(target, ())


def complete(record: Nonlinearity, parameters: dict[str, Any]) -> dict[str, Any]:
    """All parameters of a record: the given ones, the defaults for the rest."""
    defaults = record.defaults
    if unknown := [name for name in parameters if name not in defaults]:
        raise UsageError(
            f"the nonlinearity '{record.name}' has no parameter {', '.join(map(repr, unknown))}",
            advice=f"it has {', '.join(defaults) or 'none'}",
        )
    return {**defaults, **parameters}


@dataclass(frozen=True)
class Row:
    """A line of the documentation's table of nonlinearities, at the default parameters."""

    name: str
    parameters: tuple[tuple[str, Any], ...]
    targets: tuple[str, ...]
    backward_targets: tuple[str, ...]
    parity: str
    smoothness: float
    homogeneity: float | None
    domain: str
    growth: str
    note: str


def table() -> tuple[Row, ...]:
    """What the documentation says of every nonlinearity, at its default parameters."""
    rows = []
    for record in all_nonlinearities():
        facts = record.defaults
        rows.append(
            Row(
                name=record.name,
                parameters=record.parameters,
                targets=record.targets,
                backward_targets=tuple(dict.fromkeys(b.target for b in record.backward)),
                parity=record.parity(**facts) or "neither",
                smoothness=record.smoothness(**facts),
                homogeneity=record.homogeneity(**facts),
                domain=record.domain(**facts),
                growth=record.growth(**facts)[0],
                note=record.note,
            )
        )
    return tuple(rows)
