"""torch-tar: what ``torch.save`` wrote in torch 0.1."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile

import pytest
import torch
from torch import Tensor

from ckptool.errors import CkptError, DamagedError, UnknownFormatError
from ckptool.formats import open_checkpoint
from helpers import samples
from helpers.conformance import FormatTests
from helpers.judge import assert_reads_like, storage_bytes
from helpers.paths import FIXTURES

FIXTURE = FIXTURES / "formats" / "torch_tar" / "plain.pt"
BLOCK, RECORD = 512, 10_240  # of tar


def float_and_integer_dtypes():
    dtypes = (torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16)
    dtypes += (torch.int8, torch.uint8)
    return {str(dtype): samples.filled(dtype, 6).view(2, 3) for dtype in dtypes}


def strided_tensors():
    grid = torch.arange(60.0).view(3, 4, 5)
    return [grid.transpose(0, 2), grid[1:, ::2, 1:4], grid[2, 1], torch.ones(1, 1)]


class TestTorchTar(FormatTests):
    format_name = "torch-tar"
    samples = (
        *(float_and_integer_dtypes, strided_tensors, samples.ties, samples.namespace),
        *(samples.numpy_values, samples.collections, samples.scalars, samples.nesting),
        *(samples.bare_tensor, samples.nothing),
    )
    padding = RECORD
    signature = BLOCK

    def write(self, path, obj):
        write_tar(path, members_of(obj))


def test_fixture_reads_alike():
    loaded = torch.load(FIXTURE, weights_only=False)
    assert_reads_like(FIXTURE, loaded, ties=False)  # torch gives a view a pointer of its own


def test_views_of_storages():
    with open_checkpoint(FIXTURE) as checkpoint:
        (chunk,) = checkpoint.tree["state_dict"]["on_storage_view"].chunks
        values = struct.unpack("<4f", checkpoint.reader.read(chunk.span))
    assert values == (3.0, 4.5, 6.0, 7.5)


def test_tensors_without_dimension_were_empty(tmp_path):
    path = tmp_path / "empty.pt"
    members = dict(members_of({"empty": torch.empty(0)}))
    as_now, as_then = struct.pack("<ii3q", 1, 0, 0, 1, 0), struct.pack("<iiq", 0, 0, 0)
    members["tensors"] = members["tensors"].replace(as_now, as_then)
    write_tar(path, list(members.items()))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tree["empty"].shape == (0,)


def test_modules_are_named_by_their_class(tmp_path):
    class ModulePickler(TarPickler):
        seen = False

        def persistent_id(self, obj):
            if obj is torch.nn.Linear and not self.seen:
                self.seen = True
                return (obj, "linear.py", "")
            return super().persistent_id(obj)

    path = tmp_path / "module.pt"
    torch.manual_seed(0)
    write_tar(path, members_of(torch.nn.Linear(2, 2), ModulePickler))
    assert_reads_like(path, torch.load(path, weights_only=False))


# ------------------------------------------------------------------------------------ kinds of tars


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_layouts_of_tar(layout, tmp_path):
    path = tmp_path / "model.pt"
    write_tar(path, members_of(samples.ties()), layout=layout)
    assert_reads_like(path, torch.load(path, weights_only=False))


def test_last_of_two_equal_names_counts(tmp_path):
    path = tmp_path / "model.pt"
    first, last = members_of({"epoch": 1}), members_of({"epoch": 2})
    write_tar(path, [*first, *last])
    assert_reads_like(path, torch.load(path, weights_only=False))


def test_other_members_are_passed_over(tmp_path):
    path = tmp_path / "model.pt"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("é" * 120)
            info.type, info.linkname = kind, "pickle"
            tar.addfile(info)
        for name, data in members_of(samples.ties()):
            add(tar, name, data)
    assert_reads_like(path, torch.load(path, weights_only=False))


def test_sizes_in_base_256_and_in_extended_headers(tmp_path):
    path = tmp_path / "model.pt"
    members = dict(members_of(samples.ties()))
    blocks = [
        tar_header(name, data, base_256=True) + padded(data) for name, data in members.items()
    ]
    size = len(members["storages"])
    record = b"%d size=%d\n" % (len(b"00 size=\n") + len(str(size)), size)
    extended = tar_header("PaxHeader", record, kind=b"x") + padded(record)
    blocks[-1] = extended + tar_header("storages", b"") + padded(members["storages"])
    path.write_bytes(b"".join(blocks) + bytes(2 * BLOCK))
    assert_reads_like(path, torch.load(path, weights_only=False))


@pytest.mark.parametrize("length", [b"0", b"00", b"1", b"-5", b"x", b"", b"99999999", b"500"])
def test_lengths_in_extended_headers(length, tmp_path):
    path = tmp_path / "model.pt"
    record = length + b" path=pickle=\n"
    path.write_bytes(tar_header("PaxHeader", record, kind=b"x") + padded(record) + bytes(2 * BLOCK))
    with pytest.raises(DamagedError, match="extended tar header"):
        open_checkpoint(path)


def test_other_tars_are_no_checkpoints(tmp_path):
    path = tmp_path / "folder.tar"
    write_tar(path, [("readme.txt", b"hello")])
    with pytest.raises(UnknownFormatError, match=r"not written by torch\.save.*readme\.txt"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["pickle", "tensors", "storages"])
def test_names_in_every_pickle_are_told(name, tmp_path):
    path = tmp_path / "hostile.pt"
    members = dict(members_of({}))
    members[name] = b"\x80\2cos\ngetpid\n)R0" + members[name][2:]
    write_tar(path, list(members.items()))
    with open_checkpoint(path) as checkpoint:
        (found,) = checkpoint.globals_named
    assert (found.ref.qualname, found.called, found.pickle) == ("os.getpid", True, name)


@pytest.mark.parametrize("name", ["pickle", "tensors", "storages"])
def test_missing_member_is_named(name, tmp_path):
    path = tmp_path / "model.pt"
    write_tar(path, [row for row in members_of(samples.ties()) if row[0] != name])
    with pytest.raises(DamagedError, match=f"lacks its member '{name}'"):
        open_checkpoint(path)


def test_symbolic_links_are_no_members(tmp_path):
    path = tmp_path / "model.pt"
    with tarfile.open(path, "w") as tar:
        for name, data in members_of(samples.ties())[:-1]:
            add(tar, name, data)
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    with pytest.raises(DamagedError, match="'storages' is no file, but a link"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "count", [-1, None, "2", 10**30], ids=["negative", "none", "text", "beyond the file"]
)
def test_counts_are_held_against_the_bytes(count, tmp_path):
    path = tmp_path / "model.pt"
    members = dict(members_of({}))
    write_tar(path, list((members | {"tensors": pickle.dumps(count, 2)}).items()))
    with pytest.raises(CkptError):
        open_checkpoint(path)


def test_dimensions_are_held_against_the_bytes(tmp_path):
    path = tmp_path / "model.pt"
    members = dict(members_of({"weight": torch.ones(2)}))
    at = members["tensors"].rindex(struct.pack("<ii", 1, 0))
    for ndim in (-1, 2**31 - 1):
        broken = members["tensors"][:at] + struct.pack("<i", ndim) + members["tensors"][at + 4 :]
        write_tar(path, list((members | {"tensors": broken}).items()))
        with pytest.raises(DamagedError):
            open_checkpoint(path)


# ---------------------------------------------------------------------------- a writer of torch 0.1


class TarPickler(pickle.Pickler):
    """Pickles tensors as their keys, and remembers them and their storages."""

    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.tensors, self.storages = {}, {}

    def persistent_id(self, obj):
        if not isinstance(obj, Tensor):
            return None
        self.tensors[id(obj)] = obj
        self.storages.setdefault(storage_key(obj), obj)
        return str(id(obj))


def storage_key(tensor):
    return tensor.untyped_storage()._cdata


def members_of(obj, pickler_class=TarPickler):
    """The four members, in the order in which torch 0.1 wrote them."""
    stream = io.BytesIO()
    pickler = pickler_class(stream)
    pickler.dump(obj)
    tensors = b"".join(map(tensor_entry, pickler.tensors.values()))
    storages = b"".join(map(storage_entry, pickler.storages.values()))
    return [
        ("sys_info", pickle.dumps({"protocol_version": 1000}, 2)),
        ("pickle", stream.getvalue()),
        ("tensors", pickle.dumps(len(pickler.tensors), 2) + tensors),
        ("storages", pickle.dumps(len(pickler.storages), 2) + storages + pickle.dumps([], 2)),
    ]


def class_of(tensor, suffix):
    return getattr(torch, tensor.type().removeprefix("torch.").removesuffix("Tensor") + suffix)


def tensor_entry(tensor):
    entry = pickle.dumps((id(tensor), storage_key(tensor), class_of(tensor, "Tensor")), 2)
    numbers = (*tensor.size(), *tensor.stride(), tensor.storage_offset())
    return entry + struct.pack(f"<ii{len(numbers)}q", tensor.dim(), 0, *numbers)


def storage_entry(tensor):
    entry = pickle.dumps((storage_key(tensor), "cpu", class_of(tensor, "Storage")), 2)
    raw = storage_bytes(tensor.untyped_storage())
    return entry + struct.pack("<q", len(raw) // tensor.element_size()) + raw


def write_tar(path, members, *, layout=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=layout) as tar:
        for name, data in members:
            add(tar, name, data)


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def padded(data):
    return data + bytes(-len(data) % BLOCK)


def tar_header(name, data, *, kind=b"0", base_256=False):
    """One header block, by hand."""
    size = b"\x80" + len(data).to_bytes(11, "big") if base_256 else b"%011o\0" % len(data)
    block = bytearray(BLOCK)
    block[: len(name)] = name.encode()
    block[124:136], block[156:157], block[257:265] = size, kind, b"ustar\00000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
