"""Record of every value that a pickle puts into another, also where the tree does not show it.

The tree of a checkpoint has the parts that users ask for. An object that a loader makes may hold
more: attributes of a dict, arguments of a call, hooks of a tensor. The builder of ``tracer.py``
stands between the machine and the one that builds, and notes for each value all arguments and
states that went into it. Kinds of objects play no part in that, so no kind can be forgotten. Only
what a value shows itself (the items of a dict that was copied, the storage that a tensor views) is
left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from ckptool.records import field, record
from ckptool.tree.nodes import Opaque

Content = TypeVar("Content", dict[Any, Any], list[Any])


@record(frozen=False, slots=True, eq=False)
class Trace:
    """The values that went into the values of a file's pickles."""

    inputs: dict[int, list[Any]] = field(default_factory=dict)  # id(value) -> value, its inputs
    given: list[Opaque] = field(default_factory=list)  # calls that are not understood
    has_equal_keys: bool = False  # keys that are one here are several in torch

    def inputs_of(self, value: Any) -> list[Any]:
        """Return the values that went into ``value``."""
        return self.inputs.get(id(value), _NOTHING)[1:]

    def prune(self) -> None:
        """Drop inputs that stayed empty, such as the hooks of each tensor."""
        inputs = self.inputs
        empty = [
            at for at, (_, *held) in inputs.items() if not any(v or id(v) in inputs for v in held)
        ]
        for at in empty:
            del inputs[at]


_NOTHING: list[Any] = []
_CURRENT: ContextVar[Trace | None] = ContextVar("trace", default=None)


@contextmanager
def tracing() -> Iterator[Trace]:
    """Fill the trace with the pickles that the block reads."""
    trace = Trace()
    token = _CURRENT.set(trace)
    try:
        yield trace
    finally:
        _CURRENT.reset(token)


def current_trace() -> Trace | None:
    """Return the trace of the :func:`tracing` block around the caller; None outside of any."""
    return _CURRENT.get()
