"""Long runs on a GPU, in three stages that go on side by side: read, copied, measured.

Threads read both sides into pinned memory and ask for the copies on one stream. The caller's thread
asks for the kernels on another. No number of a floating-point type is looked at before many runs
are on their way, since for each the device would have to be waited for; a run that is not finite
shows so then, and is read and measured again. Of types of one byte only the counts of pairs come
back. Integers and complex numbers, and runs of two types, are waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from re import ASCII, fullmatch
from typing import TYPE_CHECKING, Any

from ckptool.comparison.arrays import Array, NumpyArrays, TorchArrays, are_equal
from ckptool.comparison.kernels import Partial, floats_seen
from ckptool.comparison.measuring import measured, measured_by_counts, measured_unseen
from ckptool.comparison.runs import Job, Run, place_of
from ckptool.errors import UnsupportedError, UsageError
from ckptool.numerics import Progress, no_progress

if TYPE_CHECKING:
    from concurrent.futures import Future

STAGED = 1 << 24  # bytes of a side that are copied at a time
LEAST = 1 << 16  # elements: for fewer, asking a device takes longer than computing here
UNSEEN = 1 << 10  # results that stay on the device, at most
TABLES = 1 << 6  # and counts of pairs, of 512 KiB

NOT_FINITE = Partial(-1)  # to be measured again

Found = dict[Run, Partial | None]  # None: equal bytes
Take = Callable[[Run, Array, Array], None]  # asks for the kernels of a run whose bytes are there


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
        with self._current():
            self._arrays = TorchArrays(torch, self._device)
            self._queues = Queues(torch, self._device)
        self._slots: list[Slot] = []

    def block(self, job: Job) -> int:
        """How many elements are in a run: fewer where the kernel needs many arrays."""
        size = max(job.a.dtype.itemsize, job.b.dtype.itemsize)
        return STAGED // (size if job.is_bytewise or job.is_of_floats else max(size, 8))

    def takes(self, job: Job, run: Run) -> bool:
        """Whether a run is better measured here."""
        is_known = job.is_bytewise or all(self._arrays.knows(side.dtype) for side in job.sides)
        return job.lies_ready and is_known and run.stop - run.start >= LEAST

    def measure(
        self, jobs: Sequence[Job], runs: Sequence[Run], threads: int, progress: Progress
    ) -> Found:
        """What each run comes to.

        Raises:
            DamagedError: a file ends too soon.
            UnsupportedError: the device failed, or has no memory left.
        """
        if not runs:
            return {}
        with self._current():
            while len(self._slots) < min(threads + 1, len(runs)):
                self._slots.append(Slot(self._queues))
            pipeline = Pipeline(self._arrays, self._queues, self._slots, jobs, threads)
            return pipeline.measure(runs, progress)

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Within, it is the device that torch takes; what it fails in is told as its failure."""
        is_cuda = self._device.type == "cuda"
        try:
            with self._torch.cuda.device(self._device) if is_cuda else nullcontext():
                yield
        except RuntimeError as error:  # the class of what torch has to say, and of much else
            said = str(error)
            if not any(word in said for word in ("CUDA", "HIP")):
                raise
            raise UnsupportedError(
                f"torch failed on {self._device}: {said.splitlines()[0]}",
                hint="nvidia-smi shows who else uses it; --device cpu always works",
            ) from error


def _device(torch: Any, text: str) -> Any:
    found = fullmatch(r"(cuda|cpu)(?::(\d{1,4}))?", text, ASCII)
    if not found:
        raise UsageError(f"a device is cpu, cuda or cuda:N, not {text!r}")
    kind, index = found[1], int(found[2] or 0)
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if index >= count:
        devices = "1 CUDA device" if count == 1 else f"{count or 'no'} CUDA devices"
        known = devices if kind == "cuda" else "one processor"
        raise UnsupportedError(
            f"torch {torch.__version__} sees {known}, so there is no {text}",
            hint="install a torch built for CUDA and check nvidia-smi; --device cpu always works",
        )
    return torch.device(kind, index)


class Pipeline:
    """One measurement of some runs, in slots that take turns."""

    def __init__(
        self,
        arrays: TorchArrays,
        queues: Queues,
        slots: Sequence[Slot],
        jobs: Sequence[Job],
        threads: int,
    ) -> None:
        self._arrays, self._here = arrays, NumpyArrays()
        self._queues, self._slots, self._threads = queues, slots, threads
        self._jobs = jobs
        self._found: Found = {}
        self._unseen: list[tuple[Run, list[Array]]] = []
        self._tables: list[tuple[Run, Array]] = []

    def measure(self, runs: Sequence[Run], progress: Progress) -> Found:
        """What each run comes to."""
        with self._queues.computing_here():
            self.go(runs, self._ask, progress)
            self._see()
            again = [run for run, partial in self._found.items() if partial is NOT_FINITE]
            self.go(again, self._look, no_progress)
        return self._found

    def go(self, runs: Sequence[Run], take: Take, progress: Progress) -> None:
        """Read the runs, and give those whose sides differ to ``take``, in their order."""
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - it brings logging along

        coming: deque[tuple[Run, Slot, Future[bool]]] = deque()

        def finish_first() -> None:
            run, slot, reading = coming.popleft()
            is_equal = reading.result()
            job = self._jobs[run.job]
            progress(job.width * (run.stop - run.start))
            if is_equal:
                self._found[run] = None
            else:
                slot.empty(job, run, take)

        with ThreadPoolExecutor(self._threads) as pool:
            try:
                for nth, run in enumerate(runs):
                    if len(coming) == len(self._slots):
                        finish_first()
                    slot = self._slots[nth % len(self._slots)]
                    coming.append((run, slot, pool.submit(slot.fill, self._jobs[run.job], run)))
                while coming:
                    finish_first()
            finally:
                for _, _, reading in coming:
                    reading.cancel()

    def _ask(self, run: Run, a: Array, b: Array) -> None:
        """Have a run measured, without waiting if its type allows that."""
        job = self._jobs[run.job]
        if job.is_bytewise:
            self._tables.append((run, self._arrays.count_pairs(a, b)))
        elif job.is_of_floats:
            self._unseen.append((run, measured_unseen(self._arrays, a, b, job)))
        else:
            self._look(run, a, b)
        if len(self._unseen) == UNSEEN or len(self._tables) == TABLES:
            self._see()

    def _look(self, run: Run, a: Array, b: Array) -> None:
        self._found[run] = measured(self._arrays, a, b, self._jobs[run.job])

    def _see(self) -> None:
        """Fetch what was found: of the numbers all of one kind at once."""
        kinds = zip(*(numbers for _, numbers in self._unseen), strict=True)
        columns = [self._arrays.xp.stack(kind).tolist() for kind in kinds]
        for (run, _), found in zip(self._unseen, zip(*columns, strict=True), strict=True):
            self._found[run] = floats_seen(run.stop - run.start, found) or NOT_FINITE
        for run, counts in self._tables:
            table = counts.cpu().numpy()
            self._found[run] = measured_by_counts(self._here, table, self._jobs[run.job])
        self._unseen.clear()
        self._tables.clear()


class Slot:
    """Room for a run of both sides: pinned memory here, and memory there."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._here: list[tuple[Array, Any]] = []  # as torch has it, and as numpy
        self._there = [queues.memory(pinned=False) for _ in range(2)]
        self._arrived, self._used = queues.event(), queues.event()

    def fill(self, job: Job, run: Run) -> bool:
        """Read a run and ask for its copies, in a thread; if its sides are equal, they stay here.

        Raises:
            DamagedError: a file ends too soon.
        """
        self._queues.copy_from_here()
        self._arrived.synchronize()  # what was here has left
        if not self._here:
            rooms = [self._queues.memory(pinned=True) for _ in range(2)]
            self._here = [(room, room.numpy()) for room in rooms]
        filled = []
        for values, (_, room) in zip(job.sides, self._here, strict=False):
            start, nbytes = place_of(values, run)
            filled.append(room[:nbytes])
            values.read_into(memoryview(filled[-1]), start)
        if job.is_one_type and not job.is_one_sided and are_equal(*filled):
            return True
        self._used.wait()  # what was there is needed no more
        for data, (here, _), there in zip(filled, self._here, self._there, strict=False):
            self._queues.copy(there[: len(data)], here[: len(data)])
        self._arrived.record()
        return False

    def empty(self, job: Job, run: Run, take: Take) -> None:
        """Give away what is there; of one side it is the same twice."""
        self._arrived.wait()
        sides = [
            there[: place_of(values, run)[1]]
            for values, there in zip(job.sides, self._there, strict=False)
        ]
        take(run, sides[0], sides[-1])
        self._used.record()


class Queues:
    """Two streams of a GPU, one for copies and one for kernels; the processor needs none."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch, self._device = torch, device
        self._is_cuda = device.type == "cuda"
        if self._is_cuda:
            self._copying, self._computing = (torch.cuda.Stream(device) for _ in range(2))

    def copy_from_here(self) -> None:
        """From now on this thread, which is one of ours, asks for copies."""
        if self._is_cuda:
            self._torch.cuda.set_stream(self._copying)

    @contextmanager
    def computing_here(self) -> Iterator[None]:
        """Within, this thread asks for kernels; before and after, the device is at rest.

        So memory that others have given back, or are given, is used by nobody else.
        """
        if not self._is_cuda:
            yield
            return
        before = self._torch.cuda.current_stream(self._device)
        for stream in (self._copying, self._computing):
            stream.wait_stream(before)
        try:
            with self._torch.cuda.stream(self._computing):
                yield
        finally:
            for stream in (self._copying, self._computing):
                stream.synchronize()

    def event(self) -> Any:
        """A mark in one stream that the other, or a thread, can wait for; unrecorded it is past."""
        return self._torch.cuda.Event() if self._is_cuda else _Past()

    def memory(self, *, pinned: bool) -> Array:
        """For a side of a run: there, or where the device can fetch it by itself."""
        place = {"pin_memory": self._is_cuda} if pinned else {"device": self._device}
        return self._torch.empty(STAGED, dtype=self._torch.uint8, **place)

    def copy(self, there: Array, here: Array) -> None:
        """Ask for a copy."""
        there.copy_(here, non_blocking=True)


class _Past:
    """An event of a device that does everything at once."""

    def record(self) -> None: ...

    def wait(self) -> None: ...

    def synchronize(self) -> None: ...
