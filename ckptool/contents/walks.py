"""Walks by level through the top of a tree, where trainers keep everything but weights."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Generic, TypeVar

Step = TypeVar("Step", bound=tuple[Any, ...])


class ByLevel(Generic[Step]):
    """The steps of a walk level by level: (key path, node, facts found on the way).

    The loop over the steps calls :meth:`enter` with the nodes of the next level. A node that is
    reached in several ways comes once for each combination of facts: a hostile file can hold one
    container under a million keys.
    """

    def __init__(self, levels: int, *start: Step) -> None:
        self._levels = levels
        self._next = list(start)

    def enter(self, *step: Any) -> None:
        """Look at a node on the next level."""
        self._next.append(step)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Step]:
        seen: set[Hashable] = set()
        for _ in range(self._levels):
            if not self._next:
                return
            level, self._next = self._next, []
            for step in level:
                _address, node, *found = step
                place = (id(node), *found)
                if place not in seen:
                    seen.add(place)
                    yield step
