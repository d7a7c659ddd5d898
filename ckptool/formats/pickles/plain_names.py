"""The trust in a name, told at once for the names that nearly every checkpoint has, and no others.

A state dict names its storages and two or three functions. What trust they have needs none of the
tables of names, which together take a tenth of the time in which a small file is inspected: they
are asked about every other name, and about these as soon as a pickle does with them what no
training program does.
"""

from __future__ import annotations

from collections.abc import Iterable

from ckptool.formats.base import KNOWN, UNKNOWN, NamedGlobal
from ckptool.tree.nodes import GlobalRef

# Functions whose calls torch's safe loader accepts whenever our builder does.
PLAIN_CALLS = frozenset({
    "collections.OrderedDict", "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor_v2",
})  # fmt: skip
# Classes that are only named: no function, and nothing to call later.
PLAIN_CLASSES = frozenset({
    "torch.BFloat16Storage", "torch.BoolStorage", "torch.ByteStorage", "torch.CharStorage",
    "torch.DoubleStorage", "torch.FloatStorage", "torch.HalfStorage", "torch.IntStorage",
    "torch.LongStorage", "torch.ShortStorage",
})  # fmt: skip
PLAIN_NAMES = PLAIN_CALLS | PLAIN_CLASSES


def beyond_plain(refs: Iterable[GlobalRef]) -> list[GlobalRef]:
    """Return the names that are to be looked up in the tables."""
    return [ref for ref in refs if ref.qualname not in PLAIN_NAMES]


def trust_of(named: NamedGlobal) -> str:
    """Return ``known``, ``unknown`` or ``dangerous``."""
    plain = PLAIN_CALLS if named.called else PLAIN_NAMES
    if named.ref.qualname in plain and not (named.is_misused or named.looks_up):
        return KNOWN
    from ckptool.formats.pickles.trust import trust_by_tables  # noqa: PLC0415 - see above

    return trust_by_tables(named)


def is_put_off(named: NamedGlobal) -> bool:
    """Return whether a pickle binds an unknown function or class to plain values, to be called."""
    return named.is_put_off and not named.called and trust_of(named) == UNKNOWN


def is_built_by_call(named: NamedGlobal) -> bool:
    """Return whether a loader would call an unknown class to build objects of plain values."""
    return named.called and trust_of(named) == UNKNOWN
