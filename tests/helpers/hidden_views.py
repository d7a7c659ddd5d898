"""Random checkpoints in which a storage of the model is also used at hidden places.

``write(seed)`` returns the bytes of a file. It holds ``model`` and ``ema``, state dicts of three
tensors each, and ``x`` with nested containers and objects. Some of them view bytes of the model,
under a key, in a set, as an attribute, in arguments, or not at all once they are loaded.
"""

from __future__ import annotations

import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from helpers.assembler import (
    attributes,
    binary,
    built,
    call,
    filled,
    frozen,
    grouped,
    integer,
    integers,
    listed,
    made,
    mapping,
    name,
    program,
    row,
    streamed,
    tarred,
    text,
    zipped,
)

COUNT = 16  # elements of each storage
NAMES = ("w1", "w2", "w3")
FALSE, TRUE, NONE = b"\x89", b"\x88", b"N"
ORDERED = name("collections", "OrderedDict")
SEQUENTIAL = name("torch.nn.modules.container", "Sequential")
REBUILD = name("torch._utils", "_rebuild_tensor_v2")
Values = dict[str, list[float]]


def _again(index: int) -> bytes:
    """A value from the memo."""
    return b"j" + struct.pack("<I", index)


def _values(rng: random.Random) -> Values:
    """Storages 0 to 2 are the model's, 3 to 5 the averages beside them, the others are apart."""
    model = {str(k): [rng.gauss(0, 3) for _ in range(COUNT)] for k in range(3)}
    average = {str(k + 3): [v + 0.02 for v in model[str(k)]] for k in range(3)}
    others = {str(k): [rng.gauss(50, 1) for _ in range(COUNT)] for k in range(6, 10)}
    return model | average | others


class Zip:
    """The zip of ``torch.save``; a base of the other containers."""

    suffix = ".pt"

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.values = _values(rng)

    def storage(self, key: str) -> bytes:
        """A storage object."""
        saved_id = (text("storage"), name("torch", "FloatStorage"), text(key), text("cpu"))
        return row(*saved_id, integer(COUNT), *self.view) + b"Q"

    view: tuple[bytes, ...] = ()

    def tensor(self, key: str, start: int = 0, hooks: bytes | None = None) -> bytes:
        """A tensor on a storage, from an element on."""
        hooks = hooks or call(ORDERED)
        place = (integer(start), integers(COUNT - start), integers(1))
        return call(REBUILD, self.storage(key), *place, FALSE, hooks)

    def raw(self) -> dict[str, bytes]:
        """The bytes of all storages."""
        return {key: struct.pack(f"<{COUNT}f", *v) for key, v in self.values.items()}

    def file(self, body: bytes) -> bytes:
        """The whole file."""
        return zipped(program(body), self.raw())


class Legacy(Zip):
    """The stream before 1.6, in which each storage must be used once."""

    view = (NONE,)

    def file(self, body: bytes) -> bytes:
        """The whole file."""
        everything = listed(*(self.storage(key) for key in self.values)) + b"0"
        storages = [(key, COUNT, raw) for key, raw in self.raw().items()]
        return streamed(program(everything + body, 2), storages)


class Tar(Zip):
    """The archive of torch 0.1, in which tensors are persistent ids."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._tensors: dict[tuple[str, int], int] = {}

    def storage(self, key: str) -> bytes:
        """A storage object."""
        return text(str(1000 + int(key))) + b"Q"

    def tensor(self, key: str, start: int = 0, hooks: bytes | None = None) -> bytes:
        """A tensor on a storage; one object for each place."""
        number = self._tensors.setdefault((key, start), 2000 + len(self._tensors))
        return text(str(number)) + b"Q"

    def file(self, body: bytes) -> bytes:
        """The whole file."""

        def dumps(value: object) -> bytes:
            return pickle.dumps(value, 2)

        storages = [dumps(len(self.values))]
        for key, raw in self.raw().items():
            storages += [dumps((1000 + int(key), "cpu", torch.FloatStorage))]
            storages += [struct.pack("<q", COUNT) + raw]
        tensors = [dumps(len(self._tensors))]
        for (key, start), number in self._tensors.items():
            tensors += [dumps((number, 1000 + int(key), torch.FloatTensor))]
            tensors += [struct.pack("<ii3q", 1, 0, COUNT - start, 1, start)]
        members = {"sys_info": dumps({}), "pickle": program(body, 2)}
        members |= {"tensors": b"".join(tensors), "storages": b"".join([*storages, dumps([])])}
        return tarred(members)


class Plain(Zip):
    """A plain pickle, in which each storage is a stream as bytes; all of them stand at its front.

    The bytes and the storages are in the memo: at 100 and 101, at 102 and 103, and so on.
    """

    def storage(self, key: str) -> bytes:
        """A storage object: the one in the memo, or another one of the same bytes."""
        return _again(101 + 2 * int(key)) if self.rng.random() < 0.8 else self._load(key)

    def _load(self, key: str) -> bytes:
        return call(name("torch.storage", "_load_from_bytes"), _again(100 + 2 * int(key)))

    def others(self, key: str) -> bytes:
        """The bytes, or an array of them."""
        data = _again(100 + 2 * int(key))
        if self.rng.random() < 0.5:
            return data
        kind = call(name("numpy", "dtype"), text("u1"), FALSE, TRUE)
        size = len(self._stream(self.raw()[key]))
        numpy = "numpy.core.multiarray"
        empty = call(
            name(numpy, "_reconstruct"), name("numpy", "ndarray"), integers(0), binary(b"b")
        )
        return built(empty, row(integer(1), integers(size), kind, FALSE, data))

    @staticmethod
    def _stream(raw: bytes) -> bytes:
        place = (text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"))
        saved_id = row(*place, integer(COUNT), NONE)
        return streamed(program(saved_id + b"Q", 2), [("0", COUNT, raw)])

    def file(self, body: bytes) -> bytes:
        """The whole file."""
        front = b""
        for key, raw in self.raw().items():
            front += binary(self._stream(raw)) + b"r" + struct.pack("<I", 100 + 2 * int(key)) + b"0"
            front += self._load(key) + b"r" + struct.pack("<I", 101 + 2 * int(key)) + b"0"
        return program(front + body)


CONTAINERS = (Zip, Legacy, Tar, Plain)


class Assembly:
    """The object of a file, part by part, at random."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.container = CONTAINERS[seed % len(CONTAINERS)](self.rng)
        self.memo = 0
        self.slots: list[int] = []  # memo indices of the model's tensors

    def write(self) -> bytes:
        """The bytes of the file."""
        tensor = self.container.tensor
        model = [(text(n), self.put(tensor(str(k)), self.slots)) for k, n in enumerate(NAMES)]
        average = [(text(n), tensor(str(k + 3))) for k, n in enumerate(NAMES)]
        parts = [
            (text("model"), mapping(*model) if self.rng.random() < 0.7 else self.module(model)),
            (text("ema"), mapping(*average)),
            (text("x"), self.value(self.rng.randint(1, 5))),
        ]
        if self.rng.random() < 0.3:
            self.rng.shuffle(parts)
        below = self.value(2) if self.rng.random() < 0.2 else b""
        return self.container.file(below + mapping(*parts))

    def module(self, parameters: list[tuple[bytes, bytes]]) -> bytes:
        """A pickled module with these parameters."""
        parts = {"_parameters": filled(call(ORDERED), *parameters), "_modules": call(ORDERED)}
        own = self.rng.random() < 0.4
        parts["_buffers"] = (
            filled(call(ORDERED), (text("b"), self.leaf())) if own else call(ORDERED)
        )
        parts["_non_persistent_buffers_set"] = grouped(text("b"))
        parts |= {"note": self.value(1)} if self.rng.random() < 0.3 else {}
        return built(made(SEQUENTIAL), attributes(training=TRUE, **parts))

    def put(self, value: bytes, kept: list[int]) -> bytes:
        """A value that is kept in the memo."""
        self.memo += 1
        kept.append(self.memo)
        return value + b"r" + struct.pack("<I", self.memo)

    def leaf(self) -> bytes:
        """A plain value, or a view of some storage, which seldom is the model's."""
        rng, tensor = self.rng, self.container.tensor
        if rng.random() < 0.35:
            return rng.choice((integer(rng.randint(0, 9)), text("a"), NONE, binary(b"ab")))
        if rng.random() < 0.75:
            return tensor(str(rng.randint(6, 9)))
        key = str(rng.randint(0, 2))
        kinds: tuple[Callable[[], bytes], ...] = (
            lambda: tensor(key),
            lambda: tensor(key, rng.randint(1, COUNT - 1)),
            lambda: self.container.storage(key),
            lambda: _again(rng.choice(self.slots)) if self.slots else NONE,
            lambda: call(
                name("torch._utils", "_rebuild_parameter"), tensor(key), TRUE, call(ORDERED)
            ),
        )
        if isinstance(self.container, Plain):
            kinds += (lambda: self.container.others(key),)
        return rng.choice(kinds)()

    def value(self, depth: int) -> bytes:
        """A leaf, or something with other values inside."""
        if depth == 0:
            return self.leaf()
        kinds = (
            (*_OBJECTS, *_HASHING) if not isinstance(self.container, Tar) else _OBJECTS + _HASHING
        )
        return self.rng.choice(kinds)(self, depth - 1)

    def key(self, depth: int) -> bytes:
        """A value that can be hashed."""
        leaf = self.leaf()
        while depth and self.rng.random() < 0.5:
            leaf, depth = row(self.leaf(), leaf), depth - 1
        return leaf


def _partial(self: Assembly, depth: int) -> bytes:
    cls, func = name("functools", "partial"), name("builtins", "len")
    args = row(self.value(depth))
    state = row(func, args, attributes(a=self.value(depth)), attributes(b=self.value(0)))
    return built(call(cls, func), state)


def _array(self: Assembly, depth: int) -> bytes:
    flags = (NONE, NONE, NONE, integer(-1), integer(-1), integer(63))
    kind = built(
        call(name("numpy", "dtype"), text("O"), FALSE, TRUE), row(integer(3), text("|"), *flags)
    )
    empty = call(
        name("numpy.core.multiarray", "_reconstruct"),
        name("numpy", "ndarray"),
        integers(0),
        binary(b"b"),
    )
    content = listed(self.value(depth), self.value(0))
    return built(empty, row(integer(1), integers(2), kind, FALSE, content))


def _subclass(self: Assembly, depth: int) -> bytes:
    place = (integer(0), integers(COUNT), integers(1), FALSE, call(ORDERED))
    rebuild = name("torch._tensor", "_rebuild_from_type_v2")
    inner = row(self.container.storage(str(self.rng.choice((1, 7, 8)))), *place)
    state = attributes(note=self.value(depth))
    return call(rebuild, REBUILD, name("torch", "Tensor"), inner, state)


def _filled_later(self: Assembly, depth: int) -> bytes:
    """A list that is put into an object and filled afterwards."""
    kept: list[int] = []
    first = self.put(b"]", kept)
    return row(first, _again(kept[0]) + self.value(depth) + b"a0" + integer(1))


def _hooks_filled_later(self: Assembly, depth: int) -> bytes:
    kept: list[int] = []
    tensor = self.container.tensor("6", hooks=self.put(call(ORDERED), kept))
    if isinstance(self.container, Tar):
        return tensor
    hooks = filled(_again(kept[0]), (integer(1), self.value(depth)))
    return row(tensor, hooks + b"0" + integer(1))


def _global(path: str) -> bytes:
    return name(*path.rsplit(".", 1))


def _called(path: str, *args: bytes) -> bytes:
    return call(_global(path), *args)


def _noted(obj: bytes, value: bytes) -> bytes:
    return built(obj, attributes(note=value))


def _parameter(self: Assembly, *state: bytes) -> bytes:
    function = "_rebuild_parameter_with_state" if state else "_rebuild_parameter"
    key = self.container.tensor("7")
    return _called(f"torch._utils.{function}", key, FALSE, call(ORDERED), *state)


_Kind = Callable[[Assembly, int], bytes]
_HASHING: tuple[_Kind, ...] = (
    lambda self, depth: grouped(self.key(depth)),
    lambda self, depth: frozen(self.key(depth), self.key(0)),
    lambda self, depth: mapping((self.key(depth), self.value(depth))),
    lambda self, depth: filled(call(ORDERED), (self.key(depth), self.value(0))),
    lambda self, depth: _called("builtins.set", listed(self.key(depth))),
    lambda self, depth: _called("builtins.frozenset", listed(row(text("a"), self.key(depth)))),
    lambda self, depth: _called("collections.Counter", mapping((self.key(depth), integer(1)))),
)
_OBJECTS: tuple[_Kind, ...] = (
    lambda self, depth: listed(self.value(depth), self.value(0)),
    lambda self, depth: row(self.value(0), self.value(depth)),
    lambda self, depth: attributes(a=self.value(depth), b=self.leaf()),
    lambda self, depth: call(ORDERED, listed(row(text("k"), self.value(depth)))),
    lambda self, _depth: call(ORDERED, listed(*(row(self.key(0), self.leaf()) for _ in "ab"))),
    lambda self, depth: _noted(call(ORDERED), self.value(depth)),
    lambda self, depth: _noted(made(_global("argparse.Namespace")), self.value(depth)),
    lambda self, depth: _noted(_called("types.SimpleNamespace"), self.value(depth)),
    lambda self, depth: _noted(_called("builtins.ValueError"), self.value(depth)),
    lambda self, depth: _noted(_parameter(self), self.value(depth)),
    lambda self, depth: _parameter(self, attributes(note=self.value(depth))),
    lambda self, depth: _called("builtins.ValueError", self.value(depth)),
    lambda self, depth: _called("collections.deque", listed(self.value(depth)), integer(3)),
    lambda self, depth: _called("collections.defaultdict", _partial(self, depth)),
    lambda self, depth: _called("operator.itemgetter", self.value(depth)),
    lambda self, depth: _called("builtins.slice", self.value(depth), NONE, NONE),
    lambda self, depth: _called("builtins.iter", listed(self.value(depth))),
    lambda self, depth: _called("builtins.map", _global("builtins.len"), listed(self.value(depth))),
    lambda self, _depth: _called("builtins.getattr", self.leaf(), text("__class__")),
    lambda self, depth: self.value(depth) + b"0" + integer(1),  # popped
    lambda self, _depth: listed(self.module([(text("w"), self.leaf())])),
    _partial, _array, _subclass, _filled_later, _hooks_filled_later,
)  # fmt: skip


def write(seed: int) -> bytes:
    """Return the file of a seed."""
    return Assembly(seed).write()


def load(path: Path) -> Any:
    """Return what the loader of a file of :func:`write` makes of it."""
    with path.open("rb") as file:
        is_plain = file.read(2) != b"PK" and b"_load_from_bytes" in file.read()
        file.seek(0)
        return pickle.load(file) if is_plain else torch.load(file, weights_only=False)
