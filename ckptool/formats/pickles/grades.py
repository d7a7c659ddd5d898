"""The grades of values: the worst that a value of a pickle can do to the code that is given it.

* ``DATA``: numbers, text, bytes, tensors, arrays, dtypes, vetted values made of data (a date), and
  containers of data. Code that reads it runs nothing of the pickle's.
* ``FOREIGN``: an object of the user's own class, which may hold others of the kind, but no names.
* ``OBJECT``: an object of an own class that is not vetted, which holds data alone: the class's own
  code answers, and has nothing else to ask.
* ``NESTED``: an own object that holds objects. Their methods, and they themselves where their class
  can be called, are what its class's code asks: a loader of batches calls its ``collate_fn``.
* ``HOLDING``: an object that holds names, at any depth. Its class may call them: a stream of
  jinja2 calls its attribute ``_next`` when it is iterated.
* ``NAME``: the name of a class or a function, a prepared call (``functools.partial``), a method.
* ``TRAP``: a container that calls when it is asked: a defaultdict whose factory is not vetted, an
  object of torch's that calls what it holds when it is iterated.
* ``ARMED``: a function of ``VETTED`` as a value. It is harmless only while its arguments are
  checked, and a call by another way is not seen.

A pickle may share one value among all others, and close circles. So each value is graded once
(by Tarjan's components, in linear time) and remembered, until the pickle changes one of those that
were graded: containers may be filled after they were used. A pickle that needs far more looks than
one of its size is refused, since what was not looked at must not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from ckptool.formats.pickles.budget import Looks, WorkError
from ckptool.formats.pickles.numpy_types import DTYPE
from ckptool.formats.pickles.trust import TORCH_VALUES, is_own
from ckptool.formats.pickles.vetted import FACTORIES, FUNCTIONS, HOLDERS, KEEPERS, PARTIAL, VETTED
from ckptool.tree.nodes import (
    ArrayRef,
    BytesRef,
    CompositeTensor,
    GlobalRef,
    NotedDict,
    NotedList,
    Opaque,
    PathText,
    SpannedBytes,
    StorageRef,
    TensorRef,
    WindowsPathText,
)

DATA, FOREIGN, OBJECT, NESTED, HOLDING, NAME, TRAP, ARMED = range(8)
A_NODE = 4  # looks at such rows in the time of one look at another container, or at an object,
PARTS = 1 << 5  # and the plain values in them that are passed over in the time of one look
SCALARS: frozenset[type] = frozenset({
    str, int, float, bool, complex, bytes, bytearray, type(None), SpannedBytes, BytesRef,
    PathText, StorageRef, WindowsPathText,
})  # fmt: skip
LOOKUPS = frozenset({"builtins.getattr", "__builtin__.getattr"})
# The grade of an object by the worst of its parts: its class decides what it does with them.
_OWN = (OBJECT, NESTED, NESTED, NESTED, HOLDING, HOLDING, TRAP, ARMED)
_USERS = (FOREIGN, FOREIGN, OBJECT, NESTED, HOLDING, HOLDING, HOLDING, ARMED)
_CONTAINER = tuple(range(8))
Parts = Iterable[Any]
_Looked = tuple[int, tuple[int, ...], Parts]  # the least grade, by the worst part, the parts


class Grades:
    """The grades of the values of one pickle."""

    def __init__(self, looks: Looks | None = None) -> None:
        self.looks = looks or Looks()
        self.known: dict[int, tuple[Any, int]] = {}  # id -> the value, which keeps its id; grade
        self.have_changed = False  # a value was changed after it had been graded
        self.bare: dict[int, Opaque] = {}  # id -> a type of numpy's, graded before it had a state

    def of(self, value: Any) -> int:
        """Return the grade of a value.

        Raises:
            DamagedError: the pickle changes and shares so much that it cannot all be looked at.
        """
        if type(value) in SCALARS or (type(value) is TensorRef and value.state is None):
            return DATA
        if (known := self.known.get(id(value))) is not None:
            return known[1]
        return self._walk(value)

    def worst(self, values: Parts) -> int:
        """Return the worst grade of several values."""
        return max(map(self.of, values), default=DATA)

    def forget(self, value: Any) -> None:
        """Forget all grades if a value has one, since the pickle changes it."""
        if id(value) in self.known:
            self.known.clear()
            self.have_changed = True

    def _walk(self, root: Any) -> int:
        """Return the grade of a value; grade all that it reaches, each circle at once."""
        met: dict[int, int] = {}  # id -> its number
        waiting: list[_Node] = []  # of circles that are not complete
        path = [self._enter(root, met, waiting)]
        while path:
            node = path[-1]
            part = self._ungraded_part(node, met)
            if part is not None:
                path.append(self._enter(part, met, waiting))
                continue
            path.pop()
            if node.lowest == node.number:
                self._close(node, waiting)
            elif path:  # a circle goes on above
                path[-1].lowest = min(path[-1].lowest, node.lowest)
            if path:
                path[-1].worst = max(path[-1].worst, self._grade_so_far(node))
        return self.known[id(root)][1]

    def _ungraded_part(self, node: _Node, met: Mapping[int, int]) -> Any:
        """Return the next part that is to be entered; take the grades of the parts before it."""
        known = self.known
        for part in node.parts:
            if type(part) in SCALARS:
                continue
            at = id(part)
            if at in known:
                node.worst = max(node.worst, known[at][1])
            elif at in met:
                node.lowest = min(node.lowest, met[at])
                node.holds_itself |= part is node.value
            elif type(part) in _FLAT and SCALARS.issuperset(map(type, part)):
                self.count(1 + len(part) // PARTS)
                known[at] = part, DATA
            else:
                return part
        return None

    def _close(self, node: _Node, waiting: list[_Node]) -> None:
        """Remember the grades of a circle, whose values hold each other, or of a single value."""
        circle = waiting[node.at :]
        is_circle = len(circle) > 1 or node.holds_itself
        worst = max(node.worst, *(each.least for each in circle)) if is_circle else node.worst
        for each in circle:
            grade = max(each.least, each.by_worst[worst])
            self.known[id(each.value)] = each.value, grade
        del waiting[node.at :]

    def _grade_so_far(self, node: _Node) -> int:
        known = self.known.get(id(node.value))
        return known[1] if known is not None else max(node.worst, node.least)

    def _enter(self, value: Any, met: dict[int, int], waiting: list[_Node]) -> _Node:
        node = _Node(value, len(met), len(waiting))
        self.count(A_NODE + node.count // PARTS)
        met[id(value)] = node.number
        waiting.append(node)
        if type(value) is Opaque and value.qualname == DTYPE and value.state is None:
            self.bare[id(value)] = value
        return node

    def count(self, looks: int) -> None:
        """Count looks at values; refuse a pickle that needs too many.

        Raises:
            DamagedError: it does.
        """
        self.looks.left -= looks
        if self.looks.left < 0:
            raise WorkError("values are shared and changed again and again before they are used")


class _Node:
    """A value on the way of a walk; it is also the last of its circle until one is found."""

    __slots__ = (
        "at", "by_worst", "count", "holds_itself", "least", "lowest", "number", "parts", "value",
        "worst",
    )  # fmt: skip

    def __init__(self, value: Any, number: int, at: int) -> None:
        self.value, self.number, self.lowest, self.at = value, number, number, at
        self.least, self.by_worst, parts = looked(value)
        self.count = len(value) if isinstance(value, _SIZED) else 0
        self.parts: Iterator[Any] = iter(parts)
        self.worst = DATA
        self.holds_itself = False


_FLAT = frozenset({list, tuple, set, frozenset})
_SIZED = (list, tuple, set, frozenset, dict)


# ----------------------------------------------------------------------------- the parts of a value


def looked(value: Any) -> _Looked:
    """Return the least grade of a value, its grade by the worst of its parts, and the parts."""
    kind = _KINDS.get(type(value)) or next(
        (kind for known, kind in _KINDS.items() if isinstance(value, known)), None
    )
    return kind(value) if kind is not None else (OBJECT, _USERS, ())


def _name(ref: GlobalRef) -> _Looked:
    if ref.qualname in TORCH_VALUES:
        return DATA, _CONTAINER, ()
    return (ARMED if ref.qualname in FUNCTIONS else NAME), _CONTAINER, ()


def _row(value: Iterable[Any]) -> _Looked:
    return DATA, _CONTAINER, value


def _dict(value: dict[Any, Any]) -> _Looked:
    return DATA, _CONTAINER, chain(value, value.values())


def _noted_dict(value: NotedDict) -> _Looked:
    factory = value.made_with.get("default_factory")
    is_trap = factory is not None and not is_factory(factory)
    parts = chain(value, value.values(), (value.state,))
    return (TRAP if is_trap else DATA), _CONTAINER, parts


def _composite(tensor: CompositeTensor) -> _Looked:
    least = DATA if tensor.wrapper is None else OBJECT
    return least, _CONTAINER, (tensor.wrapper, *tensor.parts.values())


def _object(made: Opaque) -> _Looked:
    name = made.qualname
    if made.called and name in LOOKUPS:
        return NAME, _CONTAINER, ()
    more = (made.kwargs, made.state, made.items, made.elements)
    if name == PARTIAL:
        return NAME, _CONTAINER, chain(more, made.args)
    if name in VETTED or name in HOLDERS or name == "numpy.scalar":
        given = (arg for arg in made.args if not isinstance(arg, GlobalRef))
        return DATA, _CONTAINER, chain(more, given)
    if not is_own(name):
        return FOREIGN, _USERS, chain(more, made.args)
    is_trap = name.startswith(KEEPERS) and any(map(is_function, _attributes(made)))
    return (TRAP if is_trap else OBJECT), _OWN, chain(more, made.args)


def _attributes(made: Opaque) -> Parts:
    """Return the attributes of an object, and those in a row of them."""
    held = made.attributes.values()
    return chain(held, *(part for part in held if isinstance(part, (list, tuple))))


def is_function(part: Any) -> bool:
    """Return whether a value is a name, a method or a prepared call."""
    is_prepared = isinstance(part, Opaque) and part.qualname in {PARTIAL, *LOOKUPS}
    return is_prepared or (isinstance(part, GlobalRef) and part.qualname not in TORCH_VALUES)


def is_factory(factory: Any) -> bool:
    """Return whether a call without arguments makes an empty value."""
    if isinstance(factory, GlobalRef):
        return factory.qualname in FACTORIES
    if not isinstance(factory, Opaque) or factory.qualname != PARTIAL:
        return False
    func, args, kwargs = (factory.state or (*factory.args[:1], factory.args[1:], None))[:3]
    given = (*args, *(kwargs or {}).values())
    return is_factory(func) and all(type(x) in SCALARS or is_factory(x) for x in given)


_KINDS: Mapping[type, Callable[[Any], _Looked]] = {
    TensorRef: lambda value: (DATA, _CONTAINER, (value.state,)),
    GlobalRef: _name,
    Opaque: _object,
    NotedDict: _noted_dict,
    NotedList: lambda value: (DATA, _CONTAINER, chain(value, (value.state,))),
    ArrayRef: lambda value: (DATA, _CONTAINER, value.objects or ()),
    CompositeTensor: _composite,
    dict: _dict,
    list: _row,
    tuple: _row,
    set: _row,
    frozenset: _row,
    **dict.fromkeys(SCALARS, lambda _: (DATA, _CONTAINER, ())),  # subclasses of them
}
