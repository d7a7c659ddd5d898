"""Comparison of tensors in runs: bytes first, arithmetic only where they differ.

Every pair of tensors is cut into **runs** of a fixed number of elements. A run is read from both
sides. If its bytes are equal, it needs no arithmetic, and numpy is not even imported. Otherwise a
kernel measures it while the bytes are in the cache. Small ones are read and measured together
(``small_runs.py``). Runs are batched into tasks of a few MiB for
several processes or threads, and merged in their order. So the numbers depend on how runs are cut,
which is fixed, and never on the number of processes.

A block takes some thirty short calls of numpy, each of which gives the interpreter's lock back and
asks for it again. Two threads lose a fifth of the time by that, and eight on two CPUs half of it.
So large files are compared by forked processes. Where these cannot be had, by a few threads.

A tensor that differs somewhere needs the norms of its equal runs too. They are computed in a
second round, from one side.

Where there is a device, it measures the long runs, and the CPU measures the short ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from ckptool.comparison.arrays import BLOCK, NumpyArrays
from ckptool.comparison.devices import Device, Found
from ckptool.comparison.kernels import Partial, Sums, merged
from ckptool.comparison.measuring import measured_by_counts, measured_in_blocks, worst_place
from ckptool.comparison.small_runs import compare_small, is_small
from ckptool.comparison.values import Job, Run, bytes_of, pieces_of
from ckptool.process.forks import can_fork, work_in_forks
from ckptool.process.progress import Progress, announce, no_progress
from ckptool.process.ranks import Ranks
from ckptool.records import NamedTuple
from ckptool.tensors.blocks import in_batches

TASK = 1 << 23  # bytes of one side in a task, roughly
LEAST = TASK >> 11  # bytes that a run counts for at least: a small tensor costs more than its bytes
SHARE = 8  # tasks for each process that is forked: fewer would not repay the fork
MAX_THREADS = 8  # more would only wait for the interpreter's lock
BYTE_RUN = 1 << 24  # elements in a run of a type of one byte, whose 65,536 pairs are counted
FREED = 1 << 24  # bytes; once they are freed, glibc keeps the memory of one run for the next
SEARCHED = 1 << 16  # bytes that are searched for the worst place at a time; mostly it comes early


class Outcome(NamedTuple):
    """Result of a job: equal byte for byte, or the numbers."""

    identical: bool
    partial: Partial | None = None  # None: equal, or there are no numbers


Item = TypeVar("Item")
Done = TypeVar("Done")
Task = list[Run]
Results = list[tuple[Run, Partial | None]]  # None: equal bytes


class Engine:
    """Comparison of jobs on some CPUs, and on a device if there is one."""

    def __init__(
        self,
        device: str,
        cpus: int,
        progress: Progress,
        ranks: Ranks = Ranks(),  # noqa: B008 - a tuple
    ) -> None:
        """Open the device, given as typed; refuse one that is not there at once.

        Raises:
            UnsupportedError: torch is not installed, or has no such device.
        """
        self._cpus, self._threads = cpus, min(cpus, MAX_THREADS)
        self._progress, self._ranks = progress, ranks
        bytearray(FREED)  # allocated and freed at once
        self._arrays = NumpyArrays()
        self._device = None if device == "cpu" else Device(device)

    def compare(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Return one outcome for each job, in their order.

        Raises:
            DamagedError: a file ends too soon.
        """
        runs = (run for at, job in enumerate(jobs) for run in self._runs(at, job))
        width = sum(job.width * (job.a.nbytes // job.a.dtype.itemsize) for job in jobs)
        announce(self._progress, width // self._ranks.world)
        for job in jobs:
            for side in job.sides:
                side.reader.expect_values([side.ref])
        results = self._all(jobs, runs, self._progress)
        differing = {run.job for run, partial in results if partial is not None}
        equal = [run for run, partial in results if partial is None and run.job in differing]
        norms: dict[Run, Partial | None] = {}
        if equal:
            one_sided = [job.one_sided for job in jobs]
            norms.update(self._all(one_sided, equal, no_progress))  # read a second time
        whole: dict[int, Partial] = {}
        for run, partial in results:
            if run.job in differing:
                found = partial or norms[run]
                assert found is not None
                before = whole.get(run.job)
                whole[run.job] = merged(before, found, run.start) if before else found
        outcomes = [Outcome(identical=True)] * len(jobs)
        for at, partial in self._with_places(jobs, whole).items():
            outcomes[at] = Outcome(identical=False, partial=partial)
        return outcomes

    def _runs(self, at: int, job: Job) -> Iterator[Run]:
        """Cut a job into runs; keep it as one run if its bytes have to be made."""
        whole = Run(at, 0, job.a.nbytes // job.a.dtype.itemsize)
        if not job.lies_ready:
            return iter((whole,))
        if self._device:
            return whole.pieces(self._device.block(job))
        return whole.pieces(BYTE_RUN if job.is_bytewise else BLOCK)

    def _all(self, jobs: Sequence[Job], runs: Iterable[Run], progress: Progress) -> Results:
        """Return the result of each run, in their order."""

        def cost(run: Run) -> int:
            return max((run.stop - run.start) * jobs[run.job].a.dtype.itemsize, LEAST)

        def carried_out(own: Sequence[Task]) -> list[Results]:
            done = self._done_on_device(jobs, own, progress)

            def results(task: Task, progress: Progress = progress) -> Results:
                return self._results(jobs, task, done, progress)

            if not self._is_forked(jobs, own):
                return self._side_by_side(results, own)
            rest = own[1:]  # the first imports what differences need, once for all processes
            count = min(self._cpus, len(own) // SHARE)
            share = -(-len(rest) // count)

            def tell(task: Task) -> None:
                elements = sum(jobs[run.job].width * (run.stop - run.start) for run in task)
                progress(elements * len(rest) // share)  # the others are as far as this process

            first = results(own[0])
            return [first, *work_in_forks(count, rest, lambda t: results(t, no_progress), tell)]

        shared = self._ranks.work(list(in_batches(runs, cost, TASK)), carried_out)
        return [_result(*found) for results in shared for found in results]

    def _is_forked(self, jobs: Sequence[Job], tasks: Sequence[Task]) -> bool:
        """Return whether forked processes share the tasks: not those that a server answers."""
        is_large = min(self._cpus, len(tasks) // SHARE) > 1 and self._device is None
        if not is_large or not can_fork():
            return False
        return all(side.is_near for task in tasks for run in task for side in jobs[run.job].sides)

    def _results(self, jobs: Sequence[Job], task: Task, done: Found, progress: Progress) -> Results:
        """Return the result of each run of a task; a device has ``done`` some."""
        found = {run: done[run] for run in task if run in done}
        small = [run for run in task if run not in found and is_small(jobs[run.job])]
        partials = compare_small(self._arrays, [jobs[run.job] for run in small])
        found.update(zip(small, partials, strict=True))
        progress(sum(jobs[run.job].width * run.stop for run in small))
        return [
            (run, found[run] if run in found else self._measured_here(jobs, run, progress))
            for run in task
        ]

    def _measured_here(self, jobs: Sequence[Job], run: Run, progress: Progress) -> Partial | None:
        job = jobs[run.job]
        progress(job.width * (run.stop - run.start))
        return self._measured(job, run)

    def _done_on_device(
        self, jobs: Sequence[Job], tasks: Iterable[Task], progress: Progress
    ) -> Found:
        """Measure the runs that are worth the calls to a device."""
        if self._device is None:
            return {}
        runs = (run for task in tasks for run in task)
        own = [run for run in runs if self._device.takes(jobs[run.job], run)]
        return self._device.measure(jobs, own, self._threads, progress)

    def _side_by_side(self, work: Callable[[Item], Done], items: Sequence[Item]) -> list[Done]:
        """Map ``work`` over ``items`` with the worker threads."""
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - it brings logging along

        if self._threads == 1 or len(items) < 2:
            return [work(item) for item in items]
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(work, items))

    # ------------------------------------------------------------------------------------- one run

    def _measured(self, job: Job, run: Run) -> Partial | None:
        if job.is_bytewise:
            return None if _are_equal(job, run) else self._counted(job, run)
        a = bytes_of(job.a, run)
        b = a if job.is_one_sided else bytes_of(job.b, run)
        if job.is_one_type and not job.is_one_sided and a == b:
            return None
        return measured_in_blocks(self._arrays, a, b, job)

    def _counted(self, job: Job, run: Run) -> Partial:
        """Measure a run of a type of one byte by counting its pairs."""
        counts = sum(self._arrays.count_pairs(a, b) for a, b in pieces_of(job, run))
        return measured_by_counts(self._arrays, counts, job)

    def _with_places(self, jobs: Sequence[Job], whole: dict[int, Partial]) -> dict[int, Partial]:
        """Find the worst elements of types of one byte, of which only the runs are known so far."""
        unplaced = [at for at, found in whole.items() if jobs[at].is_bytewise and found.at >= 0]

        def place(at: int) -> int:
            rest = Run(at, whole[at].at, whole[at].elements)
            pieces = pieces_of(jobs[at], rest, SEARCHED)
            return rest.start + worst_place(self._arrays, whole[at], jobs[at].a.dtype, pieces)

        if not unplaced:
            return whole
        places = self._ranks.work(unplaced, lambda own: self._side_by_side(place, own))
        found = zip(unplaced, places, strict=True)
        return whole | {at: whole[at]._replace(at=place) for at, place in found}


def _result(run: Any, partial: Any) -> tuple[Run, Partial | None]:
    """Rebuild a result that comes as lists if another process has found it."""
    if partial is None or isinstance(partial, Partial):
        return Run(*run), partial
    *numbers, sums = partial
    return Run(*run), Partial(*numbers)._replace(sums=Sums(*sums))


def _are_equal(job: Job, run: Run) -> bool:
    return not job.is_one_sided and all(a == b for a, b in pieces_of(job, run))
