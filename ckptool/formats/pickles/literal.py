"""A pickle as the calls that it makes, with nothing interpreted: it can be written again as it was.

Containers and scalars are those of Python. A call of a class or function is a :class:`Made`, a
persistent id a :class:`Persisted`, a name a :class:`~ckptool.tree.nodes.GlobalRef`. What the pickle
shares is one object here too. Only what picklers write is read so: a program that fills an object
in two ways, or a container with what is none of its own, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from ckptool.errors import UnsupportedError
from ckptool.formats.pickles.machine import Builder, PickleMachine
from ckptool.records import NamedTuple, field, record
from ckptool.sources.base import ByteSpan, Source
from ckptool.sources.memory import Memory
from ckptool.tree.nodes import GlobalRef

MAX_PICKLE = 8 << 20  # bytes
OTHERWISE = "load and save it again with torch"


@record(frozen=False, slots=True, eq=False)
class Made:
    """An object by the call that makes it, and what is put into it afterwards."""

    func: Any  # a GlobalRef; or a Made, if a call returns the function
    args: tuple[Any, ...]
    is_new: bool = False  # made by ``__new__`` and not by a call
    kwargs: dict[Any, Any] | None = None  # of ``__new__``
    elements: list[Any] = field(default_factory=list)
    items: dict[Any, Any] = field(default_factory=dict)
    state: Any = None
    has_state: bool = False

    @property
    def name(self) -> str:
        """The full name of the class or function; empty if a call returns it."""
        return self.func.qualname if isinstance(self.func, GlobalRef) else ""


@record(frozen=False, slots=True, eq=False)
class Persisted:
    """A storage, by the persistent id that zips have: five values, the key a text."""

    saved_id: tuple[Any, ...]
    offset: int = 0  # of the part of the storage that is meant, in elements

    @property
    def key(self) -> str:
        """The key of the storage."""
        key: str = self.saved_id[2]
        return key


def stored(saved_id: Any) -> Any:
    """Return the storage of a persistent id; in files of old, a sixth value is a part of it.

    Files of old also have ``('module', class, its file, its source)``, which means the class.

    Raises:
        UnsupportedError: it is neither.
    """
    if isinstance(saved_id, tuple) and len(saved_id) == 4 and saved_id[0] == "module":
        return saved_id[1]
    if not isinstance(saved_id, tuple) or len(saved_id) not in {5, 6}:
        raise _unusual("has a persistent id that is no storage")
    word, cls, key, location, numel = saved_id[:5]
    view = saved_id[5] if len(saved_id) == 6 else None
    return Persisted((word, cls, str(key), location, numel), view[1] if view else 0)


class Literal(NamedTuple):
    """The object in a file of torch, and the places of its storages."""

    tree: Any
    storages: Mapping[str, ByteSpan]  # by their keys
    byteorder: str = "little"  # of the stored values
    others: Mapping[str, ByteSpan] = MappingProxyType({})  # records of no storage, by their names
    checksums: Mapping[ByteSpan, int] = MappingProxyType({})


class LiteralBuilder(Builder):
    """A builder that keeps every call; ``persistent`` makes the value of a persistent id."""

    def __init__(self, persistent: Callable[[Any], Any] = stored) -> None:
        super().__init__()
        self._persistent = persistent
        self._given: dict[int, Any] = {}  # containers that calls and states may have copied

    def call(self, func: Any, args: tuple[Any, ...]) -> Made:
        """Return the call."""
        self._give(*args)
        return Made(func, args)

    def new(self, cls: Any, args: tuple[Any, ...], kwargs: dict[Any, Any] | None) -> Made:
        """Return the call of ``__new__``."""
        self._give(*args, kwargs)
        return Made(cls, args, is_new=True, kwargs=kwargs)

    def build(self, obj: Any, state: Any) -> Any:
        """Keep the state of an object."""
        if not isinstance(obj, Made) or obj.has_state:
            raise _unusual("sets a state where picklers do not")
        obj.state, obj.has_state = state, True
        self._give(*(state if isinstance(state, tuple) else (state,)))
        return obj

    def set_items(self, target: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
        """Set items of a dict that was not given away before."""
        self._refuse_given(target)
        super().set_items(target, keys, values)

    def add(self, target: set[Any], keys: list[Any]) -> None:
        """Add elements to a set that was not given away before."""
        self._refuse_given(target)
        super().add(target, keys)

    def append(self, target: list[Any], values: list[Any]) -> None:
        """Append elements to a list that was not given away before."""
        self._refuse_given(target)
        super().append(target, values)

    def _give(self, *values: Any) -> None:
        self._given.update((id(v), v) for v in values if isinstance(v, (dict, list, set)))

    def _refuse_given(self, target: Any) -> None:
        if id(target) in self._given:
            raise _unusual("changes a container after it was given to an object")

    def persistent(self, saved_id: Any) -> Any:
        """Return the value of a persistent id."""
        return self._persistent(saved_id)

    def items_of(self, target: Any) -> dict[Any, Any]:
        """Return the dict that takes the items of an object."""
        if not isinstance(target, Made):
            raise _unusual("sets items where picklers do not")
        return target.items

    def elements_of(self, target: Any, how: str) -> list[Any]:
        """Return the list that takes the elements of an object."""
        if not isinstance(target, Made):
            raise _unusual(f"elements are {how} where picklers do not do it")
        return target.elements


def read_literal(
    source: Source, offset: int = 0, persistent: Callable[[Any], Any] = stored
) -> tuple[Any, int]:
    """Return the object of a pickle, and the offset behind it.

    The pickle must have been read before, so that it is bounded and complete.

    Raises:
        UnsupportedError: no pickler wrote it, or it is too long.
    """
    builder = LiteralBuilder(persistent)
    machine = PickleMachine(source, offset, builder)
    tree = machine.run()
    if machine.end - offset > MAX_PICKLE:
        raise UnsupportedError(f"a pickle of {machine.end - offset:,} bytes", hint=OTHERWISE)
    if builder.objections or builder.has_python2_bytes:
        raise _unusual(next(iter(builder.objections), "holds strings of Python 2 that are bytes"))
    if machine.is_later:
        _refuse_lost(source.read(offset, machine.end - offset))
    return tree, machine.end


def made_in(tree: Any) -> Iterator[Made]:
    """Yield every call in an object once, in no order that matters."""
    seen: set[int] = set()
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or not isinstance(value, _CONTAINERS):
            continue
        seen.add(id(value))
        if isinstance(value, Made):
            yield value
            waiting += [value.func, value.args, value.kwargs, value.elements, value.items]
            waiting.append(value.state)
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        else:
            waiting += value


_CONTAINERS = (Made, dict, list, tuple, set, frozenset)


def literal_of(pickle: bytes) -> Any:
    """Return the object of a pickle in memory; see :func:`read_literal`."""
    return read_literal(Memory(pickle))[0]


LOST = {"BYTEARRAY8", "NEXT_BUFFER"}  # the machine makes bytes of a bytearray


def _refuse_lost(pickle: bytes) -> None:
    import pickletools  # noqa: PLC0415 - 3 ms of the start of every command

    found = next((op.name for op, _, _ in pickletools.genops(pickle) if op.name in LOST), None)
    if found:
        raise _unusual(f"uses {found}")


def _unusual(how: str) -> UnsupportedError:
    return UnsupportedError(f"no pickle that torch.save writes: {how}", hint=OTHERWISE)
