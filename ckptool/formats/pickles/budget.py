"""Budget of the work that the pickles of one file may cause: dict keys, copies and objects.

A pickle of a few bytes an instruction can ask for any amount of work. It sets one long tuple as a
key again and again, and each time the tuple is hashed. It copies one long list a million times.
Picklers write none of this: the work of their pickles is proportional to their size. So each kind
of work is counted, and refused where it exceeds what a pickle of that size needs.

* A **key** costs its parts, since Python hashes and compares all of them: those of tuples, and the
  digits and characters of integers and texts. The hash of a text is kept, its comparison is not.
* A key that is **set again** in the same dict is overwritten; a pickler writes each key once.
* Different keys with **one hash** are compared with each other one by one. Only text is hashed
  with a secret; integers, tuples and the like can be made to clash. Integers with different hashes
  can be made to find each place of a dict's table taken. That cannot be counted here, so the time
  of filling large dicts is measured.
* **Copies** cost their lengths.
* **Memory** is the growth of the process since the first of the pickles that is not small.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from time import thread_time
from typing import Any

from ckptool.errors import DamagedError
from ckptool.process.limits import resident_bytes
from ckptool.tree.nodes import GlobalRef, Opaque, TensorRef

MIN_WORK = 1 << 24  # parts of keys, and elements or bytes of copies; larger files may do more
MAX_BLOCKS = 1 << 22  # blocks of memory; up to this number their size is not checked
MAX_RESIDENT = 1 << 29  # bytes that the process may grow by,
RESIDENT_RATIO = 16  # or this many times the pickle
SMALL = 1 << 16  # bytes of pickles whose memory is not asked for: at most a quarter of that growth
MAX_COPYING = 1 << 22  # calls that make a container; one tensor takes one of them
MAX_INERT = 1 << 19  # objects and calls that stay inert; more would take too long to look at
MAX_CLASHES = 1 << 6  # keys that are set although another key has their hash
MAX_REPEATS = 1 << 10  # keys that are set again in the same dict
MAX_KEY_DEPTH = 16  # levels of tuples in a key, which Python's hash enters recursively in C
PLAIN_HASH = (1 << 61) - 1  # integers below are their own hash
SHORT_KEY = 1 << 8  # characters of a text whose comparison is not counted
NODE = 4  # work of a part that is looked at, if that of a plain integer is 1
CHARACTERS = 16  # characters or bytes that are compared in the time of one part
BITS = 128  # of an integer that are hashed in that time
LARGE = 1 << 10  # keys of a dict from which on the time is measured
STEP = 1 << 10  # keys that are set between two measurements
SECONDS = 4.0  # that filling large dicts may take,
BYTES_A_SECOND = 1 << 24  # and one second more for so many bytes of the file
MIN_LOOKS = 1 << 23  # looks at rows of plain values that there may be; a larger pickle allows more
LOOKS_A_BYTE = 1 / 4


class WorkError(DamagedError):
    """Error of a pickle that takes more work than is done for it; a loader may well do it."""


class Looks:
    """The looks at values that are left for all pickles of a file (``grades.py``)."""

    def __init__(self) -> None:
        self.left = MIN_LOOKS
        self._most = MIN_LOOKS

    def allow(self, nbytes: int) -> None:
        """Allow the looks of a file of this size."""
        more = int(nbytes * LOOKS_A_BYTE) - self._most
        if more > 0:
            self.left += more
            self._most += more


class Budget:
    """Counters of the work of all pickles of a file."""

    def __init__(self) -> None:
        self._nbytes = 0  # of the largest pickle
        self._allowed = MIN_WORK
        self._seconds = SECONDS
        self._begun = 0  # bytes of pickles
        self._blocks = self._resident = 0  # before the pickle with which they were no longer small
        self._keys = self._copies = self._copying = self._inert = self._clashes = self._repeats = 0
        self._first: dict[int, Any] = {}  # hash -> the first key that had it
        self._clashed: dict[int, int] = {}  # hash -> keys that had it too

    def allow(self, nbytes: int) -> None:
        """Allow the work of a pickle of this size."""
        self._nbytes = max(self._nbytes, nbytes)
        self._allowed = max(self._allowed, nbytes)
        self._seconds = max(self._seconds, SECONDS + nbytes / BYTES_A_SECOND)

    def begin_memory(self, nbytes: int) -> None:
        """Remember the memory of the process before a pickle of ``nbytes`` bytes.

        Once is enough, and small pickles need no check. Python goes through all its memory to
        count blocks: a third of a millisecond where there are three million objects.
        """
        self._begun += nbytes
        if self._begun > SMALL and not self._resident:
            self._blocks, self._resident = sys.getallocatedblocks(), resident_bytes()

    def check_memory(self, nbytes: int) -> None:
        """Refuse a pickle of ``nbytes`` bytes that takes more memory than any useful one does."""
        if self._begun > SMALL and sys.getallocatedblocks() - self._blocks > MAX_BLOCKS:
            grown = resident_bytes() - self._resident
            if grown > max(MAX_RESIDENT, max(nbytes, self._nbytes) * RESIDENT_RATIO):
                raise WorkError(f"a program that spells {grown >> 20} MiB of objects")

    def count_copies(self, count: int) -> None:
        """Count copied elements or bytes; refuse more than the pickle could spell out."""
        self._copies += count
        self._copying += 1
        if self._copying > MAX_COPYING:
            raise WorkError(f"a program that makes more than {MAX_COPYING} containers")
        if self._copies > self._allowed:
            raise WorkError("the pickle copies the same data again and again")

    @property
    def room_for_containers(self) -> int:
        """The number of calls that may still make an empty container."""
        return 0 if self._copies > self._allowed else MAX_COPYING - self._copying

    def count_containers(self, count: int) -> None:
        """Count calls that made an empty container, for which there was room."""
        self._copying += count

    def count_inert(self) -> None:
        """Count an object or a call that stays inert; refuse too many."""
        self._inert += 1
        if self._inert > MAX_INERT:
            raise WorkError(f"a program that makes more than {MAX_INERT} objects")

    def set_items(self, target: dict[Any, Any], keys: Sequence[Any], values: Sequence[Any]) -> None:
        """Set the items of a dict.

        Raises:
            DamagedError: its keys take more work than those of any pickler's dict.
            TypeError: a key cannot be hashed.
        """
        self.check_keys(keys)
        expected = len(target) + len(keys)
        if expected <= LARGE:
            target.update(zip(keys, values, strict=True))
        else:
            for at in range(0, len(keys), STEP):
                begun = thread_time()
                part = slice(at, at + STEP)
                target.update(zip(keys[part], values[part], strict=True))
                self._count_time(begun)
        if len(target) != expected:
            self._count_repeats(expected - len(target))

    def add(self, target: set[Any], keys: Sequence[Any]) -> None:
        """Add elements to a set; it raises what :meth:`set_items` raises."""
        self.check_keys(keys)
        expected = len(target) + len(keys)
        for at in range(0, len(keys), STEP):
            begun = thread_time()
            target.update(keys[at : at + STEP])
            self._count_time(begun)
        self._count_repeats(expected - len(target))

    def check_keys(self, keys: Iterable[Any]) -> None:
        """Count the work of hashing and comparing keys.

        Raises:
            DamagedError: it is too much, or a tuple is too deep for Python's hash.
        """
        for key in keys:
            kind = type(key)
            if kind is str:
                if len(key) > SHORT_KEY:
                    self._count_keys(len(key) // CHARACTERS)
            elif not (kind is int and -PLAIN_HASH < key < PLAIN_HASH) and kind is not Opaque:
                self._check_key(key)

    def _check_key(self, key: Any) -> None:
        size = self._size(key)
        hashed = hash(key)
        first = self._first.setdefault(hashed, key)
        if first is not key and type(key) is TensorRef and first == key:
            raise DamagedError("two tensors on the same bytes are keys, which torch tells apart")
        if hashed in self._clashed or (first is not key and first != key):
            self._clashes += 1
            self._clashed[hashed] = others = self._clashed.get(hashed, 0) + 1
            if self._clashes > MAX_CLASHES:
                raise WorkError("keys that are made to have one hash")
            self._count_keys(size * others)

    def _size(self, key: Any) -> int:
        """Count and return the parts of a key, level by level, before Python hashes it."""
        size, level = 0, [key]
        for _ in range(MAX_KEY_DEPTH):
            rows = [_parts(node) for node in level]
            own = sum(map(len, rows)) + sum(map(_own_size, level))
            self._count_keys(own)  # before the next level is made
            size += own
            level = [
                part
                for row in rows
                for part in row
                if type(part) is not int or not -PLAIN_HASH < part < PLAIN_HASH
            ]
            if not level:
                return size
        raise DamagedError("a dict key is a tuple nested too deep")

    def _count_keys(self, size: int) -> None:
        self._keys += size
        if self._keys > self._allowed:
            raise WorkError("dict keys that would take too long to hash and to compare")

    def _count_repeats(self, count: int) -> None:
        self._repeats += count
        if self._repeats > MAX_REPEATS:
            raise WorkError("the same keys are set in a dict again and again")

    def _count_time(self, begun: float) -> None:
        self._seconds -= thread_time() - begun
        if self._seconds < 0:
            raise WorkError("keys that are made to find no place in a dict")


def _own_size(node: Any) -> int:
    """Return the work of a key, or of a part that is no plain integer, beside its own parts."""
    if isinstance(node, (str, bytes)):
        return NODE + len(node) // CHARACTERS
    return NODE + (node.bit_length() // BITS if isinstance(node, int) else 0)


def _parts(node: Any) -> Sequence[Any]:
    """Return the parts that are hashed and compared with a key."""
    if isinstance(node, tuple):
        return node
    if isinstance(node, frozenset):
        return tuple(node)
    if isinstance(node, TensorRef):
        return (node.shape, *(chunk[1:] for chunk in node.chunks), node.device, node.quantizer)
    return (node.module, node.name) if isinstance(node, GlobalRef) else ()
