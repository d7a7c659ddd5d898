"""Generators of small files that would take long: each is a function of the size in bytes.

They are written instruction by instruction, since no pickler writes such programs.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterable

import torch

CLASH = (1 << 61) - 1  # integers that differ by multiples of it have one hash
ONE = b"K\x01"
NONE = b"N"


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(data)) + data


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)


def program(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def row(count: int) -> bytes:
    """A tuple of integers, as memo entry 1."""
    return b"(" + ONE * count + b"t" + put(1) + b"0"


def repeated(unit: bytes, size: int, head: bytes = b"", tail: bytes = b"") -> bytes:
    return program(head, unit * (size // len(unit)), tail)


def doubled(levels: int, leaf: bytes = ONE) -> bytes:
    """A tuple of two times the tuple below: 2 ** levels leaves."""
    return leaf + b"".join(put(1) + b"0" + get(1) + get(1) + b"\x86" for _ in range(levels))


# ------------------------------------------------------------------------------------------- keys


def key_again(key: bytes, size: int) -> bytes:
    """One dict whose one key is set again and again."""
    return repeated(get(1) + NONE + b"s", size, head=key + put(1) + b"0}")


def in_batches(key: bytes, size: int) -> bytes:
    return repeated(b"(" + (get(1) + NONE) * 100 + b"u", size, head=key + put(1) + b"0}")


def equal_keys(key: bytes, size: int) -> bytes:
    """Two equal keys, of which the second is compared with the first each time."""
    head = key + put(1) + b"0" + key + put(2) + b"0}" + get(1) + NONE + b"s"
    return repeated(get(2) + NONE + b"s", size, head=head)


def set_again(key: bytes, size: int) -> bytes:
    return repeated(b"(" + get(1) * 100 + b"\x90", size, head=key + put(1) + b"0\x8f")


def frozensets(key: bytes, size: int) -> bytes:
    return repeated(b"(" + get(1) + b"\x91" + b"0", size, head=key + put(1) + b"0", tail=NONE)


def made_by(function: bytes, key: bytes, size: int) -> bytes:
    """Calls that make a container of a list of one key."""
    head = key + put(1) + b"0" + b"c" + function + put(2) + b"0](" + get(1) + NONE + b"\x86e"
    head += b"\x85" + put(3) + b"0"
    return repeated(get(2) + get(3) + b"R0", size, head=head, tail=NONE)


def clashing_first(size: int) -> bytes:
    """One of a thousand keys with one hash is looked up again and again."""
    others = b"".join(number(i * CLASH) + NONE + b"s" for i in range(2, 1000))
    head = number(CLASH) + put(1) + b"0}" + get(1) + NONE + b"s" + b"0}" + others
    return repeated(get(1) + NONE + b"s", size, head=head)


def clashing_copies(size: int) -> bytes:
    """A dict of a thousand keys with one hash is copied again and again."""
    keys = b"".join(number(i * CLASH) + NONE + b"s" for i in range(1, 1000))
    head = b"}" + keys + b"\x85" + put(1) + b"0" + b"ccollections\nOrderedDict\n" + put(2) + b"0"
    return repeated(get(2) + get(1) + b"R0", size, head=head, tail=NONE)


def probing(size: int) -> bytes:
    """Integers with different hashes whose places in the dict's table are taken, one after another.

    CPython goes from a taken place ``i`` to ``5 * i + 1`` once the hash's bits are used up.
    """
    mask = (1 << 20) - 1
    place, taken, keys = 1, set(), []
    for _ in range(600_000):
        keys.append(place)
        taken.add(place)
        place = (place * 5 + 1) & mask
    ring = {where: i for i, where in enumerate(keys)}
    late = []
    value = 1 << 20
    while len(late) < 2000:
        value += 1
        at, perturb = value & mask, value
        while perturb and at in taken:
            perturb >>= 5
            at = (at * 5 + perturb + 1) & mask
        if not perturb and ring.get(at, 1 << 30) < 100_000:
            late.append(value)
    head = b"}(" + b"".join(b"J" + struct.pack("<i", k) + NONE for k in keys) + b"u"
    for i, k in enumerate(late):
        head += b"J" + struct.pack("<i", k) + put(i) + NONE + b"s"
    return repeated(get(77) + NONE + b"s", size, head=head)


QUANTIZED = (
    b"(X\x07\0\0\0storagectorch\nQInt8Storage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ" + put(5) + b"0"
    b"ctorch._utils\n_rebuild_qtensor\n(" + get(5) + b"K\0K\x01\x85K\x01\x85(ctorch\n"
    b"per_tensor_affine\n"
)


def quantized_key(size: int) -> bytes:
    """A tensor as a key whose quantizer's scale is a graph of tuples."""
    key = doubled(40) + put(6) + b"0" + QUANTIZED + get(6) + b"K\0t\x89)tR"
    return archive(key_again(key, size), {"0": 4})


KEYS: dict[str, Callable[[int], bytes]] = {
    "a long tuple as a key": lambda n: key_again(b"(" + ONE * 50_000 + b"t", n),
    "a long tuple as a key in batches": lambda n: in_batches(b"(" + ONE * 50_000 + b"t", n),
    "a long tuple in a set": lambda n: set_again(b"(" + ONE * 50_000 + b"t", n),
    "frozensets of a long tuple": lambda n: frozensets(b"(" + ONE * 50_000 + b"t", n),
    "dicts of a long tuple": lambda n: made_by(
        b"collections\nOrderedDict\n", b"(" + ONE * 50_000 + b"t", n),
    "a long integer as a key": lambda n: key_again(number(1 << (n * 2)), n),
    "a tuple of long integers": lambda n: key_again(
        number(1 << (n * 2)) + put(9) + b"0(" + get(9) * 1000 + b"t", n),
    "equal long integers": lambda n: equal_keys(number(1 << n), n),
    "equal long texts": lambda n: equal_keys(text("a" * (n // 4)), n),
    "equal long bytes": lambda n: equal_keys(b"B" + struct.pack("<I", 60_000) + b"a" * 60_000, n),
    "equal tuples of equal texts": lambda n: equal_keys(
        text("a" * (n // 4)) + b"\x85", n),
    "equal tuples": lambda n: equal_keys(b"(" + ONE * 50_000 + b"t", n),
    "equal frozensets": lambda n: equal_keys(
        b"(" + b"".join(b"M" + struct.pack("<H", i) for i in range(50_000)) + b"\x91", n),
    "a wide tuple of wide tuples": lambda n: key_again(
        b"(" + ONE * 50_000 + b"t" + put(3) + b"0(" + get(3) * 4000 + b"t", n),
    "a tuple doubled": lambda n: key_again(doubled(12), n),
    "a tuple doubled without end": lambda n: key_again(doubled(60), n),
    "a tensor with a quantizer": quantized_key,
    "one of a thousand clashing keys": clashing_first,
    "copies of clashing keys": clashing_copies,
    "keys that fall on taken places": probing,
}  # fmt: skip

# ------------------------------------------------------------------------------------------ values


def nested_streams(size: int) -> bytes:
    """Streams of torch.save, all different."""
    streams = []
    template = io.BytesIO()
    torch.save({"a": 12345}, template, _use_new_zipfile_serialization=False)
    data = template.getvalue()
    for i in range(size // (len(data) + 12)):
        one = data.replace(struct.pack("<H", 12345), struct.pack("<H", i & 0x7FFF))
        streams.append(get(1) + b"B" + struct.pack("<I", len(one)) + one + b"\x85R")
    return program(b"ctorch.storage\n_load_from_bytes\n", put(1), b"0](", *streams, b"e")


def nested_archives(size: int) -> bytes:
    template = io.BytesIO()
    torch.save({"a": 1}, template)
    data = template.getvalue()
    one = b"B" + struct.pack("<I", len(data)) + data
    count = size // (len(one) + 10)
    body = (get(1) + one + b"\x85R") * count
    return program(b"ctorch.storage\n_load_from_bytes\n", put(1), b"0](", body, b"e")


def deep(opening: bytes, closing: bytes, leaf: bytes = NONE) -> Callable[[int], bytes]:
    width = len(opening) + len(closing)
    return lambda n: program(opening * (n // width), leaf, closing * (n // width))


def many_names(size: int) -> bytes:
    """As many dangerous names as there may be, each called with a long argument."""
    calls = b"".join(b"cos\nsystem%x\n" % i + get(1) + b"R0" for i in range(60_000))
    return program(text("x" * (size // 4)), b"\x85", put(1), b"0", calls, NONE)


def pages_of(parts: Iterable[bytes]) -> bytes:
    return program(b"}(", *parts, b"u")


def shared_state(size: int) -> bytes:
    """Objects that are all given one large dict as their state."""
    state = b"}(" + b"".join(text(f"{i:06}") + NONE for i in range(20_000)) + b"u" + put(0)
    head = state + b"ca\nB\n" + put(1) + b"0]("
    return repeated(get(1) + b")\x81" + get(0) + b"b", size, head=head, tail=b"e")


def shared_names(size: int) -> bytes:
    """Sets of one large tuple of names."""
    names = b"(ca\nB\n" + put(1) + (get(1) + b"\x85") * 20_000 + b"t" + put(0)
    head = names + b"cbuiltins\nset\n" + put(2) + b"0]("
    return repeated(get(2) + b"](" + get(0) + b"e\x85R", size, head=head, tail=b"e")


def changed(size: int) -> bytes:
    """A list of lists that is given to an object, changed, and given to the next one."""
    head = b"](" + b"](]e" * 5_000 + b"e" + put(0) + b"0citertools\nproduct\n" + put(1) + b"0"
    unit = get(0) + NONE + b"a0" + get(1) + get(0) + b"\x85\x810"
    return repeated(unit, size, head=head, tail=NONE)


VALUES: dict[str, Callable[[int], bytes]] = {
    "objects that share a state": shared_state,
    "sets that share a row of names": shared_names,
    "a list that is changed and given again": changed,
    "tuples doubled": lambda n: pages_of([text("a"), doubled(60)]),
    "a thousand graphs of tuples": lambda n: pages_of(
        part for i in range(min(1000, n // 700)) for part in (text(f"k{i}"), doubled(40))),
    "lists doubled": lambda n: pages_of([text("a"), ONE + b"".join(
        put(1) + b"0]" + get(1) + b"a" + get(1) + b"a" for _ in range(60))]),
    "dicts doubled": lambda n: pages_of([text("a"), ONE + b"".join(
        put(1) + b"0}" + text("a") + get(1) + b"s" + text("b") + get(1) + b"s"
        for _ in range(60))]),
    "calls doubled": lambda n: pages_of([text("a"), ONE + b"".join(
        put(1) + b"0cm\nf\n" + get(1) + get(1) + b"\x86R" for _ in range(60))]),
    "objects doubled": lambda n: pages_of([text("a"), ONE + b"".join(
        put(1) + b"0cm\nA\n)\x81" + get(1) + get(1) + b"\x86b" for _ in range(60))]),
    "frozensets doubled": lambda n: pages_of([text("a"), ONE + b"".join(
        put(1) + b"0(" + get(1) + get(1) + b"\x85\x91" for _ in range(60))]),
    "nested streams": nested_streams,
    "nested archives": nested_archives,
    "lists in lists": lambda n: program(b"]" * (n // 2), NONE, b"a" * (n // 2)),
    "a thousand levels": lambda n: program(
        b"]" * 900, *(b"(" + NONE * 1000 + b"e" for _ in range(n // 1000)), b"a" * 899),
    "tuples in tuples": lambda n: program(NONE, b"\x85" * n),
    "objects in objects": lambda n: program(
        b"cm\nA\n", put(1), NONE, (put(2) + b"0" + get(1) + get(2) + b"\x85R") * (n // 12)),
    "states in states": lambda n: program(
        b"cm\nA\n", put(1), NONE,
        (put(2) + b"0" + get(1) + b")\x81}" + text("s") + get(2) + b"sb") * (n // 22)),
    "many dangerous names": many_names,
    "a million calls": lambda n: program(
        b"cos\nsystem\n", put(1), text("x" * (n // 2)), b"\x85", put(2), b"](",
        (get(1) + get(2) + b"R") * (n // 10), b"e"),
    "a long integer": lambda n: pages_of([text("epoch"), number(1 << (n * 8 - 80))]),
    "long integers": lambda n: pages_of(
        part for i in range(n // 600) for part in (text(f"k{i}"), number(1 << 4000))),
    "a long integer in an argument": lambda n: program(
        b"cos\nsystem\n", number(1 << (n * 8 - 100)), b"\x85R"),
    "a long integer as a size": lambda n: program(
        b"ctorch\nSize\n", number(1 << (n * 8 - 100)), b"\x85\x85R"),
    "a long name": lambda n: program(b"c", b"m" * (n // 2), b"\n", b"f" * (n // 2), b"\n", b")R"),
    "a long key": lambda n: pages_of([text("a/~" * (n // 3)), NONE]),
    "a key of many dots": lambda n: pages_of([text("a." * (n // 2)), NONE]),
    "floats": lambda n: pages_of([text("a"), b"](" + (b"G" + struct.pack(">d", 1.1e-300))
                                  * (n // 9) + b"e"]),
    "many floats": lambda n: pages_of(
        part for i in range(n // 20)
        for part in (text(f"{i}"), b"G" + struct.pack(">d", 1.1e-300 + i))),
    "optimizers": lambda n: pages_of(
        part for i in range(n // 150) for part in (
            text(f"optimizer{i}"),
            b"}(" + text("state") + b"}" + text("param_groups") + b"](}(" + text("params")
            + b"](K\x00eueu")),
    "param groups": lambda n: pages_of([
        text("optimizer"),
        b"}(" + text("state") + b"}" + text("param_groups") + b"]("
        + (b"}(" + text("params") + b"](K\x00e" + text("lr") + ONE + b"u") * (n // 50) + b"eu"]),
}  # fmt: skip

# ----------------------------------------------------------------------------------------- tensors


def archive(pickle: bytes, storages: dict[str, int], *, packed: bool = False) -> bytes:
    """A torch zip whose storages hold zeros, of so many bytes."""
    made = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(made, "w", method) as file:
        file.writestr("a/data.pkl", pickle)
        file.writestr("a/byteorder", "little")
        for key, size in storages.items():
            file.writestr(f"a/data/{key}", bytes(size))
        file.writestr("a/version", "3\n")
    return made.getvalue()


def views(
    count: int, storage: int, view: Callable[[int], tuple[int, tuple[int, ...], tuple[int, ...]]],
    name: Callable[[int], str] = "layers.{}.weight".format, *, ema: bool = False,
) -> bytes:  # fmt: skip
    """A state dict of views of one storage of so many bytes: (offset, shape, strides) of each."""
    head = b"ctorch._utils\n_rebuild_tensor_v2\n" + put(0) + b"0ccollections\nOrderedDict\n)R"
    head += put(2) + b"0(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    head += number(storage // 4) + b"tQ" + put(1) + b"0"

    def tensor(i: int) -> bytes:
        offset, shape, strides = view(i)
        sizes = (b"(" + b"".join(map(number, each)) + b"t" for each in (shape, strides))
        return get(0) + b"(" + get(1) + number(offset) + b"".join(sizes) + b"\x89" + get(2) + b"tR"

    entries = b"}(" + b"".join(text(name(i)) + tensor(i) for i in range(count)) + b"u"
    body = entries
    if ema:
        body = b"}(" + text("state_dict") + entries + text("ema_state_dict") + entries + b"u"
    pickle = b"\x80\x02" + head + body + b"."
    return archive(pickle, {"0": storage})


TENSORS: dict[str, Callable[[int], bytes]] = {
    "many views of all": lambda n: views(100_000, n, lambda i: (0, (n // 4,), (1,))),
    "many views, each a little on": lambda n: views(
        100_000, n, lambda i: (i, (n // 4 - 100_000,), (1,))),
    "two state dicts of views": lambda n: views(
        30_000, n, lambda i: (i, (n // 4 - 100_000,), (1,)), ema=True),
    "transposed views": lambda n: views(10_000, n, lambda i: (i, (1000, 500), (1, 1000))),
    "views with gaps": lambda n: views(10_000, n, lambda i: (i % 64, (n // 512, ), (100,))),
    "strides of 0": lambda n: views(1, 4096, lambda i: (0, (1 << 40,), (0,))),
    "strides of 0, just small enough": lambda n: views(1, 4096, lambda i: (0, (1 << 30,), (0,))),
    "many strides of 0": lambda n: views(1000, 4096, lambda i: (0, (1 << 29,), (0,))),
    "many strides of 0, each small": lambda n: views(
        50_000, 4096, lambda i: (0, (1 << 18,), (0,))),
    "strides of 0 over a row": lambda n: views(
        1, n, lambda i: (0, (1 << 20, n // 8), (0, 1))),
    "two state dicts of strides of 0": lambda n: views(
        100, 4096, lambda i: (0, (1 << 29,), (0,)), ema=True),
    "a hundred thousand dimensions": lambda n: views(
        1, 4096, lambda i: (0, (1,) * 100_000, (1,) * 100_000)),
    "many tensors of many dimensions": lambda n: views(
        n // 2000, 4096, lambda i: (0, (1,) * 100, (1,) * 100)),
    "dimensions of two": lambda n: views(1, 4096, lambda i: (0, (2,) * 62, (0,) * 62)),
    "dimensions of two over a row": lambda n: views(
        1, n, lambda i: (0, (2,) * 20, (0,) * 10 + (3,) * 10)),
    "many small tensors": lambda n: views(n // 120, 4096, lambda i: (0, (1,), (1,))),
    "long names": lambda n: views(
        n // 5000, 4096, lambda i: (0, (1,), (1,)), lambda i: "x" * 5000 + str(i), ema=True),
    "names of many dots": lambda n: views(
        n // 2500, 4096, lambda i: (0, (1,), (1,)), lambda i: "a." * 500 + str(i), ema=True),
    "a name of many dots": lambda n: views(
        2, 4096, lambda i: (0, (1,), (1,)), lambda i: "a." * (n // 8) + str(i), ema=True),
}  # fmt: skip

# --------------------------------------------------------------------------------------- containers


def safetensors(header: bytes, size: int = 0) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(size)


def entry(name: str, shape: list[int], begin: int, end: int, dtype: str = "F32") -> str:
    return (
        f'{json.dumps(name)}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'
    )


def headers(count: int, name: Callable[[int], str]) -> bytes:
    parts = ",".join(entry(name(i), [1], i * 4, i * 4 + 4) for i in range(count))
    return safetensors(f"{{{parts}}}".encode(), count * 4)


def crowded_zip(size: int) -> bytes:
    """As many empty records as the directory can list."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02}.")
        for i in range(size // 120):
            file.writestr(f"a/data/{i}", b"")
    return made.getvalue()


def tar_header(name: bytes, size: int, kind: bytes) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def crowded_tar(size: int) -> bytes:
    one = tar_header(b"p", 11, b"x") + b"11 path=abc".ljust(512, b"\0") + tar_header(b"f", 0, b"0")
    return tar_header(b"storages", 0, b"0") + one * (size // len(one)) + bytes(1024)


def pax_chain(size: int) -> bytes:
    one = tar_header(b"p", 12, b"x") + b"12 path=abc\n".ljust(512, b"\0")
    return tar_header(b"storages", 0, b"0") + one * (size // len(one)) + bytes(1024)


def pax_records(size: int) -> bytes:
    body = b"6 a=b\n" * (size // 6)
    pax = tar_header(b"p", len(body), b"x") + body + bytes(-len(body) % 512)
    return tar_header(b"storages", 0, b"0") + pax + tar_header(b"f", 0, b"0") + bytes(1024)


CONTAINERS: dict[str, Callable[[int], bytes]] = {
    "a header of deep lists": lambda n: safetensors(b'{"a":' + b"[" * n + b"]" * n + b"}"),
    "a header of deep objects": lambda n: safetensors(b'{"a":' * (n // 6) + b"1" + b"}" * (n // 6)),
    "a header of a huge number": lambda n: safetensors(
        b'{"a":{"dtype":"F32","shape":[' + b"9" * n + b'],"data_offsets":[0,4]}}', 4),
    "a header of a long shape": lambda n: safetensors(
        entry("a", [1] * (n // 3), 0, 4).join("{}").encode(), 4),
    "a header of a huge float": lambda n: safetensors(
        b'{"a":{"dtype":"F32","shape":[' + b"9" * n + b'.5],"data_offsets":[0,4]}}', 4),
    "a header of many tensors": lambda n: headers(n // 70, "layers.{}.weight".format),
    "a header of long names": lambda n: headers(n // 1100, lambda i: "x" * 1000 + str(i)),
    "a header of one long name": lambda n: headers(1, lambda i: "x" * n),
    "a header of a name of dots": lambda n: headers(3, lambda i: "a." * (n // 6) + str(i)),
    "metadata of deep JSON": lambda n: safetensors(json.dumps({
        "__metadata__": {"ckptool": "[" * n, "config": "{\"a\":" * (n // 5)},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode(), 4),
    "metadata of huge numbers": lambda n: safetensors(json.dumps({
        "__metadata__": {"ckptool": '{"a":' + "9" * (n // 2) + "}", "step": "9" * (n // 2)},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode(), 4),
    "a zip of many records": crowded_zip,
    "a tar of many pax headers": crowded_tar,
    "a tar of pax headers alone": pax_chain,
    "a tar of many pax records": pax_records,
    "signatures of zips": lambda n: b"PK\x03\x04" * (n // 4),
    "signatures of directories": lambda n: b"PK\x03\x04" + b"PK\x01\x02" * (n // 4),
    "signatures of ends": lambda n: b"PK\x03\x04" + b"PK\x05\x06" * (n // 4),
    "local headers": lambda n: (struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0,
                                            3, 0) + b"a/b") * (n // 33),
    "local headers with data.pkl": lambda n: (
        struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 5, 5, 10, 0) + b"a/data.pkl"
        + b"\x80\x02}q\0") * (n // 45),
    "signatures of pickles": lambda n: b"\x80\x02" * (n // 2),
    "pickles one after another": lambda n: b"\x80\x02N." * (n // 4),
    "legacy containers one after another": lambda n: legacy() * (n // len(legacy())),
    "a zip cut off": lambda n: views(
        1000, n, lambda i: (0, (1,), (1,)))[: n // 2],
}  # fmt: skip


def legacy() -> bytes:
    made = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, made, _use_new_zipfile_serialization=False)
    return made.getvalue()


ALL = {**KEYS, **VALUES, **TENSORS, **CONTAINERS}
