"""Uses of names that a builder notes while it follows a pickle: calls, look-ups and misuses."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from ckptool.formats.pickles.budget import Looks
from ckptool.formats.pickles.machine import Builder, name_of
from ckptool.formats.pickles.plain_names import PLAIN_CLASSES, beyond_plain
from ckptool.tree.nodes import GlobalRef, Opaque

if TYPE_CHECKING:
    from ckptool.formats.pickles.rules import Rules

_Expected = tuple[GlobalRef | str, Callable[[], bool], tuple[Any, ...]]
MAX_DATA = 1 << 10  # values in the arguments of one call
MAX_USES = 3  # calls of one name that are kept to be shown
MAX_LOOKED = 1 << 20  # values in arguments that are looked at, of all calls together


class NotingBuilder(Builder):
    """Builder that notes which names the pickle calls, with what, and what it does with others."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = Looks()  # of all pickles of the file, where it has several
        self._rules: Rules | None = None
        self.called: dict[GlobalRef, list[Opaque]] = {}  # function -> its inert calls
        self.given_more: set[GlobalRef] = set()  # names called with more than data
        self.misused: set[GlobalRef] = set()  # reached or given what their vetting does not cover
        self.placed: set[GlobalRef] = set()  # arguments of vetted calls that take such a name
        self.put_off: dict[GlobalRef, list[Opaque]] = {}  # name -> its calls that are put off
        self.looked = 0  # values in arguments that were looked at
        self.looked_up: set[GlobalRef] = set()  # called to look up parts of classes
        self._filled: dict[int, tuple[Opaque, str]] = {}  # id of elements -> the object with them
        self._holders: list[Opaque] = []  # objects with arguments, items or elements
        self._expected: list[_Expected] = []  # uses that were sound when they were made

    @property
    def rules(self) -> Rules:
        """The rules on what is not plain; they are made when they are first asked."""
        if self._rules is None:
            from ckptool.formats.pickles.rules import Rules  # noqa: PLC0415 - most files ask none

            self._rules = Rules(self.looks)
        return self._rules

    def forget(self, value: Any) -> None:
        """Forget what the rules know of a value that the pickle changes."""
        if self._rules is not None:
            self._rules.grades.forget(value)

    def note_call(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[Any, Any] | None = None,
        *,
        of_data: bool = False,
    ) -> Any:
        """Note a call that we do not understand; return it as the object that it would make.

        Args:
            func: the function that is called.
            args: its arguments.
            kwargs: its arguments by name.
            of_data: the pickle itself calls it, so it gets only ``args``.
        """
        self.budget.count_inert()
        name = name_of(func)
        made = Opaque(name, args, kwargs or {}, called=True)
        ref = func if isinstance(func, GlobalRef) else GlobalRef("", name)
        if ref not in self.given_more and not (of_data and self._is_data(args)):
            self.given_more.add(ref)
        self.called.setdefault(ref, []).append(made)
        return made

    def note_misuse(self, what: GlobalRef | str, args: tuple[Any, ...]) -> None:
        """Note that a loader would run what the pickle prepared: a name, or a method of a class."""
        ref = GlobalRef("", what) if isinstance(what, str) else what
        self.misused.add(ref)
        self.note_call(ref, args)

    def expect(
        self, what: GlobalRef | str, fits: Callable[[], bool], given: tuple[Any, ...]
    ) -> bool:
        """Return whether ``what`` is given what fits; note a misuse if it is not, also later."""
        is_sound = fits()
        if is_sound:
            self._expected.append((what, fits, given))
        else:
            self.note_misuse(what, given)
        return is_sound

    def look_again(self) -> None:
        """Note misuses by containers that were filled after an object had been given them."""
        if self._rules is None or not self._rules.grades.have_changed:
            return
        for what, fits, given in self._expected:
            if not fits():
                self.note_misuse(what, given)

    def misplaced(self, names: Any) -> set[GlobalRef]:
        """Return the functions among the names of a pickle that it never calls, but mentions."""
        used = self.placed | self.called.keys()
        idle = {ref for ref in names if ref not in used and ref.qualname not in PLAIN_CLASSES}
        return {ref for ref in idle if self.rules.is_function(ref.qualname)}

    def look_for_calls(self, names: Collection[GlobalRef], tree: Any = None) -> None:
        """Note calls that are put off; note a misuse where one is given more than plain values.

        Raises:
            DamagedError: there is too much to look at.
        """
        if not any(self.rules.may_be_put_off(ref) for ref in beyond_plain(names)):
            return
        given = (values for _, _, values in self._expected)
        held = chain(given, self._holders, *self.called.values(), (tree,))
        for ref, call, is_plain, is_called in self.rules.calls_put_off(held):
            if not is_plain:
                self.misused.add(ref)
            if not is_plain or (is_called and not self.rules.is_own(ref.qualname)):
                self.put_off.setdefault(ref, []).append(call)

    def new(self, cls: Any, args: tuple[Any, ...], kwargs: dict[Any, Any] | None) -> Any:
        """Return an inert object; remember it if it is made with arguments."""
        made = super().new(cls, args, kwargs)
        if args:
            self._holders.append(made)
        return made

    def elements_of(self, target: Any, how: str) -> list[Any]:
        """Return the list for the elements; remember the object that is given them."""
        elements = super().elements_of(target, how)
        if isinstance(target, Opaque):
            self._holders.append(target)
            self._filled[id(elements)] = target, how
        return elements

    def items_of(self, target: Any) -> dict[Any, Any]:
        """Return the dict for the items; remember the object that is given them."""
        items = super().items_of(target)
        if isinstance(target, Opaque):
            self._holders.append(target)
            self._filled[id(items)] = target, "set"
        return items

    def append(self, target: list[Any], values: list[Any]) -> None:
        """Append elements to a list, or give them to an object."""
        super().append(target, values)
        self._fill(target, values)

    def set_items(self, target: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
        """Set items of a dict, or of an object."""
        super().set_items(target, keys, values)
        self._fill(target, values, keys)

    def _fill(self, target: Any, values: list[Any], keys: list[Any] | tuple[()] = ()) -> None:
        """Note elements of which the object that is given them may ask something.

        A class of the user's may be derived from a set, which hashes them, or from an array of
        numbers. Arrays are made with arguments; lists and dicts, which only keep them, are not.
        But a list iterates what it is given under a slice, and a name may be that of a slice.
        No pickler sets a state first, on which methods of the class then work.
        """
        obj, how = self._filled.get(id(target), (None, "")) if self._filled else (None, "")
        if how == "added":
            self.hash_objects(values)
            return
        if obj is None:
            return
        is_kept = not (obj.args or obj.kwargs) and obj.state is None
        if not is_kept or not self.rules.are_plain_keys(keys):
            what = f"{obj.qualname}.__setitem__"
            self.expect(what, partial(self.rules.can_be_read, values), (obj,))

    def hash_objects(self, keys: list[Any]) -> None:
        """Note keys that are more than data, of which a dict or a set asks the hash.

        A later key with the same hash is compared with them, when what they hold may be another.
        """
        for key in keys:
            if not self.rules.is_data(key):
                self.expect(f"{name_of(key)}.__hash__", partial(self.rules.is_key, key), ())

    def _is_data(self, args: tuple[Any, ...]) -> bool:
        """Return whether arguments are plain values, and containers and objects of only those.

        Functions and classes are no plain values, nor are they as attributes: the called function
        could call them. Nor is text like a path, a URL or a command line: it could be opened.
        """
        waiting: list[Any] = [args]
        while waiting and len(waiting) < MAX_DATA and self.looked < MAX_LOOKED:
            self.looked += 1
            value = waiting.pop()
            parts = self.rules.parts_of_data(value)
            if parts is None:
                return False
            self.looked += len(parts)
            waiting += parts
        return not waiting
