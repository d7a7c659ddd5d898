"""The list of tensors that ``inspect`` shows: which of them, in which order, and what of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ckptool.contents.optimizers import owners
from ckptool.ema.candidates import EmaLocation
from ckptool.ema.findings import kind_of, unplain_state_dicts
from ckptool.formats.base import Checkpoint
from ckptool.process.progress import Progress, announce
from ckptool.records import NamedTuple, replace
from ckptool.reports.base import Section
from ckptool.reports.inspect import TensorEntry
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import Address, CompositeTensor
from ckptool.tree.walking import tensors, whole_tensors

GLOB_SIGNS = frozenset("*?[/")
ORDERS: Mapping[str, Callable[[TensorEntry], Any]] = {
    "size": lambda entry: -entry.bytes,
    "name": lambda entry: entry.address,
}


class Listing(NamedTuple):
    """Options of the list of tensors: its entries, and what is read of each."""

    every: bool = False
    match: tuple[str, ...] = ()  # those whose key path matches one of these globs, or has the word
    stats: bool = False  # read their values
    digests: bool = False  # read their bytes, and give the digest of each
    only: tuple[str, ...] = ()  # those of the sections with these roles
    sort: str | None = None  # size or name; None: the order of the file
    top: int | None = None  # so many at most
    histogram: bool = False  # count how the values are spread; it needs ``stats``

    @property
    def is_chosen(self) -> bool:
        """Whether a part of the tensors is asked for, or an order."""
        return bool(self.match or self.only or self.sort or self.top)

    @property
    def is_wanted(self) -> bool:
        """Whether any are listed."""
        return bool(self.every or self.stats or self.digests or self.is_chosen)

    def takes(self, address: str, role: str | None) -> bool:
        """Return whether the tensor at a key path is listed, as far as its name decides."""
        return not self.match or any(fits(glob, address, role) for glob in self.match)


def fits(text: str, address: str, role: str | None = None) -> bool:
    """Return whether a key path matches a glob, or holds a word, or is in a section of the role."""
    if not GLOB_SIGNS & set(text):
        return text == role or text in address
    return fnmatchcase(address, text)


def list_tensors(
    checkpoint: Checkpoint,
    location: EmaLocation,
    sections: Sequence[Section],
    listing: Listing,
    progress: Progress,
) -> tuple[TensorEntry, ...]:
    """Return the tensors that are asked for, in the order that is asked for."""
    entries: Iterable[TensorEntry] = _entries(checkpoint, location, sections, listing)
    if listing.sort or listing.top:
        entries = sorted(entries, key=ORDERS[listing.sort or "size"])[: listing.top]
    if listing.stats or listing.digests:
        from ckptool.contents.given import refuse_any_given  # noqa: PLC0415 - for values alone

        refuse_any_given(checkpoint, checkpoint.tree)
    if listing.stats:
        entries = _with_stats(checkpoint, list(entries), progress, histogram=listing.histogram)
    if listing.digests:
        entries = _with_digests(checkpoint, list(entries))
    return tuple(entries)


def _entries(
    checkpoint: Checkpoint, location: EmaLocation, sections: Sequence[Section], listing: Listing
) -> Iterator[TensorEntry]:
    kinds, of_states = _kinds(location), owners(location.inventory, location.weights)
    roles = {section.address: section.role for section in sections}
    for address, ref in whole_tensors(checkpoint.tree):
        text = format_address(address)
        role = roles.get(format_address(address[:1]), roles.get(""))
        if not listing.takes(text, role) or (listing.only and role not in listing.only):
            continue
        entry = TensorEntry(text, str(ref.dtype), ref.shape, 0, "cpu", kind=kinds.get(address))
        if isinstance(ref, CompositeTensor):  # its parts are listed too, with their bytes
            yield replace(entry, kind=entry.kind or ref.layout)
        else:
            owner = of_states.get(address[:-1])
            yield replace(entry, bytes=ref.nbytes, device=ref.device, parameter=owner)


def _kinds(location: EmaLocation) -> dict[Address, str]:
    """Return the kinds of the tensors that are not plain, by their key paths."""
    return {
        (*table.address, table.prefix + name): kind_of(table.entries[name], why)
        for table, refused in unplain_state_dicts(location)
        for name, why in refused.items()
        if name in table.entries
    }


def _with_stats(
    checkpoint: Checkpoint,
    entries: Sequence[TensorEntry],
    progress: Progress,
    *,
    histogram: bool = False,
) -> Iterator[TensorEntry]:
    from ckptool.tensors.statistics import stats_of_each  # noqa: PLC0415 - for values alone
    from ckptool.tensors.volume import refuse_repetition  # noqa: PLC0415

    listed = {entry.address for entry in entries}
    refs = {
        text: ref for at, ref in tensors(checkpoint.tree) if (text := format_address(at)) in listed
    }
    refuse_repetition(refs.values())
    announce(progress, sum(entry.bytes for entry in entries))
    checkpoint.reader.expect_values(refs.values())
    found = stats_of_each(
        checkpoint.reader, [refs.get(entry.address) for entry in entries], histogram=histogram
    )
    for entry, stats in zip(entries, found, strict=True):
        progress(entry.bytes)
        yield replace(entry, stats=stats)


def _with_digests(checkpoint: Checkpoint, entries: Sequence[TensorEntry]) -> Iterator[TensorEntry]:
    from ckptool.comparison.digests import tensor_digests  # noqa: PLC0415 - hashlib, 6 ms

    refs = {format_address(address): ref for address, ref in tensors(checkpoint.tree)}
    listed = [entry for entry in entries if entry.address in refs]
    found = tensor_digests(checkpoint.reader, [refs[entry.address] for entry in listed])
    digests = {entry.address: digest for entry, digest in zip(listed, found, strict=True)}
    for entry in entries:  # one without a digest is composite, and its parts have digests
        yield replace(entry, sha256=digests.get(entry.address))
