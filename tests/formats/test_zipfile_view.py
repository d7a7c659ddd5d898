"""The directory of a zip that ``zipfile`` finds, with ``zipfile`` as the judge."""

from __future__ import annotations

import io
import zipfile

import pytest

from ckptool.errors import DamagedError
from ckptool.formats.other_records import OtherRecords
from ckptool.formats.pickles.reader import Pickles
from ckptool.formats.zips.records import ZipArchive
from ckptool.formats.zips.zipfile_view import seen_by_zipfile
from ckptool.sources.memory import Memory
from helpers.crafted_zips import TORCH, crafted, entry, shifted, two_ends, zip_of
from helpers.two_faced import EVIL
from helpers.unpacked import array

TWO = {
    "two ends": two_ends(array(EVIL)),
    "another directory": shifted(array(EVIL)),
    "more entries than stated": zip_of(*TORCH, entry(b"x.npy", array(EVIL)), count=2),
}


@pytest.mark.parametrize("name", TWO)
def test_another_directory_is_that_of_zipfile(name):
    archive = seen_by_zipfile(ZipArchive(Memory(TWO[name])))
    with zipfile.ZipFile(io.BytesIO(TWO[name])) as judge:
        assert [record.name for record in archive.records] == judge.namelist()
        read = {r.name: archive.read(r) for r in archive.records}
        assert read == {name: judge.read(name) for name in judge.namelist()}


@pytest.mark.parametrize("data", [zip_of(*TORCH), zip_of(), zip_of(entry(b"a/", b""))])
def test_the_same_directory_is_no_other(data):
    assert seen_by_zipfile(ZipArchive(Memory(data))) is None


def test_a_second_name_is_refused():
    name = b"\1" + bytes(4) + b"data"
    extra = b"up" + len(name).to_bytes(2, "little") + name
    with pytest.raises(DamagedError, match="second name"):
        ZipArchive(Memory(zip_of(entry(b"dato", b"{}", extra=extra))))
    ZipArchive(Memory(zip_of(entry(b"data", b"{}", extra=extra))))


def test_records_beside_storages_are_listened_to():
    archive = ZipArchive(Memory(zip_of(*TORCH, entry(b"a/notes", EVIL), entry(b"a/data/0", EVIL))))
    pickles = Pickles("x", lambda _data, _pickles: None)
    OtherRecords(archive, pickles, ("a/data/",)).listen()
    assert {named.pickle for named in pickles.globals_named} == {"a/notes"}


def test_every_crafted_archive_is_one_that_zipfile_opens():
    for make in crafted(EVIL).values():
        assert zipfile.ZipFile(io.BytesIO(make())).namelist()
