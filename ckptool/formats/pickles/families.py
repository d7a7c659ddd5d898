"""Classes of Python, torch and numpy by their names: those that do nothing, and those that read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckptool.formats.pickles.acting import acts_when_dropped, acts_when_made
from ckptool.formats.pickles.handed_out import is_guest, is_of_others
from ckptool.formats.pickles.trust import is_own, is_scanned
from ckptool.formats.pickles.vetted import (
    ARRAYS,
    FUNCTIONS,
    MODULES,
    PLAIN,
    READER_NAMES,
    READERS,
    VETTED,
    Kind,
    Takes,
)
from ckptool.tree.nodes import GlobalRef

# What ``copyreg._reconstructor`` gives to a base: others ask it to be a number, a text or nothing.
_OF_BASES = {
    "list": Kind.ROW, "tuple": Kind.ROW, "dict": Kind.PAIRS, "set": Kind.KEYS,
    "frozenset": Kind.KEYS, "Exception": Kind.HELD,
}  # fmt: skip


def is_inert(qualname: str) -> bool:
    """Return whether a class that is own and not vetted does nothing when it is given data."""
    is_known = is_scanned(qualname) and not is_of_others(qualname)
    return qualname in PLAIN or (is_known and not acts_when_made(qualname))


def is_reader(qualname: str) -> bool:
    """Return whether a class of torch's has a ``__setstate__`` that reads what it is given."""
    is_rnn = qualname.rpartition(".")[2] in READER_NAMES and qualname.startswith(MODULES)
    return is_rnn or qualname.startswith(READERS)


def is_guest_of_torch(qualname: str) -> bool:
    """Return whether a class of torch's may be of another module than the one that names it."""
    return is_scanned(qualname) and is_guest(qualname)


def takes_class(kind: Takes, name: str) -> bool:
    """Return whether a vetted function may make objects of a class, or call a function."""
    if isinstance(kind, frozenset):
        return name in kind
    if not is_own(name):
        return True
    if kind is Kind.ARRAY:
        return name in ARRAYS
    is_inert_class = not acts_when_dropped(name) and not is_of_others(name)
    is_vetted = name in VETTED or (name.startswith("torch.") and is_inert_class)
    return kind is Kind.CLASS and is_vetted and name not in FUNCTIONS


def kind_of_base(args: Sequence[Any]) -> Kind:
    """Return what the base of ``copyreg._reconstructor`` takes, the argument before."""
    base = args[1]
    return _OF_BASES.get(base.name if isinstance(base, GlobalRef) else "", Kind.DATA)
