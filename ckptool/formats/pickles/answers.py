"""Answers that a state of the user's class prepares for code of Python's or torch's.

A class of the user's may be one of Python's or torch's under another name, or derived from one. Its
``__setstate__`` is then theirs, and iterates, indexes or asks what the state holds under the names
of ``READ``. So such a value may hold functions, but no object that could call them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ckptool.formats.pickles.acting import NAMES_OF_DROPPED
from ckptool.formats.pickles.asked import BY_PICKLE, is_asked_of_all
from ckptool.formats.pickles.dropped import READ_BESIDE, READ_WHEN_DROPPED
from ckptool.formats.pickles.grades import (
    ARMED,
    DATA,
    FOREIGN,
    HOLDING,
    NESTED,
    OBJECT,
    SCALARS,
    Grades,
    is_factory,
    is_function,
)
from ckptool.formats.pickles.imported import IMPORTED
from ckptool.formats.pickles.modules import LOOKED_IN, OF_ANY_MODULE, is_module
from ckptool.formats.pickles.trust import is_own
from ckptool.tree.nodes import CompositeTensor, Opaque, TensorRef

# Attribute -> who reads it as an object is given its state.
READ: dict[str, str] = {
    "args": "exceptions",
    "characters_written": "OSError",
    **dict.fromkeys(("defaults", "param_groups", "state"), "optimizers, and sparsifiers"),
    **dict.fromkeys(("_container", "data_groups"), "sparsifiers of data"),
    **dict.fromkeys(
        ("_all_weights", "_flat_weights", "_flat_weights_names", "all_weights", "bias",
         "bidirectional", "num_layers", "proj_size"), "recurrent modules",
    ),
}  # fmt: skip
# Packages whose classes name a state that they cannot take in the error that they raise.
SHOWING = ("packaging.",)
# Own objects of these cannot be iterated or indexed.
_NO_ROWS = ("argparse.Namespace", "types.SimpleNamespace", "optparse.Values")

IsPlain = Callable[[Any], bool]


def is_imported(qualname: str) -> bool:
    """Return whether a name of the user's may be a class of Python's or torch's that acts.

    Classes that show a state which they cannot take are among them.
    """
    name = qualname.rpartition(".")[2]
    is_of_others = name in IMPORTED or name in NAMES_OF_DROPPED or qualname.startswith(SHOWING)
    return is_of_others and not is_own(qualname)


def worst_of_imported(state: Any) -> int:
    """Return the worst grade of a state for such a class; the user may call a module as they do."""
    is_of_module = isinstance(state, dict) and all(name in state for name in OF_ANY_MODULE)
    return NESTED if is_of_module else FOREIGN


def worst_of_answer(name: Any) -> int:
    """Return the worst grade of a value under an asked name.

    An object of the user's may be one that can be called. Under an everyday word (``close``) it may
    be data too.
    """
    is_word = not isinstance(name, str) or not (name.startswith("_") or name in BY_PICKLE)
    return FOREIGN if is_word else DATA


def prepares_no_answer(state: Any, grades: Grades, is_plain: IsPlain) -> bool:
    """Return whether nothing in a state of the user's object calls what it holds when it is read.

    Args:
        state: the state. One that is no dict of attributes is iterated, and its elements compared.
        grades: those of the pickle's values.
        is_plain: whether a container calls nothing when it is iterated.
    """
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    if not all(part is None or isinstance(part, dict) for part in parts):
        return can_be_read(state, grades, is_plain, most=OBJECT)
    # The class's setters are given what is set in slots.
    is_set = len(parts) == 1 or _can_all_be_read(parts[1], parts[1] or (), grades, is_plain)
    return is_set and all(_prepares_none(part, grades, is_plain) for part in parts if part)


def _prepares_none(part: dict[Any, Any], grades: Grades, is_plain: IsPlain) -> bool:
    """Return whether nothing calls what attributes hold, if other code than the user's reads it."""
    return (
        _can_all_be_read(part, READ.keys() & part.keys(), grades, is_plain)
        and (
            grades.of(part) < HOLDING
            or _can_all_be_read(part, _read_when_dropped(part), grades, is_plain, OBJECT)
        )
        and all(
            (isinstance(part[name], (dict, set)) and is_plain(part[name]))
            or can_be_read(part[name], grades, is_plain, most=OBJECT)
            for name in LOOKED_IN & part.keys()  # a module's code looks there for other attributes
        )
        and holds_modules(part, grades, is_plain)
    )


def _can_all_be_read(
    part: Any, names: Iterable[Any], grades: Grades, is_plain: IsPlain, of_namespaces: int = ARMED
) -> bool:
    return all(
        can_be_read(part[name], grades, is_plain, most=OBJECT, of_namespaces=of_namespaces)
        for name in names
    )


def _read_when_dropped(part: dict[Any, Any]) -> frozenset[Any]:
    """Return the names of attributes that a ``__del__`` may read."""
    if READ_WHEN_DROPPED.isdisjoint(part):
        return frozenset()
    return (READ_WHEN_DROPPED | READ_BESIDE) & part.keys()


def holds_modules(state: Any, grades: Grades, is_plain: IsPlain) -> bool:
    """Return whether a module's parts can be taken for its attributes.

    A name that is no attribute of a module is looked for in its parts, none of which is a function.
    A module that holds a function calls it when it is called itself.
    """
    if not isinstance(state, dict):
        return True
    for inside in (state[name] for name in OF_ANY_MODULE if name in state):
        if not isinstance(inside, dict) or grades.of(inside) < HOLDING:
            continue
        grades.count(1 + len(inside))
        for name, part in inside.items():
            if type(part) is TensorRef or grades.of(part) < HOLDING:
                continue
            is_called = not isinstance(name, str) or is_asked_of_all(name)
            if is_function(part) or is_called:
                return False
            is_silent = is_module(part) or name not in READ
            if not is_silent and not can_be_read(part, grades, is_plain, most=OBJECT):
                return False
    return True


def may_make_class(args: tuple[Any, ...]) -> bool:
    """Return whether a metaclass would take the arguments: a name, bases and attributes."""
    return len(args) == 3 and _may_be_bases(args[1]) and _space(args[2]) is not None


def spaces_of_class(args: tuple[Any, ...], kwargs: Any) -> list[dict[Any, Any]]:
    """Return what any metaclass could take for the attributes of a class that it is to make.

    It may take more than a name, bases and attributes, or these by name.
    """
    given = (*args, *(kwargs.values() if isinstance(kwargs, dict) else ()))
    return [space for each in given if (space := _space(each))] if len(given) > 2 else []


def _may_be_bases(value: Any) -> bool:
    return isinstance(value, tuple) or (isinstance(value, Opaque) and bool(value.args))


def _space(value: Any) -> dict[Any, Any] | None:
    """Return attributes of a class, which an object of the user's may hold as its items."""
    if isinstance(value, Opaque) and (value.called or value.items is not None):
        return value.items or {}
    return value if isinstance(value, dict) else None


def hands_on_no_function(made: Opaque, state: Any, grades: Grades) -> bool:
    """Return whether no function among attributes in slots can get to another object.

    A class of the user's sets each by its ``__setattr__``, which may set it on an object that the
    class stands for. Own classes have stricter rules.
    """
    is_in_slots = isinstance(state, tuple) and len(state) == 2 and not is_own(made.qualname)
    if not is_in_slots or grades.of(state[1]) < HOLDING:
        return True
    factory = state[1].get("default_factory") if isinstance(state[1], dict) else None
    if is_function(factory) and not is_factory(factory):
        return False
    waiting, seen = [made.args, made.kwargs, *state], set[int]()
    while waiting:
        part = waiting.pop()
        if type(part) in SCALARS or is_function(part) or id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, (list, tuple, set, frozenset, dict)):
            grades.count(1 + len(part))
            waiting += [*part, *part.values()] if isinstance(part, dict) else part
        elif isinstance(part, Opaque):
            return False
    return True


def can_be_made_of(args: tuple[Any, ...], kwargs: Any, grades: Grades, is_plain: IsPlain) -> bool:
    """Return whether ``__new__`` of a user's class may be given arguments, whatever its base is.

    Numbers, texts and rows of Python's and numpy's ask their arguments for everything. A weak
    reference calls a function when the first argument is dropped.
    """
    given = (*args, *(kwargs.values() if isinstance(kwargs, dict) else (kwargs,)))
    if grades.worst(given) < NESTED:
        return True
    is_reference = bool(args) and not isinstance(args[0], _NOT_REFERRED_TO)
    if is_reference and any(grades.of(arg) >= HOLDING for arg in args[1:]):
        return False
    if grades.worst(given) >= ARMED:
        return False
    return all(
        can_be_read(arg, grades, is_plain, most=OBJECT, of_namespaces=OBJECT) for arg in given
    )


# Values to which there are no weak references.
_NOT_REFERRED_TO = (str, int, float, complex, bytes, bytearray, tuple, dict, list, type(None))


def can_be_read(
    value: Any, grades: Grades, is_plain: IsPlain, *, most: int, of_namespaces: int = ARMED
) -> bool:
    """Return whether a value calls nothing when it is read.

    Args:
        value: the value, which may hold functions that are not called.
        grades: those of the pickle's values.
        is_plain: whether a container calls nothing when it is iterated.
        most: the worst grade of the user's objects in it.
        of_namespaces: the worst grade of namespaces in it, which have no items.
    """
    waiting, seen = [value], set[int]()
    while waiting:
        part = waiting.pop()
        grade = grades.of(part)
        if grade <= FOREIGN or _is_plain_function(part) or id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, (list, tuple, set, frozenset, dict)):
            if not is_plain(part):
                return False
            grades.count(1 + len(part))
            waiting += part.values() if isinstance(part, dict) else part
        elif isinstance(part, Opaque):
            is_silent = (part.qualname in _NO_ROWS and grade <= of_namespaces) or (
                is_module(part) and grade <= NESTED
            )
            if not is_silent and grade > (OBJECT if is_own(part.qualname) else most):
                return False
        elif not isinstance(part, (TensorRef, CompositeTensor)):
            return False
    return True


def _is_plain_function(part: Any) -> bool:
    """Return whether a value is a function without attributes of the pickle's."""
    if not is_function(part):
        return False
    state = part.state if isinstance(part, Opaque) else None
    return not (isinstance(state, tuple) and len(state) == 4 and state[3])  # of a partial
