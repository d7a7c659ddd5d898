"""The builder that lets another one build, and fills a trace with what goes into each value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ckptool.formats.pickles.calls import FROM_TYPE, NESTED
from ckptool.formats.pickles.machine import Builder
from ckptool.formats.pickles.torch_calls import TORCH_CALLS
from ckptool.formats.pickles.trace import Trace
from ckptool.tree.nodes import PLAIN, GlobalRef, NotedDict, Opaque, StorageRef, TensorRef

Content = TypeVar("Content", dict[Any, Any], list[Any])

# Functions that copy the container in this argument into their result, which shows all of it.
_COPIED = {
    "collections.OrderedDict": 0, "collections.Counter": 0, "collections.defaultdict": 1,
    "collections.deque": 0,
    "copyreg._reconstructor": 2, "copy_reg._reconstructor": 2, "torch.Size": 0,
    "tensordict._reductions._make_td": 1,
    **{
        f"{builtins}.{name}": 0
        for builtins in ("builtins", "__builtin__")
        for name in ("dict", "list", "tuple", "set", "frozenset")
    },
}  # fmt: skip
_SHOWN = {**_COPIED, **dict.fromkeys(NESTED, 0)}  # the bytes of a stream: its tensors view them
_Note = Callable[[Any, Any, tuple[Any, ...]], None]  # (made value, function, arguments)
_DATA = (TensorRef, StorageRef)


class Tracer(Builder):
    """A builder that lets another one build, and notes what goes into each value."""

    def __init__(self, builder: Builder, trace: Trace) -> None:
        super().__init__()
        self._builder, self._trace = builder, trace
        self._by_id: dict[int, _Note] = {}
        self._known: list[GlobalRef] = []  # keeps their identities from being used again
        self.budget = builder.budget
        self._met: dict[Any, Any] = {}  # keys that are no plain values

    def object_to(self, what: str) -> None:
        """Note an objection in the builder."""
        self._builder.object_to(what)

    def set_items(self, target: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
        """Set items of a dict; note keys that are equal here, but are two in torch."""
        self._builder.set_items(target, keys, values)  # refuses keys that take long to hash
        self._note_equal(keys)

    def add(self, target: set[Any], keys: list[Any]) -> None:
        """Add elements to a set; note those that are equal here, but are two in torch."""
        self._builder.add(target, keys)
        self._note_equal(keys)

    def append(self, target: list[Any], values: list[Any]) -> None:
        """Append elements to a list."""
        self._builder.append(target, values)

    def finish(self, tree: Any) -> None:
        """Let the builder look over the tree."""
        self._builder.finish(tree)

    def _note_equal(self, keys: list[Any]) -> None:
        """Note references that are equal to others by the bytes that both view."""
        for key in keys:
            if isinstance(key, (tuple, *_DATA)) and self._met.setdefault(key, key) is not key:
                self._trace.has_equal_keys = True

    def call(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Return the builder's value for a call; note the function and its arguments."""
        made = self._builder.call(func, args)
        if not args and type(made) is NotedDict:  # the hooks of each tensor
            return made
        note = self._by_id.get(id(func)) or self._find(func)
        note(made, func, args)
        return self._given(made)

    def _find(self, func: Any) -> _Note:
        """Return the method that notes calls of a function; the machine interns names."""
        if not isinstance(func, GlobalRef):
            return self._note_all
        name = func.qualname
        note = self._note_all
        if name in FROM_TYPE:
            note = self._note_from_type
        elif name in TORCH_CALLS:
            note = self._note_view
        elif name in _SHOWN:
            note = partial(self._note_others, _SHOWN[name])
        self._by_id[id(func)] = note
        self._known.append(func)
        return note

    def new(self, cls: Any, args: tuple[Any, ...], kwargs: dict[Any, Any] | None) -> Any:
        """Return the builder's value for an object; note the class and the arguments."""
        made = self._builder.new(cls, args, kwargs)
        if kwargs is not None:
            self._note(made, kwargs)
        note = self._by_id.get(id(cls)) or self._find(cls)
        note(made, cls, args)
        return self._given(made)

    def build(self, obj: Any, state: Any) -> Any:
        """Return the builder's value for an object with a state; note the state."""
        made = self._builder.build(obj, state)
        if type(made) is TensorRef and type(state) is tuple and made is not obj:
            state = state[1:]  # the storage that the tensor views now
        for value in (made,) if made is obj else (made, obj):
            self._note(value, state)
        if isinstance(obj, (GlobalRef, StorageRef)):
            self._given(Opaque(_name(obj), (state,), called=True))
        return made

    def persistent(self, saved_id: Any) -> Any:
        """Return the builder's value for a persistent id."""
        return self._builder.persistent(saved_id)

    def items_of(self, target: Any) -> dict[Any, Any]:
        """Return the builder's dict for the items of an object; note the dict."""
        return self._filled(target, self._builder.items_of(target))

    def elements_of(self, target: Any, how: str) -> list[Any]:
        """Return the builder's list for the elements of an object; note the list."""
        return self._filled(target, self._builder.elements_of(target, how))

    def _filled(self, target: Any, content: Content) -> Content:
        if isinstance(target, GlobalRef):
            self._given(Opaque(target.qualname, (content,), called=True))
        else:
            self._note(target, content)
        return content

    def _note_all(self, made: Any, func: Any, args: tuple[Any, ...]) -> None:
        self._note(made, func, *args)

    def _note_others(self, shown: int, made: Any, func: Any, args: tuple[Any, ...]) -> None:
        """Note all arguments but one, which the value shows itself."""
        if _has_odd_keys(made):
            self._note_all(made, func, args)
        else:
            self._note(made, *args[:shown], *args[shown + 1 :])

    def _note_view(self, made: Any, func: Any, args: tuple[Any, ...]) -> None:
        """Note the inputs of a tensor but for the storage or the tensor that it views."""
        if type(made) is not TensorRef or not isinstance(args[0], _DATA):
            self._note_all(made, func, args)
            return
        if args[0] is not made:
            self._note(made, *self._trace.inputs_of(args[0]))
        self._note(made, *args[1:])

    def _note_from_type(self, made: Any, func: Any, args: tuple[Any, ...]) -> None:
        """Note the inputs of a subclass, which another function makes."""
        if type(made) is not TensorRef or len(args) != 4 or type(args[2]) is not tuple:
            self._note_all(made, func, args)
            return
        inner, cls, inputs, state = args
        self._note(made, inner, cls, made.state if isinstance(state, dict) else state)
        (self._by_id.get(id(inner)) or self._find(inner))(made, inner, inputs)

    def _note(self, made: Any, *inputs: Any) -> None:
        if type(made) in _HOLDING_NOTHING:
            return
        held = [value for value in inputs if value is not made and _can_hold(value)]
        if held:
            self._trace.inputs.setdefault(id(made), [made]).extend(held)

    def _given(self, made: Any) -> Any:
        """Return ``made``; if it is a call that is not understood, note it.

        Such a call may keep its arguments anywhere, whether or not its result is used.
        """
        if type(made) is Opaque and made.called:
            self._trace.given.append(made)
        return made


_HOLDING_NOTHING = PLAIN | {bytes, GlobalRef}


def _name(obj: GlobalRef | StorageRef) -> str:
    return obj.qualname if isinstance(obj, GlobalRef) else "a storage"


def _can_hold(value: Any) -> bool:
    """Return whether a value may hold others now or later; a flat tuple of plain values cannot."""
    kind = type(value)
    if kind is tuple:
        return any(type(part) not in PLAIN for part in value)
    return kind not in PLAIN and kind is not GlobalRef


def _has_odd_keys(made: Any) -> bool:
    """Return whether a dict has keys that are no plain values, of which some may be equal here."""
    return isinstance(made, dict) and not set(map(type, made)) <= PLAIN
