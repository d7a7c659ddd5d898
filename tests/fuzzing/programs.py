"""Checkpoints drawn as programs of opcodes, over the functions by which torch rebuilds tensors.

All of them are harmless: they name containers and tensors, and nothing that acts. Most do something
that no pickler writes: they fill a dict twice, set a state on a finished tensor, mention a storage
under another type or key, or hide a key behind one that looks like it. A program is
``{"ema": {…}, …}`` in one of torch's three containers.
"""

from __future__ import annotations

import struct
from random import Random

from helpers.opcodes import (
    FALSE,
    HOOKS,
    NONE,
    TRUE,
    attributes,
    build,
    call,
    dct,
    integer,
    items,
    name,
    new,
    numbers,
    raw,
    real,
    row,
    stream,
    tarred,
    text,
    tup,
    zipped,
)

NBYTES = 32  # of each storage
TYPES = {
    "Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1,
    "Byte": 1, "Bool": 1, "ComplexFloat": 8, "ComplexDouble": 16,
}  # fmt: skip
DTYPES = {
    "float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2,
    "int8": 1, "uint8": 1, "bool": 1, "complex64": 8, "uint16": 2, "uint32": 4, "uint64": 8,
    "float8_e4m3fn": 1,
}  # fmt: skip
KEYS = "0123"
RECORDS = {
    key: struct.pack("<8f", *(int(key) + n / 16 for n in range(8)))
    for key in KEYS
} | {"b'1'": bytes(range(32)), "b'2'": bytes(range(1, 33))}  # fmt: skip
UNTYPED = "torch.storage.UntypedStorage"


class Program:
    """One draw: values that refer to each other through the memo."""

    def __init__(self, rng: Random, container: str) -> None:
        self.rng, self.container = rng, container
        self.memo: dict[str, list[int]] = {}  # kind of a value -> its places in the memo
        self.used = 0
        self.without_bits = False
        self.strange = rng.random() < 0.7  # else only what picklers write

    # ------------------------------------------------------------------------------------ choices

    def odd(self, share: float) -> bool:
        return self.strange and self.rng.random() < share

    def pick(self, *choices):
        return self.rng.choice(choices)

    def kept(self, kind: str, value: bytes) -> bytes:
        """The value, sometimes stored in the memo; instructions that change nothing in between."""
        if self.odd(0.1):
            value += self.pick(b"20", b"N0", b"(0", b"(N1", b"q\xff")
        if self.rng.random() < 0.3 and self.used < 200:
            self.memo.setdefault(kind, []).append(self.used)
            self.used += 1
            return value + b"q" + bytes([self.used - 1])
        return value

    def known(self, kind: str) -> bytes | None:
        places = self.memo.get(kind)
        return b"h" + bytes([self.rng.choice(places)]) if places else None

    # ----------------------------------------------------------------------------------- storages

    def storage_key(self) -> bytes:
        key = self.pick(*KEYS)
        if self.odd(0.15):
            return self.pick(integer(int(key)), raw(key.encode()), TRUE, real(float(key)), NONE)
        return text(key)

    def storage(self) -> tuple[bytes, int]:
        """A storage, and how many of its elements a view may have."""
        if self.container == "tar":  # a tar has no storages in its object
            return text("1") + b"Q", NBYTES // 4
        types = [each for each in TYPES.items() if self.container == "zip" or each[1] == 4]
        cls, size = self.rng.choice(types) if self.odd(0.5) else ("Float", 4)
        qualname = f"torch.{cls}Storage"
        if self.odd(0.1) and self.container == "zip":
            qualname, size = UNTYPED, 1
        numel = NBYTES // size
        if self.odd(0.05) and self.container == "zip":
            numel = self.pick(0, numel // 2)
        location = text(self.pick("meta", "cuda:0")) if self.odd(0.02) else text("cpu")
        args = [text("storage"), name(qualname), self.storage_key(), location, integer(numel)]
        if self.container == "legacy":
            view = NONE
            if self.odd(0.3):
                offset = self.rng.randrange(4)
                part = self.rng.randrange(1, max(2, numel - offset + 1))
                key = text(self.pick("v", "v2", *KEYS))
                view, numel = tup(key, integer(offset), integer(part)), part
            args.append(view)
        return self.kept("storage", tup(*args) + b"Q"), numel

    # ------------------------------------------------------------------------------------ tensors

    def flat(self, numel: int) -> tuple[bytes, bytes, bytes]:
        """Offset, sizes and strides within ``numel`` elements."""
        offset = self.rng.randrange(3) if self.odd(0.2) else 0
        size = max(0, min(4, numel - offset))
        if size == 4 and self.rng.random() < 0.2:
            return integer(offset), numbers(2, 2), numbers(*self.pick((2, 1), (1, 2), (0, 1)))
        return integer(offset), numbers(size), numbers(1)

    def plain(self) -> bytes:
        """A tensor on a storage."""
        of, numel = self.storage()
        offset, sizes, strides = self.flat(numel)
        kind = self.rng.random()
        if kind < 0.1:
            return call("torch._utils._rebuild_tensor", of, offset, sizes, strides)
        if kind < 0.25 and self.strange:
            dtype = self.pick(*DTYPES)
            args = (of, offset, numbers(2), numbers(1), FALSE, HOOKS, name(f"torch.{dtype}"))
            return call("torch._utils._rebuild_tensor_v3", *args, *self.metadata())
        args = (of, offset, sizes, strides, self.pick(FALSE, FALSE, TRUE), HOOKS, *self.metadata())
        return call("torch._utils._rebuild_tensor_v2", *args)

    def quantized(self) -> bytes:
        """A quantized tensor; of itself alone, since torch crashes on some that are made of it."""
        cls, size = self.pick(("QInt8", 1), ("QUInt8", 1), ("QInt32", 4))
        of = tup(text("storage"), name(f"torch.{cls}Storage"), text("1"), text("cpu"),
                 integer(NBYTES // size)) + b"Q"  # fmt: skip
        params = tup(name("torch.per_tensor_affine"), real(0.5), integer(3))
        view = (of, integer(1), numbers(2), numbers(1))
        if self.rng.random() < 0.5:
            return call("torch._utils._rebuild_tensor_v2", *view, FALSE, HOOKS)
        return call("torch._utils._rebuild_qtensor", *view, params, FALSE, HOOKS)

    def metadata(self) -> list[bytes]:
        if not self.odd(0.08) or self.without_bits:
            return []
        key = self.pick(text("neg"), text("conj"), raw(b"neg"), text("other"))
        return [dct((key, self.pick(TRUE, TRUE, FALSE, integer(1))))]

    def tensor(self, depth: int = 0) -> bytes:
        return self.kept("tensor", self._tensor(depth))

    def _tensor(self, depth: int) -> bytes:
        if self.odd(0.15) and (known := self.known("tensor")):
            return known
        made = self.plain()
        if self.container == "tar":
            made = text(self.pick("11", "12", "13", "+12", " 11", "1_2", "01")) + b"Q"
        while depth < 3 and self.rng.random() < 0.3:
            depth += 1
            made = self.wrapped(made, depth)
        return made

    def wrapped(self, made: bytes, depth: int) -> bytes:
        """A tensor made of another one."""
        flag = self.pick(TRUE, FALSE)
        if not self.strange or self.rng.random() < 0.4:
            return call("torch._utils._rebuild_parameter", made, flag, HOOKS)
        dtype = name(f"torch.{self.pick('float32', 'float32', *DTYPES)}")
        device = text(self.pick("cpu", "cpu", "meta"))
        rebuild = name("torch._utils._rebuild_parameter"), tup(made, flag, HOOKS)
        cls = name(self.pick("torch.Tensor", "torch.nn.parameter.Parameter"))
        return self.rng.choice((
            lambda: call("torch.nn.parameter.Parameter", made, flag),
            lambda: new("torch.nn.parameter.Parameter", made, flag),
            lambda: call("torch.nn.parameter.Buffer", made),
            lambda: call("torch.autograd.variable.Variable", made),
            lambda: call(
                "torch._utils._rebuild_parameter_with_state", made, flag, HOOKS, self.state(depth)
            ),
            lambda: call(
                "torch._utils._rebuild_device_tensor_from_cpu_tensor",
                self.convertible(),
                dtype,
                device,
                FALSE,
            ),
            lambda: call("torch._tensor._rebuild_from_type_v2", rebuild[0], cls, rebuild[1],
                         self.state(depth)),
            lambda: call("torch._tensor._rebuild_from_type", rebuild[0], cls, rebuild[1],
                         self.state(depth)),
            lambda: build(made, self.tensor_state(depth)),
            lambda: call("torch._utils._rebuild_sparse_tensor", text("torch.sparse_coo"),
                         tup(made, made, numbers(4))),
            lambda: call("torch._utils._rebuild_meta_tensor_no_storage", dtype, numbers(4),
                         numbers(1), FALSE),
            lambda: call("torch.Tensor", row(real(7.0), real(8.0))),
            lambda: call("torch.Tensor", made),
        ))()  # fmt: skip

    def convertible(self) -> bytes:
        """A tensor without the bits conj and neg, which torch crashes on when it converts."""
        if self.container == "tar":
            return text("11") + b"Q"
        self.without_bits = True
        made = self.plain()
        self.without_bits = False
        return self.kept("tensor", made)

    def state(self, depth: int) -> bytes:
        """The attributes of a tensor."""
        key = self.pick("data", "data", "tag", "grad", "real", "requires_grad", "names")
        value = self.tensor(depth + 1) if key in {"data", "tag", "real"} else NONE
        made = attributes(**{key: value})
        return self.pick(made, made, tup(made, NONE), tup(NONE, made), NONE)

    def tensor_state(self, depth: int) -> bytes:
        """A state for BUILD on a tensor."""
        of, numel = self.storage()
        offset, sizes, strides = self.flat(numel)
        other = self.tensor(depth + 1)
        return self.pick(
            tup(of, offset, sizes, strides),
            tup(of, offset, sizes),
            tup(of),
            tup(other),
            row(of, offset, sizes, strides),
            tup(other, NONE, NONE, FALSE, NONE),
            tup(FALSE, FALSE, HOOKS),
            attributes(data=other),
            b")",
        )

    # ----------------------------------------------------------------------------------- containers

    def key(self) -> bytes:
        """A key of a state dict."""
        word = self.pick("w1", "w2", "w3", "1", "0", "True", "None")
        if not self.odd(0.3):
            return text(word)
        return self.pick(
            raw(word.encode()), integer(self.pick(0, 1)), TRUE, FALSE, NONE, real(1.0),
            tup(text(word)), call("_codecs.encode", text(word), text("latin1")),
            call("builtins.str", text(word)), call("numpy.str_", text(word)),
            call("builtins.int", integer(1)), call("pathlib.PurePosixPath", text(word)),
            call("torch.device", text("cpu")), name("torch.float32"),
            call("torch.Size", row(integer(1))), self.known("key") or text(word),
            call("operator.concat", text("w"), text("1")), call("builtins.complex", real(1.0)),
            call("builtins.frozenset", row(text(word))),
        )  # fmt: skip

    def pairs(self, depth: int) -> list[tuple[bytes, bytes]]:
        count = self.rng.randrange(1, 5)
        return [(self.kept("key", self.key()), self.value(depth)) for _ in range(count)]

    def value(self, depth: int) -> bytes:
        if depth < 2 and self.rng.random() < 0.15:
            return self.table(depth + 1)
        if self.odd(0.02) and self.container == "zip":
            return self.quantized()
        if self.odd(0.05):
            return self.pick(integer(3), NONE, text("x"), row(self.tensor(), self.tensor()))
        return self.tensor()

    def table(self, depth: int = 0) -> bytes:
        """A dict of tensors, by one of the ways to make one."""
        return self.kept("dict", self._table(depth))

    def _table(self, depth: int) -> bytes:
        if self.odd(0.05) and (known := self.known("dict")):
            return known
        pairs = self.pairs(depth)
        cls = self.pick("collections.OrderedDict", "collections.OrderedDict", "collections.Counter",
                        "builtins.dict")  # fmt: skip
        listed = row(*(tup(key, value) for key, value in pairs))
        made = self.rng.choice((
            lambda: dct(*pairs),
            lambda: call(cls) + items(*pairs),
            lambda: b"}" + b"".join(key + value + b"s" for key, value in pairs),
            *((
                lambda: call(cls, dct(*pairs)),
                lambda: call(cls, listed),
                lambda: new(cls, dct(*pairs)),
                lambda: new(cls) + items(*pairs),
                lambda: name(cls) + row(dct(*pairs)) + b"R",
                lambda: name(cls) + row(listed) + b"R",
                lambda: call("collections.defaultdict", NONE, dct(*pairs)),
                lambda: call("copyreg._reconstructor", name(cls), name("builtins.dict"),
                             dct(*pairs)),
                lambda: call("copyreg.__newobj__", name(cls), dct(*pairs)),
                lambda: build(call("collections.OrderedDict") + items(*pairs),
                              attributes(w1=self.tensor())),
                lambda: b"(" + b"".join(key + value for key, value in pairs) + b"d",
            ) if self.strange else ()),
        ))()  # fmt: skip
        if self.odd(0.15):  # set again
            made += items(*self.pairs(2))
        return made

    def top(self) -> bytes:
        before = [(text("x"), self.value(0))] if self.rng.random() < 0.5 else []
        after = []
        ema = (text("ema"), self.table())
        if self.odd(0.3):  # something is changed afterwards
            known, other = self.known("dict"), self.known("tensor")
            if known and self.rng.random() < 0.5:
                after.append((text("y"), known + items(*self.pairs(2))))
            elif other:
                after.append((text("y"), build(other, self.tensor_state(2))))
        if self.odd(0.1):
            key = self.pick(raw(b"ema"), call("builtins.str", text("ema")), text("ema"))
            after.append((key, self.table()))
        return dct(*before, ema, *after)


def mentioned(body: bytes) -> list[tuple[object, str]]:
    """The keys of storages in a program, and the records with their values."""
    keys = [
        *((key, key, text(key)) for key in KEYS),
        *((int(key), key, integer(int(key))) for key in KEYS),
        *((key.encode(), f"b'{key}'", raw(key.encode())) for key in "12"),
    ]
    return [(key, record) for key, record, spelled in keys if b"Storage\n" + spelled in body]


def checkpoint(seed: int) -> bytes:
    """The checkpoint of a seed."""
    rng = Random(seed)
    container = rng.choice(("zip", "zip", "legacy", "tar"))
    program = Program(rng, container)
    body = program.top()
    if container == "zip":
        order = b"big" if program.odd(0.15) else b"little"
        return zipped(body, RECORDS, order)
    if container == "legacy":
        return stream(body, [(key, RECORDS[record]) for key, record in mentioned(body)])
    tensors = [(integer(11), integer(1), 4), (integer(12), integer(2), 8)]
    if program.odd(0.5):
        key = program.pick(text("12"), text("+12"), integer(12), integer(1), raw(b"12"))
        tensors.append((key, integer(1), 8))
    views = row(tup(integer(program.pick(2, 3)), integer(1), integer(2), integer(4)))
    storages = [(integer(int(key)), RECORDS[key]) for key in "12"]
    return tarred(body, storages, tensors, views if program.odd(0.4) else b"]")
