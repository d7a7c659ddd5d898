"""A writer of directories as ``torch.distributed.checkpoint`` saves them, without torch.

One process has saved everything: each tensor is one chunk, a ``torch.save`` of its own, in
``__0_0.distcp``, and ``.metadata`` is the plan that says where (see ``formats/dcp.py``). The plan
makes the directory a checkpoint, so it is put in place last, as torch does it. Tensors that share
bytes are written under each name: torch saves them so too.

Source: torch 2.13 ``torch/distributed/checkpoint/metadata.py``, ``filesystem.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ckptool.formats.dcp import METADATA, SHARD, read_plan
from ckptool.formats.provenance import KEY
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.sources.local import LocalFile
from ckptool.sources.memory import Memory
from ckptool.tensors.casting import Casting
from ckptool.tree.nodes import TensorRef
from ckptool.tree.walking import tensors as tensors_of
from ckptool.writers.files.whole_file import PartialFile, expect
from ckptool.writers.pickle_writer import PickleWriter
from ckptool.writers.torch_zip import ARCHIVE, Storage, add_tensor, refuse_unplain
from ckptool.writers.transfer import Move, Transfer, to_read_back, transfer
from ckptool.writers.values import check_runs
from ckptool.writers.zip_archive import ArchiveWriter

CHUNKS = f"__0_0{SHARD}"  # the first file of the first process
OF_A_SAVE = regex(rf"__\d+_\d+{re.escape(SHARD)}")
PLAN, PLACES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"


class Place(NamedTuple):
    """The place of a tensor in the file of chunks, in bytes."""

    offset: int
    nbytes: int


def refuse(tensors: Mapping[str, TensorRef], _casting: Casting) -> None:
    """Refuse tensors without plain stored values.

    Raises:
        UnsupportedError: one has none.
    """
    for name, ref in tensors.items():
        refuse_unplain(name, ref)


def left_over(folder: Path) -> tuple[Path, ...]:
    """Return the files of chunks of an earlier save that a new one in ``folder`` leaves unused."""
    earlier = sorted(folder.glob(f"*{SHARD}"))
    return tuple(p for p in earlier if OF_A_SAVE.fullmatch(p.name) and p.name != CHUNKS)


def write(output: PartialFile, tensors: Mapping[str, TensorRef], how: Transfer) -> dict[str, Place]:
    """Write the chunks, and compare the values that were cast or reordered with what reads back.

    Returns:
        The place of each tensor.

    Raises:
        DamagedError: a value does not read back.
    """
    places: dict[str, Place] = {}
    moves: list[Move] = []
    checksums: dict[str, int] = {}
    archives: list[ArchiveWriter] = []
    for name, ref in tensors.items():
        begin = output.position
        archive = ArchiveWriter(output, begin)
        storage = Storage(0, ref, is_run=False, dtype=how.casting.dtype_of(ref))
        archive.add_bytes(f"{ARCHIVE}/data.pkl", _chunk(ref, storage))
        archive.add_bytes(f"{ARCHIVE}/byteorder", b"little")
        archive.begin(f"{ARCHIVE}/data/0")
        moves.append(Move(name, ref, output.skip(storage.nbytes)))
        archive.end(partial(checksums.__getitem__, name))
        archive.add_bytes(f"{ARCHIVE}/version", b"3\n")
        archive.leave_end()
        archives.append(archive)
        places[name] = Place(begin, output.position - begin)
    moved = transfer(moves, how, output)
    checksums |= {name: run.crc for name, (run, _) in zip(tensors, moved, strict=True)}
    for archive in archives:
        archive.finish()
    check_runs(output.path, to_read_back(moved))
    return places


def _chunk(ref: TensorRef, storage: Storage) -> bytes:
    """Return the pickle of one tensor."""
    out = PickleWriter()
    add_tensor(out, ref, storage)
    return out.finish()


def plan(
    tensors: Mapping[str, TensorRef],
    casting: Casting,
    places: Mapping[str, Place],
    wrap: str | None,
    note: str,
) -> bytes:
    """Return the content of ``.metadata``; ``note`` is the provenance.

    ``wrap`` is the key under which the state dict stands, as ``{"model": state_dict}`` has it.
    """
    names = {name: name if wrap is None else f"{wrap}.{name}" for name in tensors}
    out = PickleWriter()
    _new(out, PLAN, "Metadata").raw(b"}(")
    out.text("state_dict_metadata").raw(b"}(")
    for name, ref in tensors.items():
        out.text(names[name])
        _entry(out, ref, casting)
    out.raw(b"u").text("planner_data").raw(b"}(")
    for name, flat in names.items():
        out.text(flat)
        if wrap is None:
            out.text(name).raw(b"\x85")
        else:
            out.text(wrap).text(name).raw(b"\x86")
    out.raw(b"u").text("storage_data").raw(b"}(")
    for name, place in places.items():
        _index(out, names[name], tensors[name])
        _stored(out, place)
    out.raw(b"u").text("storage_meta").raw(b"N").text("version").text("1.0.0")
    out.text(KEY).text(note)
    return out.raw(b"ub").finish()


def _new(out: PickleWriter, module: str, name: str) -> PickleWriter:
    """Begin an object, whose attributes follow."""
    return out.named(module, name).raw(b")\x81")


def _size(out: PickleWriter, sizes: tuple[int, ...]) -> None:
    out.named("torch", "Size").integers(sizes).raw(b"\x85R")


def _entry(out: PickleWriter, ref: TensorRef, casting: Casting) -> None:
    """Append the type and size of a tensor, and its one chunk."""
    _new(out, PLAN, "TensorStorageMetadata").raw(b"}(").text("properties")
    _new(out, PLAN, "TensorProperties").raw(b"(")
    out.named("torch", casting.dtype_of(ref).name)
    out.named("torch.serialization", "_get_layout").text("torch.strided").raw(b"\x85R\x89")
    out.named(PLAN, "_MEM_FORMAT_ENCODING").integer(0).raw(b"\x85R\x89tb").text("size")
    _size(out, ref.shape)
    out.text("chunks").raw(b"]")
    _new(out, PLAN, "ChunkStorageMetadata").raw(b"}(").text("offsets")
    _size(out, (0,) * len(ref.shape))
    out.text("sizes")
    _size(out, ref.shape)
    out.raw(b"ubaub")


def _index(out: PickleWriter, name: str, ref: TensorRef) -> None:
    _new(out, PLAN, "MetadataIndex").raw(b"}(").text("fqn").text(name)
    out.text("index").integer(0).text("offset")
    _size(out, (0,) * len(ref.shape))
    out.raw(b"ub")


def _stored(out: PickleWriter, place: Place) -> None:
    _new(out, PLACES, "_StorageInfo").raw(b"}(").text("relative_path").text(CHUNKS)
    out.text("offset").integer(place.offset).text("length").integer(place.nbytes).raw(b"ub")


def check(
    metadata: bytes,
    chunks: Path,
    tensors: Mapping[str, TensorRef],
    casting: Casting,
    wrap: str | None,
) -> None:
    """Read the plan and the header of each chunk: they must have the tensors.

    Raises:
        DamagedError: they have others.
    """
    with LocalFile(chunks) as file:
        tree = read_plan(Memory(metadata, METADATA), lambda _name: file).tree
        found = {at: (ref.dtype, ref.shape) for at, ref in tensors_of(tree)}
    around = () if wrap is None else (wrap,)
    wanted = {(*around, name): (casting.dtype_of(ref), ref.shape) for name, ref in tensors.items()}
    expect(found == wanted, "other names, types or shapes", chunks)
