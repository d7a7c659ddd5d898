"""Every format over sources that misbehave: an error of ours that says what happened, no more."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from ckptool.commands.inspect import inspect_checkpoint
from ckptool.commands.listing import Listing
from ckptool.errors import CkptError, DamagedError, UnreadableError
from ckptool.formats import open_checkpoint
from ckptool.sources.base import Source
from ckptool.sources.memory import Memory
from ckptool.sources.window import Window
from helpers.doubles import Breaking, Changing, Double, Ending, Failing, Overlong, Short, Slow
from helpers.paths import FIXTURES

FORMATS = FIXTURES / "formats"
WHOLE = Listing(every=True, stats=True, digests=True)
MOMENTS = 25  # in a file's reading at which it is disturbed, about
ASKED = 30  # requests that are enough to open a small file, and to look for pickles around it
ASKED_FOR_PARTS = 70  # where each tensor is a pickle, or a compressed record that may hold one
IN_PARTS = ("torch-tar", "torch-zip, compressed")


def packed(path: Path) -> bytes:
    """Return the archive with its records compressed."""
    made = BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(made, "w", 8) as deflated:
        for name in archive.namelist():
            deflated.writestr(name, archive.read(name))
    return made.getvalue()


FILES = {
    "torch-zip": (FORMATS / "torch_zip" / "plain.pt").read_bytes(),
    "torch-zip, compressed": packed(FORMATS / "torch_zip" / "plain.pt"),
    "torch-legacy": (FORMATS / "torch_legacy" / "plain.pt").read_bytes(),
    "torch-tar": (FORMATS / "torch_tar" / "plain.pt").read_bytes(),
    "pickle": (FORMATS / "pickle" / "module_snapshot_proto4.pkl").read_bytes(),
    "safetensors": (FORMATS / "pickle" / "module_snapshot_proto4.online.safetensors").read_bytes(),
}


@pytest.fixture(params=FILES)
def data(request) -> bytes:
    return FILES[request.param]


def look(source: Source) -> object:
    """Open a checkpoint and read all that is in it, as a command does."""
    with open_checkpoint(source) as checkpoint:
        report = inspect_checkpoint(checkpoint, WHOLE)
        checkpoint.reader.refuse_changed()
        return report


def moments(data: bytes) -> range:
    """Return numbers of requests after which something happens while that is done."""
    double = Double(data)
    look(double)
    return range(0, double.requests, 1 + double.requests // MOMENTS)


@pytest.mark.parametrize("kind", [Slow, Short])
def test_slow_and_short_answers_are_answers(kind, data):
    assert look(kind(data)) == look(Memory(data, "double.pt"))


@pytest.mark.parametrize("name", FILES)
def test_few_requests_open_a_file(name):
    double = Double(FILES[name])
    open_checkpoint(double).close()
    assert double.requests <= (ASKED_FOR_PARTS if name in IN_PARTS else ASKED)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (Failing, UnreadableError, "Connection reset by peer"),
        (Ending, DamagedError, "became shorter while it was read"),
        (Overlong, UnreadableError, "bytes where"),
    ],
)
def test_wherever_it_breaks_the_error_says_how(kind: type[Breaking], error, message, data):
    for good in moments(data):
        source = kind(data, good)
        with pytest.raises(CkptError) as caught:
            look(source)
        assert type(caught.value) is error, good
        assert message in caught.value.message, good
        assert caught.value.path == Path("double.pt")
        assert source.is_closed


def test_another_version_is_never_taken_for_the_first(data):
    for good in moments(data):
        with pytest.raises(CkptError):
            look(Changing(data, good))


def test_a_window_fails_as_its_source_does():
    window = Window(Failing(bytes(100), 1), 10, 50)
    assert window.read(0, 50) == bytes(50)
    with pytest.raises(UnreadableError, match="Connection reset"):
        window.read(0, 50)
    with pytest.raises(UnreadableError, match="Connection reset"):
        window.fill(memoryview(bytearray(50)), 0)


def test_the_span_of_a_window_is_one_of_its_source():
    memory = Memory(b"0123456789")
    assert Window(Window(memory, 2), 3, 4).span(1, 2) == memory.span(6, 2)
