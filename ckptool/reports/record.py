"""Records: frozen dataclasses whose methods are not compiled for each class.

A dataclass writes the source of six methods and compiles it, a millisecond for each class, which is
a fifth of the time in which a small file is inspected. Reports are few, and their classes many. So
a record has the fields of a dataclass, with all that reads them, and shares its methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from typing import Any, NamedTuple, TypeVar, dataclass_transform

Made = TypeVar("Made")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[Made]) -> type[Made]:
    """Return the class as a frozen dataclass with shared methods."""
    made: Any = dataclass(init=False, repr=False, eq=False)(cls)
    parts = fields(made)
    made.__record__ = _Fields(
        tuple(part.name for part in parts),
        {part.name: part.default for part in parts if part.default is not MISSING},
        {p.name: p.default_factory for p in parts if p.default_factory is not MISSING},
    )
    for name, method in _METHODS.items():
        setattr(made, name, method)
    return cls


class _Fields(NamedTuple):
    names: tuple[str, ...]
    defaults: dict[str, Any]
    factories: dict[str, Callable[[], Any]]


def _init(self: Any, *args: Any, **kwargs: Any) -> None:
    names, defaults, factories = self.__record__
    given = dict(zip(names, args, strict=False)) | kwargs
    made = {name: make() for name, make in factories.items() if name not in given}
    values = defaults | made | given
    if len(values) != len(names) or len(given) != len(args) + len(kwargs):
        wrong = sorted({*names} ^ {*values}) or names[: len(args)]
        raise TypeError(f"{type(self).__name__}: missing, unknown or repeated: {', '.join(wrong)}")
    self.__dict__.update((name, values[name]) for name in names)


def _equal(self: Any, other: object) -> Any:
    return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash((*self.__dict__.values(),))


def _repr(self: Any) -> str:
    parts = (f"{name}={value!r}" for name, value in self.__dict__.items())
    return f"{type(self).__qualname__}({', '.join(parts)})"


def _refuse(_self: Any, name: str, _value: Any = None) -> None:
    raise FrozenInstanceError(f"cannot change the field {name!r}")


_METHODS = {
    "__init__": _init, "__eq__": _equal, "__hash__": _hash, "__repr__": _repr,
    "__setattr__": _refuse, "__delattr__": _refuse,
}  # fmt: skip
