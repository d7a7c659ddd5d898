"""Measurement of long runs on a GPU, in three concurrent stages: read, copy, compute.

Threads read both sides into pinned memory and enqueue the copies on one stream. The caller's thread
enqueues the kernels on another. The numbers of floating-point types are fetched only after many
runs were enqueued, since each fetch waits for the device. A run with non-finite sums shows only
then, and is read and measured again. For types of one byte only the counts of pairs come back.
Runs of integers, of complex numbers and of two types are waited for one by one.
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
from ckptool.comparison.values import Job, Run, place_of
from ckptool.errors import UnsupportedError, UsageError
from ckptool.process.progress import Progress, no_progress

if TYPE_CHECKING:
    from concurrent.futures import Future

STAGED = 1 << 24  # bytes of one side that are copied at a time
LEAST = 1 << 16  # elements; for fewer, the calls to a device take longer than the CPU
UNSEEN = 1 << 10  # results that wait on the device, at most
TABLES = 1 << 6  # the same for tables of counts, of 512 KiB each

NOT_FINITE = Partial(-1)  # marks a run with non-finite sums, to be measured again

Found = dict[Run, Partial | None]  # None: equal bytes
Take = Callable[[Run, Array, Array], None]  # enqueues the kernels of a run on the device


class Device:
    """A device of torch: a GPU, or in tests the CPU.

    Raises:
        UnsupportedError: torch is not installed, or has no such device.
        UsageError: the name is not that of a device.
    """

    def __init__(self, name: str) -> None:
        try:
            import torch
        except ImportError as error:
            raise UnsupportedError(
                f"--device {name} needs torch, which is not installed",
                hint="pip install 'ckptool[torch]'; without --device the CPU compares",
            ) from error
        self._torch: Any = torch
        self._device = _device(torch, name)
        with self._current():
            self._arrays = TorchArrays(torch, self._device)
            self._queues = Queues(torch, self._device)
        self._slots: list[Slot] = []

    def block(self, job: Job) -> int:
        """Return the number of elements in a run: fewer where the kernel needs many arrays."""
        size = max(job.a.dtype.itemsize, job.b.dtype.itemsize)
        return STAGED // (size if job.is_bytewise or job.is_of_floats else max(size, 8))

    def takes(self, job: Job, run: Run) -> bool:
        """Return whether a run is better measured on this device."""
        is_known = job.is_bytewise or all(self._arrays.knows(side.dtype) for side in job.sides)
        return job.lies_ready and is_known and run.stop - run.start >= LEAST

    def measure(
        self, jobs: Sequence[Job], runs: Sequence[Run], threads: int, progress: Progress
    ) -> Found:
        """Measure the runs; None stands for equal bytes.

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
        """Make this the current device of torch; report errors of CUDA and HIP as its failure."""
        is_cuda = self._device.type == "cuda"
        try:
            with self._torch.cuda.device(self._device) if is_cuda else nullcontext():
                yield
        except RuntimeError as error:  # the class of torch's errors, and of many others
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
        known = devices if kind == "cuda" else "one CPU"
        raise UnsupportedError(
            f"torch {torch.__version__} sees {known}, so there is no {text}",
            hint="install a torch built for CUDA and check nvidia-smi; --device cpu always works",
        )
    return torch.device(kind, index)


class Pipeline:
    """Measurement of some runs, in slots that take turns."""

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
        """Measure the runs; None stands for equal bytes."""
        with self._queues.computing_here():
            self.go(runs, self._ask, progress)
            self._see()
            again = [run for run, partial in self._found.items() if partial is NOT_FINITE]
            self.go(again, self._look, no_progress)
        return self._found

    def go(self, runs: Sequence[Run], take: Take, progress: Progress) -> None:
        """Read the runs, and pass those whose sides differ to ``take``, in their order."""
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
        """Enqueue the kernels of a run; wait for them only if its type requires that."""
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
        """Fetch the results from the device, all numbers of one kind at once."""
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
    """Buffers for a run of both sides, in pinned memory (here) and on the device (there)."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._here: list[tuple[Array, Any]] = []  # one memory as a torch and a numpy array
        self._there = [queues.memory(pinned=False) for _ in range(2)]
        self._arrived, self._used = queues.event(), queues.event()

    def fill(self, job: Job, run: Run) -> bool:
        """Read a run in a thread, and enqueue its copies; for equal sides return True instead.

        Raises:
            DamagedError: a file ends too soon.
        """
        self._queues.copy_from_here()
        self._arrived.synchronize()  # until the last copy from here is done
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
        self._used.wait()  # until the kernels no longer need the last run
        for data, (here, _), there in zip(filled, self._here, self._there, strict=False):
            self._queues.copy(there[: len(data)], here[: len(data)])
        self._arrived.record()
        return False

    def empty(self, job: Job, run: Run, take: Take) -> None:
        """Pass the copied sides to ``take``; a one-sided job passes its only side twice."""
        self._arrived.wait()
        sides = [
            there[: place_of(values, run)[1]]
            for values, there in zip(job.sides, self._there, strict=False)
        ]
        take(run, sides[0], sides[-1])
        self._used.record()


class Queues:
    """Two streams of a GPU, one for copies and one for kernels; the CPU needs none."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch, self._device = torch, device
        self._is_cuda = device.type == "cuda"
        if self._is_cuda:
            self._copying, self._computing = (torch.cuda.Stream(device) for _ in range(2))

    def copy_from_here(self) -> None:
        """Make the stream for copies current in this thread, which is one of our own."""
        if self._is_cuda:
            self._torch.cuda.set_stream(self._copying)

    @contextmanager
    def computing_here(self) -> Iterator[None]:
        """Make the stream for kernels current in this thread, after all work enqueued before.

        At the end both streams are idle. So memory that others freed before, or are given
        afterwards, is never in use on two streams.
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
        """Return an event that a stream or a thread can wait for; until recorded, it is past."""
        return self._torch.cuda.Event() if self._is_cuda else _Past()

    def memory(self, *, pinned: bool) -> Array:
        """Return a buffer for a side of a run, on the device or in memory that it can read."""
        place = {"pin_memory": self._is_cuda} if pinned else {"device": self._device}
        return self._torch.empty(STAGED, dtype=self._torch.uint8, **place)

    def copy(self, there: Array, here: Array) -> None:
        """Enqueue a copy."""
        there.copy_(here, non_blocking=True)


class _Past:
    """An event of a device that does everything at once."""

    def record(self) -> None: ...

    def wait(self) -> None: ...

    def synchronize(self) -> None: ...
