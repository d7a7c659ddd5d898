"""Records and named tuples: classes of fields that cost little to define.

``dataclasses`` takes 6 ms to import, and half a millisecond for each class, since it writes the
source of its methods and compiles it, as ``typing.NamedTuple`` does for a sixth of a millisecond:
together a quarter of the time in which a small file is inspected. The methods of records are
shared. What reads dataclasses (``fields``, ``asdict``) reads records, too: what it needs is made
when it is asked for. Named tuples are made by the import below in place of that of ``typing``.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from operator import attrgetter
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform, overload

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple  # noqa: PLC0414 - others import it from here

Made = TypeVar("Made")
_REQUIRED: Any = object()  # the default of a field that has none


class _Field:
    __slots__ = ("compare", "default", "factory", "metadata")

    def __init__(self, default: Any, factory: Any, metadata: Any, *, compare: bool) -> None:
        self.default, self.factory, self.metadata = default, factory, metadata
        self.compare = compare

    def initial(self, name: str) -> Any:
        """Return the value of a field that was not given."""
        if self.factory is not None:
            return self.factory()
        if self.default is _REQUIRED:
            raise TypeError(f"missing: {name}")
        return self.default

    def in_dataclasses(self) -> Any:
        """Return the same as ``dataclasses.field`` makes it."""
        from dataclasses import field as made  # noqa: PLC0415 - 6 ms

        more = {"compare": self.compare, "metadata": self.metadata}
        if self.factory is not None:
            return made(default_factory=self.factory, **more)
        return made(**more) if self.default is _REQUIRED else made(default=self.default, **more)


_PLAIN = _Field(_REQUIRED, None, None, compare=True)  # of most fields: the name alone


def field(
    *,
    default: Any = _REQUIRED,
    default_factory: Callable[[], Any] | None = None,
    compare: bool = True,
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """Return the description of a field, as ``dataclasses.field`` does."""
    return _Field(default, default_factory, metadata, compare=compare)


@overload
def record(cls: type[Made], /) -> type[Made]: ...


@overload
def record(
    *, frozen: bool = True, slots: bool = False, eq: bool = True, kw_only: bool = False
) -> Callable[[type[Made]], type[Made]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(
    cls: Any = None,
    /,
    *,
    frozen: bool = True,
    slots: bool = False,
    eq: bool = True,
    kw_only: bool = False,  # noqa: ARG001 - only type checkers look at it
) -> Any:
    """Return the class as a record; what the arguments mean, ``dataclasses.dataclass`` says.

    A record also has the fields of the one that it is derived from; its own come first.
    """
    if cls is None:
        return lambda cls: _made(cls, frozen=frozen, slots=slots, eq=eq)
    return _made(cls, frozen=frozen, slots=slots, eq=eq)


def replace(one: Made, **changes: Any) -> Made:
    """Return a copy of a record with other values of some fields."""
    kept = {name: getattr(one, name) for name in names_of(type(one))}
    return type(one)(**kept | changes)


def names_of(cls: Any) -> tuple[str, ...]:
    """Return the names of the fields of a record's class."""
    names: tuple[str, ...] = cls.__match_args__
    return names


# ------------------------------------------------------------------------------------------ classes


def _made(cls: Any, *, frozen: bool, slots: bool, eq: bool) -> Any:
    own = dict(cls.__dict__)
    hints = own.get("__annotations__", {})
    fields = {name: _declared(own.pop(name, _PLAIN)) for name in hints}
    fields = {**fields, **getattr(cls.__base__, "__record__", {}), **fields}
    methods: dict[str, Any] = {
        "__match_args__": (*fields,), "__record__": fields, "__repr__": _repr,
        "__init__": _init_slots if slots else _init, "__dataclass_fields__": _InDataclasses(),
        "__fallbacks__": _last_defaults(fields.values()),
    }  # fmt: skip
    if eq:
        compared = [name for name, one in fields.items() if one.compare]
        methods |= {"__compared__": staticmethod(_values_of(compared)), "__eq__": _equal}
        methods["__hash__"] = _hash if frozen else None
    if frozen:
        methods |= {"__setattr__": _refuse, "__delattr__": _refuse}
    if slots:
        own = {name: own[name] for name in own if name not in {"__dict__", "__weakref__"}}
        cls = type(cls)(cls.__name__, cls.__bases__, own | {"__slots__": (*fields,)})
        methods["__setters__"] = [cls.__dict__[name].__set__ for name in fields]
        methods |= {"__reduce__": _reduce} if frozen else {}
    else:
        for name in cls.__dict__.keys() & fields.keys():
            setattr(cls, name, fields[name].default)
    for name, method in methods.items():
        if name not in own:
            setattr(cls, name, method)
    return cls


def _declared(given: Any) -> _Field:
    return given if isinstance(given, _Field) else _Field(given, None, None, compare=True)


def _last_defaults(fields: Iterable[_Field]) -> tuple[Any, ...]:
    """Return the defaults of the last fields, up to one that has none, or makes it anew."""
    plain = takewhile(
        lambda one: one.factory is None and one.default is not _REQUIRED, reversed([*fields])
    )
    return tuple(one.default for one in plain)[::-1]


def _values_of(names: Sequence[str]) -> Callable[[Any], Any]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda one: tuple(getattr(one, name) for name in names)


class _InDataclasses:
    """The fields as ``dataclasses`` keeps them; they are made when they are asked for."""

    def __get__(self, _one: object, cls: Any) -> Any:
        from dataclasses import make_dataclass  # noqa: PLC0415 - 6 ms

        bases = [each for each in reversed(cls.__mro__) if "__record__" in vars(each)]
        hints = {name: hint for each in bases for name, hint in each.__annotations__.items()}
        fields = [(name, hints[name], one.in_dataclasses()) for name, one in cls.__record__.items()]
        made: Any = make_dataclass(cls.__name__, fields, kw_only=len(bases) > 1)
        cls.__dataclass_fields__ = made.__dataclass_fields__
        return made.__dataclass_fields__


# ------------------------------------------------------------------------------------------ methods


def _init(self: Any, *args: Any, **kwargs: Any) -> None:
    names = self.__match_args__
    if kwargs or len(args) != len(names):
        args = _completed(self, args, kwargs)
    self.__dict__.update(zip(names, args, strict=True))


def _init_slots(self: Any, *args: Any, **kwargs: Any) -> None:
    setters = self.__setters__
    if kwargs or len(args) != len(setters):
        args = _completed(self, args, kwargs)
    for put, value in zip(setters, args, strict=True):
        put(self, value)


def _completed(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Return a value for each field.

    Raises:
        TypeError: one is missing, repeated or unknown.
    """
    fields: Mapping[str, _Field] = self.__record__
    if not args and kwargs.keys() == fields.keys():
        return (*map(kwargs.__getitem__, fields),)
    defaults: tuple[Any, ...] = self.__fallbacks__
    if not kwargs and len(fields) - len(defaults) <= len(args) < len(fields):
        return args + defaults[len(args) - len(fields) :]
    given = dict(zip(fields, args, strict=False)) | kwargs
    made = (*(given[n] if n in given else one.initial(n) for n, one in fields.items()),)
    if len(given) != len(args) + len(kwargs) or len(given.keys() | fields.keys()) != len(made):
        raise TypeError(f"repeated or unknown, of {', '.join(fields)}")
    return made


def _equal(self: Any, other: Any) -> Any:
    if type(other) is not type(self):
        return NotImplemented
    return self.__compared__(self) == self.__compared__(other)


def _hash(self: Any) -> int:
    return hash(self.__compared__(self))


def _repr(self: Any) -> str:
    parts = (f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
    return f"{type(self).__qualname__}({', '.join(parts)})"


def _reduce(self: Any) -> Any:
    return type(self), tuple(getattr(self, name) for name in self.__match_args__)


def _refuse(_self: Any, name: str, _value: Any = None) -> None:
    from dataclasses import FrozenInstanceError  # noqa: PLC0415 - for a mistake alone

    raise FrozenInstanceError(f"cannot change the field {name!r}")


# ------------------------------------------------------------------------------------- named tuples


_plain = tuple.__new__

# The constructors by the number of fields. ``namedtuple`` writes and compiles each of them: 1.5 ms
# for the ten that a small file needs. What has more fields is rare, and is left to it.
_CONSTRUCTORS: tuple[Any, ...] = (
    lambda _cls: _plain(_cls, ()),
    lambda _cls, a: _plain(_cls, (a,)),
    lambda _cls, a, b: _plain(_cls, (a, b)),
    lambda _cls, a, b, c: _plain(_cls, (a, b, c)),
    lambda _cls, a, b, c, d: _plain(_cls, (a, b, c, d)),
    lambda _cls, a, b, c, d, e: _plain(_cls, (a, b, c, d, e)),
    lambda _cls, a, b, c, d, e, f: _plain(_cls, (a, b, c, d, e, f)),
    lambda _cls, a, b, c, d, e, f, g: _plain(_cls, (a, b, c, d, e, f, g)),
    lambda _cls, a, b, c, d, e, f, g, h: _plain(_cls, (a, b, c, d, e, f, g, h)),
    lambda _cls, a, b, c, d, e, f, g, h, i: _plain(_cls, (a, b, c, d, e, f, g, h, i)),
)
_WIDE = namedtuple("_WIDE", "a b c d e f g h i j k l m n o p")  # noqa: PYI024 - for its getters
_GETTERS = [_WIDE.__dict__[name] for name in _WIDE._fields]


def _constructor(fields: Sequence[str], defaults: Mapping[str, Any]) -> Any:
    is_narrow = len(fields) < len(_CONSTRUCTORS)
    made: Any = (
        _CONSTRUCTORS[len(fields)] if is_narrow
        else namedtuple("_Made", fields).__new__  # noqa: PYI024 - for its constructor
    )  # fmt: skip
    code = made.__code__.replace(co_name="__new__", co_varnames=("_cls", *fields))
    return FunctionType(code, made.__globals__, "__new__", (*defaults.values(),))


class _Tuple(tuple[Any, ...]):
    """The methods that all named tuples have."""

    __slots__ = ()
    _fields = tuple[str, ...]()

    @classmethod
    def _make(cls, values: Iterable[Any]) -> Any:
        made = _plain(cls, values)
        if len(made) != len(cls._fields):
            raise TypeError(f"{len(cls._fields)} values are needed, not {len(made)}")
        return made

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def _replace(self, **changes: Any) -> Any:
        return type(self)(**self._asdict() | changes)

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        parts = (f"{name}={value!r}" for name, value in self._asdict().items())
        return f"{type(self).__qualname__}({', '.join(parts)})"


class _NamedTuples(type):
    def __new__(cls, name: str, _bases: Any, own: dict[str, Any]) -> Any:
        fields = (*own.get("__annotations__", {}),)
        defaults = {field: own.pop(field) for field in fields if field in own}
        made = {
            "__slots__": (), "__new__": _constructor(fields, defaults), "_fields": fields,
            "__match_args__": fields, "_field_defaults": defaults,
            **dict(zip(fields, _GETTERS[: len(fields)], strict=True)),
        }  # fmt: skip
        return type(name, (_Tuple,), made | own)


if not TYPE_CHECKING:
    NamedTuple = type.__new__(_NamedTuples, "NamedTuple", (), {"__doc__": "As of ``typing``."})
