"""CK1: whether the file is whole, and its bytes those that were written.

Opening a checkpoint holds every header against every other and each tensor against its storage, so
most of this family is decided by whether it opens. If it does not, :func:`damage` finds out what
was lost. Checksums are what torch writes and never reads; ``scan.py`` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts
from ckptool.errors import CkptError, DamagedError
from ckptool.formats.salvage import Loss, salvage
from ckptool.formats.zip_checksums import leftover_bytes
from ckptool.reports import Finding
from ckptool.rules import finding
from ckptool.tree import Address, Blob, format_address, tensors

UNREAD = {"dcp": "the checksums of the zips inside shards are not read"}
ENDLESS = frozenset({"torch-tar", "dcp"})  # formats with room behind what is looked at
SHOWN = 4  # names in a message
SHARD = re.compile(r"^(?P<stem>.*)-(?P<nth>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)$")


def named(names: list[str] | tuple[str, ...]) -> str:
    """The first names, and how many more."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")


# ------------------------------------------------------------------------- what cannot be opened


def damage(path: Path, error: CkptError) -> tuple[Finding, ...]:
    """What is wrong with a file that could be looked at, but not opened.

    Of a checkpoint in several files, the error names the one.
    """
    where, file = error.address or "", error.path or path
    if not file.exists():
        return (finding("CK104", where, f"{file.name} is missing: {error.message}"),)
    remains = salvage(file) if isinstance(error, DamagedError) else None
    if remains is not None and remains.is_cut:
        return (_truncated(file, remains.losses, remains.tensors),)
    if remains is not None and remains.losses:
        return tuple(map(_missing, remains.losses))
    rule = "CK102" if error.message.startswith("truncated") else "CK101"
    return (finding(rule, where, error.message, error.hint),)


def _truncated(path: Path, losses: tuple[Loss, ...], total: int) -> Finding:
    names = [name for loss in losses for name in loss.tensors]
    lost = sum(loss.wanted - loss.present for loss in losses)
    ends = f"{path.name} ends at {path.stat().st_size:,} bytes"
    if not names:
        message = f"{ends}, before its directory: the values of all {total} tensors are there"
        return finding("CK102", "", message)
    message = (
        f"{ends}: {lost:,} bytes of values are lost, of {len(names)} of {total} tensors: "
        f"{named(names)}"
    )
    return finding("CK102", names[0], message)


def _missing(loss: Loss) -> Finding:
    found = f"{loss.present:,} of {loss.wanted:,} bytes" if loss.present else "nothing"
    message = f"the record {loss.record} should hold {loss.wanted:,} bytes, and there is {found}"
    hit = f": {named(loss.tensors)}" if loss.tensors else ""
    return finding("CK105", loss.tensors[0] if loss.tensors else "", message + hit)


# ---------------------------------------------------------------------------- what can be opened


def _whole(subject: Subject) -> Verdicts:
    """Opening has looked at every header; files that it left closed are looked at here."""
    ends: dict[Path, tuple[int, Address]] = {}
    for address, ref in tensors(subject.checkpoint.tree):
        for span in (chunk.span for chunk in ref.chunks):
            if not isinstance(span.source, Blob):
                end = span.offset + span.nbytes
                known = ends.get(span.source)
                if known is None or end > known[0]:
                    ends[span.source] = end, address
    for path, (end, where) in ends.items():
        yield from _reaches(subject, path, end, format_address(where))


def _reaches(subject: Subject, path: Path, end: int, where: str) -> Iterator[Finding]:
    if not path.exists():
        yield finding("CK104", where, f"{path.name} is missing, and the values in it")
        return
    size = subject.checkpoint.reader.file(path).size
    if size < end:
        message = f"{path.name} ends at {size:,} bytes, {end - size:,} before the last value"
        yield finding("CK102", where, message)


def _shards(subject: Subject) -> Verdicts:
    """A file that says it is one of several: the others must lie beside it."""
    match = SHARD.match(subject.path.name)
    if match is None:
        return
    stem, total, suffix = match["stem"], match["total"], match["suffix"]
    for nth in range(1, min(int(total), 10_000) + 1):
        other = subject.path.with_name(f"{stem}-{nth:05d}-of-{total}{suffix}")
        if not other.exists():
            message = f"this is one of {int(total)} shards, and {other.name} is missing"
            yield finding("CK104", "", message)


def _unchanged(subject: Subject) -> Verdicts:
    """Each process has read at another time, so each has to look."""
    messages = subject.over(range(subject.ranks.world), lambda _rank: _change(subject))
    change = next(filter(None, messages), None)
    if change is not None:
        yield finding("CK106", "", change)


def _change(subject: Subject) -> str | None:
    try:
        subject.checkpoint.reader.refuse_changed()
    except DamagedError as error:
        return error.message
    return None


def _leftovers(subject: Subject) -> Verdicts:
    if subject.checkpoint.format_name in ENDLESS:
        yield NotChecked("CK107", f"where {subject.checkpoint.format_name} files end is not read")
        return
    said = subject.checkpoint.metadata.get("trailing_bytes")
    trailing = said if isinstance(said, int) else 0  # safetensors' metadata is anybody's text
    trailing += sum(map(leftover_bytes, subject.checkpoint.reader.opened))
    if trailing:
        yield finding("CK107", "", f"{trailing:,} bytes follow the end of the checkpoint")


def _checksums(subject: Subject) -> Verdicts:
    scan = subject.scan
    if not scan.records:
        name = subject.checkpoint.format_name
        reason = UNREAD.get(name, f"no checksums: {name} files have none")
        yield NotChecked("CK103", reason, is_absent=name not in UNREAD)
        return
    for record in scan.broken:
        hit = f"tensors hit: {named(record.tensors)}" if record.tensors else "no tensor is hit"
        message = (
            f"{record.name}: {record.nbytes:,} bytes with the checksum {record.found:08x} where "
            f"{record.crc:08x} was written; {hit}"
        )
        yield finding("CK103", record.tensors[0] if record.tensors else "", message)
    if scan.without_checksum and not scan.broken:
        what = f"{scan.without_checksum} of {scan.records} records carry no checksum"
        yield NotChecked("CK103", f"{what} that was read")


def _notes(subject: Subject) -> Verdicts:
    """What the format saw on opening."""
    for note in subject.checkpoint.notes:
        yield finding(note.rule, note.address, note.message)


CHECKS = (
    Check(("CK110", "CK111", "CK112", "CK113"), _notes),
    Check(("CK101", "CK102", "CK105"), _whole),
    Check(("CK104",), _shards),
    Check(("CK107",), _leftovers),
    Check(("CK103",), _checksums),
)
LAST_CHECKS = (Check(("CK106",), _unchanged),)  # when everything has been read
