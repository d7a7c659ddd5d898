"""Reads of a file behind a URL: few requests, no byte twice, nothing handed out unchecked."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from ckptool.errors import DamagedError, UnreadableError
from ckptool.sources.base import Guard
from ckptool.sources.remote import ahead, file
from ckptool.sources.remote.base import RemoteObject, TransferError
from ckptool.sources.remote.extents import Extents
from ckptool.sources.remote.file import CACHE, FEW, HEAD, TAIL, WINDOW, RemoteFile
from ckptool.sources.remote.retries import Patience, pause, repeated

DATA = bytes(range(253)) * 100_000  # 25 MB
MIDDLE = 10_000_000
QUICK = Patience(first_pause=0, sleep=lambda _seconds: None)


class Bytes(RemoteObject):
    """An object in memory that records what it is asked for."""

    version = "1"

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []
        self.failing: list[TransferError] = []

    def last(self, nbytes: int) -> bytes:
        self.size = len(self.data)
        self.asked.append((max(0, self.size - nbytes), min(nbytes, self.size)))
        return self.data[-nbytes:]

    def get(self, buffer: memoryview, offset: int) -> int:
        self.asked.append((offset, len(buffer)))
        if self.failing:
            raise self.failing.pop()
        buffer[:] = self.data[offset : offset + len(buffer)]
        return len(buffer)

    def close(self) -> None:
        pass


@pytest.fixture
def remote() -> Bytes:
    return Bytes()


@pytest.fixture(autouse=True)
def _own_buffers(monkeypatch):
    """Buffers that no other test has: threads of theirs may still hold some."""
    monkeypatch.setattr(ahead, "HELD", ahead.Held())


@pytest.fixture
def source(remote):
    with RemoteFile(remote, Path("x.pt"), QUICK) as opened:
        yield opened


def runs(*places: int, nbytes: int = 1000) -> list[tuple[int, int]]:
    return [(at, nbytes) for at in places]


# ---------------------------------------------------------- announcements


def test_announced_runs_are_fetched_and_no_byte_more(source, remote):
    wanted = runs(*range(MIDDLE, MIDDLE + 3_000_000, 200_000))
    source.expect(wanted)
    for offset, nbytes in wanted:
        assert source.read(offset, nbytes) == DATA[offset : offset + nbytes]
    assert sorted(remote.asked[1:]) == wanted


def test_neighbours_are_one_request(source, remote):
    wanted = [(MIDDLE, 5000), (MIDDLE + 5100, 5000), (MIDDLE + 10_300, 5000)]
    source.expect(wanted)
    assert [source.read(*run) for run in wanted] == [DATA[a : a + n] for a, n in wanted]
    assert remote.asked[1:] == [(MIDDLE, 15_300)]


def test_long_runs_are_cut(source, remote):
    source.expect([(1_000_000, 20_000_000)])
    assert source.read(1_000_000, 20_000_000) == DATA[1_000_000:21_000_000]
    assert max(nbytes for _, nbytes in remote.asked) == ahead.CHUNK
    assert sum(nbytes for _, nbytes in remote.asked[1:]) == 20_000_000


def test_chunks_are_fetched_in_the_order_of_reading(remote, monkeypatch):
    """One that is read late must not take the room of one that is read next."""
    monkeypatch.setattr(ahead, "CHUNK", 1_000_000)
    monkeypatch.setattr(ahead, "ROOM", 2_000_000)
    monkeypatch.setattr(ahead, "THREADS", 1)
    wanted = [(at * 1_000_000, 1_000_000) for at in (9, 3, 17, 5, 4, 1, 12, 7)]
    with RemoteFile(remote, Path("x.pt"), QUICK) as source:
        source.expect([*wanted, (2_000_000, 1_000_000), (20_000_000, 100)])
        for offset, nbytes in wanted:
            assert source.read(offset, nbytes) == DATA[offset : offset + nbytes]
    at = [remote.asked.index(run) for run in wanted]
    assert all(later - earlier > -3 for earlier, later in pairwise(at))  # two wait, one is asked


def test_a_buffer_is_used_again(source):
    source.expect([(1_000_000, 20_000_000)])
    for at in range(1_000_000, 21_000_000, 100_000):
        assert source.read(at, 100_000) == DATA[at : at + 100_000]
    assert ahead.HELD._nbytes == 0
    assert not ahead.HELD._free


def test_buffers_never_take_more_than_the_room(monkeypatch):
    monkeypatch.setattr(ahead, "ROOM", 4 * ahead.CHUNK)
    held = ahead.Held()
    nbytes = ahead.CHUNK - 1
    buffers = []
    while held.has_room(nbytes):
        held.add(nbytes)
        buffers.append(held.buffer(nbytes))
    assert len(buffers) == 4
    for buffer in buffers[:3]:
        held.give_back(nbytes, buffer)
    assert held.buffer(nbytes) in buffers
    small = ahead.CHUNK // 2
    while held.has_room(small):
        held.add(small)
        held.buffer(small)
    assert held._nbytes + len(held._free) * ahead.CHUNK <= ahead.ROOM


def test_any_order_and_any_thread(source, remote):
    wanted = [(at, 70_000) for at in range(0, 24_000_000, 70_000)]
    source.expect(wanted)
    shuffled = sorted(wanted, key=lambda run: run[0] * 7919 % 10_007)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda run: source.read(*run), shuffled))
    assert read == [DATA[a : a + n] for a, n in shuffled]
    assert sum(nbytes for _, nbytes in remote.asked[1:]) <= 24_080_000


def test_announced_and_never_read_is_no_obstacle(source, monkeypatch):
    monkeypatch.setattr(ahead, "ROOM", ahead.CHUNK)
    source.expect([(1_000_000, 20_000_000)])
    assert source.read(20_000_000, 10) == DATA[20_000_000:20_000_010]
    assert source.read(1_000_000, 10) == DATA[1_000_000:1_000_010]


def test_announced_twice_is_fetched_once(source, remote):
    source.expect(runs(MIDDLE) + runs(MIDDLE))
    source.expect(runs(MIDDLE))
    for _ in range(2):
        assert source.read(MIDDLE, 1000) == DATA[MIDDLE : MIDDLE + 1000]
    assert remote.asked[1:] == runs(MIDDLE)


def test_what_is_at_hand_is_not_fetched_again(source, remote):
    source.head(1000)
    source.expect([(500, 1000), (source.size - 1000, 1000)])
    source.read(500, 1000)
    assert len(remote.asked) == 2


def test_nothing_is_fetched_before_something_is_read(source, remote):
    """Announcements for a hundred shards must not fill the memory."""
    source.expect([(1_000_000, 20_000_000)])
    assert len(remote.asked) == 1


def test_memory_is_given_back(source):
    before = ahead.HELD._nbytes
    source.expect([(1_000_000, 20_000_000)])
    assert source.read(1_000_000, 20_000_000) == DATA[1_000_000:21_000_000]
    assert ahead.HELD._nbytes == before
    source.expect([(1_000_000, 20_000_000)])
    source.read(1_000_000, 10)
    source.close()
    for thread in threading.enumerate():
        if thread.name == "read x.pt":
            thread.join()
    assert ahead.HELD._nbytes == before


def test_an_unknown_error_ahead_is_no_endless_wait(source, remote):
    remote.failing = [ZeroDivisionError("a bug")]
    source.expect(runs(MIDDLE))
    with pytest.raises(ZeroDivisionError):
        source.read(MIDDLE, 1000)


def test_an_error_ahead_is_raised_where_the_bytes_are_read(source, remote):
    remote.failing = [TransferError("no", "do this")]
    source.expect(runs(MIDDLE))
    with pytest.raises(UnreadableError, match="no") as error:
        source.read(MIDDLE, 1000)
    assert error.value.hint == "do this"


# ---------------------------------------------------------- what is not announced


def test_reads_in_a_row_become_longer(source, remote):
    for at in range(MIDDLE, MIDDLE + 4_000_000, 1000):
        source.read(at, 1000)
    asked = [nbytes for _, nbytes in remote.asked[1:]]
    assert asked[:3] == [WINDOW, 2 * WINDOW, 4 * WINDOW]
    assert len(asked) == 5


def test_opening_has_a_limit(source, monkeypatch):
    monkeypatch.setattr(file, "MOST", 2_000_000)
    with pytest.raises(UnreadableError, match="2,000,000 bytes") as error:
        source.read(1_000_000, 4_000_000)
    assert "download" in error.value.hint
    source.lift()
    assert source.read(1_000_000, 4_000_000) == DATA[1_000_000:5_000_000]


def test_what_was_announced_does_not_count(source, monkeypatch):
    monkeypatch.setattr(file, "MOST", 2_000_000)
    source.expect([(1_000_000, 4_000_000)])
    assert source.read(1_000_000, 4_000_000) == DATA[1_000_000:5_000_000]


def test_the_cache_has_a_limit():
    extents = Extents(limit=100)
    extents.put(0, bytes(50), is_pinned=True)
    for at in range(100, 500, 100):
        extents.put(at, bytes(40))
    assert extents.holds(0, 50)
    assert extents.holds(400, 40)
    assert not any(extents.holds(at, 1) for at in (100, 200, 300))
    assert CACHE >= HEAD + TAIL


# ---------------------------------------------------------- frugality


def test_a_frugal_source_admits_what_it_has(source, remote):
    source.head(1)
    source.be_frugal()
    assert source.admits(0, 1000)
    assert source.admits(source.size - 10, 1000)
    assert not source.admits(MIDDLE, 1000)
    assert source.window == WINDOW
    source.bring(MIDDLE, WINDOW)
    assert source.admits(MIDDLE, 1000)
    assert source.window == 0
    assert len(remote.asked) < FEW


def test_another_source_admits_everything(source):
    assert source.admits(MIDDLE, 1000)
    assert source.window == 0


# ---------------------------------------------------------- guards


def guarded(source: RemoteFile, wanted: bytes) -> None:
    def check(header: bytes) -> None:
        if header != wanted:
            raise DamagedError("another header")

    source.guard([Guard(MIDDLE, MIDDLE + 30, MIDDLE + 5000, check)])


@pytest.mark.parametrize("at", [MIDDLE + 30, MIDDLE + 31, MIDDLE + 4999, MIDDLE - 100])
def test_a_header_is_checked_before_the_bytes_are_handed_out(source, at):
    guarded(source, b"something else")
    with pytest.raises(DamagedError, match="another header"):
        source.read(at, 500)


@pytest.mark.parametrize("at", [MIDDLE - 1000, MIDDLE + 5000])
def test_bytes_of_no_guard_are_free(source, at):
    guarded(source, b"something else")
    assert source.read(at, 900) == DATA[at : at + 900]


def test_a_header_comes_with_the_bytes_behind_it(source, remote):
    guarded(source, DATA[MIDDLE : MIDDLE + 30])
    source.expect([(MIDDLE + 30, 4970)])
    for at in range(MIDDLE + 30, MIDDLE + 5000, 10):
        assert source.read(at, 10) == DATA[at : at + 10]
    assert remote.asked[1:] == [(MIDDLE, 5000)]


# ---------------------------------------------------------- retries


def test_pauses_grow_and_are_bounded():
    slept: list[float] = []
    patience = Patience(first_pause=1, longest_pause=5, sleep=slept.append)
    for failures in range(1, 8):
        pause(TransferError("no", is_transient=True), failures, patience)
    assert all(0.5 * 2**nth <= each or each == 5 for nth, each in enumerate(slept))
    assert max(slept) <= 5


def test_the_server_is_given_the_time_that_it_asks_for():
    slept: list[float] = []
    patience = Patience(first_pause=0, sleep=slept.append)
    pause(TransferError("no", is_transient=True, wait=7), 1, patience)
    assert slept == [7]
    with pytest.raises(TransferError, match="wait 3600 seconds"):
        pause(TransferError("no", is_transient=True, wait=3600), 1, patience)


def test_a_few_attempts():
    asked = []

    def ask():
        asked.append(1)
        raise TransferError("no", is_transient=True)

    with pytest.raises(TransferError):
        repeated(ask, QUICK)
    assert len(asked) == QUICK.attempts
