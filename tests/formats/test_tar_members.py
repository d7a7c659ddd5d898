"""The members of a tar are those of ``tarfile``, for archives of every feature and for mutants."""

from __future__ import annotations

import io
import random
import tarfile
import warnings

import pytest

from ckptool.errors import CkptError, DamagedError
from ckptool.formats.tar_members import is_tar, tar_members
from ckptool.sources.memory import Memory
from helpers.two_faced import BLOCK, END, FOUR, HONEST, TARS, header, member, pax

MUTANTS = 4_000
NAMES = tuple(FOUR)


def ours(data: bytes) -> dict[str, bytes | None] | None:
    """The last file of each of torch's names, None for what is no file; None for a refusal."""
    try:
        members = {found.name: found for found in tar_members(Memory(data))}
    except CkptError:
        return None
    return {
        name: data[found.offset : found.offset + found.size] if found.is_file else None
        for name, found in members.items()
        if name in NAMES
    }


def theirs(data: bytes) -> dict[str, bytes | None] | None:
    """The same by ``tarfile``, as torch asks it."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for name in {member.name for member in tar.getmembers()} & set(NAMES):
                is_link = tar.getmember(name).islnk() or tar.getmember(name).issym()
                file = None if is_link else tar.extractfile(name)
                found[name] = file and file.read()
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, OSError):
        return None
    return found


def mutant(data: bytes, random: random.Random) -> bytes:
    """A tar with some bytes of a header changed, whose checksum is right again."""
    changed = bytearray(data)
    starts = [at for at in range(0, len(data), BLOCK) if is_tar(data[at : at + BLOCK])]
    for _ in range(random.randint(1, 3)):
        at = random.choice(starts)
        offset = random.choice((*range(12), 99, *range(100, 160), *range(257, 265), 329, 345, 346))
        changed[at + offset] = random.choice(b"\0\x80\xff /01237kLKgxXSpickle+_-")
        if random.random() < 0.2:
            del changed[at + BLOCK : at + 2 * BLOCK]
        if random.random() < 0.9:
            changed[at + 148 : at + 156] = b" " * 8
            total = sum(changed[at : at + BLOCK])
            changed[at + 148 : at + 156] = b"%06o\0 " % total
        starts = [start for start in starts if start + BLOCK <= len(changed)]
    return bytes(changed)


@pytest.mark.parametrize("name", TARS)
def test_an_archive_is_read_like_tarfile_or_refused(name):
    found = ours(TARS[name]())
    assert found is None or found == theirs(TARS[name]())


@pytest.mark.parametrize("name", [name for name in HONEST if name.startswith("tar")])
def test_honest_archives_are_read(name):
    assert ours(HONEST[name]()) == theirs(HONEST[name]()) == FOUR


@pytest.mark.parametrize("seed", range(4))
def test_mutants_are_read_like_tarfile_or_refused(seed):
    chance = random.Random(seed)
    archives = [make() for make in (*TARS.values(), *(HONEST[n] for n in HONEST if n[:3] == "tar"))]
    read = 0
    for _ in range(MUTANTS // 4):
        data = mutant(chance.choice(archives), chance)
        found = ours(data)
        read += found is not None
        assert found is None or found == theirs(data)
    assert read > MUTANTS // 40  # the test would be empty if all were refused


@pytest.mark.parametrize("name", [*TARS, *(n for n in HONEST if n[:3] == "tar")])
def test_what_tarfile_opens_is_called_a_tar(name):
    make = TARS.get(name) or HONEST[name]
    assert is_tar(make())


def test_extensions_are_bounded():
    with pytest.raises(DamagedError, match="bytes"):
        list(tar_members(Memory(header("x", 1 << 30, b"x") + END)))
    deep = pax(("mtime", "1")) * 100_000 + member("pickle") + END
    with pytest.raises(DamagedError, match="more than 16"):
        list(tar_members(Memory(deep)))


def test_python_writes_what_is_read():
    warnings.simplefilter("error")
    for layout in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:", format=layout) as tar:
            for name, data in FOUR.items():
                info = tarfile.TarInfo(name)
                info.size, info.uname = len(data), "é"
                tar.addfile(info, io.BytesIO(data))
        assert ours(file.getvalue()) == FOUR
