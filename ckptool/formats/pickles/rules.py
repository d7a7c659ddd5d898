"""The rules on all that plain checkpoints have not, as a builder asks them.

They are the grammar of values and what stands beside it: whose a name is, what a call may be given,
which parts of classes may be looked up. Together they import the tables of names. The builder makes
them when it first meets something that is not plain (see ``plain_names.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ckptool.formats.pickles.budget import Looks
from ckptool.formats.pickles.effects import (
    CHECKED,
    class_in_class,
    is_the_loaders,
    is_value,
    part_looked_up,
    part_of,
    parts_of_data,
)
from ckptool.formats.pickles.families import is_inert
from ckptool.formats.pickles.grades import DATA, SCALARS, Grades
from ckptool.formats.pickles.grammar import Grammar
from ckptool.formats.pickles.put_off import PutOff, calls_put_off, may_be_put_off
from ckptool.formats.pickles.subclasses import NO_SUBCLASS, as_subclass, of_subclass
from ckptool.formats.pickles.trust import is_own
from ckptool.formats.pickles.vetted import FUNCTIONS, VETTED, Called, Kind
from ckptool.tree.nodes import GlobalRef, TensorRef

_HASHING = frozenset({Kind.PAIRS, Kind.KEYS, Kind.BASED})  # kinds of arguments that are hashed
_KEYS = SCALARS | {tuple, frozenset, TensorRef}  # of dicts; those of lists are not among them


class Rules(Grammar):
    """The rules on the names, calls and values of one pickle."""

    def __init__(self, looks: Looks) -> None:
        super().__init__(Grades(looks))

    is_own = staticmethod(is_own)
    is_value = staticmethod(is_value)
    is_the_loaders = staticmethod(is_the_loaders)
    class_in_class = staticmethod(class_in_class)
    part_of = staticmethod(part_of)
    part_looked_up = staticmethod(part_looked_up)
    parts_of_data = staticmethod(parts_of_data)
    may_be_put_off = staticmethod(may_be_put_off)
    as_subclass = staticmethod(as_subclass)
    of_subclass = staticmethod(of_subclass)

    # ------------------------------------------------------------------------------------- names

    @staticmethod
    def is_vetted(qualname: str) -> bool:
        """Return whether the calls of a name are vetted."""
        return qualname in VETTED

    @staticmethod
    def is_function(qualname: str) -> bool:
        """Return whether a name is that of a vetted function, which is no class."""
        return qualname in FUNCTIONS

    @staticmethod
    def is_subclass(qualname: str) -> bool:
        """Return whether a class of tensors is another than those that torch itself gives them."""
        return qualname not in NO_SUBCLASS

    @staticmethod
    def may_act_when_made(qualname: str) -> bool:
        """Return whether a call of a class is vetted, or it is own and may act when it is made."""
        return qualname in VETTED or (is_own(qualname) and not is_inert(qualname))

    # --------------------------------------------------------------------------------- arguments

    @staticmethod
    def are_valid(qualname: str, args: tuple[Any, ...]) -> bool:
        """Return whether a vetted call that stays inert is given what its function takes."""
        return qualname not in CHECKED or CHECKED[qualname](args)

    def may_take(self, qualname: str, args: Sequence[Any]) -> bool:
        """Return whether each argument is of the kind in the row of a vetted call."""
        return self.takes(VETTED[qualname], args)

    def are_asked_later(self, qualname: str, args: Sequence[Any]) -> bool:
        """Return whether what a vetted call made is hashed later, with arguments that may answer.

        A later key may be compared with these, and a date asks its time zone when it is hashed,
        whatever holds it: by then what they hold may be another.
        """
        row = VETTED[qualname]
        is_hashed = row.rest is Kind.OBJECT or not _HASHING.isdisjoint(row.takes)
        return is_hashed and self.grades.worst(args) > DATA

    @staticmethod
    def names_taken(qualname: str, args: Sequence[Any]) -> Iterator[tuple[GlobalRef, bool]]:
        """Yield the arguments that a vetted call takes by name, and whether it calls them."""
        for kind, arg in zip(VETTED[qualname].takes, args, strict=False):
            if isinstance(kind, frozenset) and isinstance(arg, GlobalRef):
                yield arg, isinstance(kind, Called)

    @staticmethod
    def are_plain_keys(keys: Iterable[Any]) -> bool:
        """Return whether keys are such as dicts have, and lists have not."""
        return _KEYS.issuperset(map(type, keys))

    def calls_put_off(self, values: Iterable[Any]) -> Iterator[PutOff]:
        """Yield the calls that are put off in values (``put_off.py``)."""
        return calls_put_off(values, self.grades)
