"""Long runs on a GPU, in three stages that go on side by side: read, copied, measured.

Threads read both sides into pinned memory and ask for the copies on one stream. The caller's thread
asks for the kernels on another, and looks at no number before all is on its way: it would have to
wait. That no two threads ask for kernels is faster too, since all of them need the interpreter.

A run that is not finite shows so in the end and is measured again. Other types than floating-point
numbers are waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptool.comparison.arrays import Array, NumpyArrays, TorchArrays, are_equal
from ckptool.comparison.kernels import Partial, floats_seen
from ckptool.comparison.measuring import measured, measured_by_counts, measured_unseen
from ckptool.comparison.runs import Job, Run, place_of
from ckptool.errors import UnsupportedError, UsageError
from ckptool.numerics import Progress

if TYPE_CHECKING:
    from concurrent.futures import Future

STAGED = 1 << 24  # bytes of a side that are copied at a time
LEAST = 1 << 16  # elements: for fewer, asking a device takes longer than computing here
UNSEEN = 1 << 10  # results that stay on the device, at most
TABLES = 1 << 6  # and counts of pairs, of 512 KiB

NOT_FINITE = Partial(-1)  # to be measured again

Found = dict[Run, Partial | None]  # None: equal bytes


class Device:
    """A device of torch: a GPU; tests have it be the processor.

    Raises:
        UnsupportedError: there is no torch, or no such device.
        UsageError: this names no device.
    """

    def __init__(self, name: str) -> None:
        try:
            import torch
        except ImportError as error:
            raise UnsupportedError(
                f"--device {name} needs torch, which is not installed",
                hint="pip install 'ckptool[torch]'; without --device the processor compares",
            ) from error
        self._torch: Any = torch
        self._device = _device(torch, name)
        self.least = LEAST

    def block(self, job: Job) -> int:
        """How many elements are in a run."""
        return STAGED // max(job.a.dtype.itemsize, job.b.dtype.itemsize)

    def takes(self, job: Job, run: Run) -> bool:
        """Whether a run is better measured here."""
        return job.lies_ready and run.stop - run.start >= max(self.least, 1)

    def measure(
        self,
        jobs: Sequence[Job],
        runs: Sequence[Run],
        threads: int,
        progress: Progress,
        *,
        one_sided: bool,
    ) -> Found:
        """What each run comes to; ``one_sided`` measures a against itself.

        Raises:
            DamagedError: a file ends too soon.
            UnsupportedError: the device failed, or has no memory left.
        """
        if not runs:
            return {}
        try:
            pipeline = _Pipeline(self._torch, self._device, jobs, progress, one_sided=one_sided)
            return pipeline.run(runs, threads)
        except RuntimeError as error:  # the class of all that torch has to say
            raise UnsupportedError(
                f"torch failed on {self._device}: {str(error).splitlines()[0]}",
                hint="nvidia-smi shows who else uses it; --device cpu always works",
            ) from error


def _device(torch: Any, text: str) -> Any:
    kind, _, index = text.partition(":")
    if kind not in {"cuda", "cpu"} or (index and not index.isdigit()):
        raise UsageError(f"a device is cpu, cuda or cuda:N, not {text!r}")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if int(index or 0) >= count:
        raise UnsupportedError(
            f"torch {torch.__version__} sees {count or 'no'} CUDA devices, so there is no {text}",
            hint="install a torch built for CUDA and check nvidia-smi; --device cpu always works",
        )
    return torch.device(text)


class _Piece(NamedTuple):
    """What is copied at once: of a type of one byte a part of a run, else all of it."""

    run: Run
    part: Run

    @property
    def is_first(self) -> bool:
        return self.part.start == self.run.start

    @property
    def is_last(self) -> bool:
        return self.part.stop == self.run.stop


class _Pipeline:
    """One pass over some runs, by one thread and those that read for it."""

    def __init__(
        self, torch: Any, device: Any, jobs: Sequence[Job], progress: Progress, *, one_sided: bool
    ) -> None:
        self._queues = _Queues(torch, device)
        self._arrays, self._here = TorchArrays(torch, device), NumpyArrays()
        self._jobs, self._progress, self._one_sided = jobs, progress, one_sided
        self._found: Found = {}
        self._unseen: list[tuple[Run, list[Array]]] = []
        self._tables: list[tuple[Run, Array]] = []
        self._counts: Array = None  # of the run whose pieces are coming
        self._differs = False  # whether one of them does

    def run(self, runs: Sequence[Run], threads: int) -> Found:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - it brings logging along

        slots = [_Slot(self._queues, one_sided=self._one_sided) for _ in range(threads + 1)]
        coming: deque[tuple[_Piece, _Slot, Future[bool]]] = deque()
        pool = ThreadPoolExecutor(threads, initializer=self._queues.copy_from_here)
        with self._queues.computing_here(), pool:
            for nth, piece in enumerate(self._pieces(runs)):
                if len(coming) == len(slots):
                    self._take(*coming.popleft())
                slot = slots[nth % len(slots)]
                reading = pool.submit(slot.fill, self._jobs[piece.run.job], piece.part)
                coming.append((piece, slot, reading))
            while coming:
                self._take(*coming.popleft())
            self._see()
            self._see_tables()
            self._measure_again(slots[0])
        return self._found

    def _pieces(self, runs: Sequence[Run]) -> Iterator[_Piece]:
        for run in runs:
            for part in run.pieces(STAGED) if self._jobs[run.job].is_bytewise else (run,):
                yield _Piece(run, part)

    def _take(self, piece: _Piece, slot: _Slot, reading: Future[bool]) -> None:
        """Have one measured, once it has been read."""
        is_equal = reading.result()
        run, job = piece.run, self._jobs[piece.run.job]
        if not self._one_sided:
            self._progress(job.width * (piece.part.stop - piece.part.start))
        if is_equal and not job.is_bytewise:
            self._found[run] = None
            return
        a, b = slot.received(job, piece.part)
        if job.is_bytewise:
            self._count(piece, a, b, is_equal=is_equal)
        elif job.is_of_floats:
            self._unseen.append((run, measured_unseen(self._arrays, a, b, job)))
        else:
            self._found[run] = measured(self._arrays, a, b, job)
        slot.release()
        if len(self._unseen) == UNSEEN:
            self._see()
        if len(self._tables) == TABLES:
            self._see_tables()

    def _count(self, piece: _Piece, a: Array, b: Array, *, is_equal: bool) -> None:
        if piece.is_first:
            self._counts, self._differs = None, self._one_sided
        self._counts = self._arrays.count_pairs(a, b, self._counts)
        self._differs |= not is_equal
        if piece.is_last and self._differs:
            self._tables.append((piece.run, self._counts))
        elif piece.is_last:
            self._found[piece.run] = None

    def _see(self) -> None:
        """Fetch the numbers that wait, all of one kind at once."""
        runs = [run for run, _ in self._unseen]
        kinds = zip(*(numbers for _, numbers in self._unseen), strict=True)
        columns = [self._arrays.xp.stack(kind).tolist() for kind in kinds]
        for run, found in zip(runs, zip(*columns, strict=True), strict=True):
            self._found[run] = floats_seen(run.stop - run.start, found) or NOT_FINITE
        self._unseen.clear()

    def _see_tables(self) -> None:
        """Fetch the counts that wait; so few numbers are looked at here."""
        for run, counts in self._tables:
            table = counts.cpu().numpy()
            self._found[run] = measured_by_counts(self._here, table, self._jobs[run.job])
        self._tables.clear()

    def _measure_again(self, slot: _Slot) -> None:
        for run in [run for run, found in self._found.items() if found is NOT_FINITE]:
            job = self._jobs[run.job]
            slot.fill(job, run)
            self._found[run] = measured(self._arrays, *slot.received(job, run), job)


class _Slot:
    """Room for a piece of both sides: pinned memory here, and memory there."""

    def __init__(self, queues: _Queues, *, one_sided: bool) -> None:
        self._queues, self._sides = queues, 1 if one_sided else 2
        self._here: list[tuple[Array, Any]] = []  # as torch has it, and as numpy
        self._there = [queues.memory(pinned=False) for _ in range(self._sides)]
        self._arrived, self._used = queues.event(), queues.event()

    def fill(self, job: Job, part: Run) -> bool:
        """Read a piece and have it copied, in any thread; whether its sides are equal and stay.

        Raises:
            DamagedError: a file ends too soon.
        """
        self._arrived.synchronize()
        if not self._here:
            rooms = [self._queues.memory(pinned=True) for _ in range(self._sides)]
            self._here = [(room, room.numpy()) for room in rooms]
        filled = []
        for (_, room), values in zip(self._here, (job.a, job.b), strict=False):
            start, nbytes = place_of(values, part)
            filled.append(room[:nbytes])
            values.read_into(memoryview(filled[-1]), start)
        is_equal = len(filled) == 2 and job.is_one_type and are_equal(*filled)
        if job.is_bytewise or not is_equal:
            self._used.wait()
            for (here, _), there, data in zip(self._here, self._there, filled, strict=True):
                there[: len(data)].copy_(here[: len(data)], non_blocking=True)
            self._arrived.record()
        return is_equal

    def received(self, job: Job, part: Run) -> tuple[Array, Array]:
        """The bytes of both sides there, valid until they are released."""
        self._arrived.wait()
        sides = [
            there[: place_of(values, part)[1]]
            for there, values in zip(self._there, (job.a, job.b), strict=False)
        ]
        return sides[0], sides[-1]

    def release(self) -> None:
        """Everything that needs them has been asked for."""
        self._used.record()


class _Queues:
    """Two queues of a GPU, one for copies and one for kernels; the processor needs none."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch, self._device = torch, device
        self._is_cuda = device.type == "cuda"
        if self._is_cuda:
            self._copying, self._computing = (torch.cuda.Stream(device) for _ in range(2))

    def copy_from_here(self) -> None:
        """From now on this thread, which is one of ours, asks for copies."""
        if self._is_cuda:
            self._torch.cuda.set_stream(self._copying)

    def computing_here(self) -> AbstractContextManager[Any]:
        """Within, this thread asks for kernels."""
        return self._torch.cuda.stream(self._computing) if self._is_cuda else nullcontext()

    def event(self) -> Any:
        """A mark in one queue that another, or a thread, can wait for; unrecorded it is past."""
        return self._torch.cuda.Event() if self._is_cuda else _Past()

    def memory(self, *, pinned: bool) -> Array:
        """For a side of a piece: there, or where the device can fetch it by itself."""
        place = {"pin_memory": self._is_cuda} if pinned else {"device": self._device}
        return self._torch.empty(STAGED, dtype=self._torch.uint8, **place)


class _Past:
    """An event of a device that does everything at once."""

    def record(self) -> None: ...

    def wait(self) -> None: ...

    def synchronize(self) -> None: ...
