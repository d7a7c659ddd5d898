"""An assembler of pickles: each function returns the instructions that push one value."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE, NONE, TRUE, FALSE = b"}", b"]", b")", b"N", b"\x88", b"\x89"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def data(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def name(qualname: str) -> bytes:
    module, _, last = qualname.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def row(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def listed(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def pairs(*items: tuple[bytes, bytes]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in items) + b"u"


def fields(**values: bytes) -> bytes:
    return pairs(*((text(key), value) for key, value in values.items()))


def call(function: str | bytes, *args: bytes) -> bytes:
    """Return a call by REDUCE of a name or of another value."""
    return (name(function) if isinstance(function, str) else function) + row(*args) + b"R"


def new(cls: str | bytes, *args: bytes) -> bytes:
    """Return an object by NEWOBJ."""
    return (name(cls) if isinstance(cls, str) else cls) + row(*args) + b"\x81"


def build(made: bytes, state: bytes) -> bytes:
    return made + state + b"b"


def instance(cls: str, **state: bytes) -> bytes:
    return build(new(cls), fields(**state))


def namespace(**state: bytes) -> bytes:
    return instance("argparse.Namespace", **state)


def storage(location: bytes = text("cpu"), key: bytes = text("0")) -> bytes:
    """Return the storage of the four numbers in :func:`torch_zip`."""
    return row(text("storage"), name("torch.FloatStorage"), key, location, number(4)) + b"Q"


def tensor() -> bytes:
    ints = (number(0), row(number(4)), row(number(1)))
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", storage(), *ints, FALSE, hooks)


def program(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def torch_zip(body: bytes) -> bytes:
    """Return a file of ``torch.save`` with a pickle of this value."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", program(body))
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
        archive.writestr("archive/version", b"3\n")
    return out.getvalue()


def legacy_file(body: bytes) -> bytes:
    """Return a file of torch before 1.6 with a pickle of this value, and no storages."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = b"".join(map(pickle.dumps, (0x1950A86A20F9469CFC6C, 1001, system)))
    return head + program(body) + pickle.dumps([])
