"""Reader of the pickles of one file: it returns their trees and records the names in them.

A file holds several pickles: those of its own container, and ``torch.storage._load_from_bytes``
holds a whole ``torch.save`` as a bytes object inside a pickle (StyleGAN and EDM snapshots keep
every storage so). One :class:`Pickles` reads all of them, with torch's objects recognised, and
remembers the names in the whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from time import thread_time
from typing import Any

from ckptool.errors import CkptError, DamagedError, UnsupportedError
from ckptool.formats.base import DANGEROUS, NamedGlobal, Note, PickleExtent, check_unpacked
from ckptool.formats.pickles.budget import Budget, Looks, WorkError
from ckptool.formats.pickles.machine import WINDOW, PickleMachine, is_extension
from ckptool.formats.pickles.plain_names import trust_of
from ckptool.formats.pickles.storages import StorageKey
from ckptool.formats.pickles.tensor_views import as_text
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.formats.pickles.trace import Trace, current_trace
from ckptool.formats.pickles.uses import MAX_USES
from ckptool.records import NamedTuple, field, record, replace
from ckptool.sources.base import ByteSpan, Source
from ckptool.tree.nodes import BytesRef, GlobalRef

SHORT = 1 << 12  # bytes fetched at a time for a short pickle with tensors' values behind it
MAX_NESTING = 4  # levels of streams inside pickles; real files have one
MAX_STREAMS = 1 << 16  # in one file; more would take too long,
STREAM_BYTES = 1 << 12  # unless they are as long as those with real tensors
SECONDS_ASIDE = 4.0  # of the processor, for all pickles behind and beside the file's own,
BYTES_A_SECOND = 1 << 23  # and one second more for so many bytes
_BYTES = (bytes, bytearray, str, BytesRef)


class Heard(NamedTuple):
    """The value of a pickle, and the offset behind its STOP; None if it cannot be read so far."""

    value: Any
    end: int | None


@record(frozen=False, slots=True)
class _SharedState:
    """State that the pickles of a file share at every level of nesting."""

    names: dict[tuple[int, GlobalRef, bool], NamedGlobal] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    looks: Looks = field(default_factory=Looks)
    seconds_aside: float = SECONDS_ASIDE  # that are left for pickles beside the file's own
    streams: dict[int, tuple[Any, Any]] = field(default_factory=dict)  # id(bytes) -> (bytes, tree)
    preambles: dict[int, bytes] = field(default_factory=dict)  # level -> the last stream's
    nested_bytes: int = 0  # in all nested streams together
    most_nested: int = 0  # limit of nested_bytes: each level is inside the one around it
    objections: dict[tuple[str, str], None] = field(default_factory=dict)  # (pickle, what)
    has_python2_bytes: bool = False
    unknown_devices: dict[str, None] = field(default_factory=dict)
    archives: list[ByteSpan] = field(default_factory=list)  # zips among the nested streams
    unpacked: int = 0  # bytes that compressed records of all archives unpack to
    extents: list[PickleExtent] = field(default_factory=list)


@record(slots=True)
class Pickles:
    """Reader of the pickles of a file, and of those nested in them."""

    label: str  # name of the pickle: data.pkl
    read_nested: Callable[[Any, Pickles], Any]  # returns the value of a torch.save held as bytes
    depth: int = 0
    _shared: _SharedState = field(default_factory=_SharedState)
    _trace: Trace | None = field(default_factory=current_trace)

    @property
    def globals_named(self) -> tuple[NamedGlobal, ...]:
        """Names, once per level of nesting and use (called or not), the outermost level first."""
        return tuple(
            named for _, named in sorted(self._shared.names.items(), key=lambda e: e[0][0])
        )

    def read(self, source: Source, builder: TorchBuilder, offset: int = 0) -> tuple[Any, int]:
        """Return the tree of the pickle at ``offset``, and the offset behind its STOP."""
        machine = self.machine(source, builder, offset)
        if self._trace is not None:
            from ckptool.formats.pickles.tracer import Tracer  # noqa: PLC0415 - for few commands

            machine.builder = Tracer(builder, self._trace)
        tree = self._run(machine, builder, self.label)
        if self._trace is not None and not self.depth:
            self._trace.prune()
        self._keep(machine, builder, self.label)
        return tree, machine.end

    def _keep(self, machine: PickleMachine, builder: TorchBuilder, label: str) -> None:
        if not self.depth:
            is_plain = builder.is_plain and not (
                machine.is_later or builder.objections or builder.has_python2_bytes
            )
            extent = PickleExtent(machine.source.read, machine.start, machine.end, is_plain)
            self._shared.extents.append(extent)
        for what in builder.objections:
            self._shared.objections.setdefault((label, what))
        self._shared.has_python2_bytes |= builder.has_python2_bytes
        self._shared.unknown_devices |= builder.storages.unknown_devices

    @property
    def preamble(self) -> bytes:
        """The bytes before the object of the last stream at this level; empty before the first."""
        return self._shared.preambles.get(self.depth, b"")

    def remember_preamble(self, data: bytes) -> None:
        """Remember the bytes before a stream's object, whose pickles have been read."""
        self._shared.preambles[self.depth] = data

    def note_archive(self, archive: Source) -> None:
        """Note a nested stream that is a zip."""
        self._shared.archives.append(archive.span(0, archive.size))

    def count_unpacked(self, name: str, nbytes: int) -> None:
        """Count the bytes that an archive's compressed records unpack to; ``name`` is the largest.

        Raises:
            UnsupportedError: the records of all archives so far unpack to too much.
        """
        self._shared.unpacked += nbytes
        check_unpacked(f"{name!r:.80}", self._shared.unpacked)

    @property
    def nested_archives(self) -> tuple[ByteSpan, ...]:
        """The nested streams that are zips."""
        return tuple(self._shared.archives)

    @property
    def extents(self) -> tuple[PickleExtent, ...]:
        """Extents of the pickles that were read to their ends, without those nested in them."""
        return tuple(self._shared.extents)

    @property
    def notes(self) -> Iterator[Note]:
        """Notes on contents of the tree's pickles that loaders refuse or need an option for."""
        for label, what in self._shared.objections:
            yield Note("CK122", label, what)
        if self._shared.has_python2_bytes:
            message = "strings of Python 2 that are not UTF-8: torch.load needs their encoding"
            yield Note("CK123", self.label, message)
        for device in self._shared.unknown_devices:
            message = f"values are recorded on the device {device!r:.80}, which torch does not know"
            yield Note("CK124", self.label, message)

    def listen(self, source: Source, offset: int, label: str | None = None) -> int | None:
        """Record the names in a pickle, even if it cannot be read to its end.

        Returns:
            The offset behind its STOP; None if it cannot be read that far.

        Raises:
            UnsupportedError: a loader may follow it further than ckptool does.
        """
        builder = TorchBuilder(lambda _key, _nbytes: None, self.open_nested)
        machine = self.machine(source, builder, offset)
        try:
            self._run(machine, builder, label or self.label)
        except CkptError as error:
            if self._goes_on(machine, error, label or self.label):
                raise _cannot_be_followed() from error
            return None
        return machine.end

    def listen_aside(self, source: Source, offset: int, label: str, window: int) -> Heard:
        """Record the names in bytes that may be a pickle by accident, such as tensors' values.

        If they cannot be read as a pickle to its end, only dangerous names are recorded that can be
        names of modules: two lines of any data are a name, and three bytes an extension code.

        Raises:
            UnsupportedError: all such pickles together take more work than those of any program.
        """
        shared = self._shared
        aside = replace(self, label=label, _shared=_SharedState(looks=shared.looks))
        begun = thread_time()
        builder = TorchBuilder(lambda _key, _nbytes: None, aside.open_nested)
        machine = aside.machine(source, builder, offset, window)
        value, end, is_missed = None, None, False
        try:
            value = aside._run(machine, builder, label)
            end = machine.end
        except CkptError as error:
            is_missed = self._goes_on(machine, error, label)
        for (depth, _, _), named in aside._shared.names.items():
            if end is not None or _is_certain(named):
                self._note(named, self.depth + depth)
        shared.seconds_aside -= thread_time() - begun
        if is_missed or shared.seconds_aside + source.size / BYTES_A_SECOND < 0:
            raise _cannot_be_followed()
        return Heard(value, end)

    def _goes_on(self, read: PickleMachine, error: CkptError, label: str) -> bool:
        """Return whether a loader may follow a pickle further than ``read`` did, and meet names.

        The dangerous ones are recorded.
        """
        if isinstance(error, WorkError):  # a loader that does the work meets what follows
            return True
        from ckptool.formats.pickles.following import Follower  # noqa: PLC0415 - few are refused

        builder, is_at_end = Follower(), False
        machine = PickleMachine(read.source, read.start, builder, window=read.window)
        try:
            machine.run()
            is_at_end = True
        except WorkError:
            return True
        except CkptError:
            pass
        new = [ref for ref in machine.globals if ref not in read.globals]
        for ref in machine.globals if is_at_end else new:
            named = NamedGlobal(ref, ref in builder.called, label)
            if _is_certain(named):
                self._note(named, self.depth)
        return bool(machine.globals) if is_at_end else any(map(_is_module, new))

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Add to an error the dangerous names that a loader would have met before it failed."""
        try:
            yield
        except CkptError as error:
            names = [n.ref.qualname for n in self.globals_named if trust_of(n) == DANGEROUS]
            if names:
                error.dangers = tuple(names)
                shown = ", ".join(f"{name:.80}" for name in names[:3])
                error.add(f"; before that, torch.load(weights_only=False) would have met {shown}")
            raise

    def read_short(self, source: Source, offset: int, label: str) -> tuple[Any, int]:
        """Return the value of a pickle between a container's parts, and the offset behind it.

        It should hold plain data. A loader would run the names in it, so they are recorded too.
        """
        builder = TorchBuilder(no_storage, self.open_nested)
        machine = self.machine(source, builder, offset, SHORT)
        value = self._run(machine, builder, self.label if self.depth else label)
        self._keep(machine, builder, self.label if self.depth else label)
        return value, machine.end

    def machine(
        self, source: Source, builder: TorchBuilder, offset: int, window: int | None = None
    ) -> PickleMachine:
        """Return a machine for the pickle at ``offset``; nested pickles hold single storages."""
        builder.budget = self._shared.budget
        if self.depth == 0:
            self._shared.most_nested = max(self._shared.most_nested, source.size * MAX_NESTING)
            builder.budget.allow(source.size)
            self._shared.looks.allow(source.size)
        builder.looks = self._shared.looks
        window = window or (SHORT if self.depth else WINDOW)
        return PickleMachine(source, offset, builder, window=window)

    def _run(self, machine: PickleMachine, builder: TorchBuilder, label: str) -> Any:
        """Return the value; record the names even if the pickle breaks off behind them."""
        misplaced: set[GlobalRef] = set()
        try:
            made = machine.run()
            # Where a pickle breaks off, a function may be named whose call was still to come.
            misplaced = builder.misplaced(machine.globals)
            builder.look_for_calls(machine.globals, made)
        except CkptError:
            with suppress(CkptError):
                builder.look_for_calls(machine.globals)
            raise
        else:
            return made
        finally:
            misused = builder.misused | misplaced
            for ref in (*machine.globals, *builder.called, *builder.put_off):
                called, put_off = builder.called.get(ref), builder.put_off.get(ref, [])
                looks_up = ref in builder.looked_up and called is None
                of_data = called is not None and ref not in builder.given_more
                given = called or []
                named = NamedGlobal(
                    ref, called is not None, label, tuple((given or put_off)[:MAX_USES]), looks_up,
                    of_data, is_misused=ref in misused, given=given,
                    is_put_off=called is None and bool(put_off),
                )  # fmt: skip
                self._note(named, self.depth)

    def add(self, names: Iterable[NamedGlobal]) -> None:
        """Record names that a loader would run besides those in pickles."""
        for named in names:
            self._note(named, self.depth)

    def _note(self, named: NamedGlobal, depth: int) -> None:
        names, key, uses = self._shared.names, (depth, named.ref, named.called), named.uses
        known = names.get(key)
        if known is None or (known.looks_up and not named.looks_up):
            names[key] = named
            return
        known = known._replace(
            is_misused=known.is_misused or named.is_misused,
            is_put_off=known.is_put_off or named.is_put_off,
        )
        if not named.of_data:  # one call with more than data decides
            known = known._replace(of_data=False)
        if uses and len(known.uses) < MAX_USES and uses[0] not in known.uses:
            known = known._replace(uses=(*known.uses, *uses)[:MAX_USES])
        if isinstance(known.given, list):  # a file may have thousands of nested streams
            known.given.extend(named.given)
        else:
            known = known._replace(given=[*known.given, *named.given])
        names[key] = known

    def open_nested(self, data: Any) -> Any:
        """Return the value of a ``torch.save`` that the pickle holds as bytes.

        The same bytes give the same value: its tensors have the same spans anyway.

        Raises:
            DamagedError: ``data`` is no such bytes, or is nested deeper than in any real file.
        """
        shared = self._shared
        if id(data) in shared.streams:
            return shared.streams[id(data)][1]
        shared.nested_bytes += len(data) if isinstance(data, _BYTES) else 0
        if len(shared.streams) >= max(MAX_STREAMS, shared.most_nested // STREAM_BYTES):
            raise DamagedError(f"the pickle holds more than {len(shared.streams)} torch.saves")
        if self.depth == MAX_NESTING or shared.nested_bytes > shared.most_nested:
            raise DamagedError("streams of torch.save are nested in one another without end")
        tree = self.read_nested(data, self._inner())
        shared.streams[id(data)] = data, tree
        return tree

    def _inner(self) -> Pickles:
        label = self.label if self.depth else f"bytes inside {self.label}"
        return replace(self, label=label, depth=self.depth + 1)


def _cannot_be_followed() -> UnsupportedError:
    return UnsupportedError(
        "pickles behind or beside the first one that cannot be followed in useful time",
        hint="load each object and save it to a file of its own",
    )


def _is_certain(named: NamedGlobal) -> bool:
    """Return whether a name is dangerous, and that of a module rather than of any other data."""
    return trust_of(named) == DANGEROUS and _is_module(named.ref)


def _is_module(ref: GlobalRef) -> bool:
    module = ref.module.replace(".", "_").replace("-", "_")
    return module.isidentifier() and not is_extension(ref)


def no_storage(key: StorageKey, _nbytes: int) -> ByteSpan:
    """Refuse the storages of pickles that should have none."""
    raise DamagedError(
        f"the pickle refers to the storage {as_text(key):.60} outside itself, but there is nothing "
        "outside",
        hint="it may be the data.pkl of an unpacked torch.save archive: zip the folder again",
    )
