"""Answers that a state of the user's class prepares for code of Python's or torch's.

A class of the user's may be one of Python's or torch's under another name, or derived from one. Its
``__setstate__`` is then theirs, and iterates, indexes or asks what the state holds under the names
of ``READ``. So such a value may hold functions, but no object that could call them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckptool.formats.pickles.acting import NAMES_OF_DROPPED
from ckptool.formats.pickles.grades import FOREIGN, HOLDING, NESTED, OBJECT, Grades, is_function
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
# Classes of Python and torch that act on their attributes when an object of them is given its
# state, read or dropped, or on their arguments when one is made. Many modules import them.
IMPORTED = frozenset({
    "Aifc_write", "Barrier", "BaseEventLoop", "BaseSubprocessTransport", "BatchSampler", "CDLL",
    "ChainDataset", "ChainMap", "ConcatDataset", "Connection", "DataLoader", "FieldStorage",
    "FileIO", "FileInput", "Pool", "Popen", "Random", "SemLock", "ServerProxy", "SharedMemory",
    "Shelf", "SpooledTemporaryFile", "StreamReader", "StreamReaderWriter", "StreamRecoder",
    "StreamWriter", "Subset", "Telnet", "UserDict", "UserList", "Wave_write", "WeakMethod",
    "WeakSet", "WeakValueDictionary", "ZipFile", "_ConnectionBase", "_SharedMemoryTracker",
    "_Stream", "_TemporaryFileWrapper", "accumulate", "batched", "chain", "combinations",
    "combinations_with_replacement", "compress", "cycle", "dircmp", "finalize", "islice",
    "pairwise", "permutations", "product", "ref", "starmap", "takewhile", "tee", "zip_longest",
})  # fmt: skip
# Own objects of these cannot be iterated or indexed.
_NO_ROWS = ("argparse.Namespace", "types.SimpleNamespace", "optparse.Values")

IsPlain = Callable[[Any], bool]


def is_imported(qualname: str) -> bool:
    """Return whether a name of the user's may be a class of Python's or torch's that acts."""
    name = qualname.rpartition(".")[2]
    return (name in IMPORTED or name in NAMES_OF_DROPPED) and not is_own(qualname)


def worst_of_imported(state: Any) -> int:
    """Return the worst grade of a state for such a class; the user may call a module as they do."""
    is_of_module = isinstance(state, dict) and all(name in state for name in OF_ANY_MODULE)
    return NESTED if is_of_module else FOREIGN


def prepares_no_answer(state: Any, grades: Grades, is_plain: IsPlain) -> bool:
    """Return whether nothing in a state of the user's object calls what it holds when it is read.

    Args:
        state: the state. One that is no dict of attributes may be iterated itself, but the user's
            own objects in it are for the user's own methods.
        grades: those of the pickle's values.
        is_plain: whether a container calls nothing when it is iterated.
    """
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    if not all(part is None or isinstance(part, dict) for part in parts):
        return _can_be_read(state, grades, is_plain, most=HOLDING)
    return all(
        _can_be_read(part[name], grades, is_plain, most=OBJECT)
        for part in filter(None, parts)
        for name in READ.keys() & part.keys()
    ) and all(
        (isinstance(part[name], (dict, set)) and is_plain(part[name]))
        or _can_be_read(part[name], grades, is_plain, most=OBJECT)
        for part in filter(None, parts)
        for name in LOOKED_IN & part.keys()  # a module's code looks there for other attributes
    )


def _can_be_read(value: Any, grades: Grades, is_plain: IsPlain, *, most: int) -> bool:
    """Return whether a value calls nothing when it is read.

    ``most`` is the worst grade of objects of the user's in it.
    """
    waiting, seen = [value], set[int]()
    while waiting:
        part = waiting.pop()
        grade = grades.of(part)
        if grade <= FOREIGN or is_function(part) or id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, (list, tuple, set, frozenset, dict)):
            if not is_plain(part):
                return False
            grades.count(1 + len(part))
            waiting += part.values() if isinstance(part, dict) else part
        elif isinstance(part, Opaque):
            is_silent = part.qualname in _NO_ROWS or (is_module(part) and grade <= NESTED)
            if not is_silent and grade > (OBJECT if is_own(part.qualname) else most):
                return False
        elif not isinstance(part, (TensorRef, CompositeTensor)):
            return False
    return True
