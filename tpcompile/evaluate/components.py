"""Connected components of a few things: networkx takes longer to import than a kernel to be planned."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def components(members: Iterable[T], ties: Iterable[tuple[T, T]]) -> list[set[T]]:
    """The components of all members under ties between pairs of them, in the order of their first members."""
    found = {x: {x} for x in members}
    for a, b in ties:
        one, two = sorted((found.setdefault(a, {a}), found.setdefault(b, {b})), key=len)
        if one is not two:
            two |= one
            found.update(dict.fromkeys(one, two))
    return list({id(group): group for group in found.values()}.values())
