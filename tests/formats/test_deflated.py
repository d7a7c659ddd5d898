"""Archives whose records were compressed: torch loads them, and so they are read."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats import base, open_checkpoint
from ckptool.formats.zips.deflated import DeflatedRecord
from ckptool.formats.zips.directory import ZipRecord
from ckptool.formats.zips.inflating import PIECE, unpacked
from ckptool.formats.zips.records import DEFLATED
from ckptool.sources.memory import Memory
from ckptool.tree.walking import tensors
from helpers.making import average_of, save, weights
from helpers.tensors import assert_same_tensors, load


def compressed(path: Path) -> Path:
    """The file with every record deflated, as ``zip -r`` would pack it."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return path


def data_of(path: Path, record: str) -> tuple[int, int]:
    """(offset, bytes) of a record's packed data."""
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith(record))
    return info.header_offset + 30 + len(info.filename), info.compress_size


@pytest.fixture
def packed(tmp_path) -> Path:
    return compressed(save(tmp_path / "packed.pt", weights(), average_of(weights())))


def test_it_is_equal_to_the_same_file_without_compression(packed, tmp_path, ckptool):
    plain = save(tmp_path / "plain.pt", weights(), average_of(weights()))
    assert torch.load(packed).keys() == torch.load(plain).keys()
    assert ckptool("diff", plain, packed).exit_code == 0


def test_it_passes_with_its_checksums(packed, ckptool):
    options = ("--require", "intact,finite", "--bytes", "--values")
    assert ckptool("verify", packed, *options).exit_code == 0


def test_weights_are_taken_out_of_it(packed, tmp_path, ckptool):
    output = tmp_path / "model.pt"
    assert ckptool("extract-ema", packed, "-o", output).exit_code == 0
    expected = weights() | average_of(weights())
    assert_same_tensors(load(output), expected)


def test_it_cannot_be_promoted_and_that_is_said(packed, tmp_path, ckptool):
    done = ckptool("promote-ema", packed, "-o", tmp_path / "out.pt")
    assert done.exit_code == 2
    assert "compressed" in done.stderr
    assert not (tmp_path / "out.pt").exists()


def test_a_stream_that_does_not_unpack_fails_without_reading_values(packed, ckptool):
    offset, size = data_of(packed, "/data/0")
    raw = bytearray(packed.read_bytes())
    raw[offset : offset + size] = bytes(size)
    packed.write_bytes(raw)
    done = ckptool("verify", packed, "--json")
    assert done.exit_code == 1
    assert "CK105" in {found["rule"] for found in done.json["findings"]}


def test_a_changed_value_is_found_by_the_checksum(packed, ckptool):
    """The bytes unpack to the right length, and to something else."""
    with zipfile.ZipFile(packed) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data/0"))
        crc = archive.getinfo(name).CRC.to_bytes(4, "little")
    packed.write_bytes(packed.read_bytes().replace(crc, b"\1\2\3\4"))
    done = ckptool("verify", packed, "--bytes", "--json")
    assert done.exit_code == 1
    (found,) = (found for found in done.json["findings"] if found["rule"] == "CK103")
    assert "unpacked" in found["message"]


def test_what_unpacks_to_too_much_is_refused(packed, ckptool, monkeypatch):
    monkeypatch.setattr(base, "MAX_UNPACKED", 100)
    for command in ("inspect", "verify"):
        done = ckptool(command, packed)
        assert done.exit_code == 2
        assert "unpack it first" in done.stderr
        assert "torch.save" in done.stderr


def test_parts_of_a_checkpoint_may_not_unpack_to_too_much_together(tmp_path, ckptool, monkeypatch):
    """Each part alone is within the limit."""
    names = {}
    for i in range(3):
        part = f"pytorch_model-{i + 1:05}-of-00003.bin"
        torch.save({f"layer_{i}.weight": torch.zeros(1000)}, tmp_path / part)
        compressed(tmp_path / part)
        names[f"layer_{i}.weight"] = part
    index = {"metadata": {"total_size": 12000}, "weight_map": names}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert ckptool("verify", tmp_path, "--values", "--bytes").exit_code == 0
    monkeypatch.setattr(base, "MAX_UNPACKED", 10_000)
    done = ckptool("inspect", "--stats", tmp_path)
    assert done.exit_code == 2
    assert "unpack it first" in done.stderr
    for rule, options in (("CK105", ()), ("CK103", ("--bytes",))):
        done = ckptool("verify", tmp_path, "--select", rule, *options, "--json")
        (check,) = done.json["checks"]
        assert (check["state"], check["reason"][:15]) == ("not-checked", "unpack it first")


def test_each_record_is_unpacked_once_and_dropped_at_the_end(packed, monkeypatch):
    asked = []
    pieces = DeflatedRecord.pieces

    def counted(blob: DeflatedRecord):
        asked.append(blob.record.name)
        return pieces(blob)

    monkeypatch.setattr(DeflatedRecord, "pieces", counted)
    with open_checkpoint(packed) as checkpoint:
        spans = [c.span for _, ref in tensors(checkpoint.tree) for c in ref.chunks]
        for span in spans * 3:
            assert len(checkpoint.reader.read(span)) == span.nbytes
    assert len(asked) == len(set(asked)) > 1
    assert not checkpoint.reader._unpacked


SIZES = [*range(PIECE - 1300, PIECE + 1300, 23), *range(2 * PIECE - 300, 2 * PIECE + 300, 29)]


def test_records_of_any_size_are_unpacked_whole():
    """A piece may end where all that is packed has been taken, with more of it still to come."""
    damaged = []
    for size in SIZES:
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = packer.compress(bytes(size)) + packer.flush()
        record = ZipRecord("data/0", DEFLATED, 0, 0, len(packed), size, 0, 0)
        try:
            pieces = list(unpacked(record, lambda at, n, packed=packed: packed[at : at + n]))
        except DamagedError:
            damaged.append(size)
        else:
            assert sum(map(len, pieces)) == size
    assert not damaged


def test_the_bytes_of_many_unpacked_records_are_added_up_once():
    """For each of 60,000 small ones all those before were added up again."""

    class Size(int):
        additions = 0

        def __radd__(self, other: int) -> int:
            Size.additions += 1
            return int(self) + other

        __add__ = __radd__

    def kept(nbytes: int) -> Memory:
        source = Memory(b"")
        source.keeps = Size(nbytes)
        return source

    reader = base.TensorReader()
    for _ in range(200):
        reader.admit(kept(10))
    assert Size.additions <= 400
    with pytest.raises(UnsupportedError, match=f"{base.MAX_UNPACKED + 2000:,} bytes"):
        reader.admit(kept(base.MAX_UNPACKED))
