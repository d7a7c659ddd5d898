"""Uses of names that a builder notes while it follows a pickle: calls, look-ups and misuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ckptool.formats.pickles.effects import MAX_DATA, parts_of_data
from ckptool.formats.pickles.grades import DATA
from ckptool.formats.pickles.grammar import Grammar
from ckptool.formats.pickles.machine import Builder, name_of
from ckptool.formats.pickles.vetted import FUNCTIONS
from ckptool.tree.nodes import GlobalRef, Opaque

_Expected = tuple[GlobalRef | str, Callable[[], bool], tuple[Any, ...]]
MAX_USES = 3  # calls of one name that are kept to be shown
MAX_LOOKED = 1 << 20  # values in arguments that are looked at, of all calls together


class NotingBuilder(Builder):
    """Builder that notes which names the pickle calls, with what, and what it does with others."""

    def __init__(self) -> None:
        super().__init__()
        self.grammar = Grammar()
        self.called: dict[GlobalRef, list[Opaque]] = {}  # function -> its inert calls
        self.given_more: set[GlobalRef] = set()  # names called with more than data
        self.misused: set[GlobalRef] = set()  # reached or given what their vetting does not cover
        self.placed: set[GlobalRef] = set()  # arguments of vetted calls that take such a name
        self.looked = 0  # values in arguments that were looked at
        self.looked_up: set[GlobalRef] = set()  # called to look up parts of classes
        self._expected: list[_Expected] = []  # uses that were sound when they were made

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
        for what, fits, given in self._expected if self.grammar.grades.have_changed else ():
            if not fits():
                self.note_misuse(what, given)

    def misplaced(self, names: Any) -> set[GlobalRef]:
        """Return the functions among the names of a pickle that it never calls, but mentions."""
        used = self.placed | self.called.keys()
        return {ref for ref in names if ref.qualname in FUNCTIONS and ref not in used}

    def hash_objects(self, keys: list[Any]) -> None:
        """Note keys that are more than data, of which a dict or a set asks the hash.

        A later key with the same hash is compared with them, when what they hold may be another.
        """
        for key in keys:
            if self.grammar.grade(key) > DATA:
                self.expect(f"{name_of(key)}.__hash__", partial(self.grammar.is_key, key), ())

    def _is_data(self, args: tuple[Any, ...]) -> bool:
        """Return whether arguments are plain values, and containers and objects of only those.

        Functions and classes are no plain values, nor are they as attributes: the called function
        could call them. Nor is text like a path, a URL or a command line: it could be opened.
        """
        waiting: list[Any] = [args]
        while waiting and len(waiting) < MAX_DATA and self.looked < MAX_LOOKED:
            self.looked += 1
            value = waiting.pop()
            parts = parts_of_data(value)
            if parts is None:
                return False
            self.looked += len(parts)
            waiting += parts
        return not waiting
