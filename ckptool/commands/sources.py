"""The sources of an average: noted in its file, with digests, and opened again to prove it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from ckptool.checks.sources import Original
from ckptool.commands.members import STEP
from ckptool.commands.mixture import Mixture
from ckptool.commands.origin import averaged_from
from ckptool.commands.state_dicts import take_state_dict
from ckptool.dtypes import BY_NAME
from ckptool.ema.layouts import Layouts
from ckptool.errors import UsageError, about
from ckptool.formats import open_checkpoint
from ckptool.formats.base import TensorReader
from ckptool.formats.provenance import AverageNote, LateNote, SourceNote, as_text
from ckptool.plans.averaging import Combined, Member, combine
from ckptool.plans.extraction import complete
from ckptool.plans.weighing import Shares
from ckptool.sources.places import is_file, is_folder
from ckptool.sources.urls import RemotePath
from ckptool.tensors.casting import Casting
from ckptool.tensors.mean import Mean

NO_DIGEST = "0" * 64  # holds the place of one until all values have been read


def note_of(mixture: Mixture, combined: Combined, buffers: str, made_at: float | None) -> LateNote:
    """Return the note for the file of an average; its digests are known when it has been read."""
    members = mixture.members.opened
    names = below_one([each.path for each in members])

    def text(digests: Iterable[str]) -> str:
        sources = tuple(
            SourceNote(name, each.asked, part, each.facts.get(STEP), digest)
            for name, each, part, digest in zip(
                names, members, mixture.shares.parts, digests, strict=True
            )
        )
        average = AverageNote(mixture.shares.whole, buffers, sources)
        return as_text(
            averaged_from([each.path for each in members], mixture.kind, average, made_at)
        )

    return LateNote.of(text([NO_DIGEST] * len(members)), lambda: text(digests_of(combined)))


def below_one(paths: Sequence[Path]) -> list[str]:
    """Return the paths below the directory that holds all of them.

    Of URLs beside files of this machine they are the names alone.
    """
    remote = [path for path in paths if isinstance(path, RemotePath)]
    if len(remote) == len(paths):
        trails = [[each.name for each in (*reversed(path.parents), path)] for path in remote]
        shared = len(os.path.commonprefix([trail[:-1] for trail in trails]))  # noqa: RUF071 - lists
        return ["/".join(trail[shared:]) for trail in trails]
    if remote:
        return [path.name for path in paths]
    places = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - links keep their names
    common = Path(os.path.commonpath([place.parent for place in places]))
    return [place.relative_to(common).as_posix() for place in places]


def digests_of(combined: Combined) -> list[str]:
    """Return the digest of each source: of the names, dtypes, shapes and checksums of its tensors.

    The checksum of a tensor is the CRC-32 of its values in C order, little-endian. So the digest is
    the same in every format. It tells an exchanged file from the one that was averaged, where
    nobody made them alike on purpose.
    """
    hashes: list[Any] = []  # one for each source
    for name in sorted(combined.averaged):
        mean = combined.tensors[name].chunks[0].span.source
        assert isinstance(mean, Mean), "it is averaged"
        lines = [
            f"{name} {ref.dtype} {list(ref.shape)} {seen.crc:08x}\n" for ref, seen in mean.seen()
        ]
        hashes = hashes or [sha256() for _ in lines]
        for each, line in zip(hashes, lines, strict=True):
            each.update(line.encode(errors="surrogatepass"))
    return [each.hexdigest() for each in hashes]


def averaged_again(stack: ExitStack, folder: Path, note: AverageNote, layouts: Layouts) -> Original:
    """Return the mean that a note describes, from the checkpoints below a directory.

    Raises:
        UsageError: a checkpoint is not there, or the note names none below the directory.
        CkptError: a checkpoint cannot be read, or holds other weights.
    """
    members = [_member(stack, folder, each, layouts) for each in note.sources]
    shares = Shares(tuple(each.part for each in note.sources), note.whole)
    # The values are compared in the dtypes of the file, to which they are rounded once.
    combined = combine(members, shares, Casting(BY_NAME["float64"]), buffers=note.buffers)
    sources = (source for each in members for source in each.reader.opened)

    def changed() -> Iterator[str]:
        for each, digest in zip(note.sources, digests_of(combined), strict=True):
            if digest != each.digest:
                yield each.file

    return Original(TensorReader(*sources), (combined.tensors,), {}, changed=changed, kind="mean")


def _member(stack: ExitStack, folder: Path, note: SourceNote, layouts: Layouts) -> Member:
    below = PurePosixPath(note.file)
    path = folder / below
    if below.is_absolute() or ".." in below.parts or not (is_file(path) or is_folder(path)):
        raise UsageError(
            f"{note.file}, from which the average was made, is not there",
            path=folder,
            hint="name the directory that holds all its sources: --against DIR",
        )
    checkpoint = stack.enter_context(open_checkpoint(path))
    with about(path):
        taken = take_state_dict(checkpoint, note.address, layouts)
        return Member(str(path), checkpoint.reader, complete(taken.plan, path).tensors)
