"""States of objects, as a loader sets them with BUILD.

Python copies the items of a state into the object: what the pickle does to the dict afterwards
changes no attribute. A tree of 100,000 objects has no room for as many copies. So an object shares
the dict of its state until the pickle changes it, which no pickler does but for objects that hold
themselves.

``torch.nn.Module.state_dict`` leaves an attribute on the dict that it returns: the versions of the
modules. Nearly every checkpoint has it, so it is known at sight, without the rules on states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckptool.errors import DamagedError
from ckptool.tree.nodes import NotedDict, Opaque

# Slots whose assignment replaces all attributes of an object, or its class.
_REPLACING = frozenset({"__dict__", "__class__"})
_METADATA = "_metadata"
_VALUES: frozenset[type] = frozenset({int, str, bool, float, type(None)})
MAX_VALUES = 8  # of a module: its version, and a flag or two
MAX_LOOKED = 1 << 16  # states and modules that are looked at; the rules look at others


class States:
    """The dicts that are states of objects."""

    def __init__(self, meter: Callable[[tuple[Any, ...]], None]) -> None:
        self._meter = meter  # counts what is copied
        self._objects: dict[int, list[Opaque]] = {}  # id of a dict -> the objects with that state
        self._merged: dict[int, Opaque] = {}  # objects whose state is our own copy
        self._replaced: Opaque | None = None  # an object that got other attributes as a whole
        self._metadata: list[tuple[NotedDict, Any]] = []  # state dicts, and their states
        self._looked = 0

    def set(self, obj: Opaque, state: Any) -> Any:
        """Return the state that an object has after BUILD; a second one updates its attributes."""
        parts = state if type(state) is tuple and len(state) == 2 else (state,)
        if len(parts) == 2 and isinstance(parts[1], dict) and not _REPLACING.isdisjoint(parts[1]):
            self._replaced = obj
        if _replaces_arguments(obj.qualname, state):
            obj.args = ()
        if obj.attributes:
            return self._both(obj, state)
        for part in parts:
            if isinstance(part, dict):
                self._objects.setdefault(id(part), []).append(obj)
        return state

    def keep(self, target: dict[Any, Any]) -> None:
        """Give the objects that share a dict copies of it, since the pickle will change it."""
        for obj in self._objects.pop(id(target), ()):
            if obj.state is target:
                obj.state = self._copy(target)
            elif type(obj.state) is tuple:
                obj.state = tuple(
                    self._copy(part) if part is target else part for part in obj.state
                )

    def is_metadata(self, obj: Any, state: Any) -> bool:
        """Return whether a state is that of a module's state dict, and remember both."""
        if type(obj) is not NotedDict or not self._has_versions(state):
            return False
        self._metadata.append((obj, state))
        return True

    def changed_metadata(self) -> list[tuple[NotedDict, Any]]:
        """Return the state dicts whose states are no metadata any more, and these states."""
        self._looked = 0
        return [(obj, state) for obj, state in self._metadata if not self._has_versions(state)]

    def _has_versions(self, state: Any) -> bool:
        """Return whether a state is ``{"_metadata": {name of a module: {name: plain value}}}``."""
        modules = _modules_of(state)
        if modules is None:
            return False
        self._looked += 1 + len(modules)
        return self._looked <= MAX_LOOKED and all(
            type(name) is str
            and type(own) is dict
            and len(own) <= MAX_VALUES
            and all(type(key) is str and type(value) in _VALUES for key, value in own.items())
            for name, own in modules.items()
        )

    def finish(self) -> None:
        """Check the states, once all that they may run has been noted.

        Raises:
            DamagedError: one replaces the attributes of an object, or its class.
        """
        if self._replaced is not None:
            raise DamagedError(
                "a state replaces all attributes or the class of an object "
                f"{self._replaced.qualname:.60}; no pickler writes such a state"
            )

    def _both(self, obj: Opaque, state: Any) -> Any:
        """Return the state of an object that is built again, with its attributes updated."""
        new = Opaque("", state=state).attributes
        self._meter((new,))
        if id(obj) not in self._merged:
            self._merged[id(obj)] = obj
            obj.state = self._copy(obj.attributes)
        obj.state.update(new)
        return obj.state

    def _copy(self, part: dict[Any, Any]) -> dict[Any, Any]:
        self._meter((part,))
        return dict(part)


def _modules_of(state: Any) -> dict[Any, Any] | None:
    """Return the value of an only item ``_metadata`` if it is a plain dict, or an ordered one."""
    if type(state) is not dict or len(state) != 1:
        return None
    modules = state.get(_METADATA)
    if type(modules) is NotedDict:
        return None if modules.made_with or modules.state is not None else modules
    return modules if type(modules) is dict else None


def _replaces_arguments(qualname: str, state: Any) -> bool:
    """Return whether a state has all that the object was made with, in place of it."""
    from ckptool.formats.pickles.vetted import EXCEPTIONS, PARTIAL  # noqa: PLC0415 - for objects

    if qualname == PARTIAL:
        return isinstance(state, tuple)
    return qualname in EXCEPTIONS and isinstance(state, dict) and "args" in state
