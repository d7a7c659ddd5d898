"""CK1: checks that the file is complete and its bytes are those that were written.

Opening a checkpoint compares every header with every other and each tensor with its storage, so
most of this family is decided by whether it opens. If it does not, :func:`damage` finds the losses.
Torch writes checksums and never reads them; ``tensors/scan.py`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts, once
from ckptool.contents.dangers import (
    built_by_calls,
    met_before_failing,
    met_by_other_loaders,
    trust_findings,
    unknown_classes,
)
from ckptool.errors import AbsentError, CkptError, DamagedError, UnknownFormatError, as_ckpt_error
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint, check_unpacked
from ckptool.formats.foreign import names_in
from ckptool.formats.salvage import Loss, salvage
from ckptool.formats.unopened import Unopened, unopened_files
from ckptool.formats.zips.checksums import archive_of, leftover_bytes
from ckptool.formats.zips.deflated import DeflatedRecord
from ckptool.formats.zips.records import DEFLATED, NO_CRC, is_zip
from ckptool.regex import regex
from ckptool.reports.base import Finding, Severity
from ckptool.reports.rules import BYTES, finding
from ckptool.sources.places import open_file
from ckptool.tree.addresses import format_address
from ckptool.tree.describing import named
from ckptool.tree.nodes import Address
from ckptool.tree.walking import tensors

SHARD = regex(r"^(?P<stem>.*)-(?P<nth>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)$")


# ------------------------------------------------------------------------- files that do not open


def damage(path: Path, error: CkptError) -> tuple[Finding, ...]:
    """Return the faults of a file that can be read, but not opened as a checkpoint.

    If the checkpoint has several files, the findings name the file that the error names.
    """
    found = _damage(error.path or path, error)
    part = _part_of(path, error)
    return tuple(replace(each, address=_inside(part, each.address)) for each in found)


def _part_of(path: Path, error: CkptError) -> str:
    """Return the name of the file of a directory that an error is about.

    Return "" if the message names it already, or if the error is about no single file of ``path``
    (an index that does not fit its shards).
    """
    file = error.path or path
    is_told = not file.exists() or isinstance(error, AbsentError)
    return "" if is_told or file.parent != path else file.name


def _inside(file: str, address: str) -> str:
    return f"{file}: {address}" if file and address else file or address


def _damage(file: Path, error: CkptError) -> tuple[Finding, ...]:
    where = error.address or ""
    if not file.exists():
        return (finding("CK104", where, f"{file.name}: {error.message}"),)
    if isinstance(error, AbsentError):
        return (finding("CK105", where, error.message, error.hint),)
    is_known = error.rule is not None or not isinstance(error, DamagedError)
    remains = None if is_known else salvage(file)
    if remains is not None and remains.is_cut:
        return (_truncated(file, remains.losses, remains.tensors),)
    if remains is not None and remains.losses:
        return tuple(map(_missing, remains.losses))
    rule = error.rule or ("CK102" if error.message.startswith("truncated") else "CK101")
    return (finding(rule, where, error.message, error.hint),)


def _truncated(path: Path, losses: tuple[Loss, ...], total: int) -> Finding:
    names = [name for loss in losses for name in loss.tensors]
    lost = sum(loss.wanted - loss.present for loss in losses)
    ends = f"{path.name} ends at {path.stat().st_size:,} bytes"
    if not names:
        rest = f": the values of all {total} tensors are there" if total else ""
        return finding("CK102", "", f"{ends}, before its directory{rest}")
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


# -------------------------------------------------------------------------------- files that open


def _whole(subject: Subject) -> Verdicts:
    """Unpack the compressed storages; opening has checked all headers already.

    A loader unpacks them all, and needs the length that they should have.
    """
    for blob, address in _compressed(subject).items():
        try:
            subject.checkpoint.reader.read(blob.span(0, blob.size))
        except DamagedError as error:
            yield finding("CK105", format_address(address), error.message)
    if BYTES in subject.reads:
        yield from _different_copies(subject)


def _different_copies(subject: Subject) -> Verdicts:
    """Report a tensor that has other values in another file; many bytes are compared here alone."""
    try:
        subject.checkpoint.refuse_different_copies()
    except DamagedError as error:
        yield finding("CK101", error.address or "", error.message, error.hint)


@once
def _compressed(subject: Subject) -> dict[DeflatedRecord, Address]:
    """Return the compressed storages, each with the key path of a tensor in it."""
    found: dict[DeflatedRecord, Address] = {}
    for address, ref in tensors(subject.checkpoint.tree):
        for span in (chunk.span for chunk in ref.chunks):
            if isinstance(span.source, DeflatedRecord):
                found.setdefault(span.source, address)
    return found


def _broken_when_unpacked(subject: Subject) -> Iterator[Finding]:
    """Yield a finding for each compressed record whose unpacked bytes lack its checksum."""
    places = {blob.record.name: at for blob, at in _compressed(subject).items()}
    total = 0
    for blob in _deflated(subject):
        total += blob.size
        check_unpacked(repr(blob), total)
        with suppress(DamagedError):  # CK105 reports it
            found, record = blob.checksum(), blob.record
            if found != record.crc:
                message = (
                    f"{record.name}: unpacked, it has the checksum {found:08x} where "
                    f"{record.crc:08x} was written"
                )
                yield finding("CK103", format_address(places.get(record.name, ())), message)


def _deflated(subject: Subject) -> Iterator[DeflatedRecord]:
    """Yield the compressed records with a checksum of all archives."""
    for file in subject.checkpoint.reader.opened:
        if archive := archive_of(file):
            for record in archive.records:
                if record.method == DEFLATED and record.crc != NO_CRC:
                    yield DeflatedRecord(archive, record)


def _shards(subject: Subject) -> Verdicts:
    """Report missing shards if the file's name says that it is one of several."""
    noted = {note.rule for note in subject.checkpoint.notes}
    if subject.like is None and noted & UNCOUNTED:
        yield NotChecked("CK104", "no file states how many shards there are")
    match = SHARD.match(subject.path.name)
    if match is None or not subject.checkpoint.is_local:
        return
    stem, total, suffix = match["stem"], match["total"], match["suffix"]
    for nth in range(1, min(int(total), 10_000) + 1):
        other = subject.path.with_name(f"{stem}-{nth:05d}-of-{total}{suffix}")
        if not other.exists():
            message = f"this is one of {int(total)} shards, and {other.name} is missing"
            yield finding("CK104", "", message)


def _unchanged(subject: Subject) -> Verdicts:
    """Report a file that changed; each process looks, since each read at another time."""
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
    if subject.checkpoint.format.may_trail:
        yield NotChecked("CK107", f"where {subject.checkpoint.format_name} files end is not read")
        return
    said = subject.checkpoint.metadata.get("trailing_bytes")
    trailing = said if isinstance(said, int) else 0  # safetensors' metadata may be any text
    trailing += sum(map(leftover_bytes, subject.checkpoint.reader.opened))
    if trailing:
        yield finding("CK107", "", f"{trailing:,} bytes follow the end of the checkpoint")


def _checksums(subject: Subject) -> Verdicts:
    scan, name = subject.scan, subject.checkpoint.format_name
    unread = subject.checkpoint.format.unread_checksums or _unread_archive(subject)
    if unread:
        yield NotChecked("CK103", unread)
    elif not scan.records:
        yield NotChecked("CK103", f"no checksums: {name} files have none", is_absent=True)
    for record in scan.broken:
        hit = f"tensors hit: {named(record.tensors)}" if record.tensors else "no tensor is hit"
        message = (
            f"{record.name}: {record.nbytes:,} bytes with the checksum {record.found:08x} where "
            f"{record.crc:08x} was written; {hit}"
        )
        yield finding("CK103", record.tensors[0] if record.tensors else "", message)
    yield from _broken_when_unpacked(subject)
    without = scan.without_checksum - sum(1 for _ in _deflated(subject))
    if without > 0 and not scan.broken:
        what = f"{without} of {scan.records} records carry no checksum"
        yield NotChecked("CK103", f"{what} that was read")


def _unread_archive(subject: Subject) -> str | None:
    """Return why the checksums of a zip are not read; None if they are."""
    if subject.checkpoint.nested_archives:
        return "zip archives inside the pickle have checksums, which are not read"
    for file in subject.checkpoint.reader.opened:
        archive = archive_of(file)
        if is_zip(file.head(4)) and not (archive and archive.records):
            return (
                f"{Path(file.name).name} holds several zip archives: their checksums are not read"
            )
    return None


def _beside(subject: Subject) -> Verdicts:
    """Report the directory's other files; the ``TRUST`` rules report what loading them would do."""
    yield from (found for found in found_beside(subject) if found.rule not in TRUST)


def found_beside(subject: Subject) -> tuple[Finding, ...]:
    """Return all findings in files of the directory that are no part of the checkpoint."""
    return _looked_beside(subject)[0]


def not_looked_at(subject: Subject) -> str:
    """Return the parts of the directory that were not looked at, with the reasons; "" if none."""
    return named(_looked_beside(subject)[1])


@once
def _looked_beside(subject: Subject) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    unread: list[str] = []
    return tuple(beside(_others(subject), unread)), tuple(unread)


@once
def _others(subject: Subject) -> list[Unopened]:
    return unopened_files(subject.checkpoint)


# Settings that no trainer reads when it resumes: a run goes on although they are damaged.
UNREAD = frozenset({"training_args.bin"})


def _damaged(file: Unopened, error: CkptError) -> Iterator[Finding]:
    for found in _in_folder(file, damage(file.path, error)):
        is_unread = file.path.name in UNREAD
        yield replace(found, severity=Severity.WARNING) if is_unread else found


def beside(files: Sequence[Unopened], unread: list[str] | None = None) -> Iterator[Finding]:
    """Open files that may be checkpoints, and name the others: silence would look like a check.

    What cannot be looked at is added to ``unread``.
    """
    whole: list[str] = []
    others: list[str] = []
    unread = [] if unread is None else unread
    for file in files:
        try:
            if file.error:
                unread.append(f"{file.name} ({file.error})")
                continue
            with open_checkpoint(file.path) as checkpoint:
                whole.append(file.name)
                for find in TRUST.values():
                    yield from _in_folder(file, find(checkpoint))
        except (CkptError, OSError, MemoryError, RecursionError) as met:
            error, is_known = as_ckpt_error(met), not isinstance(met, UnknownFormatError)
            says = file.says_only_checkpoint or (file.says_checkpoint and error.rule)
            if isinstance(error, DamagedError) or (says and not is_known):
                yield from _damaged(file, error)
            elif is_known:
                others.append(f"{file.name} ({error.message})")
            else:
                yield from _of_other_loaders(file, others, unread)
            yield from _in_folder(file, met_before_failing(error.dangers))
    others += unread
    if whole:
        message = f"checkpoints that can be opened, and were not checked: {named(whole)}"
        yield finding("CK121", "", message)
    if others:
        message = f"files that are no part of what was checked: {named(others)}"
        yield finding("CK121", "", message, "nothing to do, unless one of them is a checkpoint")


def _of_other_loaders(file: Unopened, others: list[str], unread: list[str]) -> Iterator[Finding]:
    """Yield what loaders would run that unpickle what is no checkpoint."""
    try:
        with open_file(file.path) as source:
            yield from _in_folder(file, met_by_other_loaders(names_in(source)))
        others.append(file.name)
    except (CkptError, OSError, MemoryError, RecursionError) as met:
        error = as_ckpt_error(met)
        unread.append(f"{file.name} ({error.message})")
        yield from _in_folder(file, met_before_failing(error.dangers))


def _in_folder(file: Unopened, findings: Iterable[Finding]) -> Iterator[Finding]:
    for found in findings:
        yield replace(found, address=_inside(file.name, found.address))


def _was_read(_subject: Subject) -> Verdicts:
    """Pass: every subject is a checkpoint that could be read."""
    return iter(())


def _notes(subject: Subject) -> Verdicts:
    """Report what the format noticed on opening; ``_beside`` looks at files that it left closed."""
    yield from noted(subject.checkpoint, NOTED)
    opened = subject.checkpoint.reader.opened
    if not all(file.is_near for file in opened) and BYTES not in subject.reads:
        what = "the headers of records behind a URL are compared with the directory by --bytes"
        yield NotChecked("CK111", what)


def noted(checkpoint: Checkpoint, rules: Container[str]) -> Iterator[Finding]:
    """Yield what the format noticed that is decided by one of the rules."""
    for note in checkpoint.notes:
        if note.rule in rules:
            yield finding(note.rule, note.address, note.message)


# Rules on what a file would do when it is loaded -> the function that looks for it.
TRUST: Mapping[str, Callable[[Checkpoint], Iterable[Finding]]] = {
    "CK201": trust_findings, "CK210": built_by_calls, "CK203": unknown_classes,
    "CK204": partial(noted, rules={"CK204"}),
}  # fmt: skip

UNCOUNTED = frozenset({"CK125", "CK126"})  # notes that leave open whether files are missing

# Rules of which the formats tell as they read; see ``Note``.
NOTED = ("CK108", "CK110", "CK111", "CK112", "CK113", "CK122", "CK123", "CK124", "CK125",
         "CK126", "CK127")  # fmt: skip

CHECKS = (
    Check(NOTED, _notes),
    Check(("CK101", "CK102", "CK105"), _whole),
    Check(("CK104",), _shards),
    Check(("CK107",), _leftovers),
    Check(("CK120",), _was_read),
    Check(("CK121",), _beside),
    Check(("CK103",), _checksums),
)
LAST_CHECKS = (Check(("CK106",), _unchanged),)  # when everything has been read
