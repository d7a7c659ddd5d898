"""The grammar of values: what a loader may do with a value of a pickle, by the value's grade.

A loader runs code of the pickle's only by way of functions that the pickle may call: such a
function may hash its argument, compare it, iterate it, or ask it for an attribute, and the pickle
may have prepared the answer. ``grades.py`` has the grades. Each use of a value has a worst grade
that it allows, and every other use is told as dangerous.

Classes of torch and numpy that are not vetted get data alone: by their constructor, as their state,
as items, and as what their hash reads. So their methods can reach no function of the pickle's, and
no object whose class acts when it is called, iterated or asked. Classes of which it is known that
nothing asks their attributes get more (``_STATES``). Of Python's own classes, and of those in
packages that torch brings along, no object is made at all unless the class is vetted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import Any

from ckptool.formats.pickles.answers import (
    can_be_made_of,
    hands_on_no_function,
    holds_modules,
    is_imported,
    may_make_class,
    prepares_no_answer,
    spaces_of_class,
    worst_of_answer,
    worst_of_imported,
)
from ckptool.formats.pickles.asked import (
    is_asked,
    is_asked_by_states,
    is_asked_of_all,
    is_asked_of_classes,
    is_asked_of_modules,
    is_special,
)
from ckptool.formats.pickles.families import (
    is_guest_of_torch,
    is_inert,
    is_reader,
    kind_of_base,
    takes_class,
)
from ckptool.formats.pickles.grades import (
    ARMED,
    DATA,
    NAME,
    NESTED,
    OBJECT,
    SCALARS,
    TRAP,
    Grades,
    is_factory,
    is_function,
)
from ckptool.formats.pickles.handed_out import is_guest
from ckptool.formats.pickles.modules import LOOKED_IN, is_module, modules_below
from ckptool.formats.pickles.numpy_types import DTYPE, is_true_to_parts
from ckptool.formats.pickles.python_calls import columns_of
from ckptool.formats.pickles.subclasses import NO_SUBCLASS
from ckptool.formats.pickles.torch_calls import is_object_state
from ckptool.formats.pickles.trust import is_own
from ckptool.formats.pickles.vetted import (
    BASED,
    DDP,
    EXCEPTIONS,
    HANDLES,
    HOLDERS,
    HOOK,
    KEEPERS,
    LOOKS_UP,
    MODULES,
    NESTERS,
    OPTIMIZERS,
    PARTIAL,
    READ_STATES,
    SCRIPTED,
    VETTED,
    Kind,
    Takes,
    Vetted,
)
from ckptool.regex import regex
from ckptool.tree.nodes import (
    BytesRef,
    CompositeTensor,
    GlobalRef,
    NotedDict,
    NotedList,
    Opaque,
    SpannedBytes,
    TensorRef,
)

NAMES = 1 << 1  # names of attributes that are looked at in the time of one look
_ROWS = (list, tuple, set, frozenset)
_MOST = {  # the worst grade that an argument of a kind may have
    Kind.DATA: DATA, Kind.OBJECT: OBJECT, Kind.TENSOR: NAME, Kind.HELD: TRAP, Kind.FACTORY: TRAP,
}  # fmt: skip
# Keys that are no text when a loader makes them; a name of a module may be that of a text.
_NO_NAMES = frozenset(
    {int, float, complex, bool, type(None), bytes, SpannedBytes, tuple, frozenset}
)
_HOOKS = regex(r"_\w*_hooks(_with_kwargs|_always_called)?|qconfig")


class Grammar:
    """The rules on the uses of the values of one pickle."""

    def __init__(self, grades: Grades | None = None) -> None:
        self.grades = grades or Grades()
        self.grade = self.grades.of

    # ------------------------------------------------------------------------------ arguments

    def takes(self, row: Vetted, args: Sequence[Any]) -> bool:
        """Return whether each argument is of the kind of its position."""
        kinds = chain(row.takes, repeat(row.rest))
        given = zip(kinds, args, strict=False)
        return all(
            self._is(kind_of_base(args) if kind is BASED else kind, arg) for kind, arg in given
        )

    def _is(self, kind: Takes, arg: Any) -> bool:
        if type(arg) in SCALARS or kind in {Kind.CALLED, Kind.BYTES}:
            is_bytes = kind is not Kind.BYTES or isinstance(arg, (bytes, bytearray, BytesRef))
            return is_bytes and (kind is not Kind.NOTHING or arg is None)
        if kind in _MOST:
            is_tensor = isinstance(arg, (TensorRef, CompositeTensor))
            return self.grade(arg) <= (
                DATA if kind is Kind.TENSOR and not is_tensor else _MOST[kind]
            )
        if kind in {Kind.PAIRS, Kind.ROW, Kind.KEYS}:
            return self._is_row(kind, arg)
        if kind is Kind.STATE:
            return self._is_held(arg)
        return isinstance(arg, GlobalRef) and (kind is Kind.CODE or takes_class(kind, arg.qualname))

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
        """Return whether a container is Python's own, without attributes or calls of the pickle's.

        A missing key of a defaultdict calls its factory.
        """
        if not isinstance(value, (NotedDict, NotedList)):
            return not isinstance(value, Opaque)
        factory = value.made_with.get("default_factory")
        is_trap = factory is not None and not is_factory(factory)
        is_own_class = "class" not in value.made_with and not is_trap
        return is_own_class and self.grade(value.state) == DATA

    def is_key(self, key: Any) -> bool:
        """Return whether a value may be hashed and compared.

        Modules are hashed by their identity. Other objects ask what they hold.
        """
        if self.grade(key) <= OBJECT:
            return True
        waiting, seen = [key], set[int]()
        while waiting:
            part = waiting.pop()
            if not isinstance(part, (tuple, frozenset)):
                is_identity = isinstance(part, GlobalRef) or is_module(part) or is_function(part)
                if self.grade(part) > (NAME if is_identity else OBJECT):
                    return False
            elif id(part) not in seen:
                seen.add(id(part))
                self.grades.count(1 + len(part))
                waiting += part
        return True

    # -------------------------------------------------------------------------------- objects

    def is_made(self, qualname: str, args: tuple[Any, ...], kwargs: Any) -> bool:
        """Return whether ``cls.__new__`` of a class may be given these arguments.

        A class that is made of a name, bases and attributes has the functions in the last two.
        """
        row = VETTED.get(qualname)
        if row is not None:
            return self.takes(row, args) and self.grade(kwargs) == DATA
        worst = max(self.grades.worst(args), self.grade(kwargs))
        if is_own(qualname):
            is_data = worst == DATA and not may_make_class(args)
            return (qualname in HOLDERS and worst < ARMED) or (is_data and is_inert(qualname))
        spaces = spaces_of_class(args, kwargs)
        if not all(self._has_no_trap(space, is_asked_of_classes) for space in spaces):
            return False
        if may_make_class(args):
            is_harmless = self.grade(args[1]) <= NESTED and not any(map(is_special, chain(*spaces)))
            return is_harmless and worst < ARMED
        if is_imported(qualname):
            return worst <= OBJECT
        return can_be_made_of(args, kwargs, self.grades, self._is_plain)

    def is_set(self, qualname: str, state: Any) -> bool:
        """Return whether an object of a class may be given a state."""
        if not self._is_plain(state):
            return self.grade(state) == DATA
        check = next((check for is_of, check in _STATES if is_of(qualname)), None)
        if check is not None:
            return check(self, state)
        if is_imported(qualname):
            return self.grade(state) <= worst_of_imported(state)
        return (
            self.grade(state) < ARMED
            and self._has_no_trap(state, is_asked_of_all)
            and prepares_no_answer(state, self.grades, self._is_plain)
        )

    def is_set_on(self, obj: Opaque, state: Any) -> bool:
        """Return whether an object may be given a state, by its class and by what it holds."""
        is_used = id(obj) in self.grades.bare
        if obj.qualname == DTYPE and (is_used or not is_true_to_parts(obj, state)):
            return False
        is_kept = hands_on_no_function(obj, state, self.grades)
        return is_kept and self.is_set(obj.qualname, state)

    def is_set_on_tensor(self, qualname: str | None, state: Any) -> bool:
        """Return whether a tensor of a class may be given a state; torch's subclasses read it."""
        name = qualname or "torch.Tensor"
        if not is_object_state(state):
            is_variable = qualname is None and type(state) is tuple and len(state) == 3
            return (is_variable and self._is_held(state[2])) or self.is_set(name, state)
        if is_own(name) and name not in NO_SUBCLASS and not self._is_of_nesters(state):
            return False
        return self._is_held(state) and self.grade(state) <= TRAP

    def is_set_on_array(self, state: Any) -> bool:
        """Return whether an array may be given a state; an array of objects only keeps them."""
        if not isinstance(state, tuple) or len(state) < 4:
            return self.grade(state) == DATA
        *form, data = state
        if self.grade(form) > DATA or self.grade(data) >= ARMED:
            return False
        return self.grade(data) == DATA or all(
            of_objects or self.grade(column) == DATA
            for of_objects, column in columns_of(form, data)
        )

    def _is_partial(self, state: Any) -> bool:
        is_sound = isinstance(state, tuple) and len(state) == 4 and type(state[1]) is tuple
        return is_sound and self._has_no_trap(state[3], is_asked) and self.grade(state) < ARMED

    def _is_held(self, state: Any) -> bool:
        """Return whether a state is attributes that are only kept, none under an asked name."""
        if not is_object_state(state):
            return self.grade(state) == DATA
        is_plain = all(map(self._is_plain, state if isinstance(state, tuple) else (state,)))
        return is_plain and self.grade(state) < ARMED and self._has_no_trap(state, is_asked)

    def _is_of_exception(self, state: Any) -> bool:
        """Return whether a state is only kept, apart from ``args``, which are iterated."""
        args = state.get("args", ()) if isinstance(state, dict) else ()
        return self._is_row(Kind.ROW, args) and self._is_held(state)

    def _is_kept(self, state: Any) -> bool:
        """Return whether a state is attributes of an object that only keeps them.

        Those in slots are set one by one, by a method of the class.
        """
        if not isinstance(state, dict):
            return self.grade(state) == DATA
        return self.grade(state) <= TRAP and self._has_no_trap(state, is_asked_by_states)

    def _is_of_hook(self, state: Any) -> bool:
        """Return whether a state is a hook's, which asks whether ``with_module`` is true."""
        is_flag = isinstance(state, dict) and type(state.get("with_module")) in SCALARS
        return is_flag and self._is_kept(state)

    def _is_of_reader(self, state: Any) -> bool:
        """Return whether a state is a module's, and its other attributes hold no names."""
        return self._is_of_module(state) and all(
            self.grade(value) <= OBJECT or is_function(value) or self._is_of_scripts(value)
            for name, value in (state.items() if isinstance(state, dict) else ())
            if name not in LOOKED_IN and not _HOOKS.fullmatch(str(name))
        )

    def _is_of_ddp(self, state: Any) -> bool:
        """Return whether a state is of torch's wrapper, which lists all modules and parameters."""
        return self._is_of_reader(state) and all(
            type(part) is Opaque and self._has_no_trap(part.attributes, is_asked_of_modules)
            for part in modules_below(state)
        )

    def _is_of_module(self, state: Any) -> bool:
        """Return whether a state is a module's: what its code looks at is plain."""
        if not isinstance(state, dict):
            return self.grade(state) == DATA
        looked_in = [state[name] for name in LOOKED_IN if name in state]
        return (
            self.grade(state) <= NAME
            and self._has_no_trap(state, is_asked_by_states)
            and all(isinstance(part, (dict, set)) and self._is_plain(part) for part in looked_in)
            and holds_modules(state, self.grades, self._is_plain)
        )

    def _is_of_handle(self, state: Any) -> bool:
        """Return whether a state is that of a handle of hooks: weak references to their dicts."""
        parts = state if type(state) is tuple else ()
        more = [part for row in parts if type(row) is tuple for part in row]
        held = [part for part in (*parts, *more) if type(part) is not tuple]
        return (
            all(isinstance(part, dict) or type(part) in SCALARS for part in held)
            and all(map(self._is_plain, held))
            and self.grade(state) < ARMED
        )

    def can_be_read(self, values: list[Any]) -> bool:
        """Return whether values hold nothing that calls when a number or a text is made of them."""
        return can_be_made_of((None, *values), None, self.grades, self._is_plain)

    def is_data(self, state: Any) -> bool:
        """Return whether a value is data."""
        return self.grade(state) == DATA

    def _is_number(self, state: Any) -> bool:
        return type(state) is int  # members belong to the loader: only their number is set

    def _is_of_scripts(self, state: Any) -> bool:
        return self._is_of_objects(state, SCRIPTED)

    def _is_of_nesters(self, state: Any) -> bool:
        return self._is_of_objects(state, NESTERS)

    def _is_of_objects(self, state: Any, family: str | tuple[str, ...]) -> bool:
        """Return whether a state is data and objects of a family's classes, in plain containers.

        What those hold was looked at when it was set.
        """
        waiting, seen = [state], set[int]()
        while waiting:
            part = waiting.pop()
            if self.grade(part) == DATA or id(part) in seen:
                continue
            if isinstance(part, (tuple, list, dict)) and self._is_plain(part):
                seen.add(id(part))
                self.grades.count(1 + len(part))
                waiting += [*part, *part.values()] if isinstance(part, dict) else part
            elif not isinstance(part, CompositeTensor) and not (
                isinstance(part, Opaque)
                and part.qualname.startswith(family)
                and not is_guest(part.qualname)
            ):
                return False
        return True

    def _has_no_trap(self, state: Any, asked: Callable[[str], bool]) -> bool:
        """Return whether nothing own or prepared has an asked name, or a computed one.

        An object of an own class may be called, too.
        """
        if isinstance(state, tuple):
            return all(self._has_no_trap(part, asked) for part in state if isinstance(part, dict))
        if isinstance(state, dict):
            self.grades.count(len(state) // NAMES)
        for name, value in state.items() if isinstance(state, dict) else ():
            if type(value) in SCALARS or (type(name) is str and not asked(name)):
                continue
            if name == "__dict__" and isinstance(value, dict):  # of pydantic
                if not self._has_no_trap(value, asked):
                    return False
            elif type(name) not in _NO_NAMES and self.grade(value) > worst_of_answer(name):
                return False
        return True


# Of a class of Python's, torch's or numpy's: whether it is of a family, and what its state may be.
_STATES: tuple[tuple[Callable[[str], bool], Callable[[Grammar, Any], bool]], ...] = (
    (PARTIAL.__eq__, Grammar._is_partial),
    (EXCEPTIONS.__contains__, Grammar._is_of_exception),
    (HOLDERS.__contains__, Grammar._is_held),
    (lambda name: name in VETTED and VETTED[name].why == LOOKS_UP, Grammar._is_number),
    (VETTED.__contains__, Grammar.is_data),
    (is_guest_of_torch, Grammar.is_data),
    (lambda name: name.startswith(MODULES) and name.endswith(HOOK), Grammar._is_of_hook),
    (lambda name: name.startswith(HANDLES), Grammar._is_of_handle),
    (DDP.__eq__, Grammar._is_of_ddp),
    (is_reader, Grammar._is_of_reader),
    (lambda name: name.startswith(MODULES), Grammar._is_of_module),
    (lambda name: name.startswith(KEEPERS), Grammar._is_kept),
    (lambda name: name.startswith(OPTIMIZERS), Grammar.is_data),
    (READ_STATES.__contains__, Grammar.is_data),
    (SCRIPTED.__eq__, Grammar._is_of_scripts),
    (lambda name: name.startswith(NESTERS), Grammar._is_of_nesters),
    (is_own, Grammar.is_data),
)
