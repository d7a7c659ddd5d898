"""The pickles of one file, read with torch's objects recognised: their trees and the names in them.

A file holds several pickles: those of its own container, and ``torch.storage._load_from_bytes``
holds a whole ``torch.save`` as a bytes object inside a pickle (StyleGAN and EDM snapshots keep
every storage so). All are read by one :class:`Pickles`, which remembers what the file as a whole
names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

from ckptool.errors import CkptError, DamagedError
from ckptool.formats.base import NamedGlobal, Note, SourceFile
from ckptool.formats.byte_sources import ByteSource
from ckptool.formats.pickle_tree import WINDOW, PickleMachine
from ckptool.formats.torch_objects import MAX_USES, TorchBuilder
from ckptool.formats.zip_records import has_end
from ckptool.tree import ByteSpan, BytesRef, GlobalRef, Opaque
from ckptool.trust import DANGEROUS, trust_of

SHORT = 1 << 12  # bytes fetched at a time of a short pickle, with tensors' values behind it
MAX_NESTING = 4  # levels of streams inside pickles; real files have one
MAX_BEHIND = 100  # pickles, one behind the other
PROTO = b"\x80"
_BYTES = (bytes, bytearray, str, BytesRef)


@dataclass(slots=True)
class _SharedState:
    """What the pickles of a file have in common, however deep they are nested."""

    names: dict[tuple[int, GlobalRef, bool], NamedGlobal] = field(default_factory=dict)
    streams: dict[int, tuple[Any, Any]] = field(default_factory=dict)  # id(bytes) -> (bytes, tree)
    nested_bytes: int = 0  # of all nested streams together
    most_nested: int = 0  # what they could have, each level being held by the one around it


@dataclass(frozen=True, slots=True)
class Pickles:
    """Reads the pickles of ``file``, and those nested in them."""

    file: SourceFile
    label: str  # which pickle: data.pkl
    depth: int = 0
    _shared: _SharedState = field(default_factory=_SharedState)

    @property
    def globals_named(self) -> tuple[NamedGlobal, ...]:
        """Each name once for every level of nesting, the outermost level first."""
        return tuple(
            named for _, named in sorted(self._shared.names.items(), key=lambda e: e[0][0])
        )

    def read(self, source: ByteSource, builder: TorchBuilder, offset: int = 0) -> tuple[Any, int]:
        """The tree of the pickle at ``offset`` of ``source``, and the offset behind its STOP."""
        if self.depth == 0:
            self._shared.most_nested = max(self._shared.most_nested, source.size * MAX_NESTING)
        machine = self.machine(source, builder, offset)
        return self._run(machine, builder, self.label), machine.end

    def listen(self, source: ByteSource, offset: int, label: str | None = None) -> int | None:
        """Note what a pickle names, whatever else becomes of it.

        Returns:
            The offset behind its STOP; None if it cannot be read so far.
        """
        builder = TorchBuilder(lambda _key, _nbytes: None, self.open_nested)
        machine = self.machine(source, builder, offset)
        with suppress(CkptError):
            self._run(machine, builder, label or self.label)
            return machine.end
        return None

    def listen_behind(self, source: ByteSource, offset: int) -> Note | None:
        """Note what pickles behind a pickle name, which a second ``pickle.load`` would run.

        Returns:
            A note, if a zip archive ends there: many readers look for one from the end on.
        """
        at: int | None = offset
        for number in range(2, MAX_BEHIND):
            if at is None or source.size - at < 2 or source.read(at, 1) != PROTO:
                break
            at = self.listen(source, at, f"pickle {number} of the file")
        if offset < source.size and has_end(source):
            message = "a zip archive ends here, so that other readers could see another file"
            return Note("CK110", "warning", "", f"{message}; torch and ckptool read the beginning")
        return None

    @contextmanager
    def telling(self) -> Iterator[None]:
        """An error from here on also says what a loader would have called before it failed."""
        try:
            yield
        except CkptError as error:
            names = [n.ref.qualname for n in self.globals_named if trust_of(n) == DANGEROUS]
            if names:
                error.dangers = tuple(names)
                shown = ", ".join(f"{name:.80}" for name in names[:3])
                error.add(f"; before that, torch.load(weights_only=False) would have met {shown}")
            raise

    def read_short(self, source: ByteSource, offset: int, label: str) -> tuple[Any, int]:
        """A pickle of plain data, as they stand between the parts of a container.

        A loader would run what it names, so that is noted like the rest.
        """
        builder = TorchBuilder(no_storage)
        machine = PickleMachine(source, offset, builder, window=SHORT)
        return self._run(machine, builder, self.label if self.depth else label), machine.end

    def machine(self, source: ByteSource, builder: TorchBuilder, offset: int) -> PickleMachine:
        """A machine for the pickle at ``offset``; nested pickles are those of single storages."""
        builder.copies_left = max(builder.copies_left, source.size)
        return PickleMachine(source, offset, builder, window=SHORT if self.depth else WINDOW)

    def _run(self, machine: PickleMachine, builder: TorchBuilder, label: str) -> Any:
        """The value; the names are noted even if the pickle breaks off behind them."""
        try:
            return machine.run()
        finally:
            for ref in (*machine.globals, *builder.called):
                looks_up = ref in builder.looked_up and ref not in builder.called
                self._note(ref, builder.called.get(ref), label, looks_up=looks_up)

    def _note(
        self, ref: GlobalRef, uses: list[Opaque] | None, label: str, *, looks_up: bool
    ) -> None:
        names, key = self._shared.names, (self.depth, ref, uses is not None)
        known = names.get(key)
        if known is None or (known.looks_up and not looks_up):
            names[key] = NamedGlobal(ref, uses is not None, label, tuple(uses or ()), looks_up)
        elif uses and len(known.uses) < MAX_USES and uses[0] not in known.uses:
            names[key] = known._replace(uses=(*known.uses, *uses)[:MAX_USES])

    def open_nested(self, data: Any) -> Any:
        """The value of a ``torch.save`` that the pickle holds as bytes.

        The same bytes give the same value: its tensors have the same spans anyway.

        Raises:
            DamagedError: no such bytes, or nested beyond any real file.
        """
        shared = self._shared
        if id(data) in shared.streams:
            return shared.streams[id(data)][1]
        shared.nested_bytes += len(data) if isinstance(data, _BYTES) else 0
        if self.depth == MAX_NESTING or shared.nested_bytes > shared.most_nested:
            raise DamagedError("streams of torch.save are nested in one another without end")
        # Late, since the readers of such streams read their pickles with this module.
        from ckptool.formats.nested import read_stream  # noqa: PLC0415

        tree = read_stream(data, self._inner())
        shared.streams[id(data)] = data, tree
        return tree

    def _inner(self) -> Self:
        label = self.label if self.depth else f"bytes inside {self.label}"
        return type(self)(self.file, label, self.depth + 1, self._shared)


def no_storage(key: str, _nbytes: int) -> ByteSpan:
    """Where storages lie for pickles that should have none."""
    raise DamagedError(
        f"the pickle refers to the storage {key:.60} outside itself, but there is nothing outside",
        hint="it may be the data.pkl of an unpacked torch.save archive: zip the folder again",
    )
