"""Damage is named with what it hits, and half a file is told from a bad one."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckptool.commands.verify import Request, chosen_rules, verify_file
from ckptool.formats.salvage import salvage
from ckptool.formats.zips.checksums import checksummed_records
from ckptool.formats.zips.headers import ZIP64_END, ZIP64_LOCATOR
from ckptool.sources.local import LocalFile
from helpers.faults import data_of

MODEL = {f"layer.{i}.weight": torch.full((8, 16), i + 1.0) for i in range(6)}
NBYTES = 8 * 16 * 4  # of each


def as_zip(path: Path) -> Path:
    torch.save({"model": MODEL}, path)
    return path


def as_legacy(path: Path) -> Path:
    torch.save({"model": MODEL}, path, _use_new_zipfile_serialization=False)
    return path


def as_safetensors(path: Path) -> Path:
    save_file({name: value.clone() for name, value in MODEL.items()}, path)
    return path


def place_of(path: Path, name: str) -> int:
    """Where the values of a tensor begin, found by what they are."""
    raw = path.read_bytes()
    at = raw.find(MODEL[name].numpy().tobytes())
    assert at > 0
    return at


def only(output, rule: str) -> dict:
    (found,) = [found for found in output.json["findings"] if found["rule"] == rule]
    return found


# -------------------------------------------------------------------------------------- truncated


@pytest.mark.parametrize("write", [as_zip, as_legacy, as_safetensors])
def test_a_cut_file_names_what_is_lost(write, tmp_path, ckptool):
    path = write(tmp_path / "model")
    places = {name: place_of(path, name) for name in MODEL}
    cut = sorted(places.values())[4] + 100  # in the values of the last but one
    path.write_bytes(path.read_bytes()[:cut])
    output = ckptool("verify", path, "--json")
    message = only(output, "CK102")["message"]
    assert output.exit_code == 1
    assert f"model ends at {cut:,} bytes" in message
    assert f"{2 * NBYTES - 100:,} bytes of values are lost, of 2 of 6 tensors" in message
    for name, at in places.items():
        assert (name in message) == (at + NBYTES > cut)


def test_every_length_of_a_zip_is_told(tmp_path):
    """No cut is taken for a whole file, and the lost bytes never grow with the length."""
    path = as_zip(tmp_path / "model.pt")
    raw = path.read_bytes()
    before = None
    for length in range(len(raw) - 1, 64, -97):
        path.write_bytes(raw[:length])
        report = verify_file(path, Request(chosen_rules({})))
        assert not report.ok
        assert {found.rule for found in report.findings} <= {"CK101", "CK102"}
        remains = salvage(path)
        if remains is not None:
            lost = sum(loss.wanted - loss.present for loss in remains.losses)
            assert before is None or lost >= before
            before = lost
    assert before == 6 * NBYTES


def test_a_lost_directory_alone_loses_no_value(tmp_path, ckptool):
    path = as_zip(tmp_path / "model.pt")
    path.write_bytes(path.read_bytes()[:-40])
    found = only(ckptool("verify", path, "--json"), "CK102")
    assert "the values of all 6 tensors are there" in found["message"]


def test_a_cut_pickle_still_is_truncated(tmp_path, ckptool):
    path = as_zip(tmp_path / "model.pt")
    path.write_bytes(path.read_bytes()[:200])
    assert only(ckptool("verify", path, "--json"), "CK102")["severity"] == "error"


def test_nothing_else_is_said_of_a_file_that_cannot_be_opened(tmp_path, ckptool):
    path = as_zip(tmp_path / "model.pt")
    path.write_bytes(path.read_bytes()[:-40])
    report = ckptool("verify", path, "--json").json
    states = {check["rule"]: check["state"] for check in report["checks"]}
    assert report["format"] is None
    assert states.pop("CK102") == "failed"
    assert set(states.values()) == {"not-checked"}


# --------------------------------------------------------------------------------------- checksums


@pytest.mark.parametrize("name", MODEL)
def test_a_flipped_bit_is_named_with_its_tensor(name, tmp_path, ckptool):
    path = as_zip(tmp_path / "model.pt")
    raw = bytearray(path.read_bytes())
    raw[place_of(path, name) + 5] ^= 1
    path.write_bytes(raw)
    output = ckptool("verify", path, "--bytes", "--json")
    found = only(output, "CK103")
    assert (output.exit_code, found["address"]) == (1, f"model/{name}")
    assert ckptool("verify", path).exit_code == 0  # by default nobody has looked


def test_without_reading_bytes_the_checksum_is_not_checked(sound, ckptool):
    checks = {c["rule"]: c for c in ckptool("verify", sound, "--json").json["checks"]}
    assert checks["CK103"]["state"] == "not-checked"
    assert "--bytes" in checks["CK103"]["reason"]


def test_tied_weights_are_all_named(tmp_path, ckptool):
    weight = torch.arange(24.0)
    path = tmp_path / "tied.pt"
    torch.save({"model": {"embed": weight, "head": weight}}, path)
    offset, _ = data_of(path, "/data/0")
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)
    message = only(ckptool("verify", path, "--bytes", "--json"), "CK103")["message"]
    assert "model/embed, model/head" in message


@pytest.mark.parametrize("write", [as_legacy, as_safetensors])
def test_a_format_without_checksums_says_so(write, tmp_path, ckptool):
    output = ckptool("verify", write(tmp_path / "model"), "--bytes", "--json")
    (check,) = [c for c in output.json["checks"] if c["rule"] == "CK103"]
    assert (output.exit_code, check["state"]) == (0, "not-checked")
    assert "no checksums" in check["reason"]


def test_checksums_that_were_not_written_are_not_checked(tmp_path, ckptool):
    torch.serialization.set_crc32_options(False)
    try:
        path = as_zip(tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    output = ckptool("verify", path, "--require", "intact", "--json")
    assert output.exit_code == 1  # not checked is not passed
    assert "carry no checksum" in only(output, "CK103")["message"]


# --------------------------------------------------------------------------------- other accidents


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        b"<!DOCTYPE html><html></html>",
        bytes(4096),
    ],
)
def test_what_is_no_checkpoint_fails_with_the_reason(content, tmp_path, ckptool):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    output = ckptool("verify", path, "--json")
    assert output.exit_code == 1
    assert only(output, "CK101")["remedy"]


def test_a_path_that_does_not_exist_is_an_error(tmp_path, ckptool):
    output = ckptool("verify", tmp_path / "nothing.pt", "--json")
    assert (output.exit_code, output.json["schema"]) == (2, "ckptool/error/1")


def test_who_writes_meanwhile_is_noticed(sound):
    def write(_nbytes: int) -> None:
        with sound.open("ab") as file:
            file.write(b"more")

    request = Request(chosen_rules({"bytes": True}), progress=write)
    report = verify_file(sound, request)
    assert "CK106" in {found.rule for found in report.findings}
    quiet = verify_file(sound, Request(chosen_rules({"select": ["CK106"]})))
    assert [check.state for check in quiet.checks] == ["passed"]


def test_a_damaged_file_fails_whatever_was_selected(tmp_path, ckptool):
    path = as_zip(tmp_path / "model.pt")
    path.write_bytes(path.read_bytes()[:-40])
    output = ckptool("verify", path, "--select", "CK4", "--json")
    assert output.exit_code == 1
    assert only(output, "CK102")


@pytest.mark.parametrize("sizes", [(8, 8), (3, 50)])
def test_zips_in_a_row_are_not_taken_for_one(sizes, tmp_path):
    """As torch.distributed writes its shards; the last directory says nothing of the others."""
    path = tmp_path / "shard.distcp"
    parts = []
    for size in sizes:
        torch.save(torch.ones(size), tmp_path / "part.pt")
        parts.append((tmp_path / "part.pt").read_bytes())
    path.write_bytes(b"".join(parts))
    with LocalFile(path) as file:
        assert checksummed_records(file) == []
    with LocalFile(tmp_path / "part.pt") as file:
        assert len(checksummed_records(file)) > 3


def test_checksums_inside_shards_are_not_passed(zoo, ckptool):
    output = ckptool("verify", zoo / "files/torch_dcp", "--bytes", "--values", "--json")
    states = {check["rule"]: check["state"] for check in output.json["checks"]}
    assert (output.exit_code, states["CK103"], states["CK301"]) == (0, "not-checked", "passed")


# ------------------------------------------------------------------------ where the directory lies


def with_bytes_before(path: Path, part: str) -> None:
    """Put bytes between the directory and the zip64 end record, or behind that record."""
    raw = path.read_bytes()
    end = raw.rfind(b"PK\5\6")
    locator = end - ZIP64_LOCATOR.size
    record = locator - ZIP64_END.size
    assert raw[locator:].startswith(b"PK\6\7")
    assert raw[record:].startswith(b"PK\6\6")
    at = record if part == "the zip64 end record" else locator
    moved = bytearray(raw[:at] + bytes(40) + raw[at:])
    if at == record:
        struct.pack_into("<Q", moved, locator + 40 + 8, record + 40)
    path.write_bytes(moved)


@pytest.mark.parametrize("part", ["the zip64 end record", "the locator"])
def test_a_flipped_bit_is_found_wherever_the_end_record_lies(part, tmp_path, ckptool):
    """Torch follows the locator; so does whoever reads the checksums."""
    path = as_zip(tmp_path / "model.pt")
    with_bytes_before(path, part)
    assert torch.load(path)["model"].keys() == MODEL.keys()
    raw = bytearray(path.read_bytes())
    raw[place_of(path, "layer.3.weight") + 5] ^= 1
    path.write_bytes(raw)
    output = ckptool("verify", path, "--require", "intact", "--bytes", "--json")
    assert output.exit_code == 1
    assert only(output, "CK103")["address"] == "model/layer.3.weight"


# ------------------------------------------------------------------ a pickle that cannot be parsed


def with_a_broken_pickle(path: Path, *, checksum: bool) -> None:
    """Overwrite an instruction of data.pkl; ``checksum``: the archive's checksum knows of it."""
    offset, size = data_of(path, "/data.pkl")
    raw = bytearray(path.read_bytes())
    old = zlib.crc32(raw[offset : offset + size]).to_bytes(4, "little")
    raw[offset + 2] = 0xFF
    new = zlib.crc32(raw[offset : offset + size]).to_bytes(4, "little")
    path.write_bytes(raw.replace(old, new) if checksum else raw)


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_broken_pickle_is_dated_by_its_checksum(command, tmp_path, ckptool):
    said = {}
    for checksum in (True, False):
        path = as_zip(tmp_path / "model.pt")
        with_a_broken_pickle(path, checksum=checksum)
        output = ckptool(command, path)
        said[checksum] = str(output) + output.stderr
        assert output.exit_code != 0
    assert "it was written so: the checksum of data.pkl holds" in said[True]
    assert "it was damaged after it was written" in said[False]


def test_a_pickle_damaged_after_writing_breaks_the_rule_of_its_checksum(tmp_path, ckptool):
    path = as_zip(tmp_path / "model.pt")
    with_a_broken_pickle(path, checksum=False)
    assert only(ckptool("verify", path, "--json"), "CK112")["severity"] == "error"


def test_checksums_of_an_archive_inside_a_pickle_are_not_called_absent(tmp_path, ckptool):
    archive = as_zip(tmp_path / "inner.pt").read_bytes()
    name = b"ctorch.storage\n_load_from_bytes\n"
    body = name + b"B" + struct.pack("<I", len(archive)) + archive + b"\x85R"
    path = tmp_path / "outer.pkl"
    path.write_bytes(b"\x80\x03" + body + b".")
    output = ckptool("verify", path, "--bytes", "--json")
    (check,) = [c for c in output.json["checks"] if c["rule"] == "CK103"]
    assert "checksums, which are not read" in check["reason"]
    assert ckptool("verify", path, "--require", "intact").exit_code == 1


def test_a_header_that_the_library_would_refuse_is_refused_before_it_is_read(tmp_path, ckptool):
    path = tmp_path / "many.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 134_894_488) + b'{"a')
        file.truncate(200_000_000)  # a hole, which nobody should walk through
    message = only(ckptool("verify", path, "--json"), "CK101")["message"]
    assert "refuses to read headers above 100,000,000 bytes" in message
