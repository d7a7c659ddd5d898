"""Pickles with some instructions changed: nearly all can be loaded, unlike those with other bytes.

A change exchanges texts, numbers, names and entries of the memo, adds items to dicts under keys
that look like others, sets states, and repeats a part.
"""

from __future__ import annotations

import io
import pickletools
import random
from collections.abc import Callable

from helpers.assembler import binary, call, integer, integers, name, row, text

FRAME = "\x95"
NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"
NAMES = tuple(
    name(module, attribute)
    for module, attributes in {
        "torch": ("FloatStorage", "IntStorage", "HalfStorage", "BFloat16Storage", "ByteStorage",
                  "Tensor", "Size", "float16", "float32"),
        "torch.storage": ("UntypedStorage",),
        "torch.nn.parameter": ("Parameter",),
        "torch._tensor": ("_rebuild_from_type_v2",),
        "torch._utils": ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3",
                         "_rebuild_parameter", "_rebuild_parameter_with_state",
                         "_rebuild_qtensor", "_rebuild_sparse_tensor", "_rebuild_nested_tensor",
                         "_rebuild_meta_tensor_no_storage", "_rebuild_device_tensor_from_numpy",
                         "_rebuild_device_tensor_from_cpu_tensor"),
        "collections": ("OrderedDict", "defaultdict", "Counter"),
        "builtins": ("dict", "list", "set"),
        "argparse": ("Namespace",),
    }.items()
    for attribute in attributes
)  # fmt: skip
TEXTS, NUMBERS, FROM_MEMO, INTO_MEMO = "X\x8cVU", "KMJ\x8a", "hjg", "qr"
ATTRIBUTES = ("data", "grad", "requires_grad", "_backward_hooks", "shape", "__class__", "real")
HELD = ("R", "R", "R", "Q", "b", "\x81", "}", "]", "t", "\x85", "\x86", "\x87", "c")


def changed_instructions(data: bytes, rng: random.Random) -> bytes:
    """Change one to three instructions of a pickle; what stands behind it stays.

    Raises:
        ValueError: it is no pickle.
    """
    stream = io.BytesIO(data)
    listed = list(pickletools.genops(stream))
    program = _Program(listed, data[: stream.tell()], rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        program.change()
    return program.written() + data[stream.tell() :]


class _Program:
    """The instructions of a pickle: code, argument and bytes of each."""

    def __init__(self, listed: list, data: bytes, rng: random.Random) -> None:
        begins = [at for _, _, at in listed]
        ends = [*begins[1:], len(data)]
        self._rng = rng
        self._codes = [op.code for op, _, _ in listed]
        self._args = [arg for _, arg, _ in listed]
        self._bytes = [
            b"" if code == FRAME else data[begin:end]  # whose length would no longer be right
            for code, begin, end in zip(self._codes, begins, ends, strict=True)
        ]
        self._memo: dict[str, list[int]] = {}  # what was put there: its instruction -> indices
        puts = 0
        for at, (code, arg) in enumerate(zip(self._codes, self._args, strict=True)):
            if code in "pqr\x94":
                self._memo.setdefault(self._codes[at - 1], []).append(
                    puts if code == "\x94" else int(arg)
                )
                puts += 1
        self._texts = [str(arg) for arg in self._all(TEXTS)] or ["a"]
        self._numbers = [int(arg) for arg in self._all(NUMBERS)] or [0]

    def _all(self, codes: str) -> list:
        return [arg for code, arg in zip(self._codes, self._args, strict=True) if code in codes]

    def written(self) -> bytes:
        """The changed pickle."""
        return b"".join(self._bytes)

    def change(self) -> None:
        """Change one instruction, unless the pickle has none of the kind."""
        codes, changed = self._rng.choice(CHANGES)
        places = [at for at, code in enumerate(self._codes) if code in codes]
        if places:
            at = self._rng.choice(places)
            self._bytes[at] = changed(self, at)

    # ------------------------------------------------------------------------------------- values

    def _from_memo(self, *kinds: str) -> bytes:
        known = [index for kind in kinds for index in self._memo.get(kind, ())]
        return b"j" + self._rng.choice(known or [0]).to_bytes(4, "little")

    def _value(self) -> bytes:
        return self._rng.choice((
            self._from_memo("R"), self._from_memo("R"), self._from_memo(self._rng.choice(HELD)),
            text(self._rng.choice(self._texts)), integer_of(self._rng.choice(self._numbers)),
            NONE, TRUE, FALSE, b"}", b"]", b")",
        ))  # fmt: skip

    def _key(self) -> bytes:
        word = self._rng.choice(self._texts)
        return self._rng.choice((
            text(word), text(word), text(f"{word}."), text(""), text(word.upper()),
            text(f"module.{word}"), text(word.replace(".", "/")), text(word.replace(".", "_")),
            binary(word.encode("utf-8", "surrogatepass")),
            integer_of(self._rng.choice(self._numbers)), text("0"), NONE, TRUE,
        ))  # fmt: skip

    # ------------------------------------------------------------------------------------ changes

    def text(self, at: int) -> bytes:
        old = str(self._args[at])
        return self._rng.choice((
            text(self._rng.choice(self._texts)), self._key(), text(f"{old}x"), text(old[:-1]),
            text(f"module.{old}"), text(f"ema.{old}"), text(f"{old} "),
        ))  # fmt: skip

    def number(self, at: int) -> bytes:
        old = int(self._args[at])
        near = (0, 1, -1, old + 1, old - 1, old * 2, old // 2, 4, 64)
        return integer_of(self._rng.choice((*near, self._rng.choice(self._numbers))))

    def value(self, _at: int) -> bytes:
        return self._value()

    def flag(self, _at: int) -> bytes:
        return self._rng.choice((TRUE, FALSE, NONE, integer(1), integer(0)))

    def name(self, _at: int) -> bytes:
        own = [data for code, data in zip(self._codes, self._bytes, strict=True) if code == "c"]
        return self._rng.choice((self._rng.choice(own), self._rng.choice(NAMES)))

    def item(self, at: int) -> bytes:
        return self._key() + self._value() + self._bytes[at]

    def one_item(self, at: int) -> bytes:
        return self._bytes[at] + self._key() + self._value() + b"s"

    def element(self, at: int) -> bytes:
        return self._value() + self._bytes[at]

    def state(self, at: int) -> bytes:
        attribute = text(self._rng.choice((self._rng.choice(self._texts), *ATTRIBUTES)))
        parts = row(self._value(), integer(0), integers(4), integers(1))
        return self._bytes[at] + self._rng.choice((
            b"}" + attribute + self._value() + b"sb", self._value() + b"b", parts + b"b",
        ))  # fmt: skip

    def other_place(self, _at: int) -> bytes:
        known = [index for indices in self._memo.values() for index in indices]
        return b"r" + self._rng.choice(known).to_bytes(4, "little")

    def repeated(self, at: int) -> bytes:
        before = self._bytes[max(at - self._rng.randint(1, 12), 0) : at]
        return b"".join(before) + self._bytes[at]

    def call(self, at: int) -> bytes:
        made = call(self._rng.choice(NAMES), self._value())
        return made + b"0" + self._bytes[at]

    def replaced(self, at: int) -> bytes:
        return self._bytes[at] + b"0" + self._value()


def integer_of(value: int) -> bytes:
    """An int of any size that fits 64 bits."""
    if -(1 << 31) <= value < 1 << 31:
        return integer(value)
    return b"\x8a\x09" + max(min(value, 1 << 64), -(1 << 64)).to_bytes(9, "little", signed=True)


# The instructions that are changed, and how; some are likelier than others.
CHANGES: tuple[tuple[str, Callable[[_Program, int], bytes]], ...] = (
    *((TEXTS, _Program.text),) * 3, *((NUMBERS, _Program.number),) * 2,
    *((FROM_MEMO, _Program.value),) * 2, *(("c", _Program.name),) * 2,
    *(("u", _Program.item),) * 3, ("uqrR", _Program.one_item), ("e", _Program.element),
    (TRUE.decode("latin-1") + FALSE.decode("latin-1") + "N", _Program.flag),
    ("Rbu\x81qQ", _Program.state), (INTO_MEMO, _Program.other_place),
    ("utRb", _Program.repeated), ("R", _Program.call), ("R", _Program.replaced),
)  # fmt: skip
