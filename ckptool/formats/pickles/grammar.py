"""The grammar of values: what a value of a pickle can do to the code that is given it.

A loader runs code of the pickle's only by way of functions that the pickle may call: such a
function may hash its argument, compare it, iterate it, or ask it for an attribute, and the pickle
may have prepared the answer. Each value has a grade, which is the worst of its parts:

* ``DATA``: numbers, text, bytes, tensors, arrays, dtypes, vetted values made of data (a date), and
  containers of data. Code that reads it runs nothing of the pickle's.
* ``OBJECT``: an object of a class that is not vetted. Its own parts were graded when it was built.
* ``NAME``: the name of a class or a function, a prepared call (``functools.partial``), a method.
* ``TRAP``: a container that calls when it is asked: a defaultdict whose factory is not vetted, an
  object of torch's that calls what it holds when it is iterated.
* ``ARMED``: a function of ``VETTED`` as a value. It is harmless only while its arguments are
  checked, and a call by another way is not seen.

Objects of Python's, torch's and numpy's classes that are not vetted hold no names, unless the class
is known to do nothing with them; so their methods can reach no function of the pickle's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain, repeat
from typing import Any

from ckptool.formats.pickles.torch_calls import is_object_state
from ckptool.formats.pickles.trust import OWN_PACKAGES, STDLIB, TORCH_VALUES
from ckptool.formats.pickles.vetted import (
    ARRAYS,
    FACTORIES,
    FUNCTIONS,
    HOLDERS,
    KEEPERS,
    LOOKS_UP,
    MODULES,
    OPTIMIZERS,
    PARTIAL,
    VETTED,
    Kind,
    Takes,
    Vetted,
)
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
)

DATA, OBJECT, NAME, TRAP, ARMED = range(5)
MAX_HELD = 1 << 21  # values in objects of the user's own classes that are looked at
Parts = Iterable[Any]

_SCALARS = frozenset({
    str, int, float, bool, complex, bytes, bytearray, type(None), SpannedBytes, BytesRef,
    PathText, StorageRef,
})  # fmt: skip
_ROWS = (list, tuple, set, frozenset)
_MOST = {  # the worst grade that an argument of a kind may have
    Kind.DATA: DATA, Kind.OBJECT: OBJECT, Kind.TENSOR: NAME, Kind.HELD: TRAP, Kind.FACTORY: TRAP,
}  # fmt: skip
_LOOKUPS = frozenset({"builtins.getattr", "__builtin__.getattr"})

# The attributes in which torch's modules look for others.
_LOOKED_IN = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})
# Attributes that pickle itself asks of any object.
_BY_PICKLE = frozenset({"__setstate__", "__class__", "__dict__", "__reduce__", "__reduce_ex__"})
# Attributes by which Python's functions, numpy's and torch's read their arguments.
_BY_READERS = frozenset(
    name
    for kind in (dict, list, set, str, bytes, int, float, complex, slice, range)
    for name in dir(kind)
) | frozenset({
    "_get_args", "_get_kwargs", "add_", "appendleft", "as_subclass", "clone", "cpu", "cuda",
    "default_factory", "detach", "detach_", "device", "dtype", "elements", "extendleft",
    "is_leaf", "move_to_end", "new", "numpy", "requires_grad_", "set_", "shape", "size", "storage",
    "stride", "to", "type", "untyped_storage", "_untyped_storage", "view",
})  # fmt: skip


def is_own(qualname: str) -> bool:
    """Return whether a name is Python's, torch's or numpy's."""
    root = qualname.partition(".")[0]
    return root in STDLIB or root in OWN_PACKAGES


class Grammar:
    """The grades of the values of one pickle; it looks at a bounded number of them."""

    def __init__(self) -> None:
        self.looks_left = 1 << 24  # values that may be looked at; a larger pickle allows more
        self._held_left = MAX_HELD

    def grade(self, value: Any) -> int:
        """Return the worst grade of the parts of a value.

        An object of a class of the user's is graded when it is built: its own code does what it
        likes. In other objects a name does not count, but a trap: containers may have changed.
        """
        if type(value) in _SCALARS:
            return DATA
        worst, seen, inside = DATA, set[int](), list[Any]()
        waiting: list[Any] = [value]
        for stack, harmless in ((waiting, DATA), (inside, NAME)):
            while stack and worst < ARMED:
                value = stack.pop()
                if type(value) in _SCALARS or id(value) in seen:
                    continue
                seen.add(id(value))
                least, parts = _parts(value)
                if least > harmless:
                    worst = max(worst, least)
                is_object = isinstance(value, Opaque) and least in {OBJECT, TRAP}
                onto = inside if is_object else stack
                before = len(onto)
                onto += parts
                self.looks_left -= len(onto) - before
                if self.looks_left < 0:  # too much to look at: no data, whatever it is
                    return max(worst, TRAP)
        return worst

    def _holds(self, value: Any) -> bool:
        """Return whether an object of a class of the user's may hold a value: nothing is armed.

        Many objects may share one large container, which is not looked at again and again.
        """
        if self._held_left < 0:
            return True
        left = self.looks_left
        grade = self.grade(value)
        self._held_left -= left - self.looks_left
        self.looks_left = left
        return grade < ARMED

    # ------------------------------------------------------------------------------ arguments

    def takes(self, row: Vetted, args: Iterable[Any]) -> bool:
        """Return whether each argument is of the kind of its position."""
        kinds = chain(row.takes, repeat(row.rest))
        return all(self._is(kind, arg) for kind, arg in zip(kinds, args, strict=False))

    def _is(self, kind: Takes, arg: Any) -> bool:
        if type(arg) in _SCALARS or kind in {Kind.CALLED, Kind.BYTES}:
            return kind is not Kind.BYTES or isinstance(arg, (bytes, bytearray, BytesRef))
        if kind in _MOST:
            is_tensor = isinstance(arg, (TensorRef, CompositeTensor))
            return self.grade(arg) <= (
                DATA if kind is Kind.TENSOR and not is_tensor else _MOST[kind]
            )
        if kind in {Kind.PAIRS, Kind.ROW, Kind.KEYS}:
            return self._is_row(kind, arg)
        if kind is Kind.STATE:
            return self._is_held(arg)
        if kind is Kind.CODE:
            return self.grade(arg) <= (NAME if isinstance(arg, GlobalRef) else DATA)
        return isinstance(arg, GlobalRef) and _is_class(kind, arg.qualname)

    def _is_row(self, kind: Takes, arg: Any) -> bool:
        """Return whether an argument can be iterated without asking anything of the pickle's."""
        if not isinstance(arg, (*_ROWS, dict)) or not self._is_plain(arg):
            return self.grade(arg) == DATA
        keys: Any = () if kind is Kind.ROW or isinstance(arg, dict) else arg
        if kind is Kind.PAIRS:
            if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in keys):
                return self.grade(arg) == DATA
            keys = [key for key, _ in keys]
        return all(map(self.is_key, keys)) and self.grade(arg) < ARMED

    def _is_plain(self, value: Any) -> bool:
        """Return whether a container is Python's own, without attributes of the pickle's."""
        if not isinstance(value, (NotedDict, NotedList)):
            return not isinstance(value, Opaque)
        return "class" not in value.made_with and self.grade(value.state) == DATA

    def is_key(self, key: Any) -> bool:
        """Return whether a value may be hashed and compared."""
        return type(key) in _SCALARS or self.grade(key) <= NAME

    # -------------------------------------------------------------------------------- objects

    def is_made(self, qualname: str, args: tuple[Any, ...], kwargs: Any) -> bool:
        """Return whether ``cls.__new__`` of a class may be given these arguments.

        A class that is made of a name, bases and attributes runs functions of the last two.
        """
        row = VETTED.get(qualname)
        if row is not None:
            return self.takes(row, args) and self.grade(kwargs) == DATA
        if [type(arg) for arg in args] == [str, tuple, dict] and (
            is_own(qualname) or any(map(is_special, args[2]))
        ):
            return False
        if is_own(qualname):
            return self.grade((args, kwargs)) <= OBJECT
        return self._holds((args, kwargs))

    def is_set(self, qualname: str, state: Any) -> bool:
        """Return whether an object of a class may be given a state."""
        if not self._is_plain(state):
            return self.grade(state) == DATA
        check = next((check for is_of, check in _STATES if is_of(qualname)), None)
        if check is not None:
            return check(self, state)
        return self._holds(state) and self._has_no_trap(state, _BY_PICKLE.__contains__)

    def is_set_on_tensor(self, qualname: str, state: Any) -> bool:
        """Return whether a tensor of a class may be given a state."""
        return self._is_held(state) if is_object_state(state) else self.is_set(qualname, state)

    def is_set_on_array(self, state: Any) -> bool:
        """Return whether an array may be given a state; an array of objects only keeps them."""
        if not isinstance(state, tuple) or len(state) < 4:
            return self.grade(state) == DATA
        *form, data = state
        most = TRAP if _keeps_objects(state[-3]) else DATA
        return self.grade(form) == DATA and self.grade(data) <= most

    def _is_partial(self, state: Any) -> bool:
        is_sound = isinstance(state, tuple) and len(state) == 4 and type(state[1]) is tuple
        return is_sound and self._has_no_trap(state[3], _is_asked) and self.grade(state) < ARMED

    def _is_held(self, state: Any) -> bool:
        """Return whether a state is attributes that are only kept, none under an asked name."""
        if not is_object_state(state):
            return self.grade(state) == DATA
        is_plain = all(map(self._is_plain, state if isinstance(state, tuple) else (state,)))
        return is_plain and self.grade(state) < ARMED and self._has_no_trap(state, _is_asked)

    def _is_kept(self, state: Any) -> bool:
        return self.grade(state) <= TRAP and self._has_no_trap(state, is_special)

    def _is_module(self, state: Any) -> bool:
        fields = state if isinstance(state, dict) else {}
        looked_in = [fields[name] for name in _LOOKED_IN if name in fields]
        return (
            self.grade(state) <= NAME
            and self._has_no_trap(state, is_special)
            and all(isinstance(part, (dict, set)) and self._is_plain(part) for part in looked_in)
        )

    def _is_data(self, state: Any) -> bool:
        return self.grade(state) == DATA

    def _is_number(self, state: Any) -> bool:
        return type(state) is int  # members belong to the loader: only their number is set

    def _is_of_objects(self, state: Any) -> bool:
        return self.grade(state) <= OBJECT

    def _has_no_trap(self, state: Any, asked: Callable[[str], bool]) -> bool:
        """Return whether no function stands under an asked name, or under a computed one."""
        if isinstance(state, tuple):
            return all(self._has_no_trap(part, asked) for part in state if isinstance(part, dict))
        for name, value in state.items() if isinstance(state, dict) else ():
            if (type(name) is str and not asked(name)) or type(value) in _SCALARS:
                continue
            if name == "__dict__" and isinstance(value, dict):  # of pydantic
                if not self._has_no_trap(value, asked):
                    return False
            elif isinstance(name, (str, Opaque)) and self.grade(value) > OBJECT:
                return False
        return True


def is_special(name: Any) -> bool:
    """Return whether a name is in two underscores on both sides, as those that Python asks for."""
    return isinstance(name, str) and len(name) > 4 and name[:2] == name[-2:] == "__"


def _is_asked(name: str) -> bool:
    return name in _BY_READERS or is_special(name)


# Of a class of Python's, torch's or numpy's: whether it is of a family, and what its state may be.
_STATES: tuple[tuple[Callable[[str], bool], Callable[[Grammar, Any], bool]], ...] = (
    (PARTIAL.__eq__, Grammar._is_partial),
    (HOLDERS.__contains__, Grammar._is_held),
    (lambda name: name in VETTED and VETTED[name].why == LOOKS_UP, Grammar._is_number),
    (VETTED.__contains__, Grammar._is_data),
    (lambda name: name.startswith(MODULES), Grammar._is_module),
    (lambda name: name.startswith(KEEPERS), Grammar._is_kept),
    (lambda name: name.startswith(OPTIMIZERS), Grammar._is_data),
    (is_own, Grammar._is_of_objects),
)

# ----------------------------------------------------------------------------- the parts of a value


def _parts(value: Any) -> tuple[int, Parts]:
    """Return the least grade that a value has, and its parts that may make it worse."""
    kind = next((kind for kind in _PARTS if isinstance(value, kind)), None)
    return _PARTS[kind](value) if kind is not None else (OBJECT, ())


def _parts_of_name(ref: GlobalRef) -> tuple[int, Parts]:
    if ref.qualname in TORCH_VALUES:
        return DATA, ()
    return (ARMED if ref.qualname in FUNCTIONS else NAME), ()


def _parts_of_dict(value: dict[Any, Any]) -> tuple[int, Parts]:
    parts = [*value, *value.values()]
    if not isinstance(value, NotedDict):
        return DATA, parts
    factory = value.made_with.get("default_factory")
    is_trap = factory is not None and not _is_factory(factory)
    return (TRAP if is_trap else DATA), [*parts, value.state]


def _parts_of_object(made: Opaque) -> tuple[int, Parts]:
    name = made.qualname
    if made.called and name in _LOOKUPS:
        return NAME, ()
    parts = [made.kwargs, made.state, made.items, made.elements]
    if name == PARTIAL:
        return NAME, [*parts, made.args]
    if name in VETTED or name in HOLDERS or name == "numpy.scalar":
        return DATA, [*parts, *(arg for arg in made.args if not isinstance(arg, GlobalRef))]
    if not is_own(name):
        return OBJECT, ()
    is_trap = name.startswith(KEEPERS) and any(map(_is_function, _attributes(made)))
    return (TRAP if is_trap else OBJECT), [*parts, *made.args]


def _attributes(made: Opaque) -> Parts:
    """Return the attributes of an object, and those in a row of them."""
    held = made.attributes.values()
    return chain(held, *(part for part in held if isinstance(part, (list, tuple))))


def _is_function(part: Any) -> bool:
    is_prepared = isinstance(part, Opaque) and part.qualname in {PARTIAL, *_LOOKUPS}
    return is_prepared or (isinstance(part, GlobalRef) and part.qualname not in TORCH_VALUES)


_PARTS: Mapping[Any, Callable[[Any], tuple[int, Parts]]] = {
    TensorRef: lambda value: (DATA, (value.state,)),
    GlobalRef: _parts_of_name,
    Opaque: _parts_of_object,
    dict: _parts_of_dict,
    NotedList: lambda value: (DATA, [*value, value.state]),
    _ROWS: lambda value: (DATA, value),
    ArrayRef: lambda value: (DATA, value.objects or ()),
    CompositeTensor: lambda value: (DATA if value.wrapper is None else OBJECT, ()),
    tuple(_SCALARS): lambda _: (DATA, ()),  # subclasses of them
}


def _is_factory(factory: Any) -> bool:
    """Return whether a call without arguments makes an empty value."""
    if isinstance(factory, GlobalRef):
        return factory.qualname in FACTORIES
    if not isinstance(factory, Opaque) or factory.qualname != PARTIAL:
        return False
    func, args, kwargs = (factory.state or (*factory.args[:1], factory.args[1:], None))[:3]
    given = (*args, *(kwargs or {}).values())
    return _is_factory(func) and all(type(x) in _SCALARS or _is_factory(x) for x in given)


def _keeps_objects(dtype: Any) -> bool:
    """Return whether a numpy dtype is of objects, or has fields of objects and numbers alone.

    Of what is no text or number, text would be made, and an array of a field with a shape.
    """
    if not isinstance(dtype, Opaque) or not dtype.args or type(dtype.args[0]) is not str:
        return False
    state = dtype.state if isinstance(dtype.state, tuple) else ()
    fields = state[4] if len(state) > 4 and isinstance(state[4], dict) else None
    if fields is None:
        return dtype.args[0][:1] == "O"
    kinds = [field[0] for field in fields.values() if isinstance(field, tuple) and field]
    return all(
        isinstance(kind, Opaque) and kind.args[:1] and str(kind.args[0])[:1] in "Oiufcb"
        for kind in kinds
    )


def _is_class(kind: Takes, name: str) -> bool:
    """Return whether a vetted function may make objects of a class, or call a function."""
    if isinstance(kind, frozenset):
        return name in kind
    if not is_own(name):
        return True
    if kind is Kind.ARRAY:
        return name in ARRAYS
    is_vetted = name in VETTED or name.startswith("torch.")
    return kind is Kind.CLASS and is_vetted and name not in FUNCTIONS
