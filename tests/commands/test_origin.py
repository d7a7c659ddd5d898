"""The record of provenance: what a command says of the file that it made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckptool import __version__
from ckptool.commands.origin import kind_taken, origin
from ckptool.contents.alignment import align_names
from ckptool.contents.inventory import Table, take_inventory
from ckptool.ema.candidates import CHOSEN, RAW_KIND, Candidate, EmaLocation
from ckptool.formats.provenance import KEY, as_text, read_provenance

MODEL = Table(("state_dict",), {}, None)
EMA = Candidate(Table(("ema", "slow"), {}, None), "swa", "", align_names({}, {}), None, {}, None)
LOCATION = replace(EmaLocation.nothing(take_inventory({})), model=MODEL, selected=EMA)
SOURCE = Path("/home/somebody/last.ckpt")


def made(location=LOCATION, candidate=EMA, made_at=0.0):
    return origin("extract-ema", SOURCE, location, candidate, made_at)


def test_the_record_names_what_was_taken():
    record = made()
    assert (record.version, record.command) == (__version__, "extract-ema")
    assert (record.ema, record.model, record.kind) == ("ema/slow", "state_dict", "swa")
    assert record.time == "1970-01-01T00:00:00Z"


def test_the_folder_of_the_source_is_private():
    assert made().source == "last.ckpt"


def test_now_is_the_time_where_none_is_given():
    assert made(made_at=None).time > "2026"


def test_a_file_beside_is_part_of_the_address():
    assert (
        made(candidate=replace(EMA, file=Path("runs/last_ema.ckpt"))).ema
        == "last_ema.ckpt#ema/slow"
    )


def test_the_layout_is_named():
    assert made().layout is None
    assert made(candidate=replace(EMA, layout=SimpleNamespace(name="nemo"))).layout == "nemo"


def test_without_a_candidate_the_models_own_was_averaged():
    record = made(replace(LOCATION, selected=None), None)
    assert (record.ema, record.layout, record.kind) == ("", None, "ema")


@pytest.mark.parametrize(
    ("candidate", "kind"),
    [
        (EMA, "swa"),
        (replace(EMA, kind=RAW_KIND), "raw"),
        (replace(EMA, kind=CHOSEN), "chosen"),
        (replace(EMA, kind=CHOSEN, alignment=None), "table"),
    ],
)
def test_the_kind_that_was_taken(candidate, kind):
    assert kind_taken(replace(LOCATION, selected=candidate)) == kind


def test_what_is_written_is_read_again():
    record = made()
    assert read_provenance({KEY: as_text(record)}) == record
