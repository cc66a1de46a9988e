"""Facts of nodes that follow from those of their operands, found once each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from tpcompile.ir import Node

T = TypeVar("T")


def bottom_up(
    node: Node, known: dict[Node, T], below: Callable[[Node], Iterable[Node]], find: Callable[[Node], T]
) -> T:
    """The fact of a node: ``find`` is called once all that is ``below`` a node is in ``known``."""
    stack = [node]
    while stack:  # a loop in place of recursion: programs of many steps are deep
        top = stack[-1]
        missing = [] if top in known else [x for x in below(top) if x not in known]
        if missing:
            stack.extend(missing)
            continue
        if top not in known:
            known[top] = find(top)
        stack.pop()
    return known[node]
