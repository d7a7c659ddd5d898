"""The origin of a file that ckptool wrote, as a small note in the file itself.

torch zips carry it as a record that torch ignores, safetensors in ``__metadata__``; the other
containers have no place for it. It is a claim like any other in a file: ckptool shows it, and
relies on it only where the values match. An extracted file has no other values to match; its note
is assumed true as long as the file that it names does not contradict it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckptool.formats.texts import load_json
from ckptool.names import AVERAGES, marker_in
from ckptool.records import NamedTuple

KEY = "ckptool"  # in the metadata of a checkpoint
BETWEEN = ", "  # names of several sources


DONE = {
    "promote-ema": "promoted",
    "extract-ema": "extracted",
    "convert": "converted",
    "average": "averaged",
}
MAX_PART = 1 << 53  # of the parts of a mean; no file states larger ones
OPTIONAL = {"model", "layout", "kind", "average"}  # fields that may be None


class SourceNote(NamedTuple):
    """One of the checkpoints of a mean."""

    file: str  # path below the directory that holds all of them
    address: str  # key path of its state dict, or the role by which it was found: @ema
    part: float  # of the whole
    step: float | None
    digest: str  # of the tensors that were averaged: SHA-256 over their names and checksums


class AverageNote(NamedTuple):
    """The mean that a file holds, so that it can be made again."""

    whole: float
    buffers: str  # average | newest
    sources: tuple[SourceNote, ...]  # the newest last


class Provenance(NamedTuple):
    """A note on the command that made a file."""

    version: str  # of ckptool
    command: str  # extract-ema | promote-ema | convert | average
    source: str  # the file's name, without its directory
    ema: str  # key path of the EMA weights in the source
    model: str | None  # key path of the state dict that they average
    layout: str | None  # row of LAYOUTS
    time: str  # UTC, ISO 8601
    kind: str | None = None  # ema, swa, raw, table, …; None: written by an older ckptool
    average: AverageNote | None = None

    @property
    def is_of_averages(self) -> bool:
        """True if, by the note, the model's state dict holds EMA or SWA weights."""
        if self.command == "promote-ema" or self.kind in AVERAGES:
            return True
        if self.kind in {None, "chosen"}:
            marker = marker_in([self.ema])
            return marker is not None and marker.kind in AVERAGES
        return False

    @property
    def kind_of_average(self) -> str:
        """The kind of the averaged weights, ``ema`` or ``swa``."""
        marker = marker_in([self.ema])
        kinds = (self.kind, marker.kind if marker else None)
        return next((kind for kind in kinds if kind in AVERAGES), "ema")

    @property
    def mean(self) -> str | None:
        """The averaged weights in words, where ``average`` made them of several checkpoints."""
        if self.average is None or not self.is_of_averages:
            return None
        count = f"{len(self.average.sources)} checkpoints"
        if self.kind_of_average == "ema":
            return f"an EMA made of {count}"
        is_plain = len({each.part for each in self.average.sources}) == 1
        return f"the mean of {count}" if is_plain else f"a weighted mean of {count}"

    @property
    def told(self) -> str:
        """The note as a sentence."""
        done = DONE.get(self.command, "extracted")
        place = f", {self.ema}" if self.ema else ""
        what = f"{self.mean}," if self.mean else f"the {self.kind_of_average.upper()} of"
        made = f"{what} {self.source}{place} ({done} {self.time})"
        return f"these weights are {made}, by the note that ckptool left in the file"


def as_text(provenance: Provenance) -> str:
    """Return the note as one line of JSON."""
    import json  # noqa: PLC0415 - for writing alone

    return json.dumps(as_fields(provenance), ensure_ascii=True)


def as_fields(provenance: Provenance) -> dict[str, Any]:
    """Return the note as plain data; without the field of a mean where there is none."""
    fields = provenance._asdict()
    average = fields.pop("average")
    if average is not None:
        sources = [each._asdict() for each in average.sources]
        fields["average"] = {**average._asdict(), "sources": sources}
    return fields


class LateNote(str):
    """A note with parts that are known only when all values have been read, of the same length."""

    __slots__ = ("finish",)
    finish: Callable[[], str]

    @classmethod
    def of(cls, text: str, finish: Callable[[], str]) -> LateNote:
        """Return a note that holds the place of the one that ``finish`` returns."""
        note = cls(text)
        note.finish = finish
        return note


def final(note: str) -> str:
    """Return a note as it is written, when all values have been read."""
    if not isinstance(note, LateNote):
        return note
    text = note.finish()
    assert len(text) == len(note), "its place is as long"
    return text


def read_provenance(metadata: Mapping[str, Any]) -> Provenance | None:
    """Return the note in a checkpoint's metadata; None if there is none, or not one of ckptool."""
    if KEY not in metadata:
        return None
    try:
        fields = load_json(str(metadata[KEY]))
    except (TypeError, ValueError):
        return None
    if not isinstance(fields, dict):
        return None
    known: dict[str, Any] = {name: fields.get(name) for name in Provenance._fields}
    average = _average_in(known.pop("average"))
    is_complete = all(
        isinstance(value, str) or (value is None and name in OPTIONAL)
        for name, value in known.items()
    )
    return Provenance(**known, average=average) if is_complete else None


def _average_in(fields: object) -> AverageNote | None:
    """Return the note on a mean; None if it is not one that ckptool writes."""
    try:
        whole, buffers, sources = (fields[name] for name in AverageNote._fields)  # type: ignore[index]
        found = tuple(SourceNote(**each) for each in sources)
    except (TypeError, KeyError):
        return None
    texts = [buffers, *(text for each in found for text in (each.file, each.address, each.digest))]
    numbers = [whole, *(each.part for each in found)]
    is_sound = all(isinstance(text, str) for text in texts) and all(map(_is_number, numbers))
    return AverageNote(whole, buffers, found) if is_sound and found and whole else None


def _is_number(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and -MAX_PART < value < MAX_PART  # type: ignore[operator]  # NaN is not
