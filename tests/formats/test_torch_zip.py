"""torch-zip: what ``torch.save`` writes since 1.6."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given

from ckptool.errors import CkptError, DamagedError, UnknownFormatError
from ckptool.formats import open_checkpoint
from ckptool.formats.zips.records import ZipArchive
from ckptool.sources.memory import Memory
from ckptool.tree.modules import module_state_dict
from helpers import samples, strategies, two_faced
from helpers.conformance import FormatTests
from helpers.judge import Comparison, assert_reads_like
from helpers.paths import FIXTURES
from helpers.thinned import examples
from helpers.values import element_bytes, numbers

FOLDER = FIXTURES / "formats" / "torch_zip"


class TestTorchZip(FormatTests):
    format_name = "torch-zip"
    samples = (*samples.EVERYWHERE, samples.every_new_dtype, samples.storages)

    def write(self, path, obj):
        torch.save(obj, path)


@examples(100)
@given(obj=strategies.checkpoints())
def test_what_torch_saves_reads_as_torch_loads_it(obj, tmp_path):
    path = tmp_path / "any.pt"
    torch.save(obj, path)
    assert_reads_like(path, torch.load(path, weights_only=False))


# --------------------------------------------------------------------------------- how torch writes


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sample", [samples.ties, samples.module, samples.collections])
def test_pickle_protocols(sample, protocol, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(sample(), path, pickle_protocol=protocol)
    assert_reads_like(path, torch.load(path, weights_only=False))


def test_checksums_of_zero_mean_that_there_are_none(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(samples.views(), tmp_path / "no_crc.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_reads_like(
        tmp_path / "no_crc.pt", torch.load(tmp_path / "no_crc.pt", weights_only=False)
    )


@pytest.mark.parametrize("name", ["plain", "proto4", "no_crc", "big_endian"])
def test_fixtures_read_alike(name):
    assert_reads_like(FOLDER / f"{name}.pt", torch.load(FOLDER / f"{name}.pt", weights_only=False))


def test_big_endian_values_are_swapped():
    with (
        open_checkpoint(FOLDER / "big_endian.pt") as big,
        open_checkpoint(FOLDER / "plain.pt") as little,
    ):
        for name, ref in big.tree["state_dict"].items():
            twin = little.tree["state_dict"][name]
            assert ref.byteorder == ("big" if ref.dtype.itemsize > 1 else "little"), name
            assert element_bytes(big.reader, ref) == element_bytes(little.reader, twin), name
            assert not (ref.is_stored_plainly and ref.dtype.itemsize > 1)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:7", "mps", "xpu:1"])
def test_devices_are_told_and_change_nothing(device, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _storage: device)
        torch.save(samples.ties(), path)
    loaded = torch.load(path, map_location="cpu", weights_only=False)
    assert_reads_like(path, loaded)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tree["embed"].device == device


def test_meta_tensors_have_no_values(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(samples.meta_tensor(), path)
    with open_checkpoint(path) as checkpoint:
        ref = checkpoint.tree["meta"]
        assert (ref.device, ref.shape, ref.dtype.name, ref.chunks) == (
            "meta",
            (3, 2),
            "bfloat16",
            (),
        )


def test_values_as_numbers(tmp_path):
    torch.manual_seed(0)
    lossy = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float16)
    tensors = {str(dtype): torch.randn(3, 5).to(dtype).t() for dtype in lossy}
    torch.save(tensors, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        for name, tensor in tensors.items():
            found = numbers(checkpoint.reader, checkpoint.tree[name]).astype(np.float64)
            assert np.array_equal(found, tensor.double().numpy()), name


def test_names_of_classes_are_listed_with_what_happens_to_them(tmp_path):
    torch.save({"net": torch.nn.Linear(1, 1), "relu": torch.nn.functional.relu}, tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        called = {named.ref.qualname: named.called for named in checkpoint.globals_named}
        assert {named.pickle for named in checkpoint.globals_named} == {"data.pkl"}
    assert called["torch._utils._rebuild_tensor_v2"]
    assert not called["torch.nn.functional.relu"]
    assert not called["torch.FloatStorage"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_reads_as_data(tmp_path):
    path = tmp_path / "script.pt"
    net = torch.nn.Linear(3, 2)
    torch.jit.save(torch.jit.trace(net, torch.ones(1, 3)), path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format_name == "torchscript"
        comparison = Comparison(checkpoint.reader)
        attributes = module_state_dict(checkpoint.tree)
        comparison.same_tensor(attributes["weight"], net.weight, "weight")
        comparison.same_tensor(attributes["bias"], net.bias, "bias")


# ---------------------------------------------------------------------------------- how zips can be


def test_zip64_field_cut_short_is_damage(tmp_path):
    path = write_zip(tmp_path, torch_records(tmp_path), zip64=True)
    content = bytearray(path.read_bytes())
    field = content.index(b"\x01\x00\x18\x00", content.index(b"PK\x01\x02"))
    content[field + 2 : field + 4] = b"\xff\xff"  # the field claims more than the entry has
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="zip64"):
        open_checkpoint(path)


def test_zip64_records(tmp_path):
    path = write_zip(tmp_path, torch_records(tmp_path), zip64=True)
    assert_reads_like(path, torch.load(path, weights_only=False))


def test_data_descriptors(tmp_path):
    path = write_zip(tmp_path, torch_records(tmp_path), descriptors=True)
    assert_reads_like(path, torch.load(path, weights_only=False))


@pytest.mark.parametrize("padding", [0, 4, 63])
def test_local_headers_may_be_longer_than_the_directory_says(padding, tmp_path):
    path = write_zip(tmp_path, torch_records(tmp_path), padding=padding)
    assert_reads_like(path, torch.load(path, weights_only=False))


def test_comment_behind_the_directory(tmp_path):
    path = write_zip(tmp_path, torch_records(tmp_path), comment=b"copied on Monday")
    assert_reads_like(path, torch.load(path, weights_only=False))


@pytest.mark.parametrize("at", range(5))
def test_equal_names_are_refused_since_torch_takes_either(at, tmp_path):
    records = torch_records(tmp_path)
    name = next(name for name, _ in records if name.endswith("data/0"))
    records.insert(at, (name, b"\xff" * 48))
    with pytest.raises(DamagedError, match="two records are called 'source/data/0'"):
        open_checkpoint(write_zip(tmp_path, records))


def test_prefix_in_front_of_the_archive_is_no_zip(tmp_path):
    path = tmp_path / "prefixed.pt"
    path.write_bytes(b"#!/bin/sh\n" + (FOLDER / "plain.pt").read_bytes())
    with pytest.raises(CkptError):
        open_checkpoint(path)


def test_compressed_pickle_is_unpacked(tmp_path):
    path = write_zip(tmp_path, torch_records(tmp_path), deflate="data.pkl")
    assert_reads_like(path, torch.load(path, weights_only=False))


def test_compressed_values_are_unpacked(tmp_path):
    path = write_zip(tmp_path, torch_records(tmp_path), deflate="data/0")
    assert_reads_like(path, torch.load(path, weights_only=False))


def test_missing_record_is_named(tmp_path):
    records = [row for row in torch_records(tmp_path) if not row[0].endswith("data/1")]
    with pytest.raises(DamagedError, match="data/1 is missing"):
        open_checkpoint(write_zip(tmp_path, records))


def test_short_record_is_named(tmp_path):
    records = [(n, d[:-1] if n.endswith("data/1") else d) for n, d in torch_records(tmp_path)]
    with pytest.raises(DamagedError, match="data/1 has 47 of 48 bytes"):
        open_checkpoint(write_zip(tmp_path, records))


@pytest.mark.parametrize("beyond", [1, 64])
def test_a_record_ends_at_the_end_of_the_file_at_the_latest(beyond):
    """The local header, which the directory does not show, says where the bytes begin."""
    stream, name = io.BytesIO(), "archive/data/0"
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, b"values")
    content = bytearray(stream.getvalue())
    latest = len(content) - len(b"values")

    def data_offset(begin: int) -> int:
        struct.pack_into("<H", content, 28, begin - 30 - len(name))  # length of the extra field
        opened = ZipArchive(Memory(bytes(content)))
        return opened.data_offset(opened.records[0])

    assert data_offset(latest) == latest
    with pytest.raises(DamagedError, match="reaches past the end"):
        data_offset(latest + beyond)


def test_unknown_byte_order(tmp_path):
    records = [(n, b"middle" if n.endswith("byteorder") else d) for n, d in torch_records(tmp_path)]
    with pytest.raises(DamagedError, match="middle"):
        open_checkpoint(write_zip(tmp_path, records))


def test_files_before_the_byteorder_record_are_little_endian(tmp_path):
    records = [row for row in torch_records(tmp_path) if not row[0].endswith("byteorder")]
    path = write_zip(tmp_path, records)
    assert_reads_like(path, torch.load(path, weights_only=False))


def test_numpy_archive_is_named_as_such(tmp_path):
    np.savez(tmp_path / "arrays.npz", weight=np.ones(3))
    with pytest.raises(UnknownFormatError, match=r"numpy \.npz"):
        open_checkpoint(tmp_path / "arrays.npz")


def test_other_zips_are_no_checkpoints(tmp_path):
    path = write_zip(tmp_path, [("readme.txt", b"hello")])
    with pytest.raises(UnknownFormatError, match=r"without data\.pkl.*readme\.txt"):
        open_checkpoint(path)


# --------------------------------------------------------------------------------- a writer of zips


def torch_records(folder) -> list[tuple[str, bytes]]:
    """The records of a ``torch.save`` of ``samples.ties``."""
    torch.manual_seed(0)
    torch.save(samples.ties(), folder / "source.pt")
    reader = torch._C.PyTorchFileReader(str(folder / "source.pt"))
    return [(f"source/{name}", reader.get_record(name)) for name in reader.get_all_records()]


def write_zip(folder, records, *, comment=b"", **how):
    """A zip of ``records``, in the ways that zips can differ."""
    path = folder / "made.pt"
    body, directory = b"", b""
    for name, data in records:
        local, entry = zip_record(name.encode(), data, len(body), **how)
        body, directory = body + local, directory + entry
    end = zip_end(len(records), len(directory), len(body), comment, zip64=how.get("zip64", False))
    path.write_bytes(body + directory + end)
    return path


def zip_record(name, data, offset, *, zip64=False, descriptors=False, padding=0, deflate=None):
    """(local header and data, central entry)."""
    crc, plain, method = zlib.crc32(data), len(data), 0
    if deflate and name.decode().endswith(deflate):
        packer = zlib.compressobj(wbits=-15)
        data, method = packer.compress(data) + packer.flush(), 8
    packed, flags = len(data), 8 if descriptors else 0
    extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding if padding else b""
    sizes = (0, 0, 0) if descriptors else (crc, packed, plain)
    local = struct.pack(
        "<4s5H3I2H", b"PK\3\4", 20, flags, method, 0, 0, *sizes, len(name), len(extra)
    )
    tail = struct.pack("<4s3I", b"PK\7\x08", crc, packed, plain) if descriptors else b""
    wide = struct.pack("<2H3Q", 1, 24, plain, packed, offset) if zip64 else b""
    shown = (2**32 - 1,) * 3 if zip64 else (packed, plain, offset)
    entry = struct.pack(
        "<4s6H3I5H2I",
        *(b"PK\1\2", 45, 45, flags, method, 0, 0, crc, *shown[:2]),
        *(len(name), len(wide), 0, 0, 0, 0, shown[2]),
    )
    return local + name + extra + data + tail, entry + name + wide


def zip_end(count, size, offset, comment, *, zip64):
    """The end of a central directory."""
    wide = b""
    if zip64:
        record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
        wide = record + struct.pack("<4sIQI", b"PK\6\7", 0, offset + size, 1)
        count, size, offset = 2**16 - 1, 2**32 - 1, 2**32 - 1
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, offset, len(comment))
    return wide + end + comment


@pytest.mark.parametrize("name", ["a/extra.bin", "a/.data/serialization_id", "b/x", "a/Data.bin"])
def test_a_pickle_under_any_name_is_told(name, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(two_faced.torch_zip(two_faced.NOTHING, (name, two_faced.BARE)))
    with open_checkpoint(path) as checkpoint:
        (found,) = checkpoint.globals_named
    assert (found.ref.qualname, found.pickle) == ("posix.mkdir", name)


def test_only_letters_of_ascii_have_a_case(tmp_path):
    """The sign for kelvin is a small k in Unicode, and another letter to torch."""
    path = tmp_path / "model.pt"
    path.write_bytes(two_faced.zipped(("a/data.p\u212al", b""), ("a/version", b"3\n")))
    with pytest.raises(UnknownFormatError):
        open_checkpoint(path)
