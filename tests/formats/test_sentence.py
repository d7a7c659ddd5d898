"""The sentence of a tensor means what its instructions mean: trees, memo, budget and faults.

The judge is the machine itself, without sentences: whatever is drawn, both have one outcome. The
drawn pickles look like those of torch, and are not: other indices and widths, values in the memo
that are replaced between the instructions, storages of other classes, strides in any order.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.errors import CkptError, DamagedError
from ckptool.formats.pickles import machine as pickle_tree
from ckptool.formats.pickles.machine import PickleMachine
from ckptool.formats.pickles.memo import Memo
from ckptool.formats.pickles.sentence import TensorSentence
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.sources.memory import Memory
from ckptool.tree.nodes import GlobalRef, NotedDict, TensorRef
from helpers.thinned import examples

STORED = Memory(bytes(4096), "storages")
SIZES = {"0": 64, "1": 64, "2": 4, "10": 4096, "200000": 64}


def locate(key, nbytes, asked):
    """The bytes of a storage, which is never longer than its record."""
    asked.append((key, nbytes))
    if nbytes > SIZES.get(key, -1):
        raise DamagedError(f"no storage {key!r} of {nbytes} bytes")
    return STORED.span(0, nbytes)


def anywhere(_key, nbytes):
    """A storage with as many bytes as the pickle asks for."""
    return Memory(bytes(nbytes)).span(0, nbytes)


class Watched(TorchBuilder):
    """A builder that keeps the memo, and counts the sentences that it took."""

    takes = True
    taken = 0

    def read_sentence(self, window, at, stack, marks, memo):
        self.memo = memo
        read = super().read_sentence if self.takes else self._read_nothing
        end, stack = read(window, at, stack, marks, memo)
        self.taken += end > 0
        return end, stack

    def _read_nothing(self, _window, _at, stack, _marks, _memo):
        return 0, stack


class WordByWord(Watched):
    takes = False


def read(data: bytes, kind: type[Watched], window: int) -> tuple[Watched, tuple[Any, ...]]:
    """The builder, and the whole outcome of a pickle: what is compared."""
    asked: list[tuple[Any, int]] = []  # a storage that is found is asked for once
    builder = kind(partial(locate, asked=asked))
    machine = PickleMachine(Memory(data), builder=builder, window=window)
    try:
        tree: Any = machine.run()
        fault = None
    except CkptError as error:
        tree, fault = None, (type(error), str(error))
    memo = getattr(builder, "memo", Memo())
    memo.keep()
    shapes = Shapes()
    budget = builder.budget
    return builder, (
        fault, fault or asked, machine.end, machine.is_later, list(machine.globals),
        [shapes.of(part) for part in (tree, *(memo[at] for at in sorted(memo)))], sorted(memo),
        builder.objections, builder.is_plain, sorted(map(str, builder.misused)),
        sorted((str(ref), len(uses)) for ref, uses in builder.called.items()),
        repr(builder.storages.known), builder.storages.unknown_devices,
        budget._copies, budget._copying, budget._keys, budget._repeats, budget._inert,
    )  # fmt: skip


class Shapes:
    """The form of values, in which those that are one object are seen to be one."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[int, Any]] = {}  # which it keeps alive

    def of(self, value: Any) -> Any:
        if not isinstance(value, (list, tuple, dict, set)) and not is_dataclass(value):
            return type(value), repr(value)
        if id(value) in self._met and value != ():
            return self._met[id(value)][0]
        self._met[id(value)] = len(self._met), value
        return type(value), *map(self.of, self._parts(value))

    def _parts(self, value: Any) -> Iterator[Any]:
        if isinstance(value, (TensorRef, GlobalRef)):
            yield repr(value)
        elif is_dataclass(value):
            yield from (getattr(value, part.name) for part in fields(value))
        elif isinstance(value, dict):
            yield from value.items()
            yield repr(value.state) if isinstance(value, NotedDict) else None
        else:
            yield from value


# ---------------------------------------------------------------------------------------- sentences

BASE = 300  # the first entry of the memo that a sentence fills
KINDS = {"storage": 1, "module": 2, "PathText": 10}
CLASSES = {"FloatStorage": 3, "LongStorage": 4, "QUInt4x2Storage": 5, "NoStorage": 6, "text": 1}
CLASSES |= {"UntypedStorage": 7, "ComplexFloatStorage": 20}
DEVICES = {"cpu": 8, "meta": 9, "cuda:0": 11, "toaster": 12, "name": 3, "bytes": 21}
SPELLED = ("cuda:0", "cuda:1", "meta", "toaster", "c", "", "é", "a device of a long name")
HOOKS = {"OrderedDict": 13, "dict": 14, "not yet called": 15, "text": 1}
FUNCTIONS = {"v2": 16, "v1": 17, "not yet called": 18, "system": 19, "text": 1}


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def stored(at: int, value: bytes) -> bytes:
    return value + b"q" + bytes([at])


TENSOR = (
    b"((h\x01h\x03" + text("2") + b"h\x08K\x01tQK\x00K\x01\x85K\x01\x85\x89h\x0d)RtR"
)  # which calls both functions for the first time
PREFIX = b"\x80\x02](" + b"".join((
    stored(1, text("storage")), stored(2, text("module")), stored(10, name("pathlib", "PurePath")),
    *(stored(CLASSES[c], name("torch", c)) for c in list(CLASSES) if c != "text"),
    stored(8, text("cpu")), stored(9, text("meta")), stored(11, text("cuda:0")),
    stored(12, text("toaster")), stored(21, b"U\x03cpu"),
    stored(13, name("collections", "OrderedDict")), stored(14, name("builtins", "dict")),
    stored(15, name("collections", "Counter")),
    stored(16, name("torch._utils", "_rebuild_tensor_v2")),
    stored(17, name("torch._utils", "_rebuild_tensor")),
    stored(18, name("torch._utils", "_rebuild_tensor_v3")), stored(19, name("os", "system")),
    b"h\x10" + TENSOR, b"h\x0e)R",
))  # fmt: skip


def number(value: int, width: str = "") -> bytes:
    """An integer, as short as picklers write it, or in another width."""
    if width == "K" or (not width and 0 <= value < 1 << 8):
        return b"K" + struct.pack("<B", value & 0xFF)
    if width == "M" or (not width and 0 <= value < 1 << 16):
        return b"M" + struct.pack("<H", value & 0xFFFF)
    return b"J" + struct.pack("<i", value)


def get(at: int, width: str = "") -> bytes:
    return b"h" + bytes([at]) if at < 256 and width != "j" else b"j" + struct.pack("<I", at)


def put(at: int, width: str = "r") -> bytes:
    return b"q" + bytes([at]) if at < 256 and width == "q" else b"r" + struct.pack("<I", at)


def tup(*items: bytes) -> bytes:
    if not items:
        return b")"

    if len(items) > 3:
        return b"(" + b"".join(items) + b"t"
    return b"".join(items) + bytes([0x84 + len(items)])


def sentence(base: int, key: str = "0", numel: int = 16, offset: int = 0, **more: Any) -> bytes:
    """A tensor as torch writes it, whose parts may be replaced."""
    sizes, strides = more.get("sizes", (2, 3)), more.get("strides", (3, 1))
    puts = iter(more.get("puts") or range(base, base + 8))
    width, wide, device = more.get("width", "r"), more.get("wide", ""), more.get("device", 8)
    parts = (
        get(more.get("function", 16)), b"((", get(more.get("kind", 1), wide),
        get(more.get("cls", 3), wide), text(key), put(next(puts), width),
        text(device) + put(next(puts), width) if isinstance(device, str) else get(device, wide),
        number(numel, more.get("count", "")), b"t",
        put(next(puts), width), b"Q", number(offset, more.get("count", "")),
        *(
            tup(*(number(n, more.get("size", "")) for n in row))
            + (put(next(puts), width) if row else b"")
            for row in (sizes, strides)
        ),
        more.get("flag", b"\x89"), get(more.get("hooks", 13), wide), b")R", put(next(puts), width),
        b"t", put(next(puts), width), b"R", put(next(puts), width),
    )  # fmt: skip
    return b"".join(parts)


def whole(*parts: bytes) -> bytes:
    return PREFIX + b"".join(parts) + b"e."


# ------------------------------------------------------------------------------------ equal outcome


def same(data: bytes, window: int = pickle_tree.WINDOW) -> Watched:
    """Assert that both ways of reading have one outcome; the builder of the faster one."""
    ours, found = read(data, Watched, window)
    _, wanted = read(data, WordByWord, window)
    assert found == wanted
    return ours


INDICES = st.sampled_from([*range(BASE, BASE + 8), 1, 3, 8, 13, 16, 255, 5000])
rarely = st.integers(0, 7).map(lambda n: n == 0)


def mostly(usual: Any, others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The usual value, or now and then another one."""
    return rarely.flatmap(lambda is_other: others if is_other else st.just(usual))


def entry(table: dict[str, int]) -> st.SearchStrategy[int]:
    usual, *others = table.values()
    return mostly(usual, st.sampled_from(others))


ROWS = st.lists(st.sampled_from([0, 1, 2, 3, 4, 300, 70_000, -1]), max_size=6).map(tuple)


@st.composite
def sentences(draw: st.DrawFn) -> bytes:
    """A sentence that is not quite, or not at all, as torch writes it."""
    base = draw(mostly(BASE, st.sampled_from([0, 250, 254, 256, 1000])))
    more: dict[str, Any] = {
        "function": draw(entry(FUNCTIONS)), "kind": draw(entry(KINDS)),
        "cls": draw(entry(CLASSES)), "hooks": draw(entry(HOOKS)),
        "device": draw(st.one_of(entry(DEVICES), mostly("cuda:0", st.sampled_from(SPELLED)))),
        "sizes": draw(mostly((2, 3), ROWS)), "strides": draw(mostly((3, 1), ROWS)),
        "puts": draw(mostly(None, st.lists(INDICES, min_size=8, max_size=8))),
        "flag": draw(mostly(b"\x89", st.sampled_from([b"\x88", b"N", b"K\x01"]))),
        "width": draw(mostly("r", st.just("q"))), "wide": draw(mostly("", st.just("j"))),
        "size": draw(mostly("", st.sampled_from("KMJ"))),
        "count": draw(mostly("", st.sampled_from("KMJ"))),
    }  # fmt: skip
    key = draw(mostly("0", st.sampled_from([*SIZES, "x", "", "é", "123456789012", "٣"])))
    numel = draw(mostly(16, st.sampled_from([0, 1, 15, 17, 1024, 70_000, -1])))
    offset = draw(mostly(0, st.sampled_from([1, 10, 11, 70_000, -1])))
    return sentence(base, key, numel, offset, **more)


BETWEEN = st.one_of(
    sentences(),
    INDICES.map(get),
    INDICES.map(put),
    st.sampled_from([b"K\x01", b"(", b"t", b"R", b"0", b"}", b"s", b"b", text("w"), b"\x94", b")"]),
)


@given(st.lists(st.one_of(sentences(), BETWEEN), min_size=1, max_size=6))
@examples(1500)
def test_drawn_sentences_mean_what_their_instructions_mean(parts):
    same(whole(*parts, *map(get, range(BASE, BASE + 7))))
    same(whole(*parts))


@st.composite
def dicts(draw: st.DrawFn) -> bytes:
    """A dict of tensors, whose keys are spelled or taken from the memo, with a fault now and then.

    Most sentences store behind the entries so far, and some read one that another has stored.
    """
    parts, free = [], BASE
    for at in range(draw(st.integers(1, 6))):
        key = draw(st.sampled_from(["spelled", "taken", "new"]))
        named = {
            "spelled": text(f"w{at}") + put(free + draw(mostly(0, st.integers(-9, 9)))),
            "taken": get(draw(mostly(1, INDICES))),
            "new": text(f"n{at}"),
        }[key]
        free += key == "spelled"
        usual = {"key": str(at % 2), "function": draw(mostly(16, INDICES))}
        usual["device"] = draw(
            st.one_of(mostly(8, st.integers(BASE, free + 7)), st.sampled_from(["cuda:0", "xla:1"]))
        )
        usual["hooks"] = draw(mostly(13, st.integers(BASE, free + 7)))
        usual["sizes"], usual["strides"] = draw(st.sampled_from([((2, 3), (3, 1)), ((), ())]))
        entry = draw(mostly(sentence(free, **usual), sentences()))
        parts.append(named + entry)
        free += (7 if usual["sizes"] else 5) + isinstance(usual["device"], str)
    return b"}(" + b"".join(parts) + draw(mostly(b"u", st.sampled_from([b"0u", b"K\x01u"])))


@given(st.lists(st.one_of(dicts(), BETWEEN), min_size=1, max_size=3), st.integers(16, 4000))
@examples(1500)
def test_dicts_of_tensors_mean_what_their_instructions_mean(parts, window):
    pickled = whole(*parts, *map(get, range(BASE, BASE + 20, 3)))
    same(pickled)
    same(whole(*parts), window)


@st.composite
def optimizers(draw: st.DrawFn) -> bytes:
    """A dict of small dicts of tensors, as the state of an optimizer, with a fault now and then.

    The names of its slots are spelled in the first dict and taken from the memo in the others.
    """
    parts, free = [], BASE
    named: list[int] = []  # where the names are in the memo
    for at in range(draw(st.integers(1, 4))):
        key = draw(
            mostly(number(at), st.sampled_from([number(300), text("p"), get(1), get(8), b""]))
        )
        opened = b"}" + put(free + draw(mostly(0, st.integers(-9, 9)))) + b"("
        free += 1
        parts.append(key + opened)
        for slot in range(draw(st.integers(0, 3))):
            if slot < len(named):
                name = get(named[slot] + draw(mostly(0, st.integers(-3, 3))))
            else:
                name = text(
                    draw(st.sampled_from(["step", "exp_avg", "exp_avg", "x" * 300, "é", "a\n"]))
                )
                named.append(free)
                name += put(free)
                free += 1
            usual = {"key": str(slot % 2), "hooks": draw(mostly(13, st.integers(BASE, free + 7)))}
            usual["sizes"], usual["strides"] = draw(st.sampled_from([((2, 3), (3, 1)), ((), ())]))
            parts.append(
                name + draw(mostly(sentence(free, **usual), st.one_of(BETWEEN, sentences())))
            )
            free += 7 if usual["sizes"] else 5
        parts.append(
            draw(mostly(b"u", st.sampled_from([b"", b"uu", b"u(", b"K\x01u", b"0u", b"e", b"}u"])))
        )
    begun = draw(mostly(b"}(", st.sampled_from([b"](", b"(", b"}h\x01h\x10s(", b"h\x0e)R("])))
    return begun + b"".join(parts) + draw(mostly(b"u", st.sampled_from([b"", b"e", b"t"])))


@given(st.lists(st.one_of(optimizers(), BETWEEN), min_size=1, max_size=2), st.integers(16, 4000))
@examples(1500)
def test_dicts_of_dicts_mean_what_their_instructions_mean(parts, window):
    same(whole(*parts, *map(get, range(BASE, BASE + 20, 3))))
    same(whole(*parts), window)


@given(optimizers(), st.data())
@examples(1000)
def test_changed_dicts_of_dicts_mean_the_same_either_way(part, data):
    pickled = bytearray(whole(part))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(len(PREFIX), len(pickled) - 1))
        pickled[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    same(bytes(pickled))


@given(dicts(), st.data())
@examples(1000)
def test_changed_dicts_mean_the_same_either_way(part, data):
    pickled = bytearray(whole(part))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(len(PREFIX), len(pickled) - 1))
        pickled[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    same(bytes(pickled))


@given(st.lists(sentences(), min_size=1, max_size=3), st.data())
@examples(1000)
def test_changed_bytes_mean_the_same_either_way(parts, data):
    pickled = bytearray(whole(*parts))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(len(PREFIX), len(pickled) - 1))
        pickled[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    same(bytes(pickled))


@given(st.lists(sentences(), min_size=1, max_size=4), st.integers(16, 400))
@examples(300)
def test_windows_may_end_anywhere(parts, window):
    same(whole(*parts), window)


@given(st.lists(sentences(), min_size=1, max_size=3), st.integers(20, 400))
@examples(300)
def test_frames_may_end_anywhere(parts, length):
    body = PREFIX[2:] + b"".join(parts) + b"e."
    pieces = [body[at : at + length] for at in range(0, len(body), length)]
    framed = b"".join(b"\x95" + struct.pack("<Q", len(piece)) + piece for piece in pieces)
    same(b"\x80\x04" + framed)


# ------------------------------------------------------------------------------- what is recognised

PLAIN = {
    "a matrix": {},
    "a vector": {"sizes": (16,), "strides": (1,)},
    "a scalar": {"sizes": (), "strides": (), "key": "2", "numel": 1},
    "three dimensions": {"sizes": (2, 2, 4), "strides": (8, 4, 1)},
    "five dimensions": {"sizes": (1, 2, 2, 2, 2), "strides": (16, 8, 4, 2, 1)},
    "nothing": {"sizes": (0, 3), "strides": (3, 1)},
    "transposed": {"sizes": (3, 2), "strides": (1, 3)},
    "a part of its storage": {"offset": 10, "sizes": (6,), "strides": (1,)},
    "strides that repeat values": {"sizes": (100, 16), "strides": (0, 1)},
    "large numbers": {"key": "10", "numel": 1024, "sizes": (1024,), "strides": (1,)},
    "a long key": {"key": "200000"},
    "another class": {"cls": CLASSES["LongStorage"], "key": "1", "numel": 8},
    "another device": {"device": DEVICES["cuda:0"], "key": "1"},
    "a device that torch does not know": {"device": DEVICES["toaster"], "key": "1"},
    "a device that is spelled": {"device": "cuda:0"},
    "a device that is spelled, of a scalar": {
        "device": "cuda:0", "sizes": (), "strides": (), "key": "2", "numel": 1,
    },
    "a gradient": {"flag": b"\x88"},
    "wide indices": {"wide": "j"},
    "far entries of the memo": {"puts": range(70_000, 70_007)},
}  # fmt: skip


@pytest.mark.parametrize("more", PLAIN.values(), ids=PLAIN)
def test_tensors_of_torch_are_recognised(more):
    assert same(whole(sentence(BASE, **more))).taken == 1


def replacing(old: bytes, new: bytes) -> bytes:
    """A sentence in which some bytes are others."""
    usual = sentence(BASE)
    assert usual.count(old) == 1
    return usual.replace(old, new)


ODD = {
    "an unknown class": sentence(BASE, cls=CLASSES["NoStorage"]),
    "another name": sentence(BASE, function=FUNCTIONS["system"]),
    "a function that was not called yet": sentence(BASE, function=FUNCTIONS["not yet called"]),
    "hooks of another class": sentence(BASE, hooks=HOOKS["dict"]),
    "the key becomes the device": sentence(BASE, puts=[8, *range(BASE, BASE + 6)]),
    "the key becomes the hooks": sentence(BASE, puts=[13, *range(BASE, BASE + 6)]),
    "the sizes become the hooks": sentence(BASE, puts=[BASE, BASE, 13, *range(BASE, BASE + 4)]),
    "a shorter key": replacing(text("0"), b"X\x01\0\0\x0010"),
    "a longer key": replacing(text("0"), b"X\x03\0\0\x0010"),
    "a tuple of fewer": replacing(number(2) + number(3) + b"\x86", number(2) + number(3) + b"\x85"),
    "a tuple of more": replacing(number(2) + number(3) + b"\x86", number(2) + number(3) + b"\x87"),
    "fewer strides": sentence(BASE, strides=(1,)),
    "values that are nowhere": sentence(BASE, device=DEVICES["meta"]),
    "values that are nowhere, as spelled": sentence(BASE, device="meta"),
    "a device of another length": sentence(BASE, device="cuda:0").replace(b"X\x06", b"X\x05"),
    "a device that becomes the hooks": sentence(
        BASE, device="cuda:0", puts=[BASE, 13, *range(BASE + 1, BASE + 7)]
    ),
    "no values": sentence(BASE, numel=0, sizes=(0,), strides=(1,)),
    "no values, and sizes": sentence(BASE, numel=0),
    "two values in a byte": sentence(BASE, key="1", cls=CLASSES["QUInt4x2Storage"]),
    "integers with a gradient": sentence(
        BASE, key="1", cls=CLASSES["LongStorage"], numel=8, flag=b"\x88"
    ),
    "more values than stored": sentence(BASE, offset=11),
    "values before the storage": sentence(BASE, offset=-1),
    "negative sizes": sentence(BASE, sizes=(-2, -3)),
    "a storage that is not there": sentence(BASE, key="7"),
    "too many elements to be counted": sentence(
        BASE, sizes=(1 << 30, 1 << 30, 1 << 30), strides=(0, 0, 0)
    ),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_only_looks_like_a_tensor_is_read_word_by_word(odd):
    assert same(whole(odd, odd)).taken == 0


def test_hooks_are_recognised_once_their_class_has_been_called():
    before = whole(sentence(BASE)).replace(b"\x89h\x0d)RtR", b"\x89}tR", 1)
    ours = same(before)
    assert ours.taken == 0
    assert GlobalRef("collections", "OrderedDict") in ours.called


def test_functions_of_the_memo_are_those_that_stand_there_now():
    replaced = name("os", "system") + put(16, "q") + b"0"
    ours = same(whole(sentence(BASE), replaced, sentence(BASE + 7)))
    assert ours.taken == 1
    assert GlobalRef("os", "system") in ours.called


def test_the_tensors_of_a_dict_are_read_in_one_call():
    """Keys are spelled, or taken from the memo as those of optimizers; a scalar is shorter."""
    entries = (
        text("w") + put(BASE) + sentence(BASE + 1),
        get(1) + sentence(BASE + 8),
        text("step") + put(BASE + 15) + sentence(BASE + 16, "2", 1, sizes=(), strides=()),
        text("v") + put(BASE + 21) + sentence(BASE + 22),
    )
    ours = same(whole(b"}(" + b"".join(entries) + b"u", get(BASE), get(BASE + 28)))
    assert ours.taken == 1
    assert len(ours.storages.known) == 2


def slots(base: int, step: bytes = b"") -> bytes:
    """The dict of a parameter with two slots, whose names are in the memo unless one is spelled."""
    first = base + 1 + (step != b"")
    named = step or get(BASE + 1)
    counter = sentence(first, "2", 1, sizes=(), strides=())
    return b"}" + put(base) + b"(" + named + counter + get(8) + sentence(first + 5) + b"u"


def test_the_dicts_of_an_optimizer_are_read_in_few_calls():
    """The second dict reads a name that the first has stored, which ends the first run."""
    first = number(0) + slots(BASE, text("step") + put(BASE + 1))
    others = [number(at) + slots(BASE + 1 + 13 * at) for at in range(1, 9)]
    ours = same(whole(b"}(", first, *others, b"u"))
    assert ours.taken == 2


def test_the_tensors_of_a_list_are_read_in_one_call():
    ours = same(whole(b"](", *(sentence(BASE + 7 * at) for at in range(9)), b"e"))
    assert ours.taken == 1


NOT_FILLED = {
    "a key that is there twice": get(1) + sentence(BASE + 1) + get(1) + sentence(BASE + 8),
    "a key that is no text": get(3) + sentence(BASE + 1),
    "a long key": text("k" * 300) + put(BASE + 1) + sentence(BASE + 2),
    "a key without a value": get(1) + sentence(BASE + 1) + get(8),
    "a tensor without a key": get(1) + sentence(BASE + 1) + sentence(BASE + 8),
    "a text that is longer than it says": b"X\x01\0\0\0ab" + put(BASE + 1) + sentence(BASE + 2),
    "a text that takes the next instruction": b"X\x04\0\0\0ab" + put(BASE + 1) + sentence(BASE + 2),
    "a text that pops itself": b"X\x01\0\0\0a0" + put(BASE + 1) + sentence(BASE + 2),
    "nothing": b"",
}


@pytest.mark.parametrize("items", NOT_FILLED.values(), ids=NOT_FILLED)
def test_dicts_with_odd_keys_are_what_their_instructions_make_of_them(items):
    odd = number(0) + b"}" + put(BASE) + b"(" + items + b"u"
    same(whole(b"}(", odd, number(1) + b"}" + put(BASE + 20) + b"(", b"u", b"u"))


def test_a_dict_that_holds_something_already_is_filled_by_the_machine():
    held = b"}" + get(1) + number(1) + b"s("
    ours = same(whole(held, get(1) + sentence(BASE), b"u"))
    assert ours.taken == 1


def test_the_tensors_of_a_gpu_are_read_in_one_call():
    """Torch spells their device anew for each; the counters of an optimizer are on the CPU."""
    entries = (
        text("w") + put(BASE) + sentence(BASE + 1, device="cuda:0"),
        text("step") + put(BASE + 9) + sentence(BASE + 10, "2", 1, sizes=(), strides=()),
        text("v") + put(BASE + 15) + sentence(BASE + 16, "1", device="cuda:1"),
    )
    ours = same(whole(b"}(" + b"".join(entries) + b"u", *map(get, range(BASE, BASE + 24))))
    assert ours.taken == 1
    assert [storage.device for storage in ours.storages.known.values()] == [
        "cpu", "cuda:0", "cuda:1"
    ]  # fmt: skip


def test_a_sentence_that_reads_what_one_before_it_stored_ends_the_run():
    taken = text("w") + put(BASE) + sentence(BASE + 1)
    reader = text("v") + put(BASE + 8) + sentence(BASE + 9, device=BASE + 8)  # the text "v"
    ours = same(whole(b"}(" + taken + reader + b"u"))
    assert ours.taken == 2
    assert ours.storages.unknown_devices == {}


def test_a_storage_of_another_class_decides_what_its_bytes_are():
    """The storage is known as 16 floats; as 8 long integers it would have as many bytes."""
    first = sentence(BASE, sizes=(16,), strides=(1,))
    other = sentence(BASE + 7, numel=8, cls=CLASSES["LongStorage"], sizes=(8,), strides=(1,))
    assert same(whole(first, other)).taken == 1


def test_two_tensors_in_one_tree_do_not_share_their_sizes():
    """A tree may hold the tuples of the memo: those of two tensors are two."""
    ours = same(whole(sentence(BASE), sentence(BASE + 7), get(BASE + 2), get(BASE + 9)))
    assert ours.taken == 1
    assert ours.memo[BASE + 2] is not ours.memo[BASE + 9]


def test_almost_all_tensors_of_a_file_are_recognised(monkeypatch):
    """Those before the 256th entry of the memo have shorter instructions."""
    found, original = [], TensorSentence.read

    def counted(self, window, at, stack, marks, memo):
        before = self._builder.budget.room_for_containers
        read = original(self, window, at, stack, marks, memo)
        found.extend([None] * (before - self._builder.budget.room_for_containers))
        return read

    monkeypatch.setattr(TensorSentence, "read", counted)
    out = io.BytesIO()
    model = {f"w{i}": torch.zeros(i % 3 + 1, 2) for i in range(200)}
    scalars = {f"s{i}": torch.tensor(1.0) for i in range(200)}
    torch.save({"model": model, "scalars": scalars, "buffer": torch.arange(12).view(3, 4).T}, out)
    archive = zipfile.ZipFile(io.BytesIO(out.getvalue()))
    data = archive.read("archive/data.pkl")
    tree = PickleMachine(
        Memory(data),
        builder=TorchBuilder(lambda _key, nbytes: Memory(bytes(nbytes)).span(0, nbytes)),
    ).run()
    assert len(found) > 350
    assert tree["model"]["w199"].shape == (2, 2)
