"""Tensors of EMA weights that have the values of the model's raw weights: nothing averaged them.

They are buffers that a loop copies, and frozen layers. A zip of torch has a checksum for each
storage, so that equal tensors are found without reading one. Other files show them to those that
read all values.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckptool.contents.alignment import paired_tensors
from ckptool.ema.candidates import Candidate, EmaLocation
from ckptool.errors import CkptError
from ckptool.formats.base import Checkpoint
from ckptool.formats.zips.checksums import checksums_at
from ckptool.records import NamedTuple
from ckptool.reports.base import MainSlot
from ckptool.sources.base import ByteSpan
from ckptool.tree.nodes import TensorRef

MAX_COMPARED = 1 << 12  # tensors: each takes a few microseconds

Pair = tuple[str, TensorRef, TensorRef]  # (the model's name, its tensor, the EMA's)


class Sameness(NamedTuple):
    """The tensors that were compared, and those that are equal to the model's."""

    compared: int
    same: Mapping[str, TensorRef]  # the model's name -> the tensor in the EMA weights


def sameness(
    checkpoint: Checkpoint, location: EmaLocation, candidate: Candidate | None
) -> Sameness | None:
    """Return the tensors that are the same as the raw weights; None if the file does not tell.

    Each pair must have checksums, and one dtype: a part would be taken for the whole.
    """
    pairs = _beside_raw(location, candidate)
    if not (pairs and checkpoint.format.has_checksums):
        return None
    both = [ref for _, ours, theirs in pairs for ref in (ours, theirs) if ref.numel]
    spans = {ref.chunks[0].span for ref in both if _is_in_one_piece(ref)}
    try:
        known = dict(zip(spans, checksums_at(checkpoint.source, spans), strict=True))
    except CkptError:  # the directory is no longer that of the file
        return None
    if not all(map(_is_in_one_piece, both)) or None in known.values():
        return None  # a view of a part of a storage
    same = {n: b for n, a, b in pairs if _bytes_of(a, known) == _bytes_of(b, known)}
    return Sameness(len(pairs), same)


def _beside_raw(location: EmaLocation, candidate: Candidate | None) -> list[Pair]:
    """Return the pairs of EMA weights that lie in one file with the raw weights; or none."""
    model, alignment = location.model, candidate and candidate.alignment
    if model is None or location.told_slot is not MainSlot.RAW:
        return []
    if candidate is None or not alignment or not candidate.is_average or candidate.file:
        return []
    every = paired_tensors(model.entries, candidate.table.entries, alignment.pairs)
    pairs = [(name, a, b) for name, a, b in every if a.dtype == b.dtype]
    return pairs if len(pairs) == len(alignment.pairs) <= MAX_COMPARED else []


def _is_in_one_piece(ref: TensorRef) -> bool:
    """Return whether the values lie in C order, in either order of bytes."""
    return len(ref.chunks) == 1 and not ref.lazy and ref.chunks[0].is_contiguous


def _bytes_of(ref: TensorRef, known: Mapping[ByteSpan, int | None]) -> object:
    """Return what two tensors have in common if they are the same."""
    span = ref.chunks[0].span if ref.numel else None
    return span and (ref.byteorder, span.nbytes, known[span])
