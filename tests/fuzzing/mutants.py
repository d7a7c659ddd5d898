"""Checkpoints that are almost right: instructions of the pickle exchanged, numbers moved, records
renamed, with every checksum made to fit, so that only the meaning of the file is wrong.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import nn

ROOT = "archive"
# Instructions and values that a mutation puts somewhere.
SNIPPETS = (
    b"N", b"\x88", b"\x89", b"]", b"}", b")", b"K\x07", b"J\xff\xff\xff\xff", b"(", b"0", b"1",
    b"2", b"b", b"}b", b"Nb", b"(Kb", b"]b", b"R", b")R", b"\x81", b"a", b"e", b"s", b"u", b"\x85",
    b"\x86", b"\x87", b"t", b"l", b"d", b"\x8f", b"\x90", b"\x91", b"Q", b"X\x01\x00\x00\x00aQ",
    b"P1\n", b"h\x00", b"h\x05", b"h\x07", b"r\xff\xff\xff\x7f", b"p-1\n", b"q\x05", b"\x94",
    b"\x95" + struct.pack("<Q", 1 << 40), b"\x95" + struct.pack("<Q", 4), b"ctorch\nfloat32\n",
    b"ctorch\nFloatStorage\n", b"ctorch\nFooStorage\n", b"ccollections\nOrderedDict\n)R",
    b"cargparse\nNamespace\n)\x81", b"ctorch._utils\n_rebuild_tensor_v2\n", b"\x8a\x01\xff",
    b"U\x02\xff\xfe", b"\x8a\x09" + b"\xff" * 8 + b"\x7f", b"G\x7f\xf8" + bytes(6),
    b"ctorch.nn.parameter\nParameter\n", b"ccollections\ndefaultdict\n", b"ctorch\nSize\n",
)  # fmt: skip
NUMBERS = (0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def plain_state() -> Any:
    """The state dict of a model, a list and numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    return {"model": model.state_dict(), "epoch": 3, "best": [0.5, None, True], "name": "a"}


def many_kinds() -> Any:
    """Parameters, a view, complex numbers, sparse, quantized and empty tensors."""
    base = torch.arange(12.0)
    return OrderedDict(
        parameter=nn.Parameter(torch.ones(2, 2)),
        view=base[2:8].view(2, 3).t(),
        conj=torch.complex(torch.ones(2), torch.ones(2)).conj(),
        sparse=torch.eye(3).to_sparse(),
        quantized=torch.quantize_per_tensor(torch.ones(4), 0.5, 1, torch.quint8),
        empty=torch.empty(0, 3),
        half=torch.ones(3).half(),
        flags=torch.tensor([True, False]),
        size=torch.Size([1, 2]),
        bytes=bytearray(b"ab"),
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        set={1, 2},
    )


def with_numpy() -> Any:
    """What CK202 names."""
    import numpy as np

    return {"array": np.arange(3.0), "scalar": np.float64(2.5), "weight": torch.ones(2)}


STATES: tuple[Callable[[], Any], ...] = (plain_state, many_kinds, with_numpy)


class Seeds:
    """The honest files, made once."""

    def __init__(self) -> None:
        self.zips = [_records(make()) for make in STATES]
        self.legacy = [_saved(make(), _use_new_zipfile_serialization=False) for make in STATES]
        weights = {"a.weight": torch.ones(2, 3), "b": torch.arange(4), "c": torch.ones(2).half()}
        self.safetensors = [safetensors.torch.save(weights, {"format": "pt"})]


def _saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def _records(value: Any) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(_saved(value))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def as_zip(records: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive with checksums that fit."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)  # of the year 1980, always
    return file.getvalue()


# --------------------------------------------------------------------------------------- mutations


def mutant(seeds: Seeds, rng: random.Random) -> tuple[str, bytes]:
    """(suffix, content) of a checkpoint with something wrong."""
    kind = rng.choice(("pickle", "pickle", "pickle", "records", "zip", "legacy", "safetensors"))
    if kind == "safetensors":
        return ".safetensors", _safetensors(rng.choice(seeds.safetensors), rng)
    if kind == "legacy":
        return ".pt", _changed(rng.choice(seeds.legacy), rng, rng.randint(1, 2))
    records = dict(rng.choice(seeds.zips))
    if kind == "zip":
        return ".pt", _outer(as_zip(records), rng)
    if kind == "records":
        return ".pt", as_zip(_other_records(records, rng))
    name = next(name for name in records if name.endswith("/data.pkl"))
    records[name] = _changed(records[name], rng, rng.randint(1, 3))
    return ".pt", as_zip(records)


def _changed(data: bytes, rng: random.Random, times: int) -> bytes:
    made = bytearray(data)
    for _ in range(times):
        at = rng.randrange(len(made))
        change = rng.choice(("byte", "number", "snippet", "replace", "cut", "double", "text"))
        if change == "byte":
            made[at] = rng.choice((made[at] ^ (1 << rng.randrange(8)), rng.randrange(256)))
        elif change == "number":
            width = rng.choice((1, 2, 4))
            number = rng.choice(NUMBERS) % (1 << 8 * width)
            made[at : at + width] = number.to_bytes(width, "little")
        elif change == "snippet":
            made[at:at] = rng.choice(SNIPPETS)
        elif change == "replace":
            snippet = rng.choice(SNIPPETS)
            made[at : at + rng.choice((1, len(snippet)))] = snippet
        elif change == "cut":
            del made[at : at + rng.randint(1, 3)]
        elif change == "double":
            length = rng.randint(1, 12)
            made[at:at] = made[at : at + length]
        else:
            word = rng.choice((b"Float", b"Half", b"Long", b"cpu", b"storage", b"_v2", b"tensor"))
            other = rng.choice((b"Double", b"Byte", b"QInt8", b"xpu", b"module", b"_v3", b"Tensor"))
            made = bytearray(bytes(made).replace(word, other, 1))
    return bytes(made)


def _outer(data: bytes, rng: random.Random) -> bytes:
    """Changes in the headers and the directory, which no checksum covers."""
    made = bytearray(data)
    directory = made.find(b"PK\x01\x02")
    for _ in range(rng.randint(1, 2)):
        heads = [at for at in range(len(made) - 3) if made[at : at + 2] == b"PK"]
        head = rng.choice([at for at in heads if at >= directory] or heads)
        at = min(len(made) - 1, (head if rng.random() < 0.8 else rng.choice(heads)))
        at += rng.randrange(46)
        if at < len(made):
            width = rng.choice((1, 2, 4))
            number = rng.choice((*NUMBERS, made[at] ^ (1 << rng.randrange(8))))
            made[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(made)


def _other_records(records: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    made = list(records.items())
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(made))
        name, content = made[at]
        change = rng.choice(("drop", "longer", "shorter", "rename", "move", "empty", "first"))
        if change == "drop":
            del made[at]
        elif change == "longer":
            made[at] = name, content + bytes(rng.randint(1, 9))
        elif change == "shorter":
            made[at] = name, content[: -rng.randint(1, 4)]
        elif change == "rename":
            root, _, rest = name.partition("/")
            other = (f"{root}2/{rest}", f"{root}/{rest}x", rest, name.upper(), f"x/{name}")
            made[at] = rng.choice(other), content
        elif change == "empty":
            made[at] = name, rng.choice((b"", b"2", b"0", b"11\n", b"big", b"middle", b"x"))
        elif change == "move":
            made.append(made.pop(at))
        else:
            made.insert(0, (rng.choice(("readme", "other/readme", "archive/", "a/b")), b"x"))
        if not made:
            return records
    return dict(made)


def _safetensors(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(header))
        change = rng.choice(("digit", "cut", "double", "byte", "word"))
        if change == "digit":
            digits = [i for i, byte in enumerate(header) if chr(byte).isdigit()]
            at = rng.choice(digits or [at])
            header = header[:at] + rng.choice((b"0", b"1", b"9", b"-1", b"1e1")) + header[at + 1 :]
        elif change == "cut":
            header = header[:at] + header[at + rng.randint(1, 4) :]
        elif change == "double":
            header = header[: at + rng.randint(1, 9)] + header[at:]
        elif change == "byte":
            header = header[:at] + bytes([rng.randrange(256)]) + header[at + 1 :]
        else:
            word = rng.choice((b"F32", b"I64", b"F16", b'"shape"', b"data_offsets", b"format"))
            header = header.replace(word, rng.choice((b"F64", b"BOOL", b"F8_E8M0", b"shape", b"")))
        if not header:
            break
    size = len(header) if rng.random() < 0.9 else length
    return struct.pack("<Q", size) + header + data[8 + length :]
