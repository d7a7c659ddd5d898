"""What holds for every source of bytes: each kind is a row of ``SOURCES``.

A row makes a source of some bytes, in an empty folder. What a kind does alone is tested beside.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from ckptool import sources
from ckptool.commands.inspect import inspect_checkpoint
from ckptool.commands.listing import Listing
from ckptool.errors import DamagedError
from ckptool.formats import open_checkpoint
from ckptool.sources.base import Source
from ckptool.sources.local import BoundedFile, LocalFile
from ckptool.sources.memory import Memory
from ckptool.sources.remote.file import RemoteFile
from ckptool.sources.remote.http import HttpObject
from ckptool.sources.remote.retries import PATIENCE
from ckptool.sources.remote.web import Web
from ckptool.sources.urls import RemotePath
from ckptool.sources.window import Copied, Window
from helpers.paths import FIXTURES
from helpers.web import Site, serving

CHECKPOINT = (FIXTURES / "formats" / "torch_zip" / "plain.pt").read_bytes()
SIZE = len(CHECKPOINT)


def written(data: bytes, folder: Path) -> Path:
    path = folder / "source.pt"
    path.write_bytes(data)
    return path


def served(data: bytes) -> Source:
    """From a web server, in small parts; both end with the source."""
    stack = ExitStack()
    site = stack.enter_context(serving(Site({"/source.pt": data})))
    path = RemotePath(f"{site.url}/source.pt")
    source = RemoteFile(HttpObject(path.url, Web(PATIENCE)), path, PATIENCE)
    close = source.close

    def close_both() -> None:
        close()
        stack.close()

    source.close = close_both
    return source


SOURCES: dict[type[Source], Callable[[bytes, Path], Source]] = {
    LocalFile: lambda data, folder: LocalFile(written(data, folder)),
    BoundedFile: lambda data, folder: BoundedFile(written(data, folder), 1 << 30),
    Memory: lambda data, _folder: Memory(data, "source.pt"),
    Window: lambda data, _folder: Window(Memory(b"before" + data + b"behind"), 6, len(data)),
    RemoteFile: lambda data, folder: served(data),
    Copied: lambda data, _folder: Copied(data, Memory(data).span(0, len(data))),
}


def kinds(base: type[Source] = Source) -> Iterator[type[Source]]:
    """All kinds of sources in the room of the sources."""
    for kind in base.__subclasses__():
        if kind.__module__.startswith(f"{sources.__name__}."):
            yield kind
        yield from kinds(kind)


def test_every_kind_of_source_has_a_row():
    for module in pkgutil.walk_packages(sources.__path__, f"{sources.__name__}."):
        importlib.import_module(module.name)
    assert set(kinds()) == SOURCES.keys()


@pytest.fixture(params=SOURCES.values(), ids=[kind.__name__ for kind in SOURCES])
def source(request, tmp_path) -> Iterator[Source]:
    with request.param(CHECKPOINT, tmp_path) as opened:
        yield opened


PLACES = [(at, size) for at in (0, 1, 63, 1000) for size in (0, 1, 64, SIZE - at)]


@pytest.mark.parametrize(("at", "nbytes"), PLACES)
def test_each_part_is_what_was_stored(source, at, nbytes):
    wanted, buffer = CHECKPOINT[at : at + nbytes], bytearray(nbytes)
    assert source.size == SIZE
    assert source.read(at, nbytes) == wanted
    assert source.head(nbytes) == CHECKPOINT[:nbytes]
    source.fill(memoryview(buffer), at)
    assert buffer == wanted
    span = source.span(at, nbytes)
    assert span.source.read(span.offset, span.nbytes) == wanted


@pytest.mark.parametrize(
    ("at", "nbytes"), [(-1, 1), (SIZE, 1), (0, SIZE + 1), (SIZE - 3, 4), (SIZE + 1, 0)]
)
def test_nothing_is_read_beyond_the_ends(source, at, nbytes):
    def fill(at: int, nbytes: int) -> None:
        source.fill(memoryview(bytearray(nbytes)), at)

    for ask in (source.read, source.span, fill):
        with pytest.raises(DamagedError, match="truncated"):
            ask(at, nbytes)


def test_threads_read_at_once(source):
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda at: source.read(at, 1), range(500))
    assert b"".join(parts) == CHECKPOINT[:500]


def test_it_is_the_same_as_long_as_nothing_changes(source):
    assert source.identity == source.identity
    assert hash(source.identity) == hash(source.identity)
    assert not source.has_changed()
    source.close()
    source.close()


def test_a_checkpoint_opens_on_it(source):
    everything = Listing(every=True, stats=True, digests=True)
    with open_checkpoint(source) as ours, open_checkpoint(Memory(CHECKPOINT)) as theirs:
        found, wanted = (inspect_checkpoint(one, everything) for one in (ours, theirs))
    assert replace(found, path="") == replace(wanted, path="")
