"""Builder that makes tensors, containers and arrays of pickled calls.

``calls.py`` has the table of the calls that it knows. A call that is not in the table becomes an
:class:`~ckptool.tree.nodes.Opaque`. Functions that a call would run as a side effect are noted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ckptool.errors import CkptError
from ckptool.formats.pickles.calls import (
    CALLS,
    COPYING,
    FROM_TYPE,
    NESTED,
    NEWOBJ,
    REFUSING,
    RUNS_SOURCE,
    UNREAD,
    checked,
)
from ckptool.formats.pickles.machine import name_of
from ckptool.formats.pickles.plain_names import PLAIN_CALLS
from ckptool.formats.pickles.python_calls import (
    FILLED_LATER,
    FILLING_CALLS,
    NDARRAY,
    keep_last,
    numpy_build,
    state_of,
)
from ckptool.formats.pickles.sentence import TensorSentence
from ckptool.formats.pickles.states import States
from ckptool.formats.pickles.storages import LocateStorage, Storages
from ckptool.formats.pickles.tensor_views import Call, kind_of
from ckptool.formats.pickles.torch_calls import (
    FAULTS,
    check_attributes,
    is_object_state,
    keeps_values,
)
from ckptool.formats.pickles.uses import NotingBuilder
from ckptool.tree.nodes import (
    PLAIN,
    ArrayRef,
    CompositeTensor,
    GlobalRef,
    NotedDict,
    NotedList,
    Opaque,
    StorageRef,
    TensorRef,
)

LoadNested = Callable[[Any], Any]  # the bytes of a nested torch.save -> its tree

_SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset)
_PLAIN_KEYS = PLAIN | {bytes}


def _UNSEEN() -> None:  # noqa: N802
    """Mark a function that has not been looked up yet."""


class TorchBuilder(NotingBuilder):
    """Builder that turns known calls into tensors and containers, and storages into spans."""

    def __init__(
        self,
        locate: LocateStorage | Storages,
        load_nested: LoadNested | None = None,
        byteorder: str = "little",
        *,
        has_views: bool = False,
    ) -> None:
        super().__init__()
        self.storages = locate if isinstance(locate, Storages) else Storages(locate, byteorder)
        self._load_nested = load_nested
        self._has_views = has_views  # the older container: a storage may name a part of another
        self._by_id: dict[int, Call | None] = {}  # the machine interns names: identity is enough
        if not has_views:
            self.sentences = TensorSentence(self, self.storages, self._by_id)
        self._states = States(self._meter)
        self._has_object_keys = False
        self.is_plain = True  # torch's safe loader accepts all calls and states

    def call(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Return what the row of ``CALLS`` for ``func`` makes, or an inert object."""
        if not isinstance(func, GlobalRef):
            self.is_plain = False
            inner = self.rules.class_in_class(func)
            return self.note_call(inner or func, args, of_data=inner is not None)
        known = self._by_id.get(id(func), _UNSEEN)
        if known is not None and known is not _UNSEEN:  # most calls: millions in a large file
            return self._checked(known, func, args)
        is_plain = func.qualname in PLAIN_CALLS
        if not is_plain and (looked_up := self.rules.part_looked_up(func, args)) is not None:
            self.looked_up.add(func)
            return looked_up
        if known is _UNSEEN:
            self.called.setdefault(func, [])
            self.is_plain &= is_plain
            known = self._by_id[id(func)] = self._find(func)
        if known is not None:
            return self._checked(known, func, args)
        if self.rules.is_value(func):
            self.object_to(f"{func.qualname} is called, which is no function")
        if not self.rules.are_valid(func.qualname, args):
            self.object_to(f"{func.qualname} is given what it does not take")
        if self.rules.is_vetted(func.qualname) and not self._check_arguments(func, args):
            return Opaque(func.qualname, args, called=True)
        return self.note_call(func, args, of_data=True)

    def _checked(self, call: Call, func: GlobalRef, args: tuple[Any, ...]) -> Any:
        """Return ``call(*args)``; before it fails, the function may run what it is given."""
        try:
            return checked(call, func, args)
        except CkptError:
            if func.qualname in UNREAD:
                self.note_misuse(func, args)
            elif self.rules.is_vetted(func.qualname):
                self._check_arguments(func, args)
            raise

    def _check_arguments(self, func: GlobalRef, args: tuple[Any, ...]) -> bool:
        """Return whether arguments are of the kinds in a row; note the call if they are not."""
        name, rules = func.qualname, self.rules
        if rules.are_asked_later(name, args):
            fits = self.expect(func, partial(rules.may_take, name, args), args)
        else:
            fits = rules.may_take(name, args)
            if not fits:
                self.note_misuse(func, args)
        for ref, is_called in rules.names_taken(name, args):
            self.placed.add(ref)
            if is_called:
                self.called.setdefault(ref, [])
        return fits

    def new(self, cls: Any, args: tuple[Any, ...], kwargs: dict[Any, Any] | None) -> Any:
        """Return a plain container, as newer protocols make it, or an inert object."""
        self.is_plain = False
        rules = self.rules
        if isinstance(cls, GlobalRef) and (rules.is_function(cls.qualname) or rules.is_value(cls)):
            self.object_to(f"{cls.qualname} is no class, and an object of it is made")
        known = self._plain(cls.qualname) if isinstance(cls, GlobalRef) else None
        name = name_of(cls)
        if isinstance(cls, GlobalRef):
            what = cls if rules.may_act_when_made(name) else f"{name}.__new__"
            self.expect(what, partial(rules.is_made, name, args, kwargs), args)
        if known is not None and not kwargs:
            return self._checked(known, cls, () if name in FILLED_LATER else args)
        if kwargs is None and isinstance(cls, GlobalRef):
            self.budget.count_inert()
            return super().new(cls, args, kwargs)
        inner = rules.class_in_class(cls) if kwargs is None else None
        return self.note_call(inner or cls, args, kwargs, of_data=inner is not None)

    def build(self, obj: Any, state: Any) -> Any:
        """Set the state of an object and return the object; an array is complete only then."""
        self.is_plain &= type(obj) is NotedDict and type(state) is dict
        self.forget(obj)
        if isinstance(obj, ArrayRef):
            if not self.rules.is_set_on_array(state):
                self.note_misuse(f"{NDARRAY}.__setstate__", (state,))
            return checked(partial(self._metered, numpy_build, obj), NDARRAY, state_of(state))
        if not self._states.is_metadata(obj, state):
            self._check_state(obj, state)
        if isinstance(obj, (TensorRef, CompositeTensor, StorageRef)):
            if not keeps_values(obj, state):
                self.object_to("a state is set on a tensor that no tensor can have")
            return obj
        if isinstance(obj, (NotedDict, NotedList)):
            is_dict = isinstance(obj, NotedDict) and isinstance(state, (dict, type(None)))
            if not is_dict and state is not None:
                self.object_to(f"a container is given a state that is {kind_of(state)}")
            obj.state = state
            return obj
        if isinstance(obj, Opaque):
            state = self._states.set(obj, state)
        return super().build(obj, state)

    def _check_state(self, obj: Any, state: Any) -> None:
        """Note a state that runs what the pickle prepared, when it is set or afterwards."""
        name, rules = name_of(obj), self.rules
        if rules.is_the_loaders(obj):  # the attributes of a class, or of a module's function
            self.note_call(rules.part_of(obj, "__dict__"), (state,))
        fits: Callable[[Any], bool] = rules.is_data
        if isinstance(obj, Opaque):
            name, fits = obj.qualname, partial(rules.is_set_on, obj)
            if obj.state is not None:  # which is asked for the __setstate__ of the second
                is_asked = not rules.is_data(obj.state) or rules.is_own(name)
                fits = (lambda _state: False) if is_asked else rules.is_data
        elif isinstance(obj, (NotedDict, NotedList)):
            name, fits = "collections.OrderedDict", partial(rules.is_set, "argparse.Namespace")
        elif isinstance(obj, (TensorRef, CompositeTensor)):
            cls = obj.subclass if isinstance(obj, TensorRef) else obj.layout
            name, fits = cls or "torch.Tensor", partial(rules.is_set_on_tensor, cls)
        self.expect(f"{name}.__setstate__", partial(fits, state), (state,))

    def finish(self, tree: Any) -> None:
        """Refuse dicts with keys that a loader may take for one, now that they are complete."""
        for obj, state in self._states.changed_metadata():
            self._check_state(obj, state)
        self.look_again()
        self._states.finish()
        if self._has_object_keys:
            from ckptool.formats.pickles.keys import refuse_equal_keys_in  # noqa: PLC0415 - rare

            refuse_equal_keys_in(tree)

    def set_items(self, target: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
        """Set items of a dict; remember whether any key is an object."""
        self.forget(target)
        self._states.keep(target)
        super().set_items(target, keys, values)
        kinds = set(map(type, keys))
        if not kinds <= _PLAIN_KEYS:
            self.hash_objects(keys)
            if Opaque in kinds:
                self._has_object_keys = True

    def add(self, target: set[Any], keys: list[Any]) -> None:
        """Add elements to a set, of which their classes compute the hashes."""
        self.forget(target)
        super().add(target, keys)
        self.hash_objects(keys)

    def append(self, target: list[Any], values: list[Any]) -> None:
        """Append elements to a list."""
        self.forget(target)
        super().append(target, values)
        if type(target) is NotedList:
            keep_last(target)

    def items_of(self, target: Any) -> dict[Any, Any]:
        """Return the dict for the items; note a name (``os.environ``) that a loader changes."""
        self._note_filled(target, "__setitem__")
        return super().items_of(target)

    def elements_of(self, target: Any, how: str) -> list[Any]:
        """Return the list for the elements; note a name (``sys.path``) that a loader changes."""
        self._note_filled(target, "append")
        return super().elements_of(target, how)

    def _note_filled(self, target: Any, method: str) -> None:
        self.is_plain = False
        if self.rules.is_the_loaders(target):
            self.note_call(self.rules.part_of(target, method), ())
        self._check_filled(target, method)
        self.forget(target)

    def _check_filled(self, target: Any, method: str) -> None:
        """Note an object that a method of an own class fills, or one of which its state decides.

        A pickle that Python wrote fills an object before it sets its state. The own classes that
        are filled are made as containers.
        """
        if not isinstance(target, Opaque):
            return
        is_directed = target.state is not None and not self.rules.is_data(target.state)
        if self.rules.is_own(target.qualname) or is_directed:
            self.note_misuse(f"{target.qualname}.{method}", (target,))

    def persistent(self, saved_id: Any) -> Any:
        """Return the storage of ``('storage', class, key, location, numel, view)``, or a class."""
        if not isinstance(saved_id, tuple) or not saved_id:
            self.is_plain = False
            return super().persistent(saved_id)
        kind, *rest = saved_id
        if not (type(kind) in {str, bytes} and all(map(self.is_part_of_id, rest))):
            self.note_misuse("persistent_load", (saved_id,))
        self.is_plain &= kind in ("storage", b"storage")
        if kind in ("module", b"module") and rest:  # legacy: (class, source file, source)
            if len(rest) != 3 or not self._has_views:
                self.object_to("a module's class in a persistent id, which only old files have")
            return rest[0]
        if kind not in ("storage", b"storage") or len(rest) < 4:
            return super().persistent(saved_id)
        if len(rest) != (5 if self._has_views else 4):
            self.object_to(f"a storage is described by {len(rest)} values")
        if not isinstance(rest[0], GlobalRef):
            self.object_to("the class of a storage is no class")
        return self.storages.get(*rest[:5])

    def is_part_of_id(self, part: Any) -> bool:
        """Return whether a part of a persistent id is a plain value or a name."""
        return type(part) in {str, int, bytes, GlobalRef} or self.rules.is_data(part)

    def _find(self, func: GlobalRef) -> Call | None:
        qualname = func.qualname
        known = self._own_calls().get(qualname) or self._plain(qualname)
        if known is None:
            return None
        if qualname in FAULTS:
            known = partial(self._objecting, FAULTS[qualname], known)
        if qualname in RUNS_SOURCE:
            known = partial(self._running, func, known)
        return known if qualname in REFUSING else partial(self._vetted, func, known)

    def _own_calls(self) -> dict[str, Call | None]:
        return {
            **dict.fromkeys(FROM_TYPE, self._rebuild_from_type),
            **dict.fromkeys(NESTED, self._load_nested),
            **{name: partial(self._new_object, name) for name in NEWOBJ},
        }

    def _new_object(self, name: str, cls: Any, *args: Any) -> Any:
        """Return the object of ``copyreg.__newobj__``, or of the one with keywords."""
        if not name.endswith("_ex__"):
            return self.new(cls, args, None)
        if [type(arg) for arg in args] != [tuple, dict]:
            self.note_misuse(name, (cls, *args))
        return self.new(cls, *args)

    def _vetted(self, func: GlobalRef, call: Call, *args: Any) -> Any:
        """Return ``call(*args)``; note arguments of other kinds than the row vets."""
        if args:
            self._check_arguments(func, args)
        return call(*args)

    def _objecting(self, fault: Callable[..., str | None], call: Call, *args: Any) -> Any:
        """Return ``call(*args)``; object to arguments that torch's own function refuses."""
        made = call(*args)
        found = fault(*args, has_views=self._has_views)
        if found:
            self.object_to(found)
        return made

    def _running(self, ref: GlobalRef, call: Call, *args: Any) -> Any:
        """Return ``call(*args)``; note that a loader would run the source code in the file."""
        self.note_call(ref, args)
        return call(*args)

    def _plain(self, qualname: str) -> Call | None:
        known = CALLS.get(qualname)
        if known and qualname in FILLING_CALLS:
            known = partial(self._filling, known)
        return partial(self._metered, known) if known and qualname in COPYING else known

    def _filling(self, call: Call, *args: Any) -> Any:
        """Return ``call(*args)``; the file's budget counts the keys that it sets."""
        made = call(*args, budget=self.budget)
        if args and Opaque in map(type, made):
            self._has_object_keys = True
        return made

    def _metered(self, call: Call, *args: Any) -> Any:
        """Return ``call(*args)``; refuse a pickle that copies more than it could spell out."""
        self._meter(args)
        return call(*args)

    def _meter(self, args: tuple[Any, ...]) -> None:
        self.budget.count_copies(sum(len(arg) for arg in args if isinstance(arg, _SIZED)))

    def _rebuild_from_type(self, func: Any, cls: Any, args: Any, state: Any) -> Any:
        """Return a tensor subclass: the plain tensor, marked with its class."""
        if type(args) is not tuple:  # what the function is called with is iterated
            self.note_misuse(name_of(func), (args,))
        made = self.call(func, args)
        if not self.rules.is_set_on_tensor(name_of(cls), state):
            self.note_misuse(f"{name_of(cls)}.__setstate__", (state,))
        if not is_object_state(state) and not self.rules.is_subclass(name_of(cls)):
            self.object_to(f"a tensor is given attributes by {kind_of(state)}")
        if isinstance(made, TensorRef):
            check_attributes(state)
            return self.rules.of_subclass(made, name_of(cls), state, self._meter)
        if isinstance(made, CompositeTensor):
            if made.wrapper is not None:
                self.build(made.wrapper, state)
                self._meter_parts(made.wrapper)
            return self.rules.as_subclass(made, cls)
        made = self.build(made, state)
        if isinstance(made, Opaque):
            self._meter_parts(made)
        return self.rules.as_subclass(made, cls)

    def _meter_parts(self, made: Opaque) -> None:
        """Meter the list of a subclass's parts: a million subclasses may share one state."""
        state = made.state if isinstance(made.state, tuple) else (made.state,)
        self._meter((*state[:2], *made.args, made.items, made.elements))
