"""``ckptool promote-ema``: a copy in which only the model's values and their checksums differ."""

from __future__ import annotations

import math
import os
import stat
import zipfile
import zlib
from argparse import Namespace

import numpy as np
import pytest
import torch

from ckptool import __version__
from ckptool.formats import open_checkpoint
from helpers.likeness import assert_same_objects
from helpers.making import average_of, resumable, save, weights
from helpers.systems import SYSTEMS
from helpers.tensors import (
    assert_same_tensor,
    assert_same_tensors,
    load,
    storage_of,
)

DOCUMENT = [
    "schema", "path", "output", "format", "written", "ema", "model", "main_slot", "tensors",
    "bytes", "kept", "dropped",
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    model = weights()
    args = Namespace(lr=1e-3, out="runs")
    return save(tmp_path / "last.ckpt", model, args=args, **resumable(model))


@pytest.fixture
def promote(ckptool, tmp_path):
    """Promote a checkpoint into ``promoted.pt``; gives what torch makes of it."""

    def run(path, *args):
        output = tmp_path / "promoted.pt"
        done = ckptool("promote-ema", path, "-o", output, *args)
        assert done.exit_code == 0, done.stderr
        return load(output)

    return run


@pytest.fixture
def refused(refusing, tmp_path):
    def run(path, output=None, *args) -> dict:
        return refusing("promote-ema", path, "-o", output or tmp_path / "promoted.pt", *args)

    return run


# ------------------------------------------------------------------------------------- the document


def test_document_has_its_keys(path, ckptool, tmp_path):
    output = tmp_path / "out.ckpt"
    report = ckptool("promote-ema", path, "-o", output, "--json").json
    assert report.keys() >= {*DOCUMENT}
    assert "findings" in report
    assert report["schema"] == "ckptool/promote-ema/1"
    assert (report["path"], report["output"]) == (str(path), str(output))
    assert (report["format"], report["written"]) == ("torch-zip", True)
    assert (report["ema"], report["model"]) == ("ema_state_dict", "state_dict")
    assert (report["main_slot"], report["tensors"]) == ("raw", 5)
    assert report["bytes"] == sum(t.nbytes for t in weights().values())
    assert (report["kept"], report["dropped"]) == ([], [])


def test_dry_run_says_the_same_and_writes_nothing(path, ckptool, tmp_path):
    args = ("promote-ema", path, "-o", tmp_path / "out.pt", "--json")
    planned = ckptool(*args, "--dry-run").json
    assert list(tmp_path.iterdir()) == [path]
    assert planned == ckptool(*args).json | {"written": False}


def test_an_output_must_be_named(path, ckptool):
    done = ckptool("promote-ema", path)
    assert done.exit_code == 2
    assert "-o" in done.stderr


# --------------------------------------------------------------------------------------- the values


def test_the_slot_holds_the_averages_and_all_else_is_equal(path, promote):
    after, before = promote(path), load(path)
    assert_same_tensors(after.pop("state_dict"), average_of(weights()))
    del before["state_dict"]
    assert_same_objects(after, before)


def test_what_the_average_lacks_stays_and_is_named(promote, ckptool, tmp_path):
    average = average_of(weights())
    del average["stem.bias"], average["steps"]
    average["extra"] = torch.ones(2)
    path = save(tmp_path / "part.pt", weights(), average)
    assert_same_tensors(promote(path)["state_dict"], weights() | {**average_of(weights()), **{
        name: weights()[name] for name in ("stem.bias", "steps")
    }})  # fmt: skip
    report = ckptool("promote-ema", path, "-o", tmp_path / "x.pt", "--dry-run", "--json").json
    assert report["kept"] == ["stem.bias", "steps"]
    assert report["dropped"] == ["extra"]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2])
def test_averages_are_cast_to_the_slot_as_torch_does(kind, promote, tmp_path):
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(2000, generator=generator) * torch.logspace(-12, 4, 2000)
    model = weights(wide=values.to(kind))
    path = save(tmp_path / "cast.pt", model, average_of(weights()) | {"wide": values * 0.9})
    found = promote(path)["state_dict"]["wide"]
    assert_same_tensor(found, (values * 0.9).to(kind))


def test_a_half_model_with_a_float_average_stays_half(promote, tmp_path):
    model = {n: t.bfloat16() if t.is_floating_point() else t for n, t in weights().items()}
    path = save(tmp_path / "bf16.pt", model, average_of(weights()))
    wanted = {n: t.to(model[n].dtype) for n, t in average_of(weights()).items()}
    assert_same_tensors(promote(path)["state_dict"], wanted)


def test_strides_of_the_slot_stay(promote, tmp_path):
    images = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    table = torch.arange(60.0)
    model = weights(
        conv=images.to(memory_format=torch.channels_last),
        proj=torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).t(),
        window=table[7:19].view(3, 4),
        gaps=table[30:50].view(4, 5)[::2, 1:4],
    )
    average = {name: tensor.contiguous() for name, tensor in average_of(model).items()}
    found = promote(save(tmp_path / "strided.pt", model, average))["state_dict"]
    assert_same_tensors(found, average)
    for name, tensor in model.items():
        assert found[name].stride() == tensor.stride()
        assert found[name].storage_offset() == tensor.storage_offset()


def test_bytes_beside_a_view_stay(promote, tmp_path):
    """The slot's tensor is a part of a storage; the rest of the storage is nobody's, and stays."""
    table = torch.arange(20.0)
    path = save(
        tmp_path / "view.pt", weights(part=table[5:9]), average_of(weights(part=table[5:9]))
    )
    found = promote(path)["state_dict"]["part"]
    whole = torch.tensor([], dtype=torch.float32).set_(found.untyped_storage())
    assert torch.equal(whole[:5], table[:5])
    assert torch.equal(whole[9:], table[9:])


def test_an_average_in_other_strides_is_put_in_order(promote, tmp_path):
    model = weights(proj=torch.arange(6.0).view(2, 3))
    average = average_of(weights()) | {"proj": (torch.arange(6.0).view(3, 2) + 0.5).t()}
    found = promote(save(tmp_path / "strided.pt", model, average))["state_dict"]
    assert_same_tensors(found, average)


def test_a_conjugated_average_is_resolved(promote, tmp_path):
    waves = torch.view_as_complex(torch.arange(8.0).view(4, 2))
    average = average_of(weights()) | {"wave": (waves * 2).conj()}
    found = promote(save(tmp_path / "wave.pt", weights(wave=waves), average))["state_dict"]
    assert_same_tensor(found["wave"], (waves * 2).conj().resolve_conj())


# --------------------------------------------------------------------------------------------- ties


def test_tied_weights_stay_tied(promote, tmp_path):
    shared = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    model = weights(embed=shared, decoder=shared)
    average = average_of(weights(embed=shared))
    found = promote(save(tmp_path / "tied.pt", model, average))["state_dict"]
    assert storage_of(found["embed"]) == storage_of(found["decoder"])
    assert_same_tensor(found["decoder"], average["embed"])


def test_equal_averages_of_tied_weights_agree(promote, tmp_path):
    shared = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    model = weights(embed=shared, decoder=shared)
    found = promote(save(tmp_path / "tied.pt", model, average_of(model)))["state_dict"]
    assert_same_tensors(found, average_of(model))


def test_averages_of_tied_weights_that_differ_are_refused(refused, tmp_path):
    shared = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    model = weights(embed=shared, decoder=shared)
    average = average_of(model) | {"decoder": shared * 0.8}
    error = refused(save(tmp_path / "tied.pt", model, average))
    assert error["code"] == "ema-refused"
    assert error["address"] in {"embed", "decoder"}
    assert "extract-ema" in error["hint"]


def test_averages_of_overlapping_weights_that_differ_are_refused(refused, tmp_path):
    table = torch.randn(12, generator=torch.Generator().manual_seed(1))
    model = weights(first=table[:8], second=table[4:])
    average = average_of(model) | {"second": table[4:] * 0.8}
    error = refused(save(tmp_path / "overlap.pt", model, average))
    assert (error["code"], error["address"]) == ("ema-refused", "second")
    assert "overlaps first" in error["message"]


def test_interleaved_weights_do_not_overlap(promote, tmp_path):
    table = torch.randn(12, generator=torch.Generator().manual_seed(1))
    model = weights(even=table[::2], odd=table[1::2])
    found = promote(save(tmp_path / "interleaved.pt", model, average_of(model)))["state_dict"]
    assert_same_tensors(found, average_of(model))


def test_averages_of_overlapping_weights_that_agree_are_taken(promote, tmp_path):
    table = torch.randn(12, generator=torch.Generator().manual_seed(1))
    model = weights(first=table[:8], second=table[4:])
    found = promote(save(tmp_path / "overlap.pt", model, average_of(model)))["state_dict"]
    assert_same_tensors(found, average_of(model))


def test_bytes_that_something_else_views_are_not_changed(refused, tmp_path):
    model = weights()
    path = save(tmp_path / "shared.pt", model, best={"stem": model["stem.weight"][1:]})
    error = refused(path)
    assert error["code"] == "unsupported"
    assert "best/stem" in error["message"]


def test_a_part_of_a_state_dict_is_not_changed_behind_the_rest(refused, tmp_path):
    """The slot is the part under a prefix; its neighbour in the same dict is tied to it."""
    model = {f"net.{name}": tensor for name, tensor in weights().items()}
    path = save(tmp_path / "part.pt", model | {"copy.stem": model["net.stem.weight"]})
    error = refused(path, None, "--model", "state_dict/net.*")
    assert error["code"] == "unsupported"
    assert "state_dict/copy.stem" in error["message"]


def test_an_average_that_is_the_slot_itself_changes_nothing_there(promote, tmp_path):
    """A frozen layer, or a buffer that was not copied: some tensors are one and the same."""
    model = weights()
    average = average_of(model) | {"stem.weight": model["stem.weight"]}
    made = promote(save(tmp_path / "alias.pt", model, average))["state_dict"]
    assert_same_tensors(made, model | average)


@pytest.mark.parametrize("to", ["--in-place", "-o"])
def test_averages_that_are_the_slot_itself_are_said_to_be_so(to, ckptool, tmp_path):
    path, output, model = tmp_path / "alias.pt", tmp_path / "out.pt", weights()
    torch.save({"model": model, "ema": dict(model)}, path)
    before = path.read_bytes()
    done = ckptool("promote-ema", path, *((to, output) if to == "-o" else (to, "--backup")))
    assert done.startswith("wrote " if to == "-o" else "unchanged: ")
    assert "the very tensors" in done
    assert set(tmp_path.iterdir()) == ({path, output} if to == "-o" else {path})
    assert all(each.read_bytes() == before for each in tmp_path.iterdir())


# -------------------------------------------------------------------------------------- the archive


def differing(one, other) -> set[int]:
    """Offsets of the bytes in which two files differ, up to the directory of the first."""
    with zipfile.ZipFile(one) as archive:
        end = archive.start_dir
    ours, theirs = (np.frombuffer(p.read_bytes()[:end], np.uint8) for p in (one, other))
    return set(np.flatnonzero(ours != theirs).tolist())


def spans_of(path, slot: str) -> set[int]:
    """Offsets of the bytes of a slot's tensors."""
    with open_checkpoint(path) as checkpoint:
        found = [ref.chunks[0].span for ref in checkpoint.tree[slot].values() if ref.numel]
    return {at for span in found for at in range(span.offset, span.offset + span.nbytes)}


def checksums_of(path) -> set[int]:
    """Offsets of the bytes of all checksums: in local headers, descriptors and the directory."""
    data = path.read_bytes()
    starts: list[int] = []
    with zipfile.ZipFile(path) as archive:
        entry = archive.start_dir
        for record in archive.infolist():
            at = record.header_offset
            names = int.from_bytes(data[at + 26 : at + 28], "little")
            extra = int.from_bytes(data[at + 28 : at + 30], "little")
            starts += [at + 14, entry + 16]
            if record.flag_bits & 0x8:
                starts.append(at + 30 + names + extra + record.compress_size + 4)
            lengths = [data[entry + i] + 256 * data[entry + i + 1] for i in (28, 30, 32)]
            entry += 46 + sum(lengths)
    return {at for start in starts for at in range(start, start + 4)}


@pytest.mark.parametrize("system", SYSTEMS, ids=str)
def test_only_values_and_checksums_differ(system, ckptool, tmp_path):
    output = tmp_path / "promoted.pt"
    ckptool("promote-ema", system.path, "-o", output)
    found = differing(system.path, output)
    assert found
    assert found <= spans_of(system.path, system.model) | checksums_of(system.path)


def test_every_copy_of_a_checksum_is_the_new_one(path, promote, tmp_path):
    """In the directory, behind the data, and in the local header where it is not left at zero."""
    promote(path)
    data = (tmp_path / "promoted.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "promoted.pt") as archive:
        for record in archive.infolist():
            at, end = data_offset(data, record), data_offset(data, record) + record.file_size
            assert zlib.crc32(data[at:end]) == record.CRC
            assert number(data, record.header_offset + 14) in {0, record.CRC}
            if record.flag_bits & 0x8:
                assert data[end : end + 4] == b"PK\x07\x08"
                assert number(data, end + 4) == record.CRC


def number(data, at) -> int:
    return int.from_bytes(data[at : at + 4], "little")


@pytest.mark.parametrize("system", SYSTEMS, ids=str)
def test_the_archive_is_sound(system, ckptool, tmp_path):
    output = tmp_path / "promoted.pt"
    ckptool("promote-ema", system.path, "-o", output)
    with zipfile.ZipFile(output) as archive:
        assert archive.testzip() is None
        names = [record.filename for record in archive.infolist()]
    with zipfile.ZipFile(system.path) as archive:
        before = [record.filename for record in archive.infolist()]
    assert names == [*before, f"{before[0].partition('/')[0]}/ckptool.json"]


def test_torch_reads_it_in_every_way(path, promote, tmp_path):
    promote(path)
    torch.serialization.set_crc32_options(True)
    output = tmp_path / "promoted.pt"
    with torch.serialization.safe_globals([Namespace]):
        for options in ({}, {"mmap": True}, {"weights_only": False}, {"map_location": "meta"}):
            loaded = torch.load(output, **options)
            assert loaded["epoch"] == 7
        assert_same_tensors(torch.load(output, mmap=True)["state_dict"], average_of(weights()))


def test_a_file_without_checksums_gets_none(promote, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "no_crc.pt", weights())
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same_tensors(promote(path)["state_dict"], average_of(weights()))
    with zipfile.ZipFile(tmp_path / "promoted.pt") as archive:
        assert {r.CRC for r in archive.infolist() if "/data/" in r.filename} == {0}


def test_a_checksum_that_happens_to_be_zero_is_refreshed(promote, tmp_path):
    """Of a storage with just these four bytes; only where all are zero they are switched off."""
    unlucky = torch.tensor([0x9D, 0x0A, 0xD9, 0x6D], dtype=torch.uint8).view(torch.float32)
    path = save(tmp_path / "zero.pt", weights(unlucky=unlucky))
    with zipfile.ZipFile(path) as archive:
        assert 0 in {r.CRC for r in archive.infolist() if r.file_size}
    promote(path)
    with zipfile.ZipFile(tmp_path / "promoted.pt") as archive:
        assert archive.testzip() is None
    rewritten = tmp_path / "rewritten.pt"
    rewrite(path, rewritten)
    promote(rewritten, "--force")
    with zipfile.ZipFile(tmp_path / "promoted.pt") as archive:
        assert archive.testzip() is None


def rewrite(torch_file, path) -> None:
    """As ``zipfile`` writes it: no padding, no descriptors, checksums in the local headers."""
    with zipfile.ZipFile(torch_file) as source, zipfile.ZipFile(path, "w") as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))


def test_a_file_of_another_zip_writer_is_patched(promote, tmp_path):
    path = tmp_path / "rewritten.pt"
    rewrite(save(tmp_path / "torch.pt", weights()), path)
    assert_same_tensors(promote(path)["state_dict"], average_of(weights()))
    with zipfile.ZipFile(tmp_path / "promoted.pt") as archive:
        assert archive.testzip() is None


def big_endian(source, path) -> None:
    """What a big-endian machine would have written; all values are float32 or int64."""
    with open_checkpoint(source) as checkpoint:
        slots = [checkpoint.tree[slot] for slot in ("state_dict", "ema_state_dict")]
        spans = [(ref.chunks[0].span, ref.dtype.itemsize) for s in slots for ref in s.values()]
    data = bytearray(source.read_bytes())
    for span, width in spans:
        run = slice(span.offset, span.offset + span.nbytes)
        swapped = np.frombuffer(bytes(data[run]), np.uint8).reshape(-1, width)[:, ::-1]
        data[run] = swapped.tobytes()
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(path, "w") as target:
        for record in archive.infolist():
            start = data_offset(data, record)
            content = bytes(data[start : start + record.file_size])
            is_order = record.filename.endswith("byteorder")
            target.writestr(record.filename, b"big" if is_order else content)


def data_offset(data, record) -> int:
    header = data[record.header_offset : record.header_offset + 30]
    return record.header_offset + 30 + sum(header[26 + i] << 8 * (i % 2) for i in range(4))


def test_a_big_endian_file_stays_big_endian(promote, tmp_path):
    path = tmp_path / "big.pt"
    big_endian(save(tmp_path / "little.pt", weights()), path)
    assert_same_tensors(load(path)["state_dict"], weights())
    assert_same_tensors(promote(path)["state_dict"], average_of(weights()))
    with zipfile.ZipFile(tmp_path / "promoted.pt") as archive:
        assert archive.testzip() is None


def test_values_of_other_byte_order_are_cast(promote, tmp_path):
    path = tmp_path / "big.pt"
    average = average_of(weights()) | {"stem.bias": torch.arange(4.0, dtype=torch.float64) / 3}
    big_endian(save(tmp_path / "little.pt", weights(), average), path)
    found = promote(path)["state_dict"]["stem.bias"]
    assert_same_tensor(found, average["stem.bias"].float())


# ----------------------------------------------------------------------------------- promoted again


def test_promoting_twice_changes_nothing(path, promote, ckptool, tmp_path):
    once = promote(path)
    first, second = tmp_path / "promoted.pt", tmp_path / "again.pt"
    assert ckptool("promote-ema", first, "-o", second).exit_code == 0
    assert second.read_bytes() == first.read_bytes()
    assert_same_objects(load(second), once)


def test_a_promoted_file_says_where_it_comes_from(path, promote, ckptool, tmp_path):
    promote(path)
    promoted = tmp_path / "promoted.pt"
    report = ckptool("inspect", promoted, "--json").json
    assert report["provenance"] | {"time": ""} == {
        "version": __version__,
        "command": "promote-ema",
        "source": "last.ckpt",
        "ema": "ema_state_dict",
        "model": "state_dict",
        "layout": None,
        "time": "",
        "kind": "ema",
    }
    assert report["ema"]["main_slot"] == "averaged"
    assert report["findings"] == []
    assert "promoted by ckptool" in ckptool("inspect", promoted).stdout


def test_a_claim_of_promotion_without_the_values_is_not_believed(path, promote, ckptool, tmp_path):
    promote(path)
    content = load(tmp_path / "promoted.pt")
    content["state_dict"] = weights()
    torch.save(content, tmp_path / "trained_on.pt")
    with zipfile.ZipFile(tmp_path / "promoted.pt") as archive:
        note = archive.read("last/ckptool.json")
    with zipfile.ZipFile(tmp_path / "trained_on.pt", "a") as archive:
        archive.writestr("trained_on/ckptool.json", note)
    report = ckptool("inspect", tmp_path / "trained_on.pt", "--json").json
    assert report["ema"]["main_slot"] == "raw"


def test_a_cast_promotion_is_recognised(promote, ckptool, tmp_path):
    model = {n: t.bfloat16() if t.is_floating_point() else t for n, t in weights().items()}
    promote(save(tmp_path / "half.pt", model, average_of(weights())))
    report = ckptool("inspect", tmp_path / "promoted.pt", "--json").json
    assert report["ema"]["main_slot"] == "averaged"
    again = ckptool("promote-ema", tmp_path / "promoted.pt", "-o", tmp_path / "twice.pt")
    assert again.exit_code == 0
    assert (tmp_path / "twice.pt").read_bytes() == (tmp_path / "promoted.pt").read_bytes()


def test_a_second_promotion_replaces_the_note(promote, ckptool, tmp_path):
    model = weights()
    first, second = average_of(model), average_of(average_of(model))
    path, other = tmp_path / "tracks.pt", tmp_path / "other.pt"
    torch.save({"model": model, "ema": {"fast": first, "slow": second}}, path)
    promote(path, "--ema", "ema/fast")
    done = ckptool("promote-ema", tmp_path / "promoted.pt", "-o", other, "--ema", "ema/slow")
    assert done.exit_code == 0, done
    with zipfile.ZipFile(other) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert len(set(names)) == len(names)
    assert ckptool("inspect", other, "--json").json["provenance"]["ema"] == "ema/slow"
    assert_same_tensors(load(other)["model"], second)


def test_the_time_of_the_note_can_be_fixed(path, promote, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    promote(path)
    first = (tmp_path / "promoted.pt").read_bytes()
    assert b'"time": "1970-01-02T00:00:00Z"' in first
    promote(path, "--force")
    assert (tmp_path / "promoted.pt").read_bytes() == first


def test_a_slot_that_is_averaged_already_is_copied(ckptool, tmp_path):
    model = weights()
    path = save(tmp_path / "swapped.pt", model, message_hub={}, meta={})  # as mmengine writes it
    output = tmp_path / "out.pt"
    report = ckptool("promote-ema", path, "-o", output, "--json").json
    assert (report["main_slot"], report["tensors"]) == ("averaged", 0)
    assert output.read_bytes() == path.read_bytes()


# ----------------------------------------------------------------------------------------- refusals


def test_a_file_without_a_model_has_no_slot(refused, tmp_path):
    path = tmp_path / "only.pt"
    torch.save({"ema_state_dict": average_of(weights()), "epoch": 1}, path)
    assert refused(path)["code"] == "ema-refused"


def test_kinds_that_do_not_convert_are_refused(refused, tmp_path):
    model = weights(mask=torch.tensor([1, 0]))
    average = average_of(weights()) | {"mask": torch.tensor([0.5, 0.25], dtype=torch.complex64)}
    error = refused(save(tmp_path / "kinds.pt", model, average))
    assert (error["code"], error["address"]) == ("unsupported", "mask")
    assert "extract-ema" in error["hint"]


def test_an_average_that_is_not_finite_is_refused(refused, ckptool, tmp_path):
    average = average_of(weights()) | {"scale": torch.tensor(math.nan)}
    path = save(tmp_path / "nan.pt", weights(), average)
    assert refused(path)["code"] == "ema-refused"
    done = ckptool("promote-ema", path, "-o", tmp_path / "p.pt", "--force", "--json")
    assert [f["address"] for f in done.json["findings"]] == ["scale"]
    assert_same_tensors(load(tmp_path / "p.pt")["state_dict"], average)


def test_two_averages_are_ambiguous(refused, promote, tmp_path):
    slow = {n: t * 0.5 if t.is_floating_point() else t for n, t in weights().items()}
    path = save(tmp_path / "two.pt", weights(), ema_slow=slow)
    assert refused(path)["code"] == "ema-ambiguous"
    assert_same_tensors(promote(path, "--ema", "ema_slow")["state_dict"], slow)


def test_a_teacher_is_promoted_only_when_named(refused, promote, tmp_path):
    path = tmp_path / "teacher.pt"
    torch.save({"state_dict": weights(), "teacher": average_of(weights())}, path)
    assert refused(path)["code"] == "ema-ambiguous"
    found = promote(path, "--ema", "teacher")["state_dict"]
    assert_same_tensors(found, average_of(weights()))


def test_another_slot_can_be_named(promote, tmp_path):
    model, average = weights(), average_of(weights())
    path = tmp_path / "slots.pt"
    torch.save({"state_dict": weights(), "other": model, "ema_state_dict": average}, path)
    found = promote(path, "--model", "other")
    assert_same_tensors(found["other"], average)
    assert_same_tensors(found["state_dict"], weights())


def test_a_slot_under_a_second_address_is_the_same_slot(promote, tmp_path):
    model, average = weights(), average_of(weights())
    path = tmp_path / "slots.pt"
    torch.save({"state_dict": model, "net": model, "ema_state_dict": average}, path)
    found = promote(path, "--model", "net")
    assert_same_tensors(found["net"], average)
    assert_same_tensors(found["state_dict"], average)


def test_an_existing_file_is_kept_without_force(path, refused, promote, tmp_path):
    output = tmp_path / "promoted.pt"
    output.write_text("mine")
    assert refused(path)["code"] == "output"
    assert output.read_text() == "mine"
    assert_same_tensors(promote(path, "--force")["state_dict"], average_of(weights()))


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_the_input_is_never_the_output(force, path, refused, tmp_path):
    (tmp_path / "link.ckpt").symlink_to(path)
    for output in (path, tmp_path / "link.ckpt"):
        assert "the input itself" in refused(path, output, *force)["message"]


def test_a_missing_folder_a_folder_and_a_device_are_refused(path, refused, tmp_path):
    (tmp_path / "folder" / path.name).mkdir(parents=True)
    assert "does not exist" in refused(path, tmp_path / "no" / "out.pt")["message"]
    assert "does not exist" in refused(path, f"{tmp_path}/no/")["message"]
    assert "a directory" in refused(path, tmp_path / "folder")["message"]
    assert "not a regular file" in refused(path, "/dev/null", "--force")["message"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_takes_the_name_of_the_input(slash, path, ckptool, tmp_path):
    folder = tmp_path / "good"
    folder.mkdir()
    done = ckptool("promote-ema", path, "-o", f"{folder}{slash}")
    assert done.startswith(f"wrote {folder / 'last.ckpt'} ")
    assert_same_tensors(load(folder / "last.ckpt")["state_dict"], average_of(weights()))


def test_its_own_folder_does_not_replace_the_input(path, refused, tmp_path):
    assert "the input itself" in refused(path, tmp_path, "--force")["message"]


@pytest.mark.parametrize(("name", "wanted"), [("last.pkl", ".pkl"), ("odd.safetensors", ".pt")])
def test_another_format_is_refused_with_a_name_that_fits(name, wanted, path, refused, tmp_path):
    error = refused(path.rename(tmp_path / name), tmp_path / "out.safetensors")
    assert error["hint"].startswith(f"-o out{wanted};")


def test_an_unknown_address_is_refused(path, refused):
    assert refused(path, None, "--ema", "nowhere")["code"] == "no-such-address"
    assert refused(path, None, "--model", "nowhere")["code"] == "no-such-address"


# -------------------------------------------------------------------------------------------- modes


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_new_file_has_the_mode_of_the_umask(umask, path, promote, tmp_path):
    path.chmod(0o600)
    before = os.umask(umask)
    try:
        promote(path)
    finally:
        os.umask(before)
    assert mode(tmp_path / "promoted.pt") == 0o666 & ~umask


def test_a_replaced_file_keeps_its_mode(path, promote, tmp_path):
    (tmp_path / "promoted.pt").write_text("old")
    (tmp_path / "promoted.pt").chmod(0o640)
    promote(path, "--force")
    assert mode(tmp_path / "promoted.pt") == 0o640


def test_a_link_is_written_through(path, promote, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "promoted.pt").symlink_to("real/good.pt")
    promote(path)
    assert (tmp_path / "promoted.pt").is_symlink()
    assert_same_tensors(load(tmp_path / "real" / "good.pt")["state_dict"], average_of(weights()))


def test_nothing_but_the_output_is_left(path, promote, tmp_path):
    before = path.read_bytes()
    promote(path)
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "promoted.pt"]
    assert path.read_bytes() == before
