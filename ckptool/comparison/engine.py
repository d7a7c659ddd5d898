"""Compares tensors by their bytes first, and computes only what differs.

Every pair of tensors is cut into **runs** of a fixed number of elements. A run is read from both
sides and, when its bytes are equal, settled without arithmetic; numpy is not even imported. Else a
kernel measures it while the bytes are in the cache. Runs are batched into tasks of a few MiB for a
pool of threads, and merged in their order: the numbers depend on how runs are cut, which is fixed,
and never on how many threads there are.

A tensor that differs somewhere needs the norms of its equal runs too. They are computed in a
second round, from one side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ckptool.comparison.arrays import CODES, Array, Arrays, arrays_on
from ckptool.comparison.kernels import (
    Partial,
    Sums,
    complexes,
    counted_pairs,
    floats,
    integers,
    lost,
    merged,
    of_two_types,
    within_ulp,
)
from ckptool.comparison.tolerances import Tolerance
from ckptool.comparison.values import Values
from ckptool.dtypes import DType
from ckptool.errors import DamagedError
from ckptool.ranks import Ranks

TASK = 1 << 23  # bytes of one side in a task, about
RUN = 1 << 18  # elements in a run: shorter ones fit a cache, but threads wait for each other
MAX_RUNS = 256  # runs in a task: small tensors cost calls, not bytes
LONG = frozenset({"int64", "uint64"})
UNSIGNED = "float8_e8m0fnu"  # has no sign bit
BYTE_RUN = 1 << 24  # elements in a run of a type of one byte, whose 65,536 pairs are counted
PIECE = 1 << 19  # elements of it that are counted at a time
CODE = bytes(range(256))


class Job(NamedTuple):
    """Two tensors of one shape to compare."""

    a: Values
    b: Values
    rule: Tolerance


class Outcome(NamedTuple):
    """What came out: equal byte for byte, or the numbers."""

    identical: bool
    partial: Partial | None = None  # None: equal, or there are no numbers


class Run(NamedTuple):
    """Some elements of a job; ``stop`` is exclusive."""

    job: int
    start: int
    stop: int


Task = list[Run]
Results = list[tuple[Run, Partial | None]]  # None: equal bytes


class Engine:
    """Compares jobs on a backend with some threads."""

    def __init__(
        self,
        device: str,
        threads: int,
        progress: Callable[[int], None],
        ranks: Ranks = Ranks(),  # noqa: B008 - a tuple
    ) -> None:
        """Take a device as typed; one that is not there is refused at once.

        Raises:
            UnsupportedError: there is no torch for it, or no such device.
        """
        self._device, self._threads, self._progress, self._ranks = device, threads, progress, ranks
        self._made: Arrays | None = None if device == "cpu" else arrays_on(device)
        self._step = max(RUN, self._made.block) if self._made else RUN

    def compare(self, jobs: Sequence[Job]) -> list[Outcome]:
        """One outcome a job, in their order.

        Raises:
            DamagedError: a file ends too soon.
        """
        runs = (run for at, job in enumerate(jobs) for run in _runs(at, job, self._step))
        results = self._all(jobs, _batched(jobs, runs), self._measured)
        differing = {run.job for run, partial in results if partial is not None}
        equal = [run for run, partial in results if partial is None and run.job in differing]
        norms = dict(self._all(jobs, _batched(jobs, equal), self._norms))
        outcomes: list[Outcome] = [Outcome(identical=True)] * len(jobs)
        whole: dict[int, Partial] = {}
        for run, partial in results:
            if run.job in differing:
                found = partial or norms[run]
                assert found is not None
                before = whole.get(run.job)
                whole[run.job] = merged(before, found, run.start) if before else found
        for at, partial in whole.items():
            outcomes[at] = Outcome(identical=False, partial=partial)
        return outcomes

    def _all(
        self,
        jobs: Sequence[Job],
        tasks: Iterator[Task],
        measure: Callable[[Job, Run], Partial | None],
    ) -> Results:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - it brings logging along

        def carried_out(task: Task) -> Results:
            return [(run, measure(jobs[run.job], run)) for run in task]

        def all_carried_out(own: Sequence[Task]) -> list[Results]:
            if self._threads == 1 or len(own) < 2:
                return [carried_out(task) for task in own]
            with ThreadPoolExecutor(self._threads) as pool:
                return list(pool.map(carried_out, own))

        shared = self._ranks.work(list(tasks), all_carried_out)
        return [_result(*found) for results in shared for found in results]

    @property
    def arrays(self) -> Arrays:
        """The backend, made when the first difference has to be measured."""
        if self._made is None:
            self._made = arrays_on(self._device)
        return self._made

    # ------------------------------------------------------------------------------------- one run

    def _measured(self, job: Job, run: Run) -> Partial | None:
        self._progress(_width(job) * (run.stop - run.start))
        if _is_bytewise(job):
            return None if _equal(job, run) else self._counted(job, run)
        a, b = _bytes(job.a, run), _bytes(job.b, run)
        return None if a == b and job.a.dtype is job.b.dtype else self._kernel(job, a, b)

    def _norms(self, job: Job, run: Run) -> Partial | None:
        one_sided = job._replace(b=job.a)
        if _is_bytewise(job):
            return self._counted(one_sided, run)
        data = _bytes(job.a, run)
        return self._kernel(one_sided, data, data)

    def _kernel(self, job: Job, a: bytes, b: bytes) -> Partial:
        """All of a run, in the blocks that the backend likes."""
        size, other_size, step = job.a.dtype.itemsize, job.b.dtype.itemsize, self.arrays.block
        whole = Partial(0)
        with self.arrays.quietly():
            for start in range(0, len(a) // size, step):
                one = a[start * size : (start + step) * size]
                other = b[start * other_size : (start + step) * other_size]
                whole = merged(whole, self._block(one, other, job), start)
        return whole

    def _block(self, a: bytes, b: bytes, job: Job) -> Partial:
        arrays, xp = self.arrays, self.arrays.xp
        one, other = arrays.view(a, job.a.dtype), arrays.view(b, job.b.dtype)
        form = _form(job.a.dtype, job.b.dtype)
        x, y = arrays.convert(one, form, 0), arrays.convert(other, form, 1)
        if form == "int64":
            return integers(xp, x, y, flipped=job.a.dtype.name == "uint64")
        rest = self._lost(one, x, job.a.dtype) - self._lost(other, y, job.b.dtype)
        if form == "complex128":
            return complexes(xp, x, y, job.rule, rest)
        if job.a.dtype is not job.b.dtype:
            return of_two_types(xp, x, y, job.rule, rest)
        near = self._nearness(a, b, job) if job.rule.ulp else None
        return floats(xp, x, y, job.rule, near, arrays.room(len(x), 2))

    def _lost(self, array: Array, rounded: Array, dtype: DType) -> Array:
        """What the wider type could not hold of integers of 64 bits."""
        if dtype.name not in LONG:
            return 0.0
        words, xp = self.arrays.convert(array, "int64", 2), self.arrays.xp
        return lost(xp, words, xp.real(rounded), flipped=dtype.name == "uint64")

    def _nearness(self, a: bytes, b: bytes, job: Job) -> Callable[[], object] | None:
        size = job.a.dtype.itemsize
        if job.a.dtype is not job.b.dtype or job.a.ref.quantizer is not None:
            return None
        bits = self.arrays.bits
        return lambda: within_ulp(
            self.arrays.xp, bits(a, size), bits(b, size), job.rule.ulp, 8 * size
        )

    def _counted(self, job: Job, run: Run) -> Partial:
        """A run of a type of one byte."""
        arrays, dtype = self.arrays, job.a.dtype
        rule = job.rule if dtype.is_floating else Tolerance()
        with arrays.quietly():
            values = arrays.convert(arrays.view(CODE, dtype), "float64", 1)
            near = _code_nearness(arrays, dtype, rule) if rule.ulp else None
            counts = sum(arrays.count_pairs(a, b) for a, b in _pieces(job, run))
            found, worst = counted_pairs(arrays.xp, counts, values, rule, near)
        if found.at >= 0:
            found = found._replace(at=self._first(job, run, worst))
        return found if dtype.is_floating else found._replace(max_abs=int(found.max_abs))

    def _first(self, job: Job, run: Run, wanted: Array) -> int:
        """The first element of the run whose pair is one of those wanted; there is one."""
        start = 0
        for a, b in _pieces(job, run):
            hits = wanted[self.arrays.pairs(a, b)]
            if hits.any():
                return start + int(self.arrays.convert(hits, "int64", 1).argmax())
            start += len(a)
        raise DamagedError("the file was written to while it was read")


def _result(run: Any, partial: Any) -> tuple[Run, Partial | None]:
    """What was found of a run, here or, as lists, by another process."""
    if partial is None or isinstance(partial, Partial):
        return Run(*run), partial
    *numbers, sums = partial
    return Run(*run), Partial(*numbers)._replace(sums=Sums(*sums))


def _code_nearness(arrays: Arrays, dtype: DType, rule: Tolerance) -> Callable[[], object]:
    """Of every pair of codes."""
    rows = b"".join(CODE[i : i + 1] * 256 for i in range(256))
    bits = 9 if dtype.name == UNSIGNED else 8

    def near() -> object:
        left, right = arrays.bits(rows, 1), arrays.bits(CODE * 256, 1)
        if dtype.name == UNSIGNED:
            left, right = left & 255, right & 255
        return within_ulp(arrays.xp, left, right, rule.ulp, bits)

    return near


def _is_bytewise(job: Job) -> bool:
    """Whether the elements can be compared by counting the pairs of their codes."""
    dtype = job.a.dtype
    return dtype is job.b.dtype and dtype.itemsize == 1 and dtype.name not in CODES


def _equal(job: Job, run: Run) -> bool:
    return all(a == b for a, b in _pieces(job, run))


def _pieces(job: Job, run: Run) -> Iterator[tuple[bytes, bytes]]:
    """The bytes of a long run of both sides, a piece at a time."""
    if job.a.spans is None or job.b.spans is None:
        yield _bytes(job.a, run), _bytes(job.b, run)
        return
    for start in range(run.start, run.stop, PIECE):
        piece = Run(run.job, start, min(start + PIECE, run.stop))
        yield _bytes(job.a, piece), _bytes(job.b, piece)


def _form(a: DType, b: DType) -> str:
    """The type in which two are compared: exact for integers, else wide enough for both."""
    kinds = {_kind(a), _kind(b)}
    if "complex" in kinds:
        return "complex128"
    unsigned = (a.name == "uint64") != (b.name == "uint64")
    return "int64" if kinds == {"int"} and not unsigned else "float64"


def _kind(dtype: DType) -> str:
    if dtype.name in CODES:
        return "int"
    return dtype.kind if dtype.is_floating else "int"


# ----------------------------------------------------------------------------------------- planning


def _runs(at: int, job: Job, step: int) -> Iterator[Run]:
    """A job cut into runs; one run where the bytes have to be made."""
    count = job.a.nbytes // job.a.dtype.itemsize
    if job.a.spans is None or job.b.spans is None:
        yield Run(at, 0, count)
        return
    step = max(BYTE_RUN, step) if _is_bytewise(job) else step
    for start in range(0, count, step):
        yield Run(at, start, min(start + step, count))


def _width(job: Job) -> int:
    """Bytes of an element on both sides."""
    return job.a.dtype.itemsize + job.b.dtype.itemsize


def _bytes(values: Values, run: Run) -> bytes:
    if values.spans is None:
        return values.whole()
    size = values.dtype.itemsize
    return values.read(run.start * size, (run.stop - run.start) * size)


def _batched(jobs: Sequence[Job], runs: Iterator[Run] | list[Run]) -> Iterator[Task]:
    """Runs in groups of about ``TASK`` bytes."""
    task: Task = []
    nbytes = 0
    for run in runs:
        task.append(run)
        nbytes += (run.stop - run.start) * jobs[run.job].a.dtype.itemsize
        if nbytes >= TASK or len(task) >= MAX_RUNS:
            yield task
            task, nbytes = [], 0
    if task:
        yield task
